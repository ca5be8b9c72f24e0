"""The released MCF, run on formula-made weights and inputs, against ours: every array and loss term."""

import re

import pytest
import torch

from facessl.core import checkpoint
from facessl.core.types import Batch, Progress
from facessl.methods.mcf import MCF
from facessl.models.backbone import Backbone
from facessl.models.layers.masking import encode_visible, random_mask
from facessl.pretrained.load import load_backbone
from tests.helpers import PLACES
from tests.methods.golden import assert_relative, filled, marks, read, view

NAME = "mcf_official"
pytestmark = marks(NAME)
TEACHER = "perceptual_loss.model."
#: Names in the released code and in ours.
RENAMED = (
    (r"^(online|target)_encoder\.fc\.(.+)", lambda m: f"{side(m)}projector.{m[2]}"),
    (r"^(online|target)_encoder\.(.+)", lambda m: f"{side(m)}backbone.model.{m[2]}"),
    (r"^mask_token$", lambda m: "decoder.mask_token"),
    (r"^decoder_pred\.(.+)", lambda m: f"decoder.predict.{m[1]}"),
    (r"^decoder_(embed|blocks|norm)\.(.+)", lambda m: f"decoder.{m[1]}.{m[2]}"),
)


def side(match: re.Match[str]) -> str:
    return "" if match[1] == "online" else "target_"


def renamed(name: str) -> str:
    for pattern, ours in RENAMED:
        if match := re.match(pattern, name):
            return ours(match)
    return name


def vit(width: int, depth: int) -> Backbone:
    return Backbone("vit_base_patch16_224", embed_dim=width, depth=depth, num_heads=4)


@pytest.fixture(scope="module")
def golden():
    return read(NAME)


@pytest.fixture(scope="module")
def teacher(golden, tmp_path_factory):
    """The stand-in teacher as an export of this library."""
    path = tmp_path_factory.mktemp("teacher") / "backbone.safetensors"
    named = {name.removeprefix(TEACHER): shape for name, shape in golden[0]["teacher"].items()}
    tensors = {n: filled(f"teacher.{n}", shape) for n, shape in named.items() if not n.startswith("head.")}
    card = {
        "timm_name": "vit_base_patch16_224",
        "timm_options": {"embed_dim": 64, "depth": 12, "num_heads": 4},
        "image_size": 224,
        "mean": MCF.mean,
        "std": MCF.std,
    }
    checkpoint.write_backbone(path, tensors, card)
    return str(path)


@pytest.fixture(scope="module", params=PLACES, ids=str)
def run(request, golden, teacher):
    """Model in evaluation mode, its input and its step."""
    info, arrays = golden
    decoder = {"decoder_width": 64, "decoder_depth": 2, "decoder_heads": 4}
    model = MCF(vit(96, 3), variant="official", teacher=teacher, **decoder)
    state = {renamed(n): filled(n, shape) for n, shape, *fixed in info["names"] if not fixed}
    missing, unknown = model.load_state_dict(state, strict=False)
    assert set(missing) == {"backbone.model.pos_embed", "target_backbone.model.pos_embed"}
    assert not unknown
    model.prepare(load_backbone)
    model.to(*request.param).eval()
    noises = [torch.from_numpy(arrays[f"noise{i}"]).to(request.param[0]) for i in (0, 1)]
    model.noise = lambda batch: noises
    x = view(1, len(noises[0]), 224).to(*request.param)
    model.after_step(Progress(0, 1))  # the released code moves its target before it is used
    return model, x, model.step(Batch(views=[x], params=[], index=torch.arange(len(x))), Progress(0, 1))


def test_masked_encoder_and_decoder(run, golden):
    model, x, _ = run
    arrays = golden[1]
    mask = random_mask(torch.from_numpy(arrays["noise0"]).to(x.device), 0.75)
    latent = encode_visible(model.backbone.model, x, mask.keep)
    assert_relative(latent, arrays["latent"])
    assert_relative(mask.removed.float(), arrays["mask"])
    assert_relative(model.decoder(latent, mask.restore)[:, ::8, ::16], arrays["pred"])


def test_whole_image(run, golden):
    model, x, _ = run
    assert_relative(model.backbone(x), golden[1]["full_cls"])
    assert_relative(model.backbone.forward_features(x).mean((2, 3)), golden[1]["full_mean"])


def test_loss_and_terms(run, golden):
    _, _, step = run
    assert_relative(step.logs["contrastive"], golden[1]["contrastive"])
    assert_relative(step.logs["feature_reconstruction"], golden[1]["feature"])
    assert_relative(step.loss, golden[1]["loss"])
