"""FaRL's losses against plain loops, its image tower against timm's, its dVAE and captions."""

import math
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from facessl.core.errors import CheckpointError, ConfigError, DataError
from facessl.core.types import Batch, Progress
from facessl.data.source import open_source
from facessl.methods.farl import FaRL, TextTower
from facessl.models.backbone import Backbone
from facessl.models.dvae import DVAEEncoder
from facessl.pretrained.load import load_backbone

SMALL: dict[str, Any] = {"dim": 16, "text_width": 16, "text_depth": 1, "text_heads": 2, "context": 12}
TEXT = ["a happy face", "a sad face with glasses", "an old face", "a face"]


def make(**values: Any) -> FaRL:
    torch.manual_seed(0)
    backbone = Backbone("test_vit", image_size=64)
    return FaRL(backbone, **{**SMALL, **values})


def batch(text: list[str] | None = TEXT) -> Batch:
    x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    return Batch(views=[x], params=[], index=torch.arange(4), keys=["a", "b", "c", "d"], text=text)


def loops(images: Tensor, texts: Tensor, log_scale: Tensor) -> Tensor:
    """Mean over pairs and directions of -log share of the own partner."""
    total = images.new_zeros(())
    for ours, theirs in ((images, texts), (texts, images)):
        for i, row in enumerate(ours):
            powers = [(log_scale.exp() * (row @ other) / (row.norm() * other.norm())).exp() for other in theirs]
            total = total - torch.log(powers[i] / sum(powers)) / (2 * len(ours))
    return total


def test_contrast_of_images_and_captions_equals_loops() -> None:
    method = make().double().eval()
    b = batch()
    b.views[0] = b.views[0].double()
    images, texts = method.image_projection(method.backbone(b.views[0])), method.text(TEXT)
    found = method.step(b, Progress(0, 10)).logs["image_text"]
    torch.testing.assert_close(found, loops(images, texts, method.log_scale).detach(), rtol=1e-5, atol=0)


def test_without_open_clip_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip.tokenizer", None)
    with pytest.raises(ConfigError, match=r"pip install 'facessl\[farl\]'"):
        make()


def test_captions_cut_to_the_longest_have_the_features_of_filled_up_ones() -> None:
    torch.manual_seed(0)
    tower = TextTower(width=32, depth=2, heads=2, context=77, out_features=16).double()
    texts = ["a happy face", "an old sad face with glasses and gray hair, partly covered", "x"]
    whole = tower.transformer(tower.tokenizer(texts))
    torch.testing.assert_close(tower(texts), whole, rtol=1e-12, atol=1e-12)
    endless = ["word " * 200, "a"]
    torch.testing.assert_close(tower(endless), tower.transformer(tower.tokenizer(endless)), rtol=1e-12, atol=1e-12)


def test_masked_modeling_equals_loops() -> None:
    method = make().double()
    x = batch().views[0].double()
    removed = method.removed(torch.rand(4, 16, generator=torch.Generator().manual_seed(2)))
    predicted = torch.randn(4, 16, method.backbone.num_features, dtype=torch.float64)
    features = method.target_backbone.model.forward_features(x)[:, 1:]  # type: ignore[union-attr]
    total, count = 0.0, 0
    for image in range(4):
        for patch in range(16):
            if not removed[image, patch]:
                continue
            for c in range(features.shape[2]):
                column = [features[image, t, c].item() for t in range(16)]
                mean = sum(column) / 16
                spread = math.sqrt(sum((v - mean) ** 2 for v in column) / 16 + 1e-6)
                total += (predicted[image, patch, c].item() - (column[patch] - mean) / spread) ** 2
                count += 1
    ours = method._masked_loss(x, predicted, removed)
    assert ours.item() == pytest.approx(total / count, rel=1e-9)


def test_clean_images_are_seen_as_the_exported_backbone_sees_them() -> None:
    method, b = make().eval(), batch()
    with torch.no_grad():
        pooled, hidden = method._encode(b.views[0], torch.zeros(4, 16, dtype=torch.bool))
        torch.testing.assert_close(pooled, method.backbone(b.views[0]), rtol=1e-5, atol=1e-5)
        whole = method.backbone.model.forward_features(b.views[0])
        torch.testing.assert_close(method.backbone.model.norm(hidden), whole, rtol=1e-5, atol=1e-5)


