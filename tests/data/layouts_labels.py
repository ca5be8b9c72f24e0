"""Data sets in miniature, in their true layouts, from synthetic faces: `build_NAME(folder)` gives the source's spec.

Each opens with 6 images in its default split; other splits have at least 2.
"""

import functools
import io
from pathlib import Path

import numpy as np
from PIL import Image

from facessl.data.sources.affectnet import COLUMNS as AFFECTNET_COLUMNS
from facessl.data.sources.synthetic import Synthetic
from facessl.data.sources.utkface import is_test

from .make import shard

#: The 40 attributes in the order of CelebA's list.
CELEBA_NAMES = (
    *tuple(f"Attribute_{at}" for at in range(20)),
    "Male",
    *tuple(f"Attribute_{at}" for at in range(21, 40)),
)


@functools.cache
def pixels(index: int) -> np.ndarray:
    """(48, 48, 3) uint8, one of a few synthetic faces."""
    image = Synthetic(n=4, size=48)[index % 4].image
    return image


def face(path: Path, index: int = 0) -> None:
    """Write a synthetic face, in the format that the path's ending names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(index)).save(path)


def text(path: Path, *lines: str) -> Path:
    """Write lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def build_vggface2(root: Path) -> str:
    for split, first in (("train", 2), ("test", 1)):
        for person in range(3):
            for image in range(2):
                face(root / split / f"n{first + 10 * person:06d}" / f"{image + 1:04d}_01.jpg", image)
    return f"vggface2:{root}?strict=false"


