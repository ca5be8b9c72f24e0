"""Small images and tar shards for the tests of this folder."""

import io
import os
import shutil
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facessl.data.layouts import Layout


def jpeg(shade: int, *, size: tuple[int, int] = (16, 16)) -> bytes:
    """A gray JPEG whose shade tells which one it is."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade, shade, shade)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def folder(root: Path, *names: str) -> Path:
    """`root` with one image per name, of shade 0, 1, 2, ..."""
    for shade, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(jpeg(shade))
    return root


def shard(path: Path, members: dict[str, bytes], *, form: int = tarfile.PAX_FORMAT, mtime: float = 0) -> Path:
    """A tar with these members."""
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), mtime  # type: ignore[assignment]
            archive.addfile(info, io.BytesIO(data))
    return path


def edit(file: str, old: str, new: str) -> Callable[[Path], None]:
    """Replace a text that occurs in a file of a set, once."""

    def change(root: Path) -> None:
        content = (root / file).read_text()
        assert old in content
        (root / file).write_text(content.replace(old, new, 1))

    return change


def remove(*files: str) -> Callable[[Path], None]:
    """Remove files or folders of a set."""

    def change(root: Path) -> None:
        for file in files:
            shutil.rmtree(root / file) if (root / file).is_dir() else (root / file).unlink()

    return change


def aged(path: Path) -> None:
    """Let a folder and all below it look as if they had been left alone for a minute."""
    for inner in (path, *(p for p in path.rglob("*") if p.is_dir())):
        status = inner.stat()
        os.utime(inner, ns=(status.st_atime_ns, status.st_mtime_ns - 60_000_000_000))


def shade(image: np.ndarray) -> int:
    """What `jpeg` was made with."""
    return round(float(image.mean()))


def mirror(points: np.ndarray, order: Layout, width: float) -> np.ndarray:
    """Landmarks (K, 2) of the mirrored image of that width, in the same order."""
    return points[list(order.flip)] * (-1, 1) + (width - 1, 0)


def film(path: Path, images: Sequence[np.ndarray], **options: str) -> Path:
    """A film of 5 frames per second that shows each image (H, W, 3) uint8 for a second; skips where PyAV is missing."""
    av = pytest.importorskip("av", reason="PyAV (the extra video) is not installed")
    with av.open(str(path), "w", options=options) as out:
        stream = out.add_stream("mpeg4", rate=5)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        for image in images:
            for _ in range(5):
                frame = av.VideoFrame.from_ndarray(image, "rgb24").reformat(format=stream.pix_fmt, threads=1)
                out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def shades(count: int) -> list[np.ndarray]:
    """Noisy images for `film` with the means 10, 30, 50, ..."""
    rng = np.random.default_rng(0)
    return [(20 * number + rng.integers(0, 21, (48, 64, 3))).astype(np.uint8) for number in range(count)]
