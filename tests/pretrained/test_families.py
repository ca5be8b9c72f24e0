"""Checkpoints of every family: recognized, read to the last tensor, or refused with the tensors named."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

import facessl
from facessl.cli import main
from facessl.core import plugins
from facessl.core.errors import CheckpointError, ConfigError, UnknownName
from facessl.models.layers.positions import sincos_positions
from facessl.pretrained.convert import convert
from facessl.pretrained.load import family_of
from tests import released
from tests.helpers import TINY

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
VGGFACE2 = ((0.5231, 0.4044, 0.3489), (0.2536, 0.2194, 0.2070))
#: Layout -> outer key, timm's name, (image size, width), normalization, some of timm's names and the authors'.
FAMILIES = {
    "fra": ("state_dict", "resnet18", (224, 512), VGGFACE2, {"layer2.0.bn1.bias": "online_net.backbone."}),
    "lewel": ("state_dict", "resnet18", (224, 512), IMAGENET, {"conv1.weight": "online_net.backbone."}),
    "mcf": ("model", "vit_base_patch16_224", (32, 64), IMAGENET, {"blocks.1.mlp.fc1.bias": "online_encoder."}),
    "farl": (
        "state_dict",
        "vit_base_patch16_clip_quickgelu_224",
        (32, 64),
        CLIP,
        {
            "cls_token": "visual.class_embedding",
            "norm.weight": "visual.ln_post.weight",
            "norm_pre.weight": "visual.ln_pre.weight",
            "blocks.0.attn.qkv.weight": "visual.transformer.resblocks.0.attn.in_proj_weight",
            "blocks.0.mlp.fc2.bias": "visual.transformer.resblocks.0.mlp.c_proj.bias",
        },
    ),
    "bulat": ("state_dict", "resnet18", (224, 512), (IMAGENET[0], (0.228, 0.224, 0.225)), {"bn1.bias": "base_net."}),
    "pcl": ("state_dict", "pcl_facecycle", (64, 128), ((0, 0, 0), (1, 1, 1)), {"layer1.2.phi.bias": "encoder."}),
    "mocov3 vit": ("state_dict", "vit_base_patch16_224", (32, 48), IMAGENET, {"norm.bias": "base_encoder."}),
    "mocov3 resnet": ("state_dict", "resnet18", (224, 512), IMAGENET, {"layer4.1.bn2.weight": "base_encoder."}),
    "torchvision": (None, "resnet18", (224, 512), IMAGENET, {"layer3.0.downsample.0.weight": ""}),
    "timm": ("model", "vit_base_patch16_224", (32, 64), IMAGENET, {"pos_embed": ""}),
}
#: A tensor of the backbone, and one of heads or targets where the family's are compared as well.
DAMAGED = {
    "fra": ("online_net.backbone.layer3.0.conv1.weight", "online_net.neck.proj_attn.transformer.decoder.norm.weight"),
    "lewel": ("online_net.backbone.bn1.weight", "target_net.neck.proj_obj.mlp.1.bias"),
    "mcf": ("online_encoder.blocks.1.attn.qkv.weight", "decoder_blocks.0.mlp.fc1.bias"),
    "farl": ("visual.transformer.resblocks.0.ln_1.weight", "visual.positional_embedding"),
    "bulat": ("base_net.layer4.1.conv2.weight",),
    "pcl": ("encoder.resblock2.conv1.weight", "decoder.model.7.weight"),
    "mocov3 vit": ("base_encoder.norm.weight", "momentum_encoder.blocks.0.norm1.bias"),
    "mocov3 resnet": ("base_encoder.layer1.0.conv1.weight",),
    "torchvision": ("layer2.1.bn2.running_var",),
    "timm": ("blocks.0.attn.qkv.weight", "pos_embed", "patch_embed.proj.weight", "blocks.1.mlp.fc1.bias"),
}


def write(path: Path, tensors: dict[str, Tensor], outer: str | None) -> Path:
    """A file as DistributedDataParallel leaves it, or bare."""
    state = {f"module.{n}": v for n, v in tensors.items()} if outer == "state_dict" else tensors
    torch.save({"epoch": 7, "arch": "x", outer: state} if outer else state, path)
    return path


@pytest.fixture(params=FAMILIES)
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_is_recognized_and_read_whole(layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outer, name, sizes, normalization, pairs = FAMILIES[layout]
    tensors = released.filled(released.MADE[layout]())
    path = write(tmp_path / "authors.pth", tensors, outer)
    backbone = facessl.load_backbone(path)
    family = plugins.module("pretrained.families", layout.split()[0])
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert all(word in said for word in ("authors.pth", family.FAMILY, name))
    assert backbone.name == name
    assert (backbone.image_size, backbone.num_features) == sizes
    assert (backbone.mean, backbone.std) == normalization
    assert [
        n
        for n in plugins.names("pretrained.families")
        if plugins.module("pretrained.families", n).matches({"state_dict": tensors})
    ] == [layout.split()[0]]
    own = backbone.model.state_dict()
    assert not any(own[n].ne(own[n].flatten()[0]).any() for n in own), "each tensor is one of the file's"
    for ours, theirs in pairs.items():
        value = tensors[theirs + ours if theirs.endswith(".") or not theirs else theirs]
        assert own[ours].flatten()[0] == value.flatten()[0], ours
    assert len({float(v.flatten()[0]) for n, v in own.items() if not n.endswith("tracked")}) == sum(
        not n.endswith("tracked") for n in own
    ), "and none is read twice"


@pytest.mark.parametrize("damage", ["renamed", "missing", "resized"])
def test_a_damaged_tensor_is_named(layout: str, damage: str, tmp_path: Path) -> None:
    outer = FAMILIES[layout][0]
    for key in DAMAGED[layout]:
        tensors = released.filled(released.MADE[layout]())
        value = tensors.pop(key)
        if damage == "renamed":
            tensors[key + "_new"] = value
        if damage == "resized":
            tensors[key] = torch.ones(value.shape[0] + 1, *value.shape[1:])
        with pytest.raises(CheckpointError) as caught:
            facessl.load_backbone(write(tmp_path / "authors.pth", tensors, outer))
        told = str(caught.value)
        assert key in told or (layout, damage, key) == ("timm", "resized", "patch_embed.proj.weight")
        assert "\n" not in told
        assert told.startswith(str(tmp_path / "authors.pth"))
        assert ("--name" in told) == (layout in ("timm", "torchvision")), "what can be done about it"


@pytest.mark.parametrize("layout", released.METHODS)
def test_the_whole_method_is_read(layout: str, tmp_path: Path) -> None:
    tensors = released.filled(released.MADE[layout]())
    method = facessl.load_method(write(tmp_path / "authors.pth", tensors, FAMILIES[layout][0]))
    assert type(method).__name__.lower() == layout
    own = {n: v for n, v in method.state_dict().items() if not n.startswith("balance.")}  # type: ignore[attr-defined]
    assert len(own) == len(
        [n for n in tensors if not n.startswith(("encoder_q.", "center", "perceptual", "decoder_pos"))]
    )
    read = [v.flatten()[0].item() for n, v in own.items() if not n.endswith("tracked")]
    assert len(set(read)) == len(read), "no tensor is read twice"
    for name, value in own.items():
        ((ours, theirs),) = [pair for pair in released.METHODS[layout].items() if name.startswith(pair[0])]
        assert value.flatten()[0] == tensors[theirs + name.removeprefix(ours)].flatten()[0], name


def test_heads_cannot_be_had_where_none_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "r50.pth", released.filled(released.bulat()), "state_dict")
    with pytest.raises(CheckpointError, match=r"Bulat.*load_backbone"):
        facessl.load_method(path)


def test_a_second_copy_must_be_one(tmp_path: Path) -> None:
    tensors = released.filled(released.fra())
    tensors["encoder_q.bn1.bias"] = torch.zeros(64)
    with pytest.raises(CheckpointError, match=r"encoder_q\.bn1\.bias"):
        facessl.load_backbone(write(tmp_path / "fra.pth", tensors, "state_dict"))


def test_lewel_trained_by_fras_code_has_its_normalization(tmp_path: Path) -> None:
    tensors = released.filled({"center": (1, 8), **released.lewel(), **released.resnet("encoder_q.")})
    backbone = facessl.load_backbone(write(tmp_path / "lewel.pth", tensors, "state_dict"))
    assert (backbone.mean, backbone.std) == VGGFACE2


def test_clip_tower_computes_what_clip_does(tmp_path: Path) -> None:
    """Against the implementation of open_clip, activation included."""
    from open_clip.transformer import QuickGELU, VisionTransformer

    torch.manual_seed(0)
    theirs = VisionTransformer(32, 8, 128, 2, 2, 4.0, output_dim=16, act_layer=QuickGELU).eval()
    tensors = {f"visual.{n}": v for n, v in theirs.state_dict().items()}
    path = tmp_path / "clip.pt"
    torch.save({"state_dict": tensors}, path)
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        ours = facessl.load_backbone(path)(x) @ theirs.proj
        torch.testing.assert_close(ours, theirs(x), rtol=1e-4, atol=1e-5)


def test_a_resnet_computes_what_torchvisions_does(tmp_path: Path) -> None:
    import torchvision

    torch.manual_seed(0)
    theirs = torchvision.models.resnet18()
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    x = torch.randn(2, 3, 64, 64)
    theirs.fc = torch.nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(facessl.load_backbone(tmp_path / "resnet18.pth")(x), theirs.eval()(x))


def test_convert_writes_what_load_backbone_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "farl.pth", released.filled(released.farl()), "state_dict")
    out = tmp_path / "product.safetensors"
    assert main(["convert", str(path), "--out", str(out)]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["method"] == {"name": "farl", "authors": "FaRL"}
    first, second = facessl.load_backbone(path), facessl.load_backbone(out)
    assert (second.name, second.image_size, second.mean, second.std) == (
        "vit_base_patch16_clip_quickgelu_224",
        32,
        *CLIP,
    )
    assert all(torch.equal(v, second.model.state_dict()[n]) for n, v in first.model.state_dict().items())
    card = json.loads(out.with_suffix(".json").read_text())
    assert card["source"] == "authors' checkpoint farl.pth"
    assert main(["convert", str(path), "--out", str(out)]) == 2
    assert "not overwritten" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"not a \.safetensors"):
        convert(path, tmp_path / "product.pth")


def test_convert_takes_runs(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["pretrain", *TINY, "--max-steps", "2", "--out", str(run)]) == 0
    own = json.loads((run / "backbone.json").read_text())
    assert convert(run, tmp_path / "a.safetensors") == own
    card = convert(run / "checkpoints" / "last.ckpt", tmp_path / "b.safetensors")
    assert {k: card[k] for k in card if k != "commit"} == {k: own[k] for k in own if k != "commit"}
    first, second = (facessl.load_backbone(tmp_path / f"{n}.safetensors").model.state_dict() for n in "ab")
    assert all(torch.equal(first[n], second[n]) for n in first)


def test_safetensors_of_others_are_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({n: v.clone() for n, v in released.filled(released.timm_vit()).items()}, tmp_path / "model.safetensors")
    assert facessl.load_backbone(tmp_path / "model.safetensors").num_features == 64


def test_unknown_names_are_told_with_the_families() -> None:
    with pytest.raises(CheckpointError, match=r"no known kind.*bulat.*mocov3"):
        family_of(Path("x.pth"), {"weight": torch.zeros(1)})


def vit_file(path: Path, name: str = "vit_small_patch16_224", **options: Any) -> Any:
    """A timm ViT of two blocks at 32 px, saved as timm does."""
    torch.manual_seed(0)
    model = timm.create_model(name, **{"img_size": 32, "depth": 2, **options}).eval()
    torch.save(model.state_dict(), path)
    return model


def embedding(model: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.forward_head(model.forward_features(x), pre_logits=True)
    return found


def test_heads_and_normalization_are_said_to_be_guessed_and_can_be_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, x = tmp_path / "vit.pth", torch.randn(2, 3, 32, 32)
    wanted = embedding(vit_file(path, num_heads=12), x)
    assert not torch.allclose(facessl.load_backbone(path)(x), wanted)
    said = capsys.readouterr().err
    assert "guessed: attention heads: 6 (one for every 64 channels), ImageNet's mean and std" in said
    assert f"convert {path} --heads N --mean '[R, G, B]' --std '[R, G, B]'" in said
    out = tmp_path / "b.safetensors"
    flags = ["--heads", "12", "--mean", "[0.5, 0.5, 0.5]", "--std=[0.25, 0.25, 0.25]"]
    assert main(["convert", str(path), *flags, "--out", str(out)]) == 0
    told = capsys.readouterr()
    assert "guessed" not in told.err
    assert json.loads(told.out.splitlines()[-1])["guessed"] == []
    backbone = facessl.load_backbone(out)
    torch.testing.assert_close(backbone(x), wanted)
    assert (backbone.mean, backbone.std) == ((0.5,) * 3, (0.25,) * 3)
    with pytest.raises(ConfigError, match="leave out heads"):
        facessl.load_backbone(out, heads=6)
    with pytest.raises(ConfigError, match="heads = 7 do not divide the 384 channels"):
        facessl.load_backbone(path, heads=7)


@pytest.mark.parametrize("told_by", ["arch", "positions", "nothing"])
def test_a_bare_vit_of_moco_v3_has_its_twelve_heads(
    told_by: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, x = tmp_path / "vit.pth", torch.randn(2, 3, 32, 32)
    model = vit_file(path, num_heads=12, patch_size=8)
    if told_by == "positions":  # as the authors make it: the first half of the channels for the row
        omega = 10000 ** -(torch.arange(96) / 96)
        for row in range(4):
            for column in range(4):
                parts = [f(place * omega) for place in (row, column) for f in (torch.sin, torch.cos)]
                model.pos_embed.data[0, 1 + 4 * row + column] = torch.cat(parts)
        model.pos_embed.data[0, 0] = 0
    tensors = model.state_dict()
    linear_probe = {"arch": "vit_small", "state_dict": {f"module.{n}": v for n, v in tensors.items()}}
    torch.save(linear_probe if told_by == "arch" else tensors, path)
    found = facessl.load_backbone(path)
    said = capsys.readouterr().err
    assert ("MoCo v3" in said, "guessed" in said) == ((False, True) if told_by == "nothing" else (True, False))
    assert torch.allclose(found(x), embedding(model, x), atol=1e-5) == (told_by != "nothing")


def test_the_table_of_mae_is_not_taken_for_that_of_moco_v3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = vit_file(tmp_path / "vit.pth", patch_size=8)
    model.pos_embed.data[0, 1:] = sincos_positions(4, 4, 384)
    model.pos_embed.data[0, 0] = 0
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    facessl.load_backbone(tmp_path / "vit.pth")
    assert "attention heads: 6" in capsys.readouterr().err


def test_width_of_the_mlps_is_read_from_the_shapes(tmp_path: Path) -> None:
    for hidden in (192, 100, 131):
        model = vit_file(tmp_path / "vit.pth", "vit_tiny_patch16_224", mlp_ratio=(hidden + 0.5) / 192)
        x = torch.randn(1, 3, 32, 32)
        torch.testing.assert_close(facessl.load_backbone(tmp_path / "vit.pth")(x), embedding(model, x))


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_plain_vits_have_their_own_name(size: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        state = timm.create_model(f"vit_{size}_patch16_224").state_dict()
    torch.save({n: torch.ones(()).expand(v.shape) for n, v in state.items()}, tmp_path / "vit.pth")
    card = convert(tmp_path / "vit.pth", tmp_path / "b.safetensors")
    assert (card["timm_name"], card["timm_options"]) == (f"vit_{size}_patch16_224", {})
    assert card["guessed"] == ["heads", "mean", "std"]


@pytest.mark.parametrize("name", ["convnext_atto", "mobilenetv3_small_050", "resnet10t", "test_vit"])
def test_weights_of_any_timm_model_are_read_by_its_name(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5).eval()
    path, out = tmp_path / "w.pth", tmp_path / "b.safetensors"
    torch.save({"arch": name, "state_dict": model.state_dict()}, path)
    if name != "test_vit":  # whose shapes tell all but its heads
        with pytest.raises(CheckpointError, match=f"w.pth --name {name}`"):
            facessl.load_backbone(path)
    assert main(["convert", str(path), "--name", name, "--out", str(out)]) == 0
    backbone = facessl.load_backbone(out)
    x = torch.randn(2, 3, backbone.image_size, backbone.image_size)
    torch.testing.assert_close(backbone(x), embedding(model, x))
    assert (backbone.mean, backbone.std) == (model.pretrained_cfg["mean"], model.pretrained_cfg["std"])
    tensors = model.state_dict()
    key = next(n for n in tensors if n.endswith("weight"))
    tensors[key + "_new"] = tensors.pop(key)
    torch.save(tensors, path)
    with pytest.raises(CheckpointError, match=f"{key}.*{key}_new"):
        facessl.load_backbone(path, name=name)


def test_a_timm_name_that_there_is_not(tmp_path: Path) -> None:
    path = write(tmp_path / "r18.pth", released.filled(released.torchvision_resnet()), None)
    for name, nearest in (("resnet19", "resnet18"), ("resnet18.nobody_in1k", r"resnet18\.")):
        with pytest.raises(UnknownName, match=nearest):
            facessl.load_backbone(path, name=name)


def test_what_is_no_checkpoint_is_told_without_numbers(tmp_path: Path) -> None:
    path = tmp_path / "garbage.pth"
    path.write_bytes(b"hello world garbage")
    with pytest.raises(
        CheckpointError, match=r"garbage\.pth is damaged or not a checkpoint: download or copy it again"
    ):
        facessl.load_backbone(path)
