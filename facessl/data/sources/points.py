"""Landmarks as .pts files beside the images, in the format of 300-W."""

from pathlib import Path

import numpy as np

from facessl.core.errors import DataError
from facessl.data.source import Source
from facessl.data.sources._annotations import check_layout, pts_faces, square_around
from facessl.data.sources._lists import choice, expected, part_folder, root_folder
from facessl.data.splits import part_folders

LAYOUT = expected("points", "NAME.jpg with NAME.pts beside it, at any depth (also below train, val, test)")


class Points(Source):
    """Images that have a .pts file beside them, with its landmarks.

    Expected: `NAME.jpg` (or another image) and `NAME.pts`: version, `n_points: K`, an opening brace, K lines of x and
    y, a closing brace. All files have the same number of landmarks. `box` is the square around the landmarks' bounding
    box. The license is that of your images.

    Attributes:
        layout: the option's; None: landmarks are not named, so nothing may be mirrored.
    """

    def __init__(
        self, path: str | Path, *, split: str | None = None, start: int = 1, layout: str | None = None
    ) -> None:
        """
        Args:
            split: train, val or test, where there are folders with such names; None: all.
            start: coordinate of the center of the top-left pixel: 1 (as 300-W counts) or 0.
            layout: order of the landmarks, a name of `facessl.data.layouts` (ibug68, wflw98, aflw19, lapa106).
        """
        choice("points", "start", start, (0, 1))
        root = root_folder(path, LAYOUT)
        self.splits = {role: role for role in part_folders(root)}
        inside = root if split is None else part_folder(root, split, LAYOUT)
        names: list[str] = []
        points: list[np.ndarray] = []
        for folder in sorted({file.parent for file in inside.rglob("*.[pP][tT][sS]")}):
            in_folder, marks = pts_faces(folder, LAYOUT, start, points[0].shape[1] if points else None)
            names += [str(folder.relative_to(root) / name) for name in in_folder]
            points += [marks] if in_folder else []
        if not names:
            raise DataError(f"no .pts file in {inside} ({LAYOUT})")
        landmarks = np.concatenate(points)
        check_layout(inside, landmarks.shape[1], layout)
        self.layout = layout
        columns = {"landmarks": landmarks, "box": square_around(landmarks)}
        super().__init__(names, columns, folder=root, file=inside, hint=LAYOUT)
