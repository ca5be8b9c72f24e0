"""FRA as in the paper against plain loops over its equations, its switches, and what a run relies on."""

import math

import pytest
import torch

from facessl.backbones import Backbone
from facessl.batch import Batch
from facessl.errors import ConfigError
from facessl.methods.base import Progress
from facessl.methods.byol import BYOL
from facessl.methods.fra import FRA

SMALL = {"hidden": 24, "dim": 16, "decoder_width": 32, "decoder_heads": 2, "decoder_feed_forward": 16}
START = Progress(step=0, total_steps=10)


def build(method=FRA, *, seed=0, dtype=torch.float64, **values):
    """A method on timm's smallest ResNet (96 channels, stride 32), with a target that differs from the online net."""
    torch.manual_seed(seed)
    sizes = SMALL | {"dropout": 0.0} if method is FRA else {"hidden": 24, "dim": 16}
    model = method(Backbone("test_resnet", image_size=96), **(sizes | values)).to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("target_"):
                parameter.add_(0.1 * torch.randn_like(parameter) * parameter.abs().mean())
    return model


def views(*, seed=1, batch=3, size=96, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(batch, 3, size, size, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2)]
    return Batch(views=drawn, params=[], index=torch.arange(batch))


# --- The twin: plain loops over images, pixels and regions, from the paper's equations alone. ---


def dot(u, v):
    return sum(u[i] * v[i] for i in range(len(u)))


def f_s(u, v):
    return dot(u, v) / (torch.sqrt(dot(u, u)) * torch.sqrt(dot(v, v)))


def mlp(layers, rows):
    """Projector or predictor on a list of vectors: linear, batch norm over the list, ReLU, linear."""
    first, norm, _, last = layers
    hidden = [first.weight @ row for row in rows]
    mean = sum(hidden) / len(hidden)
    var = sum((h - mean) ** 2 for h in hidden) / len(hidden)
    out = []
    for h in hidden:
        h = (h - mean) / torch.sqrt(var + norm.eps) * norm.weight + norm.bias
        out.append(last.weight @ torch.where(h > 0, h, torch.zeros_like(h)))
    return out


def softmax(values):
    exponentials = [torch.exp(v) for v in values]
    return [e / sum(exponentials) for e in exponentials]


def network(backbone, heads, x, heatmap_temperature):
    """One network on one view: z per image, S[b][p][m], z^m per image (Eq. 1, 4, 5)."""
    maps = backbone.forward_features(x)
    images, channels = maps.shape[:2]
    pixels = [[maps[b].reshape(channels, -1)[:, p] for p in range(maps[0, 0].numel())] for b in range(images)]
    z = mlp(heads.projector.layers, [sum(rows) / len(rows) for rows in pixels])
    dense = mlp(heads.local_projector.layers, [row for rows in pixels for row in rows])  # Eq. 1
    similarity, pooled = [], []
    for b in range(images):
        queries = heads.decoder(maps[b : b + 1])[0]  # Q_i of this image alone
        s = [[f_s(dense[b * len(pixels[b]) + p], q) for q in queries] for p in range(len(pixels[b]))]
        similarity.append(s)
        heat = [softmax([value / heatmap_temperature for value in row]) for row in s]
        for m in range(len(queries)):  # Eq. 4
            total = sum(heat[p][m] for p in range(len(s)))
            pooled.append(sum(heat[p][m] * pixels[b][p] for p in range(len(s))) / total)
    projected = mlp(heads.local_projector.layers, pooled)  # Eq. 5: the same projector
    n = len(projected) // images
    return z, similarity, [projected[b * n : (b + 1) * n] for b in range(images)]


def loops(model, batch):
    """Every term of Eq. 2-8 (global, local, relation, ME-MAX), each a scalar; and the total."""
    args = model.args
    online, target = [], []
    for x in batch.views:
        online.append(network(model.backbone, model.heads, x, args.heatmap_temperature))
        with torch.no_grad():
            target.append(network(model.target_backbone, model.target_heads, x, args.heatmap_temperature))
    l_global = l_local = relation = spread = 0
    images, n = len(batch), args.num_regions
    for i, j in ((0, 1), (1, 0)):  # Eq. 6 and 7
        p = mlp(model.predictor.layers, online[i][0])
        l_global -= sum(f_s(p[b], target[j][0][b]) for b in range(images)) / images
        p = mlp(model.local_predictor.layers, [z for regions in online[i][2] for z in regions])
        l_local -= sum(f_s(p[b * n + m], target[j][2][b][m]) for b in range(images) for m in range(n)) / (images * n)
    for i in (0, 1):  # Eq. 2 and 3
        student = [softmax([s / args.student_temperature for s in row]) for image in online[i][1] for row in image]
        teacher = [softmax([s / args.teacher_temperature for s in row]) for image in target[i][1] for row in image]
        for _ in range(args.sinkhorn_iterations):
            for m in range(n):
                mass = sum(row[m] for row in teacher)
                for row in teacher:
                    row[m] = row[m] / mass
            for row in teacher:
                mass = sum(row)
                for m in range(n):
                    row[m] = row[m] / mass
        entropy = [-sum(t[m] * torch.log(s[m]) for m in range(n)) for s, t in zip(student, teacher, strict=True)]
        relation += sum(entropy) / len(entropy)
        mean = [sum(row[m] for row in student) / len(student) for m in range(n)]
        spread += math.log(n) + sum(q * torch.log(q) for q in mean)
    total = args.lambda_c * l_global + (1 - args.lambda_c) * l_local
    total = total + args.lambda_r * (relation + args.memax_weight * spread)
    terms = {
        "global_consistency": l_global,
        "local_consistency": l_local,
        "semantic_relation": relation,
        "me_max": spread,
    }
    return terms, total


