"""The released LEWEL-B, run on formula-made weights and inputs, against ours: every array and loss term."""

import pytest
import torch

from facessl.core.types import Batch, Progress
from facessl.pretrained.families import lewel as released
from tests.helpers import PLACES
from tests.methods.golden import assert_relative, marks, read, released_file, view

NAME = "lewel_official_resnet18"
pytestmark = marks(NAME)
SIZE, COUNT = 96, 4  # of the golden vectors' README


@pytest.fixture(scope="module", params=PLACES, ids=str)
def run(request):
    """Model, its outputs on view 1 and its step on both views."""
    info, arrays = read(NAME)
    model = released.build(released_file(info["names"]))
    model.to(*request.param).eval()
    views = [view(k, COUNT, SIZE).to(*request.param) for k in (1, 2)]
    features, pooled = model.backbone.forward_both(views[0])
    z, maps = model.heads.project(features, pooled)
    outputs = {"z": z, "heat": maps, "region": model.heads.aligned(features, maps).transpose(1, 2)}
    step = model.step(Batch(views=views, params=[], index=torch.arange(COUNT)), Progress(0, 1))
    return outputs, step, arrays


def test_arrays(run):
    outputs, _, arrays = run
    assert_relative(outputs["z"], arrays["z"])
    assert_relative(outputs["heat"][:, :, :8], arrays["heat"])
    assert_relative(outputs["region"][..., :16], arrays["region"])


def test_loss_and_terms(run):
    _, step, arrays = run
    assert_relative(0.5 * step.logs["global_consistency"], arrays["loss_inst"])
    assert_relative(0.5 * step.logs["aligned_consistency"], arrays["loss_obj"])
    assert_relative(step.loss, arrays["loss"])
