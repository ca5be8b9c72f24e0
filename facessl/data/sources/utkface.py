"""UTKFace: more than 20000 faces whose file names say age, gender and race; the groups of fairness breakdowns."""

import hashlib
import os
import re
from pathlib import Path

import numpy as np

from facessl.core.errors import DataError
from facessl.data.source import TRAIN_TEST, Source
from facessl.data.sources._lists import choice, expected, root_folder
from facessl.data.sources.folder import Folder

LAYOUT = expected("utkface", "25_0_2_20170116174525125.jpg.chip.jpg (age, gender, race, date; at any depth)")

RACES = ("white", "black", "asian", "indian", "other")
GENDERS = ("male", "female")
AGES = ("under 18", "18 to 59", "60 and over")
ATTRIBUTES = ("male", "under_18", "age_60_plus", *(f"race_{race}" for race in RACES))
#: Names in the published set that lack the race.
INCOMPLETE = frozenset({"39_1_20170116174525125", "61_1_20170109142408075", "61_1_20170109150557335"})
_NAME = re.compile(r"(?P<stem>(\d{1,3})_([01])_([0-4])_\d+) ?(\.jpg|\.chip)*\.(jpg|jpeg|png)", re.IGNORECASE)
_GROUPS = {"race": RACES, "gender": GENDERS, "age": AGES}
_SHOWN = 5


class UTKFace(Source):
    """UTKFace (Zhang, Song and Qi, CVPR 2017); ages, genders and races are estimates, some are wrong.

    License: non-commercial research only; see the data set's own terms. Photographs of real people, many of
    them children.
    Expected: files called `age_gender_race_date.jpg` (aligned: `.jpg.chip.jpg`) at any depth; a name that lies in
    several folders is taken once. Gender is 0 male, 1 female; race is 0 white, 1 black, 2 asian, 3 indian, 4 other.
    Asserted: all names, except for the three of the published set that lack the race, which are left out.
    There is no published split: a fifth of the images, chosen by a hash of the name, is the test part.
    """

    attribute_names = ATTRIBUTES
    splits = TRAIN_TEST

    def __init__(
        self,
        path: str | Path,
        *,
        split: str = "train",
        label: str = "race",
        group: str = "race",
        strict: bool = True,
    ) -> None:
        """
        Args:
            label, group: race, gender or age (three bands: below 18, to 59, from 60).
            strict: refuse other names; False leaves such images out.
        """
        choice("utkface", "split", split, ("train", "test"))
        choice("utkface", "label", label, _GROUPS)
        choice("utkface", "group", group, _GROUPS)
        root = root_folder(path, LAYOUT)
        rows = _rows(root, strict)
        chosen = [row for stem, row in rows.items() if is_test(stem) == (split == "test")]
        age, gender, race = np.array([row[1:] for row in chosen], np.int64).reshape(-1, 3).T
        values = {"race": race, "gender": gender, "age": (age >= 18).astype(np.int64) + (age >= 60)}
        self.label_names, self.group_names = _GROUPS[label], _GROUPS[group]
        attributes = [gender == 0, age < 18, age >= 60, *(race == at for at in range(len(RACES)))]
        columns = {"label": values[label], "group": values[group], "attributes": np.stack(attributes, axis=1)}
        super().__init__([row[0] for row in chosen], columns, folder=root, file=f"{root} ({split})", hint=LAYOUT)


def _rows(root: Path, strict: bool) -> dict[str, tuple[str, int, int, int]]:
    """Path below `root`, age, gender and race by name without endings."""
    folder = Folder(root)
    rows: dict[str, tuple[str, int, int, int]] = {}
    odd = []
    for i in range(len(folder)):
        name = folder.inner_name(i)
        match = _NAME.fullmatch(os.path.basename(name))
        if match:
            rows.setdefault(match["stem"], (name, int(match[2]), int(match[3]), int(match[4])))
        elif os.path.basename(name).split(".")[0] not in INCOMPLETE:
            odd.append(name)
    if odd and strict:
        more = f" and {len(odd) - _SHOWN} more" if len(odd) > _SHOWN else ""
        raise DataError(
            f"{root} has names that do not say age, gender (0, 1) and race (0 to 4): {', '.join(odd[:_SHOWN])}{more}"
            "; rename them, or leave them out with strict=false"
        )
    return rows


def is_test(stem: str) -> bool:
    """Whether the image called `stem` (without endings) is in the test part."""
    return hashlib.sha256(stem.encode()).digest()[0] % 5 == 0
