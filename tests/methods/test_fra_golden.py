"""The released FRA, run on formula-made weights and inputs, against ours: every array, loss term and gradient norm."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from facessl.core.errors import CheckpointError
from facessl.core.types import Batch, Progress
from facessl.methods.fra import FRA
from facessl.pretrained.families import fra as released
from facessl.pretrained.load import load_backbone, load_method
from tests.helpers import PLACES

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden" / "fra_official_resnet18"
pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not GOLDEN.with_suffix(".npz").exists(), reason=f"{GOLDEN}.npz is not here"),
]


def filled(name: str, shape: list[int]) -> torch.Tensor:
    """The filler of the golden vectors' README."""
    random = np.random.RandomState(zlib.crc32(name.encode()) & 0xFFFFFFFF)
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if name.endswith("running_var"):
        value = 0.5 + random.random_sample(shape)
    else:
        value = random.standard_normal(shape)
        if name.endswith("running_mean"):
            value = 0.1 * value
        elif len(shape) < 2:
            value = float(name.endswith("weight")) + 0.1 * value
        else:
            value = value * np.sqrt(1 / np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


@pytest.fixture(scope="module")
def golden():
    return json.loads(GOLDEN.with_suffix(".json").read_text()), dict(np.load(GOLDEN.with_suffix(".npz")))


@pytest.fixture(scope="module")
def checkpoint(golden):
    state = {}
    for name, shape in golden[0]["names"]:
        if name == "module.center":
            state[name] = torch.zeros(shape)
        else:
            state[name] = filled(name.replace("module.encoder_q.", "module.online_net.backbone."), shape)
    return {"state_dict": state, "epoch": 50}


@pytest.fixture(scope="module", params=PLACES, ids=str)
def run(request, golden, checkpoint):
    """Model, its outputs on view 1 and its step on both views, with gradients."""
    info, _ = golden
    model = released.build(checkpoint)
    model.to(*request.param).eval()
    shape = (info["bs"], 3, info["size"], info["size"])
    views = [torch.from_numpy(np.random.RandomState(k).standard_normal(shape).astype(np.float32)) for k in (1, 2)]
    views = [v.to(*request.param) for v in views]
    features, pooled = model.backbone.forward_both(views[0])
    outputs = {"pooled": pooled, **model.heads(features, pooled)}
    step = model.step(Batch(views=views, params=[], index=torch.arange(info["bs"])), Progress(0, 1))
    step.loss.backward()
    return model, outputs, step


def assert_relative(ours: torch.Tensor, theirs: np.ndarray) -> None:
    theirs = torch.from_numpy(np.asarray(theirs)).double()
    assert ours.shape == theirs.shape
    assert (ours.detach().double().cpu() - theirs).norm() <= 1e-4 * theirs.norm()
    torch.testing.assert_close(ours.detach().double().cpu(), theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())


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
    name_of = {begin + released.theirs(ours): ours for ours in parameters}
    # In float32 the last bias's gradient (7e-7) is what remains of sums a thousand times larger.
    floor = 3e-10 if next(model.parameters()).dtype == torch.float32 else 0.0
    for name, norm in theirs.items():
        assert parameters[name_of[name]].grad.norm().item() == pytest.approx(norm, rel=1e-4, abs=floor), name


def test_file_is_recognised(checkpoint, tmp_path):
    path = tmp_path / "fra.pth.tar"
    torch.save(checkpoint, path)
    method = load_method(path)
    assert method.args.variant == "official"
    own = load_backbone(path).model.state_dict()
    assert all(torch.equal(own[name], value) for name, value in method.backbone.model.state_dict().items())


def test_unknown_tensor_is_named(checkpoint):
    state = checkpoint["state_dict"] | {"module.online_net.neck.extra.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"online_net\.neck\.extra\.weight"):
        released.build({"state_dict": state})


def test_missing_tensor_is_named(checkpoint):
    state = {k: v for k, v in checkpoint["state_dict"].items() if "online_net.neck.proto" not in k}
    with pytest.raises(CheckpointError, match=r"1 tensors.*missing: online_net\.neck\.proto"):
        released.build({"state_dict": state})


def test_backbone_alone(checkpoint, golden):
    assert released.matches(checkpoint)
    assert not released.matches({"state_dict": {"conv1.weight": torch.zeros(1)}})
    backbone = released.build_backbone(checkpoint)
    assert (backbone.name, backbone.mean) == ("resnet18", FRA.mean)
    shape = (golden[0]["bs"], 3, golden[0]["size"], golden[0]["size"])
    x = torch.from_numpy(np.random.RandomState(1).standard_normal(shape).astype(np.float32))
    assert_relative(backbone.eval()(x), golden[1]["pooled"])
