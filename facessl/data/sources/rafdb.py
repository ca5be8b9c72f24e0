"""RAF-DB, basic expressions: 15339 web faces in 7 classes, original or aligned."""

from pathlib import Path

from facessl.core.errors import DataError
from facessl.data.source import TRAIN_TEST, Source
from facessl.data.sources._lists import choice, counted, expected, find, root_folder, text_rows, whole

# "patition" is the official spelling.
LIST = "EmoLabel/list_patition_label.txt"
LAYOUT = expected(
    "rafdb", f"{LIST} (lines as 'train_00001.jpg 5')", "Image/aligned/train_00001_aligned.jpg or Image/original"
)

#: In the order of the list's labels 1..7.
CLASSES = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
SIZES = {"train": 12271, "test": 3068}


class RAFDB(Source):
    """Real-world Affective Faces, the basic set (Li et al., CVPR 2017).

    License: non-commercial research, on request; see the data set's own terms. Photographs of real people.
    Expected (also in a sub-folder `basic`): `EmoLabel/list_patition_label.txt` with lines `train_00001.jpg 5` and
    labels 1..7, which become 0..6; `Image/aligned/train_00001_aligned.jpg` (100 x 100) or
    `Image/original/train_00001.jpg`.
    Asserted: labels, names, and 12271 / 3068 images. The published split has no validation part.
    """

    label_names = CLASSES
    splits = TRAIN_TEST

    def __init__(self, path: str | Path, *, split: str = "train", images: str = "aligned", strict: bool = True) -> None:
        """`images` is aligned or original."""
        choice("rafdb", "split", split, SIZES)
        choice("rafdb", "images", images, ("aligned", "original"))
        root = root_folder(path, LAYOUT)
        file = find(root, [LIST, f"basic/{LIST}"], LAYOUT)
        folder = find(file.parent.parent, [f"Image/{images}"], LAYOUT)
        names, labels = [], []
        for where, (name, label) in text_rows(file, 2, LAYOUT):
            part, _, number = name.partition("_")
            if part not in SIZES or not number.endswith(".jpg"):
                raise DataError(f"{where}: the image is {name!r}, not called as train_00001.jpg or test_0001.jpg")
            value = whole(label, where, "label", 1, len(CLASSES))
            if part == split:
                names.append(name if images == "original" else name.removesuffix(".jpg") + "_aligned.jpg")
                labels.append(value - 1)
        counted(file, f"{split} images", len(names), SIZES[split], strict)
        super().__init__(names, {"label": labels}, folder=folder, file=file, hint=LAYOUT)
