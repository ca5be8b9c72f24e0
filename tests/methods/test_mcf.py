"""MCF against its terms in plain loops, its two masks, its target and its teachers."""

import math

import pytest
import timm
import torch

import facessl
from facessl.config import parse
from facessl.core import checkpoint
from facessl.core.errors import CheckpointError, ConfigError
from facessl.core.types import Batch, Progress
from facessl.methods.mcf import MCF, unit_mse
from facessl.models.backbone import Backbone
from facessl.models.layers.losses import info_nce
from facessl.models.layers.masking import encode_visible, random_mask
from facessl.models.teacher import Teacher
from facessl.pretrained.families.base import usual_heads
from facessl.pretrained.load import load_backbone

SMALL = {"hidden": 16, "dim": 8, "decoder_width": 16, "decoder_depth": 2, "decoder_heads": 2}
SMALL |= {"teacher": "timm:test_resnet?pretrained=false"}
VIT = {"patch_size": 8, "embed_dim": 24, "num_heads": 2}


def vit(depth=2, **options):
    return Backbone("vit_tiny_patch16_224", image_size=32, depth=depth, **VIT | options)


def model(**values):
    torch.manual_seed(0)
    mcf = MCF(vit(), **SMALL | values)
    mcf.prepare(load_backbone)
    return mcf


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return Batch([torch.randn(4, 3, 32, 32, generator=generator)], [], torch.arange(4))


@pytest.mark.parametrize("axis", [1, 2])
def test_feature_loss_against_plain_loops(axis):
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(2, 5, 3, generator=generator, dtype=torch.float64) for _ in range(2))

    def unit(f, b, t, c):
        line = [f[b, i, c] if axis == 1 else f[b, t, i] for i in range(5 if axis == 1 else 3)]
        return f[b, t, c].item() / math.sqrt(sum(v.item() ** 2 for v in line))

    errors = [(unit(ours, b, t, c) - unit(theirs, b, t, c)) ** 2 for b in range(2) for t in range(5) for c in range(3)]
    assert unit_mse(ours, theirs, axis).item() == pytest.approx(sum(errors) / len(errors), rel=1e-12)


@pytest.mark.fault("D4", "features had unit length over the channels, which has no source")
@pytest.mark.parametrize(("values", "axis"), [({}, 1), ({"variant": "official"}, 1), ({"variant": "channels"}, 2)])
def test_loss_is_the_weighted_sum_of_both_terms(batch, values, axis):
    """Features have unit length over the tokens (axis 1), as in the released code."""
    mcf = model(temperature=0.5, **values).eval()
    noises = mcf.noise(batch)
    mcf.noise = lambda _: noises
    step = mcf.step(batch, Progress(0, 1))
    x = batch.views[0]
    images = mcf.reconstruct(x, noises[0])[0]
    feature = sum(
        unit_mse(found, wanted, axis) for found, wanted in zip(mcf.teacher(images), mcf.teacher(x), strict=True)
    )
    online, target = (
        encode_visible(net.model, x, random_mask(noise, 0.75).keep)[:, 0]
        for net, noise in zip((mcf.backbone, mcf.target_backbone), noises, strict=True)
    )
    contrast = 2 * 0.5 * info_nce(mcf.predictor(mcf.projector(online)), mcf.target_projector(target), 0.5)
    torch.testing.assert_close(step.logs["feature_reconstruction"], feature.detach())
    torch.testing.assert_close(step.logs["contrastive"], contrast.detach())
    torch.testing.assert_close(step.loss, 1000 * feature + contrast)


@pytest.mark.parametrize("recipe", ["mcf/laionface", "mcf/vggface2"])
def test_recipes_move_the_target_as_far_as_the_release_in_its_micro_batches(recipe):
    run = parse.parse(["--config", recipe])
    assert run.method["momentum"] == pytest.approx(0.99**run.accumulate, abs=1e-4)
    assert run.method["variant"] == "official"


def test_target_sees_another_mask_and_has_a_constant_momentum(batch):
    assert not torch.equal(*model().noise(batch))
    assert [model().ema_momentum(Progress(step, 10)) for step in (0, 9)] == [0.99, 0.99]


def test_teacher_is_no_part_of_the_method_and_passes_gradients_to_the_pixels(batch):
    mcf = model()
    assert not any("teacher" in name for name in mcf.state_dict())
    x = batch.views[0].clone().requires_grad_()
    sum(f.square().sum() for f in mcf.teacher(x)).backward()
    assert x.grad.abs().sum() > 0
    mcf.step(batch, Progress(0, 1)).loss.backward()
    assert mcf.decoder.predict.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in mcf.teacher.backbone.parameters())


