"""LAION-Face: pairs of face image and caption in img2dataset's tar shards, as FaRL and MCF use them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from facessl.core.errors import ConfigError, DataError
from facessl.core.types import Sample
from facessl.data.sources._lists import expected, root_folder
from facessl.data.sources.webdataset import WebDataset

LAYOUT = expected("laionface", "split_00000/00000.tar (of img2dataset, with captions)", "or 00000.tar itself")

#: Parts of the list whose images make the 20 million subset.
SUBSET_20M = (0, 2, 5, 8, 13, 15, 17, 18, 21, 22, 24, 25, 28)


class LaionFace:
    """LAION-Face (Zheng et al., CVPR 2022): up to 50 million web images with a face, each with its caption.

    Licence: the list is public, the images belong to their owners; for research, see the data set's own terms. Most
    links are dead by now, so no count is asserted. Whole web images, not crops.
    Expected: a folder of img2dataset's output, `split_00000/00000.tar` ... (one folder per part of the list) or the
    tars themselves; a member `.txt` (or "caption" in `.json`) for every image. Read by the webdataset source.
    """

    provides = frozenset({"text"})
    label_names: tuple[str, ...] = ()
    attribute_names: tuple[str, ...] = ()
    streaming = False

    def __init__(self, path: str | Path, *, parts: str = "all", cache: bool = True) -> None:
        """
        Args:
            path: the folder.
            parts: "all", "20m" (the 13 parts of the published subset), or numbers of parts ("0,2,5").
            cache: keep the index in the user's cache folder.

        Raises:
            ConfigError: `parts` that are no numbers.
            DataError: no tar, a part that is missing, a broken tar, or images without captions.
        """
        root = root_folder(path, LAYOUT)
        folders = [root / f"split_{part:05d}" for part in _parts(parts)]
        if not folders:
            folders = sorted(root.glob("split_[0-9]*")) or [root]
        for folder in folders:
            if not any(folder.glob("*.tar")):
                raise DataError(f"{folder} is missing or holds no tar ({LAYOUT})")
        # Every part counts its tars from 00000: the part's name has to be in the key.
        self._names = [f"{folder.name}/" if folder != root else "" for folder in folders]
        self._shards = [WebDataset(folder, cache=cache) for folder in folders]
        for folder, shards in zip(folders, self._shards, strict=True):
            if "text" not in shards.provides:
                raise DataError(
                    f"{folder} has images without captions: let img2dataset save them (--caption_col TEXT), "
                    "or read the images alone with webdataset:"
                )
        self._ends = np.cumsum([len(shards) for shards in self._shards])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Sample:
        """Image `index` as encoded bytes, with its caption. Raises ImageError where it cannot be read."""
        part, inner = self._place(index)
        sample = self._shards[part][inner]
        sample.key = self._names[part] + sample.key
        return sample

    def key(self, index: int) -> str:
        """`split_00000/00000.tar/member` of image `index`, without reading it."""
        part, inner = self._place(index)
        return self._names[part] + self._shards[part].key(inner)

    def _place(self, index: int) -> tuple[int, int]:
        """Part that image `index` is in, and its position there."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        part = int(np.searchsorted(self._ends, index, side="right"))
        return part, int(index - (self._ends[part - 1] if part else 0))


def _parts(text: str) -> tuple[int, ...]:
    """Numbers of the parts that the option names; none for all."""
    if text.lower() == "all":
        return ()
    if text.lower() == "20m":
        return SUBSET_20M
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise ConfigError(f"laionface?parts={text} cannot be used: it must be all, 20m or numbers as 0,2,5") from None
