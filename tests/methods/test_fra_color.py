"""FRA's targets from colors: where the face is, the layout, EM on a view's colors against plain loops, and the step."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from facessl.core import plugins
from facessl.core.errors import ConfigError
from facessl.core.types import Progress
from facessl.models.layers import color_regions
from facessl.models.layers.color_regions import (
    CELLS,
    LAYOUT_STEPS,
    ColorRegions,
    by_color,
    inside,
    random_similarities,
    read,
    similarities,
)
from tests.methods.test_fra import START, build, views
from tests.methods.test_fra_across import N, bilinear

COLOR = {"num_regions": N, "mask_embeddings": "free", "use_local": False, "use_global": False, "lambda_r": 2.0}
COLOR |= {"targets": "color", "memax_weight": 0.0}
YCC = torch.tensor(color_regions._YCC, dtype=torch.float64)


def drawing(generator, *, half=4, count=8, size=96):
    """Images of a background and an upright band in its middle, 2 half cells wide, with colors of their own."""
    at = (torch.arange(size) + 0.5) / size * CELLS
    inside = (at - CELLS / 2).abs() < half
    band = inside.expand(count, 1, size, size)
    front, back = torch.rand(2, count, 3, 1, 1, generator=generator)
    noise = 0.02 * torch.randn(count, 3, size, size, generator=generator)
    return torch.where(band, front, back) + noise, band[:, 0, 2 :: size // CELLS, 2 :: size // CELLS]


def faces(frames, size=64):
    """Gray images of two eyes and a mouth on a bright oval, where the frames (B, 2, 3) say."""
    at = ((torch.arange(size) + 0.5) / size * 2 - 1).expand(size, size)
    places = torch.stack([at, at.T, torch.ones_like(at)], -1)  # (S, S, 3)
    whole = torch.cat([frames, torch.tensor([[[0.0, 0.0, 1.0]]]).expand(len(frames), -1, -1)], 1)
    x, y = torch.einsum("bij,hwj->bihw", torch.linalg.inv(whole)[:, :2], places).unbind(1)
    image = torch.where((x / 0.7).square() + y.square() < 1, 0.8, 0.3)
    for left, top, width, height in ((-0.3, -0.2, 0.15, 0.08), (0.3, -0.2, 0.15, 0.08), (0.0, 0.5, 0.3, 0.07)):
        image = torch.where(((x - left) / width).square() + ((y - top) / height).square() < 1, 0.1, image)
    return image[:, None].expand(-1, 3, -1, -1)


@pytest.fixture(scope="module")
def found():
    """The layout of 160 drawings without a face."""
    regions, generator = ColorRegions(2), torch.Generator().manual_seed(0)
    for _ in range(20):
        regions.add(drawing(generator)[0], LAYOUT_STEPS - 1)
    regions.update(LAYOUT_STEPS - 1)
    return regions


def test_face_is_found_where_it_is():
    """The mean face of faces in the middle is found in views where it is smaller, turned and to one side."""
    regions = ColorRegions(2)
    middle = similarities(torch.ones(4), torch.zeros(4), torch.zeros(4, 2))
    regions.add(faces(middle), 0)
    regions.update(LAYOUT_STEPS // 3 - 1)
    scale, angle = torch.tensor([1.0, 0.8, 0.63, 0.71]), torch.tensor([0.0, 7.0, -14.0, 0.0])
    shift = torch.tensor([[0.0, 0.0], [0.1, 0.0], [0.0, 0.15], [-0.15, 0.1]])
    frames = similarities(scale, angle, shift)
    torch.testing.assert_close(regions.align(faces(frames)), frames, rtol=0, atol=0.09)  # a pixel of 24 is 0.083


def test_layout_is_what_looks_alike(found):
    """In the larger frame of the layout a band looks smaller; what no view shows is as the nearest place."""
    likely = found.layout.argmax(-1)
    column = (torch.arange(CELLS) + 0.5 - CELLS / 2).abs() * 1.7
    assert torch.equal(likely == likely[CELLS // 2, CELLS // 2], (column < 4).expand(CELLS, -1))
    torch.testing.assert_close(found.layout.sum(-1), torch.ones(CELLS, CELLS))


def test_layout_moves_with_the_face():
    """A face whose frame is the view over the layout's extent shows the whole layout, and its flip upside down."""
    regions = ColorRegions(N)
    regions.layout.copy_(torch.rand(CELLS, CELLS, N, generator=torch.Generator().manual_seed(0)))
    frames = similarities(torch.full((2,), 1 / 1.7), torch.tensor([0.0, 180.0]), torch.zeros(2, 2))
    upright, turned = regions.at(frames)
    torch.testing.assert_close(upright, regions.layout, rtol=0, atol=1e-5)
    torch.testing.assert_close(turned, regions.layout.flip(0, 1), rtol=0, atol=1e-5)


