"""FRA's targets from colors: the layout of the frame, EM on a view's colors against plain loops, and the step."""

import math

import pytest
import torch
from torch.nn import functional as F

from facessl.core.errors import DataError
from facessl.core.types import Progress
from facessl.models.layers import color_regions
from facessl.models.layers.color_regions import CELLS, LAYOUT_STEPS, ColorRegions, by_color
from tests.methods.test_fra import START, build, views
from tests.methods.test_fra_across import ACROSS, N, across_by_loops, cut

COLOR = ACROSS | {"targets": "color", "relation": "both", "use_global": False, "memax_weight": 0.0}


def drawing(generator, *, half=4, count=8, size=64):
    """Images of a background and an upright band in its middle, 2 half cells wide, with colors of their own."""
    at = (torch.arange(size) + 0.5) / size * CELLS
    inside = (at - CELLS / 2).abs() < half
    band = inside.expand(count, 1, size, size)
    front, back = torch.rand(2, count, 3, 1, 1, generator=generator)
    noise = 0.02 * torch.randn(count, 3, size, size, generator=generator)
    return torch.where(band, front, back) + noise, band[:, 0, 2 :: size // CELLS, 2 :: size // CELLS]


def whole(count=8):
    return torch.tensor([(0.0, 0.0, 1.0, 1.0, 0.0)]).expand(count, -1)


@pytest.fixture(scope="module")
def found():
    """The layout of 160 drawings."""
    regions, generator = ColorRegions(2), torch.Generator().manual_seed(0)
    for _ in range(20):
        regions.note(drawing(generator)[0], whole())
    regions.update(last=True)
    return regions


def test_layout_is_what_shares_a_color(found):
    band = drawing(torch.Generator().manual_seed(1))[1][0]
    likely = found.layout.argmax(-1)
    assert torch.equal(likely == likely[8, 8], band)
    torch.testing.assert_close(found.layout.sum(-1), torch.ones(CELLS, CELLS))


def test_views_show_a_part_of_the_frame():
    """A mirrored left half of a picture is noted at the places that it shows, and nowhere else."""
    image, _ = drawing(torch.Generator().manual_seed(2), count=1)
    full, part = ColorRegions(2), ColorRegions(2)
    full.note(image, whole(1))
    left = image[..., :32].flip(-1).repeat_interleave(2, -1)
    part.note(left, torch.tensor([(0.0, 0.0, 0.5, 1.0, 1.0)]))
    for regions in (full, part):
        regions.update(last=False)
    shown = torch.arange(CELLS**2) % CELLS < CELLS // 2
    assert torch.equal(part.pairs, (shown[:, None] & shown).float())
    both = shown[:, None] & shown
    torch.testing.assert_close(part.together[both], full.together[both], rtol=0, atol=0.02)
    assert not part.together[~both].any()


def test_regions_follow_colors_where_the_layout_is_wrong(found):
    image, band = drawing(torch.Generator().manual_seed(3), half=5)
    regions = found(image, whole()).argmax(-1)
    layout = found.layout.argmax(-1)
    assert torch.equal(regions == layout[8, 8], band)
    assert (regions != layout).any()


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
    expected = found(image, whole(4))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(found(image, whole(4)), expected)


def laid_out(model, seed=0):
    """A model whose layout is drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    model.colors.layout.copy_(torch.randn(CELLS, CELLS, N, generator=generator).softmax(-1))
    return model


@pytest.mark.parametrize("relation", ["within", "across", "both"])
def test_step_equals_loops(relation):
    model, batch = laid_out(build(**COLOR | {"relation": relation, "variant": "official"})), cut()
    del model.target_backbone.model  # no term asks the target network
    step = model.step(batch, START)
    scale = torch.tensor(model.backbone.std, dtype=torch.float64)[:, None, None]
    students = [model.heads(*model.backbone.forward_both(x))["similarity"] / 0.1 for x in batch.views]
    targets = [model.colors(x * scale, crop) for x, crop in zip(batch.views, batch.crops, strict=True)]
    terms = []
    for other in {"within": (0,), "across": (1,), "both": (0, 1)}[relation]:
        for i in (0, 1):
            j = i ^ other
            total, count = across_by_loops(students[i], targets[j], batch.crops[i], batch.crops[j])
            terms.append(total / count)
    expected = 0.5 * sum(terms) / (len(terms) / 2)
    torch.testing.assert_close(step.logs["semantic_relation"], expected.detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(step.loss, 2.0 * expected, rtol=1e-9, atol=1e-9)
    step.loss.backward()
    assert all(p.grad.any() for p in (model.heads.mask_embedding, *model.heads.local_projector.parameters()))


def test_layout_is_found_once_and_carried_along():
    model, batch = build(**COLOR), cut()
    before = model.colors.layout.clone()
    for step in range(LAYOUT_STEPS + 1):
        progress = Progress(step=step, total_steps=40)
        model.step(batch, progress)
        model.after_step(progress)
        assert torch.equal(model.colors.layout, before) == (step < LAYOUT_STEPS - 1)
    assert model.colors.pairs.max() <= LAYOUT_STEPS * 2 * 3
    other = build(**COLOR, seed=1)
    other.load_state_dict(model.state_dict())
    x, crop = batch.views[0], batch.crops[0]
    assert torch.equal(other.colors(x, crop), model.colors(x, crop))


def test_heatmaps_are_corrected_by_the_images_colors():
    model = laid_out(build(**COLOR)).eval()
    x = views().views[0]
    scale = torch.tensor(model.backbone.std, dtype=torch.float64)[:, None, None]
    colors = F.adaptive_avg_pool2d(x * scale, CELLS).flatten(2).transpose(1, 2)
    features = model.backbone.forward_features(x)
    seen = (model.heads.similarity(features, model.heads.mask_embedding) / 0.1).softmax(-1)
    content = F.interpolate(seen.transpose(1, 2).unflatten(2, (3, 3)), (CELLS, CELLS), mode="bilinear") + 0.02
    content = content.flatten(2).transpose(1, 2)
    place = model.colors.layout.flatten(0, 1).expand(3, -1, -1)
    for prior, expected in (
        ("off", by_color(colors, content / content.sum(-1, keepdim=True))),
        ("added", by_color(colors, (content * place).sqrt() / (content * place).sqrt().sum(-1, keepdim=True))),
        ("alone", place),
    ):
        maps = model.heatmaps(x, prior=prior)
        torch.testing.assert_close(maps, expected.transpose(1, 2).unflatten(2, (CELLS, CELLS)).detach())
    assert model.has_prior


def test_unknown_places_are_refused():
    with pytest.raises(DataError, match="targets=color"):
        build(**COLOR).step(views(), START)
