"""MTCNN: a cascade of three small networks that finds faces and five points (Zhang et al., IEEE SPL 2016)."""

import functools
import importlib.util
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import joblib
import lz4.frame
import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms, roi_align

from facessl.core.errors import ConfigError

#: Long side in pixels at which a photo is searched; smaller photos are not enlarged.
LONG_SIDE = 640
#: Gray border around a photo as a fraction of its long side: the window of a face can reach beyond its picture.
BORDER = 0.1
#: Side of the first network's window, its stride, and the ratio of two levels of the pyramid.
CELL, STRIDE, FACTOR = 12, 2, 0.709
#: Least score after the first two networks, as in the authors' code.
PROPOSED, REFINED = 0.6, 0.7


class MTCNN:
    """Faces of photos of any size, by torch on `device`.

    The weights are those inside the `mtcnn` wheel (MIT license), of which only these files are read. ConfigError: it is
    not installed, or a model file is named.
    """

    MIN_SCORE = 0.8
    #: Left, top, right, bottom of the box around the 68 landmarks (brows to chin), relative to the center of the
    #: network's box and in units of its longer side: medians over 100 photos each of Helen, AFW and YouTube Faces.
    BOX = (-0.39, -0.28, 0.44, 0.525)

    def __init__(self, model: str | Path | None = None, device: str | torch.device = "cpu") -> None:
        if model is not None:
            raise ConfigError(f"the detector mtcnn has its own weights: leave out the model {model}, or use yunet")
        self.device = torch.device(device)
        self.networks = _networks(self.device)

    @torch.inference_mode()
    def __call__(self, photos: Sequence[np.ndarray], *, smallest: float, min_score: float) -> list[np.ndarray]:
        """The faces of photos, (H, W, 3) uint8 RGB each; `smallest` is a fraction of a photo's long side.

        Returns:
            per photo (n, 15) float32: left, top, right, bottom of the face (brows to chin), score, and x and y of the
            eyes, the nose and the corners of the mouth, the image's left first; pixels, the highest score first.
        """
        zooms = [min(1.0, LONG_SIDE / max(photo.shape[:2])) for photo in photos]
        small = [_resized(photo, _size(photo, zoom)) for photo, zoom in zip(photos, zooms, strict=True)]
        halves = [self._stack(photos) for photos in _halves(small)]
        boxes, owner = self._proposals(small, smallest)
        boxes, owner, _, _ = self._stage(1, halves, boxes, owner, 24, REFINED)
        boxes, owner, scores, points = self._stage(2, halves, boxes, owner, 48, min_score)
        rows = torch.cat([boxes, scores[:, None], points], 1).cpu().numpy()
        out = []
        for index, zoom in enumerate(zooms):
            own = rows[(owner == index).cpu().numpy()]
            own = own[_distinct(own)]
            center, side = (own[:, :2] + own[:, 2:4]) / 2, (own[:, 2:4] - own[:, :2]).max(1, keepdims=True, initial=0)
            own[:, :4] = np.tile(center, 2) + np.array(self.BOX) * side
            own[:, [0, 1, 2, 3, *range(5, 15)]] = own[:, [0, 1, 2, 3, *range(5, 15)]] / zoom - 0.5
            out.append(own)
        return out

    def _stack(self, photos: Sequence[np.ndarray], least: int = 1) -> Tensor:
        """Photos of any sizes -> (n, 3, H, W) channels last, normalized, gray below and right of smaller ones."""
        height, width = (max(least, *(photo.shape[axis] for photo in photos)) for axis in (0, 1))
        out = torch.zeros(len(photos), height, width, 3, device=self.device)
        for row, photo in zip(out, photos, strict=True):
            part = row[: photo.shape[0], : photo.shape[1]]
            part.copy_(torch.from_numpy(photo).to(self.device)).sub_(127.5).div_(128)
        return out.permute(0, 3, 1, 2)

    def _proposals(self, photos: Sequence[np.ndarray], smallest: float) -> tuple[Tensor, Tensor]:
        """Windows of all levels of the pyramid that may be faces: (n, 4) boxes and (n,) indices of their photos."""
        boxes, scores, owners = [], [], []
        sides = [max(photo.shape[:2]) for photo in photos]
        borders = [round(BORDER * side) for side in sides]
        padded = [
            _bordered(photo, border, border, border, border) for photo, border in zip(photos, borders, strict=True)
        ]
        first = [CELL / max(CELL, smallest * side) for side in sides]
        shift = torch.tensor(borders, device=self.device)[:, None]
        for power in itertools.count():
            scales = [scale * FACTOR**power for scale in first]
            levels = [_resized(photo, _size(photo, scale)) for photo, scale in zip(padded, scales, strict=True)]
            if all(min(level.shape[:2]) < CELL for level in levels):
                break
            limit = torch.tensor([level.shape[1::-1] for level in levels], device=self.device)
            maps = self.networks[0](self._stack(levels, least=CELL))
            score = maps[:, 4:].softmax(1)[:, 1]
            owner, y, x = torch.where(score > PROPOSED)
            corner = torch.stack([x, y], 1) * STRIDE
            inside = (corner + CELL <= limit[owner]).all(1)  # not in the padding of a smaller photo
            owner, y, x, corner = owner[inside], y[inside], x[inside], corner[inside]
            window = torch.cat([corner, corner + CELL], 1) + maps[owner, :4, y, x] * CELL
            candidates = window / torch.tensor(scales, device=self.device)[owner, None] - shift[owner]
            keep = _best(candidates, score[owner, y, x], owner, 0.5)
            boxes.append(candidates[keep])
            scores.append(score[owner, y, x][keep])
            owners.append(owner[keep])
        if not boxes:
            return torch.zeros(0, 4, device=self.device), torch.zeros(0, dtype=torch.long, device=self.device)
        box, owner = torch.cat(boxes), torch.cat(owners)
        keep = _best(box, torch.cat(scores), owner, 0.7)
        return box[keep], owner[keep]

    def _stage(
        self, index: int, halves: list[Tensor], boxes: Tensor, owner: Tensor, side: int, least: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Boxes as the second or third network sees them: moved ones above `least`, owners, scores, points."""
        center, side_half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).amax(1, keepdim=True) / 2
        squares = torch.cat([center - side_half, center + side_half], 1)  # around the boxes, as long as the longer side
        out = self.networks[index](_patches(halves, squares, owner, side))
        scores = out[:, -2:].softmax(1)[:, 1]
        size = (squares[:, 2:] - squares[:, :2]).repeat(1, 2)
        moved = squares + out[:, :4] * size
        points = torch.zeros(len(out), 10, device=self.device)
        if index == 2:  # x of the five points, then y
            points = (squares[:, None, :2] + out[:, 4:14].view(-1, 2, 5).mT * size[:, None, :2]).flatten(1)
        keep = torch.where(scores > least)[0]
        if index == 1:
            keep = keep[_best(moved[keep], scores[keep], owner[keep], 0.7)]
        return moved[keep], owner[keep], scores[keep], points[keep]


def _best(boxes: Tensor, scores: Tensor, owner: Tensor, overlap: float) -> Tensor:
    """Indices of boxes (n, 4) without those that overlap a better one of their photo by more, the best first."""
    if len(boxes):  # `batched_nms` moves photos apart by the largest coordinate, and a border's are negative
        boxes = boxes - boxes.amin().clamp_max(0)
    return batched_nms(boxes, scores, owner, overlap)


def _size(photo: np.ndarray, zoom: float) -> tuple[int, int]:
    return max(1, round(photo.shape[1] * zoom)), max(1, round(photo.shape[0] * zoom))


def _resized(photo: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return photo if size == photo.shape[1::-1] else cv2.resize(photo, size, interpolation=cv2.INTER_AREA)


def _halves(photos: list[np.ndarray]) -> list[list[np.ndarray]]:
    """The photos at 1, 1/2, 1/4 and 1/8 of their size, with gray below and to the right until 8 divides their sides."""
    out = [[_bordered(photo, 0, -photo.shape[0] % 8, 0, -photo.shape[1] % 8) for photo in photos]]
    for _ in range(3):
        out.append([_resized(photo, (photo.shape[1] // 2, photo.shape[0] // 2)) for photo in out[-1]])
    return out


def _patches(halves: list[Tensor], squares: Tensor, owner: Tensor, side: int) -> Tensor:
    """Squares (n, 4) cut out as (n, 3, side, side), each from the size of its photo if it is 2 to 4 times as large.

    A large square out of the whole photo costs most: one sample for each of its pixels.
    """
    out = squares.new_zeros(len(squares), side, side, 3).permute(0, 3, 1, 2)  # channels last
    zoom = (squares[:, 2] - squares[:, 0]).clamp_min(side) / side
    level = (zoom.log2().floor() - 1).clamp(0, len(halves) - 1)
    rois = torch.cat([owner[:, None].to(squares), squares], 1)
    for power, canvas in enumerate(halves):
        mine = level == power
        out[mine] = roi_align(canvas, rois[mine], side, spatial_scale=0.5**power, aligned=True)
    return out


def _bordered(photo: np.ndarray, top: int, bottom: int, left: int, right: int) -> np.ndarray:
    gray = (127.0, 127.0, 127.0)
    return np.asarray(cv2.copyMakeBorder(photo, top, bottom, left, right, cv2.BORDER_CONSTANT, value=gray))


def _distinct(rows: np.ndarray) -> list[int]:
    """Indices of rows (n, 15) that no better row covers by 0.7 of the smaller box, the best first."""
    best: list[int] = []
    area = (rows[:, 2] - rows[:, 0]) * (rows[:, 3] - rows[:, 1])
    for index in np.argsort(-rows[:, 4], kind="stable"):
        low, high = np.maximum(rows[index, :2], rows[best, :2]), np.minimum(rows[index, 2:4], rows[best, 2:4])
        inner = (high - low).clip(0).prod(1)
        if (inner <= 0.7 * np.minimum(area[index], area[best])).all():
            best.append(int(index))
    return best


class _Transposed(nn.Module):
    """(n, C, H, W) -> (n, W * H * C), the order in which the authors' framework flattens."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 2, 1).flatten(1)


def _convolutions(*layers: tuple[int, int, int, int]) -> list[nn.Module]:
    """Convolution (side, channels before and after), PReLU, and a max-pool of the side given last (0: none)."""
    out: list[nn.Module] = []
    for side, before, after, pool in layers:
        out += [nn.Conv2d(before, after, side), nn.PReLU(after)]
        out += [nn.MaxPool2d(pool, 2, ceil_mode=True)] if pool else []
    return out


@functools.lru_cache
def _networks(device: torch.device) -> list[nn.Sequential]:
    propose = nn.Sequential(*_convolutions((3, 3, 10, 2), (3, 10, 16, 0), (3, 16, 32, 0)), nn.Conv2d(32, 6, 1))
    refine = _convolutions((3, 3, 28, 3), (3, 28, 48, 3), (2, 48, 64, 0))
    output = _convolutions((3, 3, 32, 3), (3, 32, 64, 3), (3, 64, 64, 2), (2, 64, 128, 0))
    networks: Any = (  # torch's annotation of `to` lacks memory_format
        propose,
        nn.Sequential(*refine, _Transposed(), nn.Linear(576, 128), nn.PReLU(128), nn.Linear(128, 6)),
        nn.Sequential(*output, _Transposed(), nn.Linear(1152, 256), nn.PReLU(256), nn.Linear(256, 16)),
    )
    for net, name in zip(networks, ("pnet", "rnet", "onet"), strict=True):
        _load(net, name)
    # On a CPU the second network takes a third of the time in this layout, the first one two thirds.
    return [net.to(device, memory_format=torch.channels_last) for net in networks]


def _load(net: nn.Sequential, name: str) -> None:
    """Copy the wheel's arrays (kernels H, W, in, out; the heads apart) into `net`."""
    spec = importlib.util.find_spec("mtcnn")
    file = Path(str(spec.origin)).parent / "assets" / "weights" / f"{name}.lz4" if spec and spec.origin else Path(name)
    if not file.is_file():
        raise ConfigError("the face detector's weights are missing: pip install mtcnn, or name another detector")
    with lz4.frame.open(file) as opened:  # joblib would leave it open, which Python 3.13 reports as a traceback
        arrays = [torch.from_numpy(array) for array in joblib.load(opened)]
    body = [p for layer in list(net)[:-1] for p in layer.parameters()]
    heads = arrays[len(body) :]
    arrays = [*arrays[: len(body)], torch.cat(heads[::2], -1), torch.cat(heads[1::2])]
    for parameter, array in zip(list(net.parameters()), arrays, strict=True):
        if array.ndim == 4:
            array = array.permute(3, 2, 0, 1)
        elif array.ndim == 2:
            array = array.T
        parameter.data.copy_(array.reshape(parameter.shape))
    net.eval().requires_grad_(False)
