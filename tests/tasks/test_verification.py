"""Verification: CosFace against loops, and scores from pairs."""

import math

import numpy as np
import pytest
import torch

from facessl.core.types import Batch, Progress
from facessl.models.backbone import Backbone
from facessl.tasks.base import Labels
from facessl.tasks.verification import Verification, VerificationMeter
from tests.tasks.faces import Faces


def test_loss_is_cosface() -> None:
    torch.manual_seed(0)
    task = Verification(Backbone("test_resnet", image_size=32), Labels(identities=3), dim=5, margin=0.3, scale=16.0)
    task = task.double().eval()
    who = [2, 0, 2]
    views = [torch.randn(3, 3, 32, 32, dtype=torch.float64)]
    batch = Batch(views=views, params=[], index=torch.arange(3), identity=torch.tensor(who))
    total = 0.0
    for i, person in enumerate(who):
        z = task.head(task.backbone(views[0][i : i + 1]))[0]
        cosines = [float(z @ c / (z.norm() * c.norm())) for c in task.centers.weight]
        own = math.exp(16 * (cosines[person] - 0.3))
        rest = sum(math.exp(16 * c) for k, c in enumerate(cosines) if k != person)
        total -= math.log(own / (own + rest)) / 3
    found = task.step(batch, Progress(step=0, total_steps=1))
    assert found.loss.item() == pytest.approx(total, rel=1e-5)


def test_embedding_does_not_depend_on_the_side() -> None:
    torch.manual_seed(0)
    task = Verification(Backbone("test_resnet", image_size=32), Labels(identities=3), dim=0).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        one, other = (task.predict(v)["embeddings"] for v in (x, x.flip(3)))
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(one.norm(dim=1), torch.ones(2))


def test_pairs_of_images_that_were_not_read_are_left_out() -> None:
    source = Faces(n=30, size=32, identities=6)
    who = source.column("identity")
    embeddings = torch.eye(6)[torch.from_numpy(who)] + 0.01 * torch.randn(30, 6)
    meter = VerificationMeter(source)
    read = np.array([i for i in range(30) if i != int(source.pairs[0, 0])])
    for rows in (read[15:], read[:15]):  # in any order
        index = torch.from_numpy(rows)
        meter.add({"embeddings": embeddings[rows]}, Batch(views=[], params=[], index=index))
    found = meter.result()
    gone = int((source.pairs == source.pairs[0, 0]).any(1).sum())
    assert found["pairs_left_out"] == gone > 0
    assert found["roc_auc"] == 1.0, "persons stand apart, so every pair is told"
