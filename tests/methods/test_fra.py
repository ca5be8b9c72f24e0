"""FRA as in the paper against plain loops over its equations, its switches, and what a run relies on."""

import pytest
import torch

from facessl.core.errors import ConfigError
from facessl.core.types import Batch, Progress
from facessl.methods.byol import BYOL
from facessl.methods.fra import FRA
from facessl.models.backbone import Backbone
from facessl.pretrained.families import fra as released
from tests.methods.fra_loops import loops

SMALL = {"hidden": 24, "dim": 16, "decoder_width": 32, "decoder_heads": 2, "decoder_feed_forward": 16}
START = Progress(step=0, total_steps=10)


def build(method=FRA, *, seed=0, dtype=torch.float64, **values):
    """A method on timm's smallest ResNet (96 channels, stride 32), with a target that differs from the online net."""
    torch.manual_seed(seed)
    sizes = SMALL | {"dropout": 0.0} if method is FRA else {"hidden": 24, "dim": 16}
    model = method(Backbone("test_resnet", image_size=96), **(sizes | values)).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".decoder." in name and parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))  # biases that start at 0, norms that start at 1
            if name.startswith("target_"):
                parameter.add_(0.1 * torch.randn_like(parameter) * parameter.abs().mean())
    return model


def views(*, seed=1, batch=3, size=96, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(batch, 3, size, size, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2)]
    return Batch(views=drawn, params=[], index=torch.arange(batch))


def test_paper_equals_loops():
    values = {"num_regions": 3, "lambda_c": 0.3, "lambda_r": 0.7, "memax_weight": 1.3, "decoder_layers": 2}
    values |= {"student_temperature": 0.2, "teacher_temperature": 0.1}
    ours, twin = build(**values), build(**values)
    step = ours.step(views(), START)
    terms, total = loops(twin, views())
    assert step.logs.keys() == terms.keys()
    for name, value in terms.items():
        torch.testing.assert_close(step.logs[name], value.detach(), rtol=1e-9, atol=1e-9, msg=name)
    torch.testing.assert_close(step.loss, total, rtol=1e-9, atol=1e-9)
    step.loss.backward()
    total.backward()
    expected = dict(twin.named_parameters())
    for name, parameter in ours.named_parameters():
        assert (parameter.grad is None) == (expected[name].grad is None) == name.startswith("target_"), name
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-7, atol=1e-9, msg=name)


def test_defaults_are_the_papers_in_their_effect():
    model = FRA(Backbone("test_resnet", image_size=64)).eval()
    x = torch.randn(1, 3, 64, 64)
    assert model.heatmaps(x).shape == (1, 8, 2, 2)
    assert model.predictor(model.heads.projector(model.backbone(x))).shape == (1, 256)
    assert [model.ema_momentum(Progress(step, 2)) for step in (0, 1, 2)] == pytest.approx([0.996, 0.998, 1.0])


TERMS = {"global_consistency": 0.5, "local_consistency": 0.5, "semantic_relation": 0.1, "me_max": 0.1}


@pytest.mark.parametrize(
    ("values", "layers", "temperature", "averaged", "weights"),
    [
        ({}, 1, 0.1, False, TERMS),
        ({"variant": "official"}, 2, 1.0, True, TERMS | {"decorrelation": 0.01}),
        (
            {
                "variant": "official",
                "mask_embeddings": "image",
                "decoder_layers": 3,
                "heatmap_temperature": 0.2,
                "decorrelation_weight": 0.0,
            },
            3,
            0.2,
            False,
            TERMS,
        ),
    ],
    ids=["paper", "official", "official with its own values"],
)
def test_what_none_resolves_to(values, layers, temperature, averaged, weights):
    args = FRA.Args(**values)
    assert (args.layers, args.temperature, args.averaged) == (layers, temperature, averaged)
    assert args.weights() == weights