def test_regions_follow_colors_where_the_layout_is_wrong(found):
    image, band = drawing(torch.Generator().manual_seed(3), half=5)
    regions = found(image).argmax(-1)
    layout = found.layout.argmax(-1)[CELLS // 2, CELLS // 2]
    assert torch.equal(regions == layout, band)
    moved = found.at(found.align(image)).argmax(-1) == layout
    assert (moved != band).any()


def test_by_color_equals_loops():
    generator = torch.Generator().manual_seed(0)
    colors = torch.rand(2, 6, 3, generator=generator, dtype=torch.float64)
    prior = torch.randn(2, 6, N, generator=generator, dtype=torch.float64).softmax(-1)
    found = by_color(colors, prior)
    for b in range(2):
        q = prior[b].tolist()
        for _ in range(color_regions.ROUNDS):
            logits = [[math.log(prior[b, p, n]) for n in range(N)] for p in range(6)]
            for n in range(N):
                mass = sum(q[p][n] for p in range(6))
                for c in range(3):
                    mean = sum(q[p][n] * colors[b, p, c].item() for p in range(6)) / mass
                    spread = sum(q[p][n] * (colors[b, p, c].item() - mean) ** 2 for p in range(6))
                    weight = color_regions.PRIOR_WEIGHT
                    variance = (spread + weight * color_regions.DEVIATION**2) / (mass + weight)
                    for p in range(6):
                        distance = (colors[b, p, c].item() - mean) ** 2 / variance
                        logits[p][n] -= color_regions.COLOR_WEIGHT / 2 * (distance + math.log(variance))
            q = [torch.tensor(row, dtype=torch.float64).softmax(0).tolist() for row in logits]
        torch.testing.assert_close(found[b], torch.tensor(q, dtype=torch.float64))


def test_targets_are_the_same_under_autocast(found):
    """On a nearly flat picture in 16 bits, distances that are differences of large numbers would all be noise."""
    generator = torch.Generator().manual_seed(5)
    image = 4 + 0.02 * torch.randn(4, 3, 64, 64, generator=generator)
    regions = copy.deepcopy(found)
    regions.face.copy_(faces(torch.eye(2, 3)[None], size=48)[0, 0])
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            regions.add(image, LAYOUT_STEPS - 1)
            results.append({"targets": regions(image), **regions._sums})
        regions._sums = {}
    torch.testing.assert_close(results[1], results[0])


def test_cells_inside_are_the_same_under_autocast():
    turns = random_similarities(64, torch.zeros(1))
    with torch.autocast("cpu", torch.bfloat16):
        found = inside(turns, CELLS)
    assert torch.equal(found, inside(turns, CELLS))


def laid_out(model, seed=0):
    """A model whose layout is drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    model.colors.layout.copy_(torch.randn(CELLS, CELLS, N, generator=generator).softmax(-1))
    return model


def turned(matrix, x, y):
    """Fractions of a turned view -> of the view."""
    (a, b, c), (d, e, f) = matrix.tolist()
    x, y = 2 * x - 1, 2 * y - 1
    return (a * x + b * y + c + 1) / 2, (d * x + e * y + f + 1) / 2


def test_step_equals_loops():
    """Turned views against the regions of the views, read at four places of every cell whose center they show."""
    model, batch = laid_out(build(**COLOR | {"variant": "official"})), views()
    del model.target_backbone.model  # no term asks the target network
    torch.manual_seed(3)
    step = model.step(batch, START)
    torch.manual_seed(3)
    turns = [random_similarities(len(x), x) for x in batch.views]
    scale = torch.tensor(model.backbone.std, dtype=torch.float64)[:, None, None]
    expected = 0
    for x, turn in zip(batch.views, turns, strict=True):
        shown = read(x, turn, x.shape[-1], padding="reflection")
        student = model.heads(*model.backbone.forward_both(shown))["similarity"] / 0.1  # (B, h, h, N)
        regions, h, total, count = model.colors(x * scale), student.shape[1], 0.0, 0
        for b, row, column in [(b, i, j) for b in range(len(x)) for i in range(h) for j in range(h)]:
            u, v = turned(turn[b], (column + 0.5) / h, (row + 0.5) / h)
            if not (0 <= u <= 1 and 0 <= v <= 1):
                continue
            quarters = [(column + right, row + down) for right in (0.25, 0.75) for down in (0.25, 0.75)]
            target = sum(bilinear(regions[b], *turned(turn[b], x / h, y / h)) for x, y in quarters) / 4
            total = total - (target * student[b, row, column].log_softmax(0)).sum()
            count += 1
        assert count > 0
        expected = expected + total / count
    torch.testing.assert_close(step.logs["semantic_relation"], (0.5 * expected).detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(step.loss, 2.0 * 0.5 * expected, rtol=1e-9, atol=1e-9)
    step.loss.backward()
    assert all(p.grad.any() for p in (model.heads.mask_embedding, *model.heads.local_projector.parameters()))


def test_face_and_layout_are_found_once_and_carried_along():
    model, batch = build(**COLOR), views()
    for step in range(LAYOUT_STEPS + 1):
        before = model.colors.face.clone(), model.colors.layout.clone()
        progress = Progress(step=step, total_steps=40)
        model.step(batch, progress)
        model.after_step(progress)
        assert torch.equal(model.colors.face, before[0]) == (step + 1 not in (LAYOUT_STEPS // 3, 2 * LAYOUT_STEPS // 3))
        assert torch.equal(model.colors.layout, before[1]) == (step + 1 != LAYOUT_STEPS)
        if step == LAYOUT_STEPS - 3:  # a checkpoint in between
            resumed = build(**COLOR)
            resumed.load_state_dict(model.state_dict())
        elif step > LAYOUT_STEPS - 3:
            resumed.step(batch, progress)
            resumed.after_step(progress)
    assert torch.equal(resumed.colors.layout, model.colors.layout)
    assert not model.colors.pairs.any()
    other = build(**COLOR, seed=1)
    other.load_state_dict(model.state_dict())
    x = batch.views[0]
    assert torch.equal(other.colors(x), model.colors(x))


def test_heatmaps_are_content_corrected_by_the_images_colors():
    model = laid_out(build(**COLOR)).eval()
    x = views().views[0]
    scale = torch.tensor(model.backbone.std, dtype=torch.float64)[:, None, None]
    colors = torch.einsum("bchw,yc->byhw", F.adaptive_avg_pool2d(x * scale, CELLS), YCC).flatten(2).transpose(1, 2)
    features = model.backbone.forward_features(x)
    seen = (model.heads.similarity(features, model.heads.mask_embedding) / 0.1).softmax(-1)
    content = F.interpolate(seen.transpose(1, 2).unflatten(2, (3, 3)), (CELLS, CELLS), mode="bilinear") + 0.02
    content = content.flatten(2).transpose(1, 2)
    expected = by_color(colors, content / content.sum(-1, keepdim=True))
    maps = model.heatmaps(x)
    torch.testing.assert_close(maps, expected.transpose(1, 2).unflatten(2, (CELLS, CELLS)).detach())
    assert not model.has_prior


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"relation": "across"}, "set relation=within and frame_prior=0"),
        ({"frame_prior": 0.5}, "set relation=within and frame_prior=0"),
        ({"lambda_r": 0, "use_global": True}, "the relation term, which is off"),
        ({"num_regions": CELLS**2 // 2 + 1}, f"finds at most {CELLS**2 // 2}"),
    ],
)
def test_what_color_targets_cannot_have_is_refused(values, message):
    with pytest.raises(ConfigError, match=rf"targets=color.*{message}"):
        plugins.settings("methods", "fra")(**COLOR | values)