def test_paper_equals_loops():
    values = {"num_regions": 3, "lambda_c": 0.3, "lambda_r": 0.7, "memax_weight": 1.3, "heatmap_temperature": 0.2}
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


def test_defaults_are_the_paper():
    args = FRA.Args()
    assert (args.variant, args.num_regions, args.lambda_c, args.lambda_r) == ("paper", 8, 0.5, 0.1)
    assert args.layers == 1
    assert args.weights() == {
        "global_consistency": 0.5,
        "local_consistency": 0.5,
        "semantic_relation": 0.1,
        "me_max": 0.1,
    }
    assert FRA.Args(variant="official").layers == 2


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


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"use_global": False, "use_local": False, "use_relation": False}, "turn one term on"),
        ({"use_global": False, "decoder_layers": 0}, "turn one term on"),
        ({"lambda_c": 1.5}, r"lambda_c is 1\.5"),
        ({"teacher_temperature": 0.0}, r"teacher_temperature is 0\.0"),
        ({"variant": "papper"}, "'papper'.*paper, official"),
        ({"decoder_width": 100, "decoder_heads": 8}, "decoder_width is 100.*32"),
    ],
)
def test_impossible_values_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        build(**values)


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_target_follows_by_cosine_momentum(variant):
    model = build(variant=variant, momentum=0.9)
    before = {n: p.clone() for n, p in model.named_parameters()}
    prototype = model.heads.prototype.clone() if variant == "official" else None
    model.step(views(), START).loss.backward()
    seen = [online for online, _ in model._seen]
    model.after_step(Progress(step=5, total_steps=10))
    for name, parameter in model.named_parameters():
        if name.startswith("target_"):
            online = before[name.removeprefix("target_")]
            torch.testing.assert_close(parameter, 0.95 * before[name] + 0.05 * online)
        else:
            torch.testing.assert_close(parameter, before[name], rtol=0, atol=0)
    if variant == "official":
        expected = 0.9 * (0.9 * prototype + 0.1 * seen[0]) + 0.1 * seen[1]
        torch.testing.assert_close(model.heads.prototype, expected)
        assert not model._seen


@pytest.mark.parametrize("variant", ["paper", "official"])
@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_heatmaps(variant, backbone):
    torch.manual_seed(0)
    model = FRA(Backbone(backbone, image_size=96), variant=variant, num_regions=4, **SMALL).eval()
    x = views(dtype=torch.float32).views[0]
    maps = model.heatmaps(x)
    cells = 96 // model.backbone.stride
    assert maps.shape == (3, 4, cells, cells)
    torch.testing.assert_close(maps.sum(1), torch.ones(3, cells, cells))
    # Row u, column v of the heatmaps is row u, column v of the feature map.
    single = model.heads.similarity(model.backbone.forward_features(x)[:, :, 1:2, 2:3], _queries(model, x))
    torch.testing.assert_close(maps[:, :, 1, 2], (single[:, 0]).softmax(1))
    with pytest.raises(ConfigError, match="no heatmaps"):
        build(decoder_layers=0).heatmaps(x)


def _queries(model, x):
    if model.args.variant == "official":
        return model.heads.prototype
    return model.heads.decoder(model.backbone.forward_features(x))


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_bfloat16_stays_near_float32(variant):
    batch = views(batch=8, dtype=torch.float32)
    exact = build(variant=variant, dtype=torch.float32).step(batch, START)
    model = build(variant=variant, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        step = model.step(batch, START)
    step.loss.backward()
    assert step.loss.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    for name, value in exact.logs.items():
        torch.testing.assert_close(step.logs[name], value, rtol=0.05, atol=0.05, msg=name)


def test_channels_last_changes_nothing():
    plain, batch = build(), views()
    other = build().to(memory_format=torch.channels_last)
    step = other.step(
        Batch([v.contiguous(memory_format=torch.channels_last) for v in batch.views], [], batch.index), START
    )
    torch.testing.assert_close(step.loss, plain.step(batch, START).loss)
