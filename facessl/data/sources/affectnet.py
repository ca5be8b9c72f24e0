"""AffectNet: the manually annotated part, 8 or 7 expressions."""

from pathlib import Path

from facessl.data.source import Source
from facessl.data.sources import _lists as lists
from facessl.data.splits import part_folders

LAYOUT = lists.expected(
    "affectnet",
    "Manually_Annotated_file_lists/training.csv and validation.csv, Manually_Annotated_Images/1/abc.jpg",
    "or class folders train/0 ... train/7 and val/0 ... val/7",
)

CLASSES = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "anger", "contempt")
COLUMNS = (
    *("subDirectory_filePath", "face_x", "face_y", "face_width", "face_height"),
    *("facial_landmarks", "expression", "valence", "arousal"),
)
SPLITS = {"train": "train", "test": "val"}
LISTS = {"train": "training.csv", "val": "validation.csv"}
#: Images of each number of classes, as commonly reported; of validation one image is missing in some editions.
SIZES = {
    (8, "train"): (287651,),
    (7, "train"): (283901,),
    (8, "val"): (4000, 3999),
    (7, "val"): (3500, 3499),
}
_NO_CLASS = 10  # 8 none, 9 uncertain, 10 no face


class AffectNet(Source):
    """AffectNet (Mollahosseini et al., 2017), manually annotated images.

    License: non-commercial research, on a professor's request; see the data set's own terms. Photographs of real
    people.
    Expected: `Manually_Annotated_file_lists/{training,validation}.csv` with the nine columns `COLUMNS` (with or without
    a header) and `Manually_Annotated_Images/`; or the copy that FRA makes, class folders `train|val/{label}/`, which
    has no boxes. Labels of `classes` and above (contempt for 7; none, uncertain, no face) are left out.
    The test set of the published results is the validation list: role test opens `split=val`.
    Asserted: labels 0..10, and 287651 / 4000 images of 8 classes, 283901 / 3500 of 7.
    """

    splits = SPLITS

    def __init__(self, path: str | Path, *, split: str = "train", classes: int = 8, strict: bool = True) -> None:
        """`classes` is 8, or 7 without contempt."""
        lists.choice("affectnet", "split", split, LISTS)
        lists.choice("affectnet", "classes", classes, (8, 7))
        root = lists.root_folder(path, LAYOUT)
        self.label_names = CLASSES[:classes]
        folder = part_folders(root).get(split)
        if folder is not None:
            known = {str(label): label if label < classes else None for label in range(_NO_CLASS + 1)}
            names, labels = lists.class_folders(folder, known, LAYOUT)
            super().__init__(names, {"label": labels}, folder=folder, file=folder, hint=LAYOUT)
        else:
            folder = lists.find(root, [f"Manually_Annotated_file_lists/{LISTS[split]}", LISTS[split]], LAYOUT)
            names, labels, boxes = _listed(folder, classes)
            inner = "Manually_Annotated_Images"
            images = lists.find(root, [inner, f"Manually_Annotated/{inner}"], LAYOUT)
            super().__init__(names, {"label": labels, "box": boxes}, folder=images, file=folder, hint=LAYOUT)
        lists.counted(folder, f"{split} images of {classes} classes", len(self), SIZES[classes, split], strict)


def _listed(file: Path, classes: int) -> tuple[list[str], list[int], list[tuple[float, float, float, float]]]:
    """Names, labels and boxes of the images of a list with one of the first `classes` labels."""
    names, labels, boxes = [], [], []
    for number, (where, cells) in enumerate(lists.csv_rows(file, LAYOUT)):
        lists.check_width(where, len(cells), len(COLUMNS))
        if number == 0 and cells[0] == COLUMNS[0]:
            continue
        label = lists.whole(cells[6], where, "expression", 0, _NO_CLASS)
        if label < classes:
            names.append(cells[0])
            labels.append(label)
            left, top, width, height = (lists.real(cells[at], where, COLUMNS[at]) for at in range(1, 5))
            boxes.append(lists.box_of_size(left, top, width, height))
    return names, labels, boxes
