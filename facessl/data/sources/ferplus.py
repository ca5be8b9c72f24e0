"""FERPlus: FER2013's images with ten votes each, 8 or 7 expressions by majority."""

from pathlib import Path

from facessl.data.source import TRAIN_VAL_TEST, Source
from facessl.data.sources import _lists as lists

LAYOUT = lists.expected(
    "ferplus",
    "FER2013{Train,Valid,Test}/ with label.csv and fer0000000.png ... (also in data/)",
    "or Images/FER2013Train/*.png and Labels/FER2013Train/label.csv",
)

CLASSES = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
FOLDERS = {"train": "FER2013Train", "val": "FER2013Valid", "test": "FER2013Test"}
#: Images with a majority among the 8 classes, counted in the official label.csv.
KEPT = {"train": 25045, "val": 3191, "test": 3137}
_VOTES = len(CLASSES) + 2  # then "unknown" and "not a face"


class FERPlus(Source):
    """FERPlus (Barsoum et al., ICMI 2016), read from `label.csv` as FRA does.

    License: the votes are MIT; the images are FER2013's, for research, see that data set's own terms.
    Expected: the official repository with its PNGs (`data/FER2013Train/label.csv` and `fer0000000.png` beside it), or
    `Images/FER2013Train/` and `Labels/FER2013Train/label.csv`. `fer2013new.csv` has slightly other votes: not read.
    A row is a file name, a box, and votes for the 8 classes in the order of `CLASSES`, unknown, and not a face.
    The majority rule: single votes are dropped, then a class needs more than half of what is left; images without a
    majority, or with one for unknown or no face, are left out. With 7 classes those of contempt are left out too.
    Asserted: 25045 / 3191 / 3137 images with a majority among the 8 classes (train, val, test).
    """

    splits = TRAIN_VAL_TEST

    def __init__(self, path: str | Path, *, split: str = "train", classes: int = 8, strict: bool = True) -> None:
        """`classes` is 8, or 7 without contempt."""
        lists.choice("ferplus", "split", split, FOLDERS)
        lists.choice("ferplus", "classes", classes, (8, 7))
        root, name = lists.root_folder(path, LAYOUT), FOLDERS[split]
        file = lists.find(root, [f"{place}{name}/label.csv" for place in ("", "data/", "Labels/")], LAYOUT)
        images = lists.find(root, [f"Images/{name}"], LAYOUT) if file.parent.parent.name == "Labels" else file.parent
        names, labels = [], []
        for where, cells in lists.csv_rows(file, LAYOUT):
            lists.check_width(where, len(cells), 2 + _VOTES)
            label = majority([lists.whole(cell, where, "number of votes", 0, 100) for cell in cells[2:]])
            if label is not None:
                names.append(cells[0])
                labels.append(label)
        lists.counted(file, f"{split} images with a majority", len(names), KEPT[split], strict)
        self.label_names = CLASSES[:classes]
        chosen = [i for i, label in enumerate(labels) if label < classes]
        columns = {"label": [labels[i] for i in chosen]}
        super().__init__([names[i] for i in chosen], columns, folder=images, file=file, hint=LAYOUT)


def majority(votes: list[int]) -> int | None:
    """Class that has more than half of the votes (of 8 classes, unknown, not a face) without single ones; or None."""
    votes = [vote if vote > 1 else 0 for vote in votes]
    most = max(votes)
    winner = votes.index(most)
    return winner if 2 * most > sum(votes) and winner < len(CLASSES) else None
