"""Images and class maps with equal names, or a table that pairs them."""

import os
import re
from pathlib import Path

from facessl.core.errors import ConfigError, DataError
from facessl.core.types import Sample
from facessl.data.decode import EXTENSIONS
from facessl.data.layouts import swapped
from facessl.data.source import Source
from facessl.data.sources._annotations import give_mask, side_pairs
from facessl.data.sources._lists import expected, find, find_any, lines, names_by_stem, root_folder
from facessl.data.sources._tables import ImageTable
from facessl.data.splits import part_folders, role, roles

LAYOUT = expected(
    "masks_folder",
    "classes.txt (one name a line, background first)",
    "images/NAME.jpg with masks/NAME.png (also below train, val, test)"
    " or index.csv with columns image, mask and, if wanted, split",
)
_PAIR = re.compile(r"(\d+):(\d+)")


class MasksFolder(Source):
    """Images with class maps.

    Expected: `classes.txt`, one name a line from class 0, and either `index.csv` (columns image, mask, if wanted split)
    or `images/` and `masks/` whose files have equal names but for the ending; both may lie in `train/`, `val/` and
    `test/`, or hold these folders. Masks are gray or palette PNGs of class numbers (a palette's colors do not matter),
    255 is left out. They are as large as their image, or smaller by a whole number. The license is that of your images.

    Attributes:
        mask_names: of `classes.txt`; numbers in front ("4 left_eye") are checked and dropped.
        mask_flip: which classes change places in a mirrored image, by the option `flip`.
    """

    provides = frozenset({"mask"})

    def __init__(self, path: str | Path, *, split: str | None = None, flip: str = "auto") -> None:
        """
        Args:
            split: train, val or test (of `index.csv`: any value of its column); None: all images.
            flip: classes that change places in a mirrored image, as `4:5,6:7`; none; or auto: pairs of names that
                differ in left/right, in l_/r_ in front, or in their own number behind (`eye_4`, `eye_5`).
        """
        root = root_folder(path, LAYOUT)
        self._names_file = find(root, ["classes.txt"], LAYOUT)
        self.mask_names = _names(self._names_file)
        self.mask_flip = _flip(flip, self.mask_names)
        index = find_any(root, ["index.csv"])
        if index:
            table = ImageTable(index, LAYOUT)
            column = table.find(["split"])
            part_of = table.column(column) if column else [""] * len(table.where)
            rows = list(zip(table.column("image"), table.column("mask"), part_of, strict=True))
        else:
            rows = _files(root)
        parts = {part for _, _, part in rows if part}
        self.splits = roles(parts)
        if split is not None:
            rows = [row for row in rows if row[2] and split in (row[2], role(row[2]))]
            if not rows:
                known = f"it has {', '.join(sorted(parts))}" if parts else "it is not divided"
                raise ConfigError(f"masks_folder?split={split} cannot be used with {root}: {known}")
        self._root, self._masks = root, [mask for _, mask, _ in rows]
        super().__init__([image for image, _, _ in rows], folder=root, file=index or root, hint=LAYOUT)

    def __getitem__(self, index: int) -> Sample:
        """Image `index` with its mask; DataError if the mask has a class that `classes.txt` does not name."""
        sample = super().__getitem__(index)
        file = os.path.join(self._root, self._masks[index])
        give_mask(sample, file, len(self.mask_names), str(self._names_file))
        return sample


def _names(file: Path) -> tuple[str, ...]:
    names = [line for _, line in lines(file, LAYOUT)]
    numbered = [re.fullmatch(r"(\d+)[\s:,]+(.+)", name) for name in names]
    if all(numbered):
        for i, match in enumerate(numbered):
            if match and int(match[1]) != i:
                raise DataError(f"{file} names the class {match[1]} where {i} is expected: count from 0 without gaps")
        names = [match[2] for match in numbered if match]
    if len(names) < 2 or len(set(names)) != len(names) or len(names) > 255:
        raise DataError(f"{file} must name 2 to 255 different classes, one a line, but names {len(set(names))}")
    return tuple(names)


def _flip(flip: str, names: tuple[str, ...]) -> tuple[int, ...] | None:
    """Class of the mirrored image by class; None if classes have no sides."""
    if flip == "auto":
        return side_pairs(names)
    if flip == "none":
        return None
    pairs = [_PAIR.fullmatch(text.strip()) for text in flip.split(",")]
    numbers = [(int(match[1]), int(match[2])) for match in pairs if match]
    flat = [number for pair in numbers for number in pair]
    if len(numbers) != len(pairs) or len(set(flat)) != len(flat) or max(flat, default=0) >= len(names):
        raise ConfigError(
            f"masks_folder?flip={flip} cannot be used: it must be auto, none, or pairs of different classes "
            f"from 0 to {len(names) - 1} as 4:5,6:7"
        )
    return swapped(len(names), numbers)


def _files(root: Path) -> list[tuple[str, str, str]]:
    """Paths of images and masks of equal name below `root`, and their part ("" for none), by part and name."""
    folders = [("", root / "images", root / "masks")]
    folders += [(folder.name, folder / "images", folder / "masks") for folder in part_folders(root).values()]
    if (root / "images").is_dir():
        inside = part_folders(root / "images").values()
        folders += [(folder.name, folder, root / "masks" / folder.name) for folder in inside]
    rows = []
    for part, images, masks in folders:
        if not images.is_dir():
            continue
        mask_names = names_by_stem(find(masks, ["."], LAYOUT), (".png", ".bmp", ".gif"))
        for stem, name in names_by_stem(images, EXTENSIONS).items():
            if stem not in mask_names:
                raise DataError(f"{images / name} has no mask {masks / stem}.png ({LAYOUT})")
            image, mask = (str(file.relative_to(root)) for file in (images / name, masks / mask_names[stem]))
            rows.append((image, mask, part))
    if not rows:
        raise DataError(f"{root} has neither index.csv nor images in images/ ({LAYOUT})")
    return rows
