"""LAION-Face: pairs of face image and caption in img2dataset's tar shards, as FaRL and MCF use them."""

import os
from pathlib import Path

from facessl.core.errors import ConfigError, DataError
from facessl.data.sources._lists import expected, names_by_stem, root_folder
from facessl.data.sources.webdataset import WebDataset

LAYOUT = expected("laionface", "split_00000/00000.tar (of img2dataset, with captions)", "or 00000.tar itself")

#: Parts of the list whose images make the 20 million subset.
SUBSET_20M = (0, 2, 5, 8, 13, 15, 17, 18, 21, 22, 24, 25, 28)


class LaionFace(WebDataset):
    """LAION-Face (Zheng et al., CVPR 2022): up to 50 million web images with a face, each with its caption.

    License: the list is public, the images belong to their owners; for research, see the data set's own terms. Most
    links are dead by now, so no count is asserted. Whole web images, not crops.
    Expected: a folder of img2dataset's output, `split_00000/00000.tar` ... (one folder per part of the list) or the
    tars themselves; a member `.txt` (or "caption" in `.json`) for every image. Read by the webdataset source.
    """

    def __init__(self, path: str | Path, *, parts: str = "all", cache: bool = True) -> None:
        """`parts` is "all", "20m" (the 13 parts of the published subset), or numbers of parts ("0,2,5")."""
        root = root_folder(path, LAYOUT)
        folders = [root / f"split_{part:05d}" for part in _parts(parts)]
        if not folders:
            folders = sorted(root.glob("split_[0-9]*")) or [root]
        paths: list[Path] = []
        for folder in folders:
            tars = names_by_stem(folder, (".tar",)) if folder.is_dir() else {}
            if not tars:
                raise DataError(f"{folder} is missing or holds no tar ({LAYOUT})")
            paths += [folder / name for name in tars.values()]
        self._paths = [os.path.abspath(path) for path in paths]
        # Every part counts its tars from 00000: the part's name has to be in the key.
        self._index([path.relative_to(root).as_posix() for path in paths], cache)
        if "text" not in self.provides:
            captions = self._table["txt"] if "txt" in self._table.columns else self._table["image"] * 0 - 1
            folder = paths[self._shard(int(captions[:, 0].argmin()))].parent
            raise DataError(
                f"{folder} has images without captions: let img2dataset save them (--caption_col TEXT), "
                "or read the images alone with webdataset:"
            )


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