def encoded(index: int) -> bytes:
    """A synthetic face as a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels(index)).save(buffer, "JPEG")
    return buffer.getvalue()


def build_laionface(root: Path) -> str:
    for part in range(2):
        members: dict[str, bytes] = {}
        for at in range(3):
            members[f"00000000{at}.jpg"] = encoded(at)
            members[f"00000000{at}.txt"] = f"face {at} of part {part}".encode()
            members[f"00000000{at}.json"] = b"{}"
        (root / f"split_{part:05d}").mkdir(parents=True)
        shard(root / f"split_{part:05d}" / "00000.tar", members)
    return f"laionface:{root}"


#: Votes (8 classes, unknown, not a face) and the class of the majority; None: none.
FERPLUS_VOTES = (
    ((10, 0, 0, 0, 0, 0, 0, 0, 0, 0), 0),
    ((1, 6, 0, 0, 0, 3, 0, 0, 0, 0), 1),
    ((0, 5, 5, 0, 0, 0, 0, 0, 0, 0), None),
    ((0, 1, 5, 4, 0, 0, 0, 0, 0, 0), 2),  # the single vote is dropped: 5 of 9
    ((0, 0, 0, 2, 1, 1, 1, 1, 1, 0), 3),
    ((4, 0, 0, 0, 0, 0, 0, 0, 6, 0), None),
    ((0, 0, 0, 0, 0, 0, 0, 0, 1, 9), None),
    ((0, 0, 0, 0, 1, 1, 8, 0, 0, 0), 6),
    ((0, 0, 0, 0, 0, 0, 2, 8, 0, 0), 7),
    ((1, 1, 1, 1, 1, 1, 1, 1, 1, 1), None),
)


def build_ferplus(root: Path) -> str:
    first = 0
    for name in ("FER2013Train", "FER2013Valid", "FER2013Test"):
        rows = []
        for at, (votes, _) in enumerate(FERPLUS_VOTES):
            file = f"fer{first + at:07d}.png"
            face(root / "data" / name / file, at)
            rows.append(f'{file},"(0, 0, 48, 48)",{",".join(map(str, votes))}')
        first += len(rows)
        text(root / "data" / name / "label.csv", *rows)
    return f"ferplus:{root}?strict=false"


def build_fer2013(root: Path) -> str:
    rows = []
    for usage, count in (("Training", 6), ("PublicTest", 2), ("PrivateTest", 7)):
        for at in range(count):
            gray = pixels(at)[:, :, 1].ravel().tolist()
            rows.append(f"{at},{' '.join(map(str, gray))},{usage}")
    text(root / "fer2013.csv", "emotion,pixels,Usage", *rows)
    return f"fer2013:{root}?strict=false"


def build_rafdb(root: Path) -> str:
    names = [f"train_{at + 1:05d}" for at in range(6)] + [f"test_{at + 1:04d}" for at in range(7)]
    labels = [5, 1, 7, 4, 2, 3, 1, 2, 3, 4, 5, 6, 7]
    for at, name in enumerate(names):
        face(root / "Image/aligned" / f"{name}_aligned.jpg", at)
        face(root / "Image/original" / f"{name}.jpg", at + 1)
    text(root / "EmoLabel/list_patition_label.txt", *(f"{n}.jpg {la}" for n, la in zip(names, labels, strict=True)))
    return f"rafdb:{root}?strict=false"


def build_affectnet(root: Path) -> str:
    expressions = [0, 1, 2, 6, 8, 7, 9, 5, 10]  # 6 of them are classes
    for split, name in enumerate(("training", "validation")):
        rows = [",".join(AFFECTNET_COLUMNS)]
        for at, expression in enumerate(expressions):
            file = f"{split}/{at}.jpg"
            face(root / "Manually_Annotated_Images" / file, at)
            rows.append(f"{file},{4 + at},5,30,20,1.0;2.0;3.0;4.0,{expression},-2,-2")
        text(root / "Manually_Annotated_file_lists" / f"{name}.csv", *rows)
    return f"affectnet:{root}?strict=false"


def build_celeba(root: Path) -> str:
    count, names = 10, [f"{at + 1:06d}.jpg" for at in range(10)]
    bits = np.where(np.arange(count * 40).reshape(count, 40) % 7 == 0, 1, -1)
    points = [[69, 109, 106, 113, 77, 142, 73 + at, 152, 108, 154] for at in range(count)]
    corners = ("lefteye", "righteye", "nose", "leftmouth", "rightmouth")
    for at, name in enumerate(names):
        face(root / "img_align_celeba" / name, at)

    def rows(values: object) -> list[str]:
        return [f"{name}  {' '.join(map(str, row))}" for name, row in zip(names, values, strict=True)]  # type: ignore[call-overload]

    text(root / "list_attr_celeba.txt", str(count), " ".join(CELEBA_NAMES), *rows(bits.tolist()))
    text(root / "list_eval_partition.txt", *rows([[0]] * 6 + [[1]] * 2 + [[2]] * 2))
    text(root / "identity_CelebA.txt", *rows([[2880 + at // 2] for at in range(count)]))
    header = " ".join(f"{corner}_{axis}" for corner in corners for axis in "xy")
    text(root / "list_landmarks_align_celeba.txt", str(count), header, *rows(points))
    return f"celeba:{root}?strict=false&group=Male"


def build_utkface(root: Path) -> str:
    wanted, at = {False: 6, True: 2}, 0
    while any(wanted.values()):
        stem = f"{(17, 18, 59, 60, 1, 110)[at % 6]}_{at % 2}_{at % 5}_2017010915{at:07d}"
        if wanted[is_test(stem)]:
            wanted[is_test(stem)] -= 1
            face(root / f"{stem}.jpg.chip.jpg", at)
        at += 1
    face(root / "61_1_20170109150557335.jpg.chip.jpg")  # in the published set, without a race
    return f"utkface:{root}"


def build_lfw(root: Path) -> str:
    rows = (("Ann_A", 1, 2), ("Bob", 1, 2), ("Ann_A", 1, "Bob", 1), ("Cy", 1, "Ann_A", 2))
    rows += (("Ann_A", 2, 1), ("Bob", 2, 1), ("Dee", 1, "Bob", 2), ("Cy", 1, "Dee", 1))
    text(root / "pairs.txt", "2\t2", *("\t".join(map(str, row)) for row in rows))
    for name, count in (("Ann_A", 3), ("Bob", 2), ("Cy", 1), ("Dee", 1)):
        for at in range(count):
            face(root / "lfw" / name / f"{name}_{at + 1:04d}.jpg", at)
    return f"lfw:{root}?strict=false"


def build_labels_csv(root: Path) -> str:
    header = "image,split,who,mood,region,smiling,hat,left,top,right,bottom"
    rows = []
    for at in range(8):
        face(root / f"img/{at}.jpg", at)
        split, mood = ("train", "test")[at % 4 == 3], ("sad", "happy", "calm")[at % 3]
        rows.append(f"img/{at}.jpg,{split},p{at // 2},{mood},{at % 4},{at % 2},{at % 3 % 2},1,2,{30 + at},40.5")
    file = text(root / "table.csv", header, *rows)
    return f"labels-csv:{file}?split=train&label=mood&attributes=*&identity=who&group=region"


def build_pairs_csv(root: Path) -> str:
    for at in range(6):
        face(root / f"img/{at}.jpg", at)
    rows = [f"img/{a}.jpg,img/{b}.jpg,{same},{fold}" for a, b, same, fold in _PAIRS]
    return f"pairs-csv:{text(root / 'pairs.csv', 'image_a,image_b,same,fold', *rows)}"


_PAIRS = ((0, 1, 1, 0), (2, 3, 0, 0), (4, 5, 1, 1), (5, 0, 0, 1))