@pytest.mark.parametrize(
    "off", [{"use_local": False, "use_relation": False}, {"lambda_c": 1.0, "lambda_r": 0.0}, {"decoder_layers": 0}]
)
def test_global_alone_is_byol(off):
    fra, byol = build(**off), build(BYOL)
    shared = {k.replace("heads.", ""): v for k, v in fra.state_dict().items()}
    byol.load_state_dict(shared)
    ours, theirs = fra.step(views(), START), byol.step(views(), START)
    torch.testing.assert_close(ours.loss, (theirs.loss - 4) / 2, rtol=1e-12, atol=1e-12)
    ours.loss.backward()
    theirs.loss.backward()
    expected = dict(byol.named_parameters())
    for name, parameter in fra.named_parameters():
        if parameter.requires_grad:
            gradient = expected[name.replace("heads.", "")].grad
            torch.testing.assert_close(parameter.grad, gradient / 2, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("variant", ["paper", "official"])
@pytest.mark.parametrize(
    ("switches", "logged"),
    [
        ({"use_local": False, "use_relation": False}, {"global_consistency"}),
        ({"use_global": False, "use_local": False}, {"semantic_relation", "me_max"}),
        ({"use_global": False, "use_relation": False}, {"local_consistency"}),
        ({"lambda_r": 0.0}, {"global_consistency", "local_consistency"}),
        (
            {"decoder_layers": 3, "num_regions": 5},
            {"global_consistency", "local_consistency", "semantic_relation", "me_max"},
        ),
    ],
)
def test_terms_that_are_off_leave_nothing(variant, switches, logged):
    model = build(variant=variant, **switches)
    step = model.step(views(), START)
    if variant == "official" and "local_consistency" in logged:
        logged = logged | {"decorrelation"}
    assert set(step.logs) == logged
    step.loss.backward()
    # DistributedDataParallel waits for ever for a parameter without a gradient.
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("values", [{"variant": "official"}, {"mask_embeddings": "batch"}], ids=str)
def test_prototypes_follow_the_mean_mask_embeddings(values):
    model = build(**values)
    networks = [(model.backbone, model.heads), (model.target_backbone, model.target_heads)]
    with torch.no_grad():
        for _, heads in networks:
            heads.prototype.normal_()
    expected = [heads.prototype.clone() for _, heads in networks]
    for seed in (1, 2):  # two micro-batches of one optimizer step
        for k, (backbone, heads) in enumerate(networks):
            for x in views(seed=seed).views:
                embedding = heads.decoder(backbone.forward_features(x)).mean(0).detach()
                expected[k] = 0.9 * expected[k] + 0.1 * embedding
        model.step(views(seed=seed), START).loss.backward()
    with torch.no_grad():
        model.step(views(seed=3), START)  # a loss that nobody trains on leaves no trace
    model.after_step(START)
    model.after_step(START)
    for (_, heads), prototype in zip(networks, expected, strict=True):
        torch.testing.assert_close(heads.prototype, prototype)


@pytest.mark.parametrize("values", [{}, {"variant": "official"}, {"mask_embeddings": "batch"}], ids=str)
@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_heatmaps(values, backbone):
    torch.manual_seed(0)
    backbone = Backbone(backbone, image_size=96)
    model = FRA(backbone, num_regions=4, heatmap_temperature=0.1, query_std=3.0, **values, **SMALL).eval()
    x = views(dtype=torch.float32).views[0]
    features = model.backbone.forward_features(x)
    embeddings = model.heads.decoder(features)  # (B, N, D)
    if values:
        embeddings = model.heads.prototype.normal_()
    maps = model.heatmaps(x)
    cells = 96 // model.backbone.stride
    assert maps.shape == (3, 4, cells, cells)
    torch.testing.assert_close(maps.sum(1), torch.ones(3, cells, cells))
    # Row u, column v of the heatmaps is row u, column v of the feature map.
    single = model.heads.similarity(features[:, :, 1:2, 2:3], embeddings)
    assert (maps[:, :, 1, 2] - maps[:, :, 2, 1]).abs().max() > 1e-4  # so that a wrong cell shows
    assert (maps[:, :, 1, 2] - single[:, 0].softmax(1)).abs().max() > 1e-3  # and a wrong temperature
    torch.testing.assert_close(maps[:, :, 1, 2], (single[:, 0] / 0.1).softmax(1))
    with pytest.raises(ConfigError, match="no heatmaps"):
        build(decoder_layers=0).heatmaps(x)


@pytest.mark.fault("D6", "a checkpoint of the release whose maps have as many channels as its decoder was refused")
def test_released_decoder_without_an_input_projection_gets_the_identity():
    """The release leaves the projection out where the map has as many channels as the decoder."""
    torch.manual_seed(0)
    whole = FRA(
        Backbone("resnet18", image_size=64), variant="official", **(SMALL | {"decoder_width": 512, "decoder_heads": 8})
    )
    state = {f"module.{released.rename(name)}": value for name, value in whole.state_dict().items()}
    state = {
        n: v[..., None] if ".mlp." in n and v.ndim == 2 else v for n, v in state.items() if ".input_proj." not in n
    }
    loaded = released.build({"state_dict": state})
    features = torch.randn(2, 512, 3, 3)
    for heads, ours in ((loaded.heads, whole.heads), (loaded.target_heads, whole.target_heads)):
        ours.decoder.project = torch.nn.Identity()
        torch.testing.assert_close(heads.eval().decoder(features), ours.eval().decoder(features))
