"""CelebAMask-HQ: 30000 faces with a 19-class mask."""

import os
from pathlib import Path

import numpy as np

from facessl.core.errors import DataError
from facessl.core.types import Sample
from facessl.data.skipped import ImageError, unreadable
from facessl.data.source import TRAIN_VAL_TEST, Source
from facessl.data.sources._annotations import fitted, read_mask, side_pairs
from facessl.data.sources._lists import choice, counted, expected, find, root_folder, text_rows, whole

LAYOUT = expected(
    "celebamaskhq",
    "CelebA-HQ-img/0.jpg",
    "CelebAMask-HQ-mask-anno/0/00000_skin.png",
    "CelebA-HQ-to-CelebA-mapping.txt",
    "for partition=celeba also CelebA's list_eval_partition.txt",
)
IMAGES = 30000
CELEBA = 202599
#: Classes 1, 2, ... by their file suffix; of two that cover a pixel the later one counts.
ORDERS = {
    "official": (
        *("skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear", "mouth", "u_lip", "l_lip"),
        *("hair", "hat", "ear_r", "neck_l", "neck", "cloth"),
    ),
    "farl": (
        *("neck", "skin", "cloth", "l_ear", "r_ear", "l_brow", "r_brow", "l_eye", "r_eye", "nose", "mouth", "l_lip"),
        *("u_lip", "hair", "eye_g", "hat", "ear_r", "neck_l"),
    ),
}
SIZES = {"train": 24183, "val": 2993, "test": 2824}
#: g_partition.py: train below the first, val below the second original index.
_BORDERS = (162771, 182638)


class CelebAMaskHQ(Source):
    """CelebAMask-HQ (Lee et al., CVPR 2020).

    License: non-commercial research; see the data set's own terms. Photographs of real people.
    Expected: `CelebA-HQ-img/{i}.jpg` (1024 px), `CelebAMask-HQ-mask-anno/{i//2000}/{i:05d}_{suffix}.png` (512 px, one
    file for each class that the face has), `CelebA-HQ-to-CelebA-mapping.txt` (index, original index, original file).
    Asserted: indices, suffixes, and 24183 / 2993 / 2824 images.

    Masks are merged when they are read, later classes over earlier ones, and enlarged to their image's size. Both
    orders have the same 18 classes by other numbers, and differ where files overlap.

    Sides: the suffixes name the person's side. `l_eye` is the person's left eye, on the image's right: seen in 133 of
    145 faces of a copy in the official order, the others being annotated the other way round. FaRL's own names for
    them ('re' for l_eye) are the image's sides.

    Attributes:
        mask_names: background and the suffixes in the chosen order.
        mask_flip: l_ and r_ classes change places in a mirrored image.
    """

    provides = frozenset({"mask"})
    splits = TRAIN_VAL_TEST

    def __init__(
        self,
        path: str | Path,
        *,
        split: str = "train",
        order: str = "official",
        partition: str = "official",
        strict: bool = True,
    ) -> None:
        """
        Args:
            order: numbers of the classes: official (the set's g_mask.py) or farl.
            partition: official divides by the original index (g_partition.py); celeba by CelebA's own
                list_eval_partition.txt, as FaRL does. They may differ in one image at each border.
        """
        choice("celebamaskhq", "split", split, SIZES)
        choice("celebamaskhq", "order", order, ORDERS)
        choice("celebamaskhq", "partition", partition, ("official", "celeba"))
        root = root_folder(path, LAYOUT)
        images = find(root, ["CelebA-HQ-img"], LAYOUT)
        self._parts = find(root, ["CelebAMask-HQ-mask-anno"], LAYOUT)
        file = find(root, ["CelebA-HQ-to-CelebA-mapping.txt"], LAYOUT)
        part = list(SIZES).index(split)
        rows = _mapping(file)
        if partition == "official":
            chosen = [i for i, original, _ in rows if np.searchsorted(_BORDERS, original, "right") == part]
        else:
            parts_file = find(root, ["list_eval_partition.txt", "Eval/list_eval_partition.txt"], LAYOUT)
            of_image = {name: whole(n, where, "part", 0, 2) for where, (name, n) in text_rows(parts_file, 2, LAYOUT)}
            odd = next((name for _, _, name in rows if name not in of_image), None)
            if odd is not None:
                raise DataError(f"{file} names {odd}, which {parts_file.name} does not have: take CelebA's own file")
            chosen = [i for i, _, name in rows if of_image[name] == part]
        near = 0 if partition == "official" else 1
        sizes = range(SIZES[split] - near, SIZES[split] + near + 1)
        counted(file, f"{split} images", len(chosen), sizes, strict)
        self.mask_names = ("background", *ORDERS[order])
        self.mask_flip = side_pairs(self.mask_names)
        super().__init__([f"{i}.jpg" for i in sorted(chosen)], folder=images, file=file, hint=LAYOUT)

    def __getitem__(self, index: int) -> Sample:
        """Face `index` with its mask. Raises ImageError if one of its files cannot be read or none is there."""
        sample = super().__getitem__(index)
        assert isinstance(sample.image, bytes)
        number = int(Path(sample.key).stem)
        prefix = f"{self._parts}/{number // 2000}/{number:05d}_"
        sample.mask = fitted(self._merged(prefix), sample.image, sample.key, prefix + "*.png")
        return sample

    def _merged(self, prefix: str) -> np.ndarray:
        """(H, W) uint8 class map from the files of one face."""
        merged: np.ndarray | None = None
        for value, suffix in enumerate(self.mask_names[1:], 1):
            name = f"{prefix}{suffix}.png"
            try:
                os.stat(name)
            except FileNotFoundError:
                continue  # a class that this face does not show
            except OSError as error:
                raise unreadable(name, error) from None
            inside = read_mask(name) > 0
            if merged is None:
                merged = np.zeros(inside.shape, np.uint8)
            elif merged.shape != inside.shape:
                raise ImageError(name, f"it is {inside.shape} where the classes before it are {merged.shape}")
            merged[inside] = value
        if merged is None:
            raise ImageError(prefix + "*.png", "there is no mask of any class")
        return merged


def _mapping(file: Path) -> list[tuple[int, int, str]]:
    """Index, original index and original file of every image."""
    rows = []
    for where, (index, original, name) in text_rows(file, 3, LAYOUT, skip=1):
        number = whole(index, where, "index", 0, IMAGES - 1)
        rows.append((number, whole(original, where, "original index", 0, CELEBA), name))
    if len({row[0] for row in rows}) != len(rows):
        raise DataError(f"{file} lists an index twice")
    return rows