def teacher(spec):
    found = Teacher(str(spec), blocks=None, mean=MCF.mean, std=MCF.std)
    found.load(load_backbone, 32)
    return found


def moco_file(path, backbone):
    """A file as MoCo v3's pre-training writes it."""
    network = {**backbone.model.state_dict(), "head.0.weight": torch.zeros(4, 24)}
    tensors = {f"module.{name}.{n}": v for name in ("base_encoder", "momentum_encoder") for n, v in network.items()}
    tensors["module.predictor.0.weight"] = torch.zeros(4, 4)
    torch.save({"epoch": 300, "arch": "vit_base", "state_dict": tensors}, path)


def test_moco_v3_file_is_recognized_and_has_twelve_heads(tmp_path):
    backbone = vit(depth=4, embed_dim=48, num_heads=12)
    moco_file(tmp_path / "vit.pth.tar", backbone)
    x = torch.randn(2, 3, 32, 32)
    features = teacher(tmp_path / "vit.pth.tar")(x)
    every = backbone.eval().model.forward_intermediates(
        x, intermediates_only=True, return_prefix_tokens=True, output_fmt="NLC"
    )
    assert len(features) == 4
    for ours, (patches, prefix) in zip(features, every, strict=True):
        torch.testing.assert_close(ours, torch.cat([prefix, patches], 1))


@pytest.mark.parametrize("name", ["tiny_patch16", "small_patch16", "base_patch16", "large_patch16", "huge_patch14"])
def test_usual_heads_are_those_of_the_named_vits(name):
    with torch.device("meta"):
        model = timm.create_model(f"vit_{name}_224")
    assert usual_heads(model.embed_dim) == model.blocks[0].attn.num_heads


def test_own_export_is_a_teacher_at_another_size_with_its_own_normalization(tmp_path):
    backbone = Backbone("test_resnet", image_size=64, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)).eval()
    card = {"timm_name": "test_resnet", "image_size": 64, "mean": backbone.mean, "std": backbone.std}
    checkpoint.write_backbone(tmp_path / "backbone.safetensors", backbone.model.state_dict(), card)
    pixels = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MCF.mean, MCF.std))
    features = teacher(tmp_path)((pixels - mean) / std)
    expected = backbone.forward_pyramid((pixels - 0.5) / 0.25)
    for ours, theirs in zip(features, expected, strict=True):
        torch.testing.assert_close(ours, theirs.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-4)


def test_blocks_of_a_teacher_are_the_papers_where_there_are_twelve():
    def indices(backbone, blocks=None):
        return Teacher("x", blocks=blocks, mean=MCF.mean, std=MCF.std).indices(backbone)

    assert indices(vit(depth=12)) == [2, 5, 8, 11]
    assert indices(vit(depth=12), (0, 11)) == [0, 11]
    with pytest.raises(ConfigError, match=r"has 2 blocks or stages: give --method\.teacher-blocks from 0 to 1"):
        indices(vit())


def test_the_papers_teacher_that_is_not_here_is_told_where_it_is_published():
    wanted = r"vit-b-300ep\.pth\.tar does not exist: .*github\.com/facebookresearch.*--method\.teacher.*timm:NAME"
    with pytest.raises(CheckpointError, match=wanted):
        model(teacher=MCF.Args().teacher)


def pretrain_tiny(tmp_path, **method):
    return facessl.pretrain(
        "synthetic:?n=4&size=32",
        out=str(tmp_path / "run"),
        method={"name": "mcf", **SMALL, **method},
        backbone={"name": "vit_tiny_patch16_224", "options": {"depth": 1, **VIT}},
        **{"image_size": 32, "batch_size": 4, "max_steps": 1, "workers": 0, "monitor": {"every": 0}},
    )


def test_decoder_starts_from_a_file_that_opening_the_run_needs_no_more(tmp_path):
    path = tmp_path / "mae.pth"
    start = model().decoder.state_dict()
    torch.save({"model": {f"decoder_{n}": v for n, v in start.items()}}, path)
    mcf = model(decoder_checkpoint=str(path), pretrained_blocks=1)
    assert torch.equal(mcf.decoder.blocks[0].mlp.fc1.weight, start["blocks.0.mlp.fc1.weight"])
    pretrain_tiny(tmp_path, decoder_checkpoint=str(path), pretrained_blocks=1)
    path.unlink()
    assert facessl.load_method(tmp_path / "run").args.decoder_checkpoint is None


def test_run_without_its_teacher_stops_before_it_trains(tmp_path):
    with pytest.raises(CheckpointError, match=r"teacher nowhere\.pth"):
        pretrain_tiny(tmp_path, teacher="nowhere.pth")
    assert not (tmp_path / "run" / "metrics.csv").exists()
