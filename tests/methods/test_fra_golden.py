"""The released FRA, run on formula-made weights and inputs, against ours: every array, loss term and gradient norm."""

import pytest
import torch

from facessl.core.types import Batch, Progress
from facessl.pretrained.families import fra as released
from tests.helpers import PLACES
from tests.methods.golden import assert_relative, marks, read, released_file, view

NAME = "fra_official_resnet18"
pytestmark = marks(NAME)


@pytest.fixture(scope="module")
def golden():
    return read(NAME)


@pytest.fixture(scope="module")
def checkpoint(golden):
    return released_file(golden[0]["names"])


@pytest.fixture(scope="module", params=PLACES, ids=str)
def run(request, golden, checkpoint):
    """Model, its outputs on view 1 and its step on both views, with gradients."""
    info, _ = golden
    model = released.build(checkpoint)
    model.to(*request.param).eval()
    views = [view(k, info["bs"], info["size"]).to(*request.param) for k in (1, 2)]
    features, pooled = model.backbone.forward_both(views[0])
    outputs = {"pooled": pooled, **model.heads(features, pooled)}
    step = model.step(Batch(views=views, params=[], index=torch.arange(info["bs"])), Progress(0, 1))
    step.loss.backward()
    return model, outputs, step


def test_arrays(run, golden):
    model, outputs, _ = run
    _, arrays = golden

    def as_map(s):
        assert s.shape[1:3] == (3, 3)
        return s.permute(0, 3, 1, 2)  # (B, h, w, N) -> (B, N, h, w)

    assert_relative(outputs["pooled"], arrays["pooled"])
    assert_relative(outputs["z"], arrays["z"])
    assert_relative(as_map(outputs["similarity"]), arrays["dots"])
    assert_relative(as_map(model.heads.heatmaps(outputs["similarity"])), arrays["heatmaps"])
    assert_relative(outputs["regions"].transpose(1, 2), arrays["region"])


def test_loss_and_terms(run, golden):
    _, _, step = run
    _, arrays = golden
    logs, half = step.logs, 0.5
    instance = half * logs["global_consistency"]
    objects = half * (logs["local_consistency"] + 0.02 * logs["decorrelation"])
    clusters = logs["semantic_relation"] + logs["me_max"]
    assert_relative(instance, arrays["loss_inst"])
    assert_relative(objects, arrays["loss_obj"])
    assert_relative(clusters, arrays["loss_clu"])
    assert_relative(instance + objects, arrays["loss_base"])
    assert_relative(step.loss, arrays["loss"])


def test_gradient_norms(run, golden):
    model, _, _ = run
    parameters = dict(model.named_parameters())
    theirs = golden[0]["grad_norms"]
    begin = "module." if next(iter(theirs)).startswith("module.") else ""
    name_of = {begin + released.rename(ours): ours for ours in parameters}
    # In float32 the last bias's gradient (7e-7) is what remains of sums a thousand times larger.
    floor = 3e-10 if next(model.parameters()).dtype == torch.float32 else 0.0
    for name, norm in theirs.items():
        assert parameters[name_of[name]].grad.norm().item() == pytest.approx(norm, rel=1e-4, abs=floor), name
