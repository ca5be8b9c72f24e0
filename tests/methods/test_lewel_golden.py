"""The released LEWEL-B, run on formula-made weights and inputs, against ours: every array and loss term."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from facessl.core.types import Batch, Progress
from facessl.methods.lewel import LEWEL
from facessl.models.backbone import Backbone
from tests.helpers import PLACES
from tests.methods.test_fra_golden import assert_relative, filled

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden" / "lewel_official_resnet18"
pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not GOLDEN.with_suffix(".npz").exists(), reason=f"{GOLDEN}.npz is not here"),
]
#: Released name -> ours, by their beginnings.
RENAMED = {
    "module.online_net.backbone.": "backbone.model.",
    "module.target_net.backbone.": "target_backbone.model.",
    "module.online_net.neck.proj.mlp.": "heads.projector.layers.",
    "module.online_net.neck.proj_obj.mlp.": "heads.slot_projector.layers.",
    "module.target_net.neck.proj.mlp.": "target_heads.projector.layers.",
    "module.target_net.neck.proj_obj.mlp.": "target_heads.slot_projector.layers.",
    "module.predictor.mlp.": "predictor.layers.",
    "module.predictor_obj.mlp.": "slot_predictor.layers.",
}
SIZE, COUNT = 96, 4  # of the golden vectors' README


@pytest.fixture(scope="module", params=PLACES, ids=str)
def run(request):
    """Model, its outputs on view 1 and its step on both views."""
    state = {}
    for name, shape in json.loads(GOLDEN.with_suffix(".json").read_text())["names"]:
        begin = next((b for b in RENAMED if name.startswith(b)), None)
        if begin is None:  # the zero center and FRA's second copy of the online backbone
            assert name == "module.center" or name.startswith("module.encoder_q.")
            continue
        value = filled(name, shape)
        # A 1x1 convolution is a linear layer here.
        state[RENAMED[begin] + name.removeprefix(begin)] = value.flatten(1) if value.ndim == 3 else value
    model = LEWEL(Backbone("resnet18", image_size=SIZE), hidden=512)
    model.load_state_dict(state)
    model.to(*request.param).eval()
    shape = (COUNT, 3, SIZE, SIZE)
    views = [torch.from_numpy(np.random.RandomState(k).standard_normal(shape).astype(np.float32)) for k in (1, 2)]
    views = [v.to(*request.param) for v in views]
    features, pooled = model.backbone.forward_both(views[0])
    z, maps = model.heads.project(features, pooled)
    outputs = {"z": z, "heat": maps, "region": model.heads.aligned(features, maps).transpose(1, 2)}
    step = model.step(Batch(views=views, params=[], index=torch.arange(COUNT)), Progress(0, 1))
    return outputs, step, dict(np.load(GOLDEN.with_suffix(".npz")))


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