def test_hidden_patches_cannot_be_seen() -> None:
    method, x = make().eval(), batch().views[0]
    removed = torch.zeros(4, 16, dtype=torch.bool)
    removed[:, 5] = True  # second row, second column
    other = x.clone()
    other[:, :, 16:32, 16:32] = 9
    with torch.no_grad():
        (_, first), (_, second) = method._encode(x, removed), method._encode(other, removed)
    assert torch.equal(first, second)


@pytest.mark.parametrize("masking", ["random", "block"])
def test_masks_hide_as_many_patches_in_every_image(masking: str) -> None:
    method = make(masking=masking)
    noise = torch.rand(50, 16, generator=torch.Generator().manual_seed(3))
    removed = method.removed(noise)
    assert (removed.sum(1) == 6).all()  # 75 / 196 of 16
    assert torch.equal(method.removed(noise[7:9]), removed[7:9]), "an image's mask is its own"
    assert round(method.args.mask_ratio * 196) == 75


def test_temperature_starts_right_and_stays_above_a_hundredth() -> None:
    method = make()
    assert method.step(batch(), Progress(0, 10)).logs["temperature"].item() == pytest.approx(0.07)
    with torch.no_grad():
        method.log_scale.fill_(9.0)
    method.after_step(Progress(1, 10))
    assert (-method.log_scale).exp().item() == pytest.approx(0.01)


def test_tokens_of_the_dvae_are_predicted(tmp_path: Any) -> None:
    torch.manual_seed(3)
    encoder = DVAEEncoder(8, 32)
    state = {n.replace(".weight", ".w").replace(".bias", ".b"): v for n, v in encoder.state_dict().items()}
    assert state["blocks.group_2.block_1.id_path.w"].shape == (16, 8, 1, 1)
    assert state["blocks.group_4.block_2.res_path.conv_4.w"].shape == (64, 16, 1, 1)
    torch.save(state, tmp_path / "dvae.pth")
    method = make(dvae=str(tmp_path / "dvae.pth"), vocabulary=32)
    method.prepare(load_backbone)
    assert not any("tokens" in n or "target" in n for n in method.state_dict())
    x = batch().views[0]
    std, mean = torch.tensor(method.std).view(3, 1, 1), torch.tensor(method.mean).view(3, 1, 1)
    small = torch.nn.functional.interpolate(x * std + mean, (32, 32), mode="bilinear", antialias=True).clamp(0, 1)
    expected = encoder(small).argmax(1).flatten(1)  # (4, 16)
    removed = method.removed(method.noise(batch()))
    logits = torch.randn(4, 16, 32)
    ours = method._masked_loss(x, logits, removed)
    chosen = [-logits[i, t].log_softmax(0)[expected[i, t]] for i in range(4) for t in range(16) if removed[i, t]]
    torch.testing.assert_close(ours, torch.stack(chosen).mean())
    with pytest.raises(CheckpointError, match=r"64 tokens.*output\.conv"):
        make(dvae=str(tmp_path / "dvae.pth"), vocabulary=64).prepare(load_backbone)


def test_missing_captions_are_told() -> None:
    with pytest.raises(DataError, match="caption"):
        make().step(batch(None), Progress(0, 10))


def test_drawn_faces_have_captions_on_demand() -> None:
    source = open_source("synthetic:?n=40&size=32&captions=true")
    assert "text" in source.provides
    assert "text" not in open_source("synthetic:?n=4&size=32").provides
    samples = [source[i] for i in range(40)]
    for sample in samples:
        attributes = dict(zip(source.attribute_names, sample.attributes, strict=True))  # type: ignore[attr-defined]
        assert ("sunglasses" in sample.text) == bool(attributes["sunglasses"])
        assert ("a hat" in sample.text) == bool(attributes["hat"])
        assert ("happy" in sample.text) == (source.label_names[sample.label] == "happiness")  # type: ignore
    assert len({s.text for s in samples}) > 30, "few images share a sentence"
