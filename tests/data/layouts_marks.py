"""Landmark and mask sets in miniature, in the true layouts, from synthetic faces: `build_NAME(folder)` gives its spec.

Each opens with 6 images in its default split. Landmarks of other orders are taken from the drawn 68 by `ordered`.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from facessl.data.sources.celebamaskhq import ORDERS
from facessl.data.sources.synthetic import Synthetic

SIDE = 48
#: What CelebAMask-HQ's files show, by class of the drawn mask. l_ is the person's left: the image's right.
CELEBA_PARTS = {
    **{"skin": range(1, 10), "nose": (6,), "hair": (10,), "r_brow": (2,), "l_brow": (3,), "r_eye": (4,), "l_eye": (5,)},
    **{"u_lip": (7,), "mouth": (8,), "l_lip": (9,), "cloth": (10,)},
}


@functools.cache
def drawn(index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image (48, 48, 3), 68 landmarks and mask (48, 48) of a drawn, upright face."""
    sample = Synthetic(n=8, size=SIDE, yaw=0, pitch=0, roll=0, occlusion=0)[index % 8]
    return sample.image, sample.landmarks, sample.mask


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def along(points: np.ndarray, count: int) -> np.ndarray:
    """(count, 2) points at equal steps of a polyline's vertices."""
    at = np.linspace(0, len(points) - 1, count)
    return np.stack([np.interp(at, np.arange(len(points)), points[:, axis]) for axis in (0, 1)], 1)


def ordered(name: str, m: np.ndarray) -> np.ndarray:
    """The landmarks of another order that 68 drawn ones imply."""
    if name == "ibug68":
        return m
    pupils = np.stack([m[36:42].mean(0), m[42:48].mean(0)])
    if name == "aflw19":
        brows = m[[17, 19, 21, 22, 24, 26]]
        eyes = [m[36], pupils[0], m[39], m[42], pupils[1], m[45]]
        return np.stack([*brows, *eyes, m[31], m[30], m[35], m[48], (m[62] + m[66]) / 2, m[54], m[8]])
    left_brow = [m[17:22], along(m[[21, 17]], 4)]
    right_brow = [m[22:27], along(m[[26, 22]], 4)]
    left_eye = [along(m[36:40], 5), along(m[[39, 40, 41, 36]], 5)[1:-1]]
    right_eye = [along(m[42:46], 5), along(m[[45, 46, 47, 42]], 5)[1:-1]]
    upper = [along(m[:17], 33), *left_brow, *right_brow, m[27:31]]
    if name == "wflw98":
        return np.concatenate([*upper, m[31:36], *left_eye, *right_eye, m[48:68], pupils])
    nose = along(np.stack([m[39], *m[31:36], m[42]]), 11)
    return np.concatenate([*upper, nose, *left_eye, pupils[:1], *right_eye, pupils[1:], m[48:68], pupils])


def row(values: np.ndarray) -> str:
    return " ".join(f"{value:.4f}" for value in values.reshape(-1))


def hrnet(path: Path, rows: Sequence[tuple[str, np.ndarray]], shift: float = 0) -> None:
    """One of HRNet's tables of (name, landmarks)."""
    count = len(rows[0][1])
    head = ["image_name", "scale", "center_w", "center_h", *(f"original_{i}_{a}" for i in range(count) for a in "xy")]
    lines = [",".join(head)]
    for name, points in rows:
        low, high = points.min(0), points.max(0)
        scale, center = (high - low).max() / 200, (low + high) / 2 + shift
        lines.append(f"{name},{scale:.6f},{row(center)},{row(points + shift)}".replace(" ", ","))
        lines[-1] = lines[-1].replace(name.replace(" ", ","), name)
    write(path, lines)


def build_wflw(root: Path) -> str:
    """Raw lists and HRNet's tables of the same faces; test face i has flag i."""
    for split, count in (("train", 6), ("test", 3)):
        faces, raw = [], []
        for i in range(count):
            name, points = f"{i}--Event/{split}_{i}.jpg", ordered("wflw98", drawn(i)[1])
            save(root / "WFLW_images" / name, drawn(i)[0])
            faces.append((name, points))
            flags = " ".join("1" if at == i else "0" for at in range(6))
            raw.append(f"{row(points)} 5 6 40 41 {flags} {name}")
        hrnet(root / f"face_landmarks_wflw_{split}.csv", faces)
        write(root / f"WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_{split}.txt", raw)
    for at, subset in enumerate(("largepose", "expression", "illumination")):
        hrnet(root / f"face_landmarks_wflw_test_{subset}.csv", [faces[at]])
    return f"wflw:{root}?strict=false"


#: Images of the miniature 300-W by part.
W300 = {
    "train": (
        *("afw/a_1.jpg", "afw/b_1.jpg", "helen/trainset/c_1.jpg", "helen/trainset/d_1.jpg"),
        *("lfpw/trainset/image_0001.png", "lfpw/trainset/image_0002.png"),
    ),
    "valid_common": ("helen/testset/e_1.jpg", "lfpw/testset/image_0001.png"),
    "valid_challenge": ("ibug/image_003_1.jpg", "ibug/image_092 _01.jpg"),
}


def w300_images(root: Path) -> dict[str, list[tuple[str, np.ndarray]]]:
    parts = {part: [(name, drawn(i)[1]) for i, name in enumerate(names)] for part, names in W300.items()}
    for faces in parts.values():
        for i, (name, _) in enumerate(faces):
            save(root / name, drawn(i)[0])
    return parts


