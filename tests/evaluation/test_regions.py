import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from facessl.core.errors import DataError
from facessl.data.sources.masks_folder import MasksFolder
from facessl.data.sources.synthetic import Synthetic
from facessl.evaluation.regions import FACES, labeled_images, region_table, score_regions
from facessl.methods.fra import FRA
from facessl.models.backbone import Backbone

RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture
def halves(tmp_path: Path) -> MasksFolder:
    """16 images of 40 px: the left half is red and of class 1, the right half is blue and of class 2."""
    (tmp_path / "classes.txt").write_text("background\nl_side\nr_side\n")
    mask = np.repeat([[1] * 20 + [2] * 20], 40, axis=0).astype(np.uint8)
    for name, pixels in (("images", np.array([(0, 0, 0), RED, BLUE], np.uint8)[mask]), ("masks", mask)):
        (tmp_path / name).mkdir()
        for i in range(16):
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    return MasksFolder(tmp_path)


def test_moved_masks_follow_their_image_and_sides_swap_in_a_mirrored_one(halves: MasksFolder) -> None:
    found = labeled_images(halves, FACES["moved"], size=40, seed=0)
    images, masks = found["images"], found["masks"]
    assert found["classes"] == 3
    mirrored = 0
    for image, mask in zip(images, masks, strict=True):
        left, right = (image[mask == side].mean(0) for side in (1, 2))
        mirrored += bool(left[2] > left[0])
        first, second = (BLUE, RED) if left[2] > left[0] else (RED, BLUE)
        assert np.abs(left - first).max() < 20  # but for the mixed pixels of the border
        assert np.abs(right - second).max() < 20
        centers = [np.nonzero(mask == side)[1].mean() for side in (1, 2)]
        assert centers[0] < centers[1]  # class 1 is left of class 2, mirrored or not
        assert set(np.unique(mask)) <= {1, 2, 255}
    assert 4 <= mirrored <= 12
    assert (masks == 255).any()
    again, other = (labeled_images(halves, FACES["moved"], size=40, seed=seed) for seed in (0, 1))
    assert np.array_equal(again["masks"], masks)
    assert np.array_equal(again["images"], images)
    assert not np.array_equal(other["masks"], masks)


def test_moved_windows_have_065_to_085_of_the_side() -> None:
    source = Synthetic(n=40, size=64)
    found = [labeled_images(source, FACES[name], size=64, seed=0) for name in ("aligned", "moved")]
    assert np.array_equal(found[0]["images"], np.stack([source[i].image for i in range(40)]))
    assert np.array_equal(found[0]["masks"], np.stack([source[i].mask for i in range(40)]))
    eyes = [np.diff(part["landmarks"][:, part["ocular"]], axis=1)[:, 0] for part in found]
    assert (eyes[1][:, 0] > 0).all()  # the order of the points swaps, too
    sides = np.hypot(*eyes[0].T) / np.hypot(*eyes[1].T)
    assert 0.65 < sides.min() < 0.68
    assert 0.82 < sides.max() < 0.85
    turns = [np.degrees(np.arctan2(*eye.T[::-1])) for eye in eyes]
    assert 12 < np.abs(np.abs(turns[1]) - np.abs(turns[0])).max() <= 15.01


@pytest.mark.parametrize("prior", [0.0, 0.5])
def test_both_blocks_have_every_row_and_the_prior_has_its_own(prior: float) -> None:
    torch.manual_seed(0)
    method = FRA(Backbone("test_resnet", image_size=96), hidden=16, dim=8, num_regions=3, frame_prior=prior)
    found = score_regions(method.eval(), "synthetic:?n=20&size=40", count=12)
    json.dumps(found, allow_nan=False)
    own = ["full", "content only", "prior alone", "own mean map"] if prior else ["full", "own mean map"]
    for part in found.values():
        assert part["images"] == 12
        rows = {row["name"]: row for row in part["rows"]}
        assert list(rows)[: len(own) + 1] == [*own, "one region"]
        if prior:
            assert rows["prior alone"]["nme_interocular"] == rows["one region"]["nme_interocular"]
            assert rows["prior alone"]["consistency_unmoved"] == 1
            assert rows["content only"]["nmi"] != rows["full"]["nmi"]
    table = region_table(found)
    assert sum(line.startswith("| full |") for line in table.splitlines()) == 2
    assert sum(line.startswith("| hair |") for line in table.splitlines()) == 2  # its best region
    assert [line for line in table.splitlines() if line.startswith("Faces")] == ["Faces aligned:", "Faces moved:"]


def test_a_source_without_masks_or_landmarks_is_named(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    method = FRA(Backbone("test_resnet", image_size=32), hidden=16, dim=8)
    with pytest.raises(DataError, match="the source has neither"):
        score_regions(method, str(tmp_path))
