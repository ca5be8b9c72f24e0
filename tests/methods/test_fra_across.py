"""FRA's relation across views, the prior over the image's frame and learned mask embeddings, against plain loops."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.nn import functional as F

from facessl.core.errors import ConfigError, DataError
from facessl.core.types import Batch
from facessl.methods.fra import across
from facessl.models.layers import view_cells
from facessl.models.layers.losses import sinkhorn
from tests.methods.test_fra import START, build, views

N = 3
ACROSS = {"num_regions": N, "relation": "across", "mask_embeddings": "free", "use_local": False, "lambda_r": 2.0}
PRIOR = ACROSS | {"frame_prior": 0.5}
WHOLE = (0.0, 0.0, 1.0, 1.0, 0.0)


def random_crops(batch=3, seed=5):
    """Two views' crops of a batch: overlapping, apart (the last image), mirrored or not."""
    u = torch.rand(2, batch, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    size = 0.4 + 0.5 * u[..., 2:4]
    crops = torch.cat([u[..., :2] * (1 - size), size, (u[..., 4:] < 0.5).double()], -1)
    crops[0, -1, :4] = torch.tensor([0.0, 0.1, 0.3, 0.5])
    crops[1, -1, :4] = torch.tensor([0.6, 0.2, 0.4, 0.7])
    return list(crops)


def cut(crops=None, **options):
    """A batch of views with the crops; the views themselves are noise."""
    batch = views(**options)
    batch.crops = random_crops(len(batch)) if crops is None else crops
    return batch


def place(crop, row, column, rows, columns):
    """Where a cell's center lies in the image, in words: flip, then scale, then shift."""
    left, top, width, height, flip = (float(value) for value in crop)
    right = (column + 0.5) / columns
    return left + width * (1 - right if flip else right), top + height * (row + 0.5) / rows


def bilinear(cells, x, y):
    """Value of a map (h, w, N) at fractions x, y: between the four centers around it, the outermost ones repeated."""
    rows, columns = cells.shape[:2]
    px, py = x * columns - 0.5, y * rows - 0.5
    left, top = math.floor(px), math.floor(py)
    value = 0
    for row, weight_y in ((top, 1 - (py - top)), (top + 1, py - top)):
        for column, weight_x in ((left, 1 - (px - left)), (left + 1, px - left)):
            value += weight_y * weight_x * cells[min(max(row, 0), rows - 1), min(max(column, 0), columns - 1)]
    return value


def across_by_loops(student, teacher, ours, theirs):
    """(sum, count) of Eq. 2 over the cells of one view that the other one shows."""
    total, count = 0.0, 0
    rows, columns = student.shape[1:3]
    for b in range(len(student)):
        left, top, width, height, flip = (float(value) for value in theirs[b])
        for row in range(rows):
            for column in range(columns):
                x, y = place(ours[b], row, column, rows, columns)
                u, v = (x - left) / width, (y - top) / height
                if not (0 <= u <= 1 and 0 <= v <= 1):
                    continue
                target = bilinear(teacher[b], 1 - u if flip else u, v)
                total = total - sum(target[n] * student[b, row, column].log_softmax(0)[n] for n in range(len(target)))
                count += 1
    return total, count


def assignments(batch=3, rows=4, columns=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, rows, columns, N, generator=generator, dtype=torch.float64).mul(3)


@pytest.mark.parametrize("relation", ["across", "both"])
@pytest.mark.parametrize("variant", ["paper", "official"])
def test_step_equals_loops(relation, variant):
    values = PRIOR | {"relation": relation, "variant": variant, "memax_weight": 1.3}
    model, batch = build(**values), cut()
    step = model.step(batch, START)
    networks = [(model.backbone, model.heads), (model.target_backbone, model.target_heads)]
    s, t = ([h(*b.forward_both(x), c)["similarity"] for x, c in zip(batch.views, batch.crops, strict=True)]
            for b, h in networks)  # fmt: skip
    student = [view / 0.1 for view in s]
    teacher = [sinkhorn((view / 0.04).softmax(-1).flatten(0, 2), 3).view_as(view).detach() for view in t]
    crossed = within = spread = 0
    for i in (0, 1):
        total, count = across_by_loops(student[i], teacher[1 - i], batch.crops[i], batch.crops[1 - i])
        assert 0 < count < student[i][..., 0].numel()
        crossed += total / count
        within -= (teacher[i] * student[i].log_softmax(-1)).sum(-1).mean()
        mean = student[i].softmax(-1).mean((0, 1, 2))
        spread += math.log(N) + (mean * mean.log()).sum()
    scale = 0.5 if variant == "official" else 1.0
    expected = scale * (crossed if relation == "across" else (crossed + within) / 2)
    torch.testing.assert_close(step.logs["semantic_relation"], expected.detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(step.logs["me_max"], scale * spread.detach(), rtol=1e-9, atol=1e-9)
    total = step.logs["global_consistency"] + 2.0 * expected + 2.6 * scale * spread
    torch.testing.assert_close(step.loss, total, rtol=1e-9, atol=1e-9)
    step.loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert all(p.grad.any() for p in (model.heads.mask_embedding, model.heads.prior))


def test_prior_is_read_at_each_cells_place():
    heads, crops = build(**PRIOR).heads, random_crops()[0]
    features = torch.randn(3, 96, 4, 5, dtype=torch.float64)
    table = heads.prior.detach().permute(1, 2, 0)
    plain = heads.similarity(features, heads.mask_embedding, crops)
    heads.frame_prior = 0.0
    added = (plain - heads.similarity(features, heads.mask_embedding)).view(3, 4, 5, N)
    for b in range(3):
        for row in range(4):
            for column in range(5):
                expected = 0.5 * bilinear(table, *place(crops[b], row, column, 4, 5))
                torch.testing.assert_close(added[b, row, column].detach(), expected)


def test_views_without_a_common_place_give_zero():
    student = assignments().requires_grad_()
    left, right = (torch.tensor([(x, 0.0, 0.4, 1.0, 0.0)] * 3, dtype=torch.float64) for x in (0.0, 0.5))
    loss = across(student, assignments(seed=1).softmax(-1), left, right)
    loss.backward()
    assert loss == 0
    assert not student.grad.any()


def test_reading_equals_grid_sample():
    maps, (theirs, ours) = assignments(rows=6, columns=7), random_crops()
    found, inside = view_cells.seen_by(maps, theirs, ours, 4, 5)
    y, x = view_cells.in_view(*view_cells.cell_centers(ours, 4, 5), theirs)
    grid = torch.stack([x[:, None].expand(-1, 4, -1), y[:, :, None].expand(-1, -1, 5)], -1) * 2 - 1
    expected = F.grid_sample(maps.permute(0, 3, 1, 2), grid, align_corners=False, padding_mode="border")
    torch.testing.assert_close(found, expected.permute(0, 2, 3, 1))
    assert torch.equal(inside, (grid.abs() <= 1).all(-1))
    assert torch.autograd.gradcheck(lambda m: view_cells.read(m, y, x), maps.requires_grad_())
    single = maps.detach().float(), theirs.float(), ours.float(), 4, 5
    with torch.autocast("cpu", torch.bfloat16):
        again, _ = view_cells.seen_by(*single)
    assert torch.equal(again, view_cells.seen_by(*single)[0])


@pytest.mark.parametrize("embeddings", ["image", "batch", "free"])
def test_heatmaps_take_the_image_for_the_frame(embeddings):
    model = build(**(PRIOR | {"mask_embeddings": embeddings})).eval()
    x = views().views[0]
    whole = torch.tensor([WHOLE] * 3, dtype=torch.float64)
    features = model.backbone.forward_features(x)
    similarity = model.heads.similarity(features, model.heads.stored_embedding(features), whole)
    expected = (similarity / model.args.temperature).softmax(-1).transpose(1, 2).view(3, N, 3, 3)
    torch.testing.assert_close(model.heatmaps(x), expected.detach())
    other = build(**(PRIOR | {"mask_embeddings": embeddings}), seed=1).eval()
    assert not torch.allclose(other.heatmaps(x), expected)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other.heatmaps(x), expected.detach())


def test_heatmaps_without_the_prior_and_of_the_prior_alone():
    model, plain = build(**PRIOR).eval(), build(**(PRIOR | {"frame_prior": 0.0})).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.endswith(".prior")})
    x = views().views[0]
    assert torch.equal(model.heatmaps(x, prior="off"), plain.heatmaps(x))
    assert torch.equal(plain.heatmaps(x, prior="off"), plain.heatmaps(x))
    table = model.heads.prior.detach().permute(1, 2, 0)  # (12, 12, N)
    at = [(cell + 0.5) / 3 for cell in range(3)]
    logits = torch.stack([torch.stack([bilinear(table, column, row) for column in at]) for row in at])
    expected = (0.5 * logits / model.args.temperature).softmax(-1).permute(2, 0, 1).expand(3, N, 3, 3)
    torch.testing.assert_close(model.heatmaps(x, prior="alone"), expected)
    assert (model.has_prior, plain.has_prior) == (True, False)
    with pytest.raises(ConfigError, match="no prior to show alone"):
        plain.heatmaps(x, prior="alone")


@pytest.mark.parametrize("values", [{"relation": "across"}, {"relation": "both"}, {"frame_prior": 0.5}], ids=str)
def test_views_whose_place_is_not_known_are_refused(values):
    with pytest.raises(DataError, match=r"no crops.*Geometric"):
        build(**values).step(views(), START)
    build(**values, use_local=False, use_relation=False).step(views(), START)


def test_nothing_is_read_back_from_the_device():
    """Tensors without values cannot be read: a boolean index or an `item()` raises."""
    with FakeTensorMode() as mode:
        student, teacher, ours, theirs = map(mode.from_tensor, [assignments(), assignments(seed=1), *random_crops()])
        assert across(student, teacher, ours, theirs).shape == ()
        with pytest.raises(DynamicOutputShapeException):
            student[student > 0]


def test_micro_batches_and_devices_keep_the_crops():
    batch = Batch(views=views().views, params=[], index=torch.arange(3), crops=random_crops())
    part = batch.slice(1, 3)
    assert all(torch.equal(a, b[1:3]) for a, b in zip(part.crops, batch.crops, strict=True))
    assert [crop.device.type for crop in batch.to("meta").crops] == ["meta", "meta"]