def build_w300(root: Path) -> str:
    """.pts files, which count from 1."""
    for faces in w300_images(root).values():
        for name, points in faces:
            lines = ["version: 1", "n_points:  68", "{", *(row(point) for point in points + 1), "}"]
            write((root / name).with_suffix(".pts"), lines)
    return f"w300:{root}?strict=false"


def build_points(root: Path) -> str:
    """Six training faces in two folders and two test faces, counted from 0."""
    for i in range(8):
        name = root / ("test" if i > 5 else f"train/{'ab'[i % 2]}") / f"face{i}.jpg"
        save(name, drawn(i)[0])
        points = [row(point) for point in drawn(i)[1]]
        write(name.with_suffix(".pts"), ["version: 1", "n_points: 68", "{", *points, "}"])
    return f"points:{root}?start=0&layout=ibug68&split=train"


def w300_tables(root: Path) -> str:
    """HRNet's tables, one pixel above the .pts files, without the blank in a name."""
    for part, faces in w300_images(root).items():
        rows = [(name.replace(" ", ""), points) for name, points in faces]
        hrnet(root / f"face_landmarks_300w_{part}.csv", rows, shift=2)
    return f"w300:{root}?strict=false"


def aflw_info(count: int, train: int) -> dict[str, np.ndarray]:
    """Arrays of AFLWinfo_release.mat: `ra` reverses the faces, and every second test face is frontal."""
    points = np.stack([ordered("aflw19", drawn(i)[1]) for i in range(8)])[np.arange(count) % 8]
    names = np.empty((count, 1), object)
    names[:, 0] = [f"{(0, 2, 3)[i % 3]}/image{i:05d}.jpg" for i in range(count)]
    seen = np.ones((count, 19))
    seen[count - train - 1 :: -2, 18] = 0
    box = np.stack([points[..., 0].min(1), points[..., 0].max(1), points[..., 1].min(1), points[..., 1].max(1)], 1)
    return {
        "bbox": box,
        "data": points.transpose(0, 2, 1).reshape(count, 38),
        "mask_new": seen,
        "nameList": names,
        "ra": np.arange(count, 0, -1)[None],
    }


def build_aflw19(root: Path) -> str:
    info = aflw_info(7, 6)  # the published proportion
    root.mkdir(parents=True, exist_ok=True)
    savemat(root / "AFLWinfo_release.mat", info)
    for i, name in enumerate(info["nameList"][:, 0]):
        save(root / "data/flickr" / name, drawn(i)[0])
    return f"aflw19:{root}?strict=false"


def build_lapa(root: Path) -> str:
    for split, count in (("train", 6), ("val", 2), ("test", 2)):
        for i in range(count):
            image, points, mask = drawn(i)
            save(root / split / "images" / f"face{i}.jpg", image)
            save(root / split / "labels" / f"face{i}.png", mask)
            write(root / split / "landmarks" / f"face{i}.txt", ["106", *map(row, ordered("lapa106", points))])
    return f"lapa:{root}?strict=false"


#: Original indices of the miniature CelebAMask-HQ; a file's number is its index + 1. 162770 is where the two
#: partitions differ.
CELEBA_ORIGINAL = (0, 7, 100, 5000, 162000, 162770, 162771, 182637, 182638, 202598)


def build_celebamaskhq(root: Path) -> str:
    """Images of 96 px with masks of 48 px; hair and cloth overlap."""
    mapping, partition = ["idx orig_idx orig_file"], []
    for i, original in enumerate(CELEBA_ORIGINAL):
        image, _, mask = drawn(i)
        save(root / "CelebA-HQ-img" / f"{i}.jpg", image.repeat(2, 0).repeat(2, 1))
        for suffix, classes in CELEBA_PARTS.items():
            part = np.isin(mask, list(classes))
            if part.any():
                gray = (part * 255).astype(np.uint8)[..., None].repeat(3, 2)  # stored as RGB
                save(root / "CelebAMask-HQ-mask-anno/0" / f"{i:05d}_{suffix}.png", gray)
        mapping.append(f"{i} {original} {original + 1:06d}.jpg")
        partition.append(f"{original + 1:06d}.jpg {int(original + 1 > 162770) + int(original + 1 > 182637)}")
    write(root / "CelebA-HQ-to-CelebA-mapping.txt", mapping)
    write(root / "list_eval_partition.txt", partition)
    return f"celebamaskhq:{root}?strict=false"


def build_landmarks_csv(root: Path) -> str:
    """6 training faces of two sources, 2 test faces."""
    lines = [",".join(["image", "split", "source", *(f"{axis}{i}" for i in range(68) for axis in "xy")])]
    for i in range(8):
        save(root / "images" / f"face{i}.jpg", drawn(i)[0])
        split, source = "train" if i < 6 else "test", ("helen", "afw")[i % 2]
        lines.append(f"face{i}.jpg,{split},{source}," + row(drawn(i)[1]).replace(" ", ","))
    write(root / "faces.csv", lines)
    return f"landmarks_csv:{root}/faces.csv?layout=ibug68&split=train"


def build_masks_folder(root: Path) -> str:
    """Gray and palette masks by turns; a palette whose colors say nothing of the classes."""
    names = ORDERS["official"][:10]
    write(root / "classes.txt", ["background", *names])
    for i in range(6):
        save(root / "images" / f"face{i}.jpg", drawn(i)[0])
        mask = Image.fromarray(drawn(i)[2], mode="P" if i % 2 else "L")
        if i % 2:
            mask.putpalette([200 - value for value in range(33)])
        (root / "masks").mkdir(exist_ok=True)
        mask.save(root / "masks" / f"face{i}.png")
    return f"masks_folder:{root}"
