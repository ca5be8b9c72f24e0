"""The head in three dimensions: a stack of elliptic rings, and the 68 iBUG points on it.

`left` and `right` are those of the image throughout, for a face that looks at the camera.
"""

import math

import numpy as np

from facessl.synthetic.expression import Expression
from facessl.synthetic.geometry import Camera, curve
from facessl.synthetic.identity import Identity

TOP = -1.6  # crown of the head
_ROWS = 96  # rings of the stack
_MIRROR = np.array([-1, 1, 1], np.float32)
# Profile of a mean head: heights, then depth of the front, of the back and of the axis at these heights.
_Y = np.array([TOP, -1.585, -1.55, -1.48, -1.25, -0.85, -0.4, 0.05, 0.5, 0.9, 1.15, 1.37, 1.52, 1.595, 1.62])
_FRONT = np.array([0, 0.17, 0.30, 0.44, 0.72, 0.90, 0.98, 0.93, 0.97, 0.99, 0.97, 0.97, 0.96, 0.90, 0.84])
_BACK = np.array([0, -0.24, -0.42, -0.62, -1.0, -1.35, -1.5, -1.45, -1.1, -0.4, 0.02, 0.25, 0.46, 0.64, 0.80])
_MIDDLE = np.array([-0.03, -0.03, -0.04, -0.05, -0.1, -0.1, -0.05, 0.0, 0.04, 0.1, 0.2, 0.36, 0.55, 0.72, 0.82])
_JAW_Y = np.array([0.02, 0.29, 0.56, 0.82, 1.06, 1.27, 1.44, 1.555], np.float32)  # heights of points 0..7

CLOSED = -0.85  # position of the lids from which the eyes are shut
# Landmarks at rest, in units of the parts' own sizes.
_EYE = np.array([-1, -0.42, 0.4, 1, 0.4, -0.42], np.float32)  # x, outer corner first, upper lid first
_EYE_LIFT = np.array([-0.07, -0.01, -0.01, -0.09, -0.02, -0.02])
_BRIDGE = np.linspace(0, 1, 4, dtype=np.float32)
_NOSE_X = np.array([0, 0, 0, 0, -1, -0.5, 0, 0.5, 1], np.float32)
_NOSE_Y = np.array([-0.035, 0.0, 0.025, 0.0, -0.035], np.float32)
_NOSE_LIFT = np.array([0.10, 0.17, 0.21, 0.17, 0.10], np.float32)
_MOUTH = np.array(
    [-1, -0.58, -0.2, 0, 0.2, 0.58, 1, 0.62, 0.26, 0, -0.26, -0.62, -0.86, -0.4, 0, 0.4, 0.86, 0.4, 0, -0.4], np.float32
)
_LIPS = np.array([0, -0.78, -1, -1, -1, -0.78, 0, 0.72, 1, 1.02, 1, 0.72, *[0] * 8], np.float32)
_SEAM = np.array([*[0] * 12, 0, -0.004, 0.004, -0.004, 0, 0.006, 0.006, 0.006], np.float32)
_UPPER = np.isin(np.arange(20), [1, 2, 3, 4, 5, 13, 14, 15]).astype(np.float32)
_LOWER = np.isin(np.arange(20), [7, 8, 9, 10, 11, 17, 18, 19]).astype(np.float32)
_BULGE = np.sqrt(1 - _MOUTH**2)


class Head:
    """A head of one identity under one expression.

    Attributes:
        points: (68, 3) float32 landmarks in the head frame, iBUG order.
        chin: height of the chin, jaw drop included.
    """

    def __init__(self, identity: Identity, expression: Expression) -> None:
        self.shape, self.expression = identity.shape, expression
        s = self.shape
        rest = 1.62 * s["length"]
        self.chin = rest + 0.2 * max(0.0, expression.jaw)
        self._stretch = (self.chin - 0.55) / (rest - 0.55)
        jaw, chin = s["jaw"], s["chin"]
        lower = (jaw, 0.9 * jaw, 0.45 * jaw + 0.62 * chin, 0.1 * jaw + 0.82 * chin, 0.56 * chin, 0.0)
        w = np.array([0, 0.17, 0.31, 0.46, 0.74, s["forehead"], 0.985, 1.0, s["cheek"], *lower]) * s["width"]
        table = curve(np.stack([_Y, w, _FRONT, _BACK, _MIDDLE], 1).astype(np.float32), per=6)
        table[:, 0] = self._length(table[:, 0])
        self._step = (self.chin - TOP) / (_ROWS - 1)
        even = np.linspace(TOP, self.chin, _ROWS)
        at = np.minimum(np.searchsorted(table[:, 0], even, "right") - 1, len(table) - 2)
        t = (even - table[at, 0]) / np.maximum(table[at + 1, 0] - table[at, 0], 1e-6)
        rows = table[at, 1:] + np.minimum(t, 1)[:, None].astype(np.float32) * (table[at + 1, 1:] - table[at, 1:])
        rows[:, 0] = np.maximum(rows[:, 0], 1e-3)
        self._rows, self._rise = rows, np.diff(rows, axis=0, append=rows[-1:])
        self.points = self._landmarks()

    def _length(self, y: np.ndarray) -> np.ndarray:
        """Heights of a mean face -> heights of this one: its length, then the dropped jaw."""
        y = np.where(y > 0, y * self.shape["length"], y)
        return np.where(y > 0.55, 0.55 + (y - 0.55) * self._stretch, y)

    def rings(self, y: np.ndarray) -> tuple[np.ndarray, ...]:
        """Half-width, front, back and middle depth of the rings at heights `y`, each of its shape."""
        k = np.clip((np.asarray(y, np.float32) - TOP) / self._step, 0, _ROWS - 1)
        i = k.astype(np.int32)
        row = self._rows[i] + self._rise[i] * (k - i)[..., None]
        return row[..., 0], row[..., 1], row[..., 2], row[..., 3]

    def on_face(self, x: np.ndarray, y: np.ndarray, lift: np.ndarray | float = 0.0) -> np.ndarray:
        """(..., 3) points of the front surface below (x, y), moved `lift` towards the viewer."""
        w, front, _, mid = self.rings(y)
        out = np.empty((*np.shape(x), 3), np.float32)
        out[..., 0], out[..., 1] = x, y
        u = x / w
        out[..., 2] = mid + (front - mid) * np.sqrt(np.maximum(1 - u * u, 0)) + lift
        return out

    def both(self, x: np.ndarray, y: np.ndarray, lift: np.ndarray | float = 0.0) -> np.ndarray:
        """(2, n, 3) points of the front surface on the left and on the right of the image, |x| given."""
        left = self.on_face(np.asarray(x, np.float32), np.asarray(y, np.float32), lift)
        return np.stack([left * _MIRROR, left])

    def around(self, angle: np.ndarray, y: np.ndarray, yaw: float, grow: float | np.ndarray = 0.0) -> np.ndarray:
        """(..., 3) points at `angle` degrees from the front (positive right) and heights `y` of one shape.

        What a head turned by `yaw` hides slides to its visible outline. `grow` is the thickness of hair.
        """
        w, front, back, mid = self.rings(y)
        turn = math.radians(yaw)
        c, s = math.cos(turn), math.sin(turn)
        df, db = front - mid + grow, mid - back + grow
        w = w + grow
        right = np.arctan2(w * c, (df if s >= 0 else db) * s)
        left = np.arctan2(w * c, (db if s >= 0 else df) * s) - math.pi
        a = np.minimum(np.maximum(np.radians(angle), left), right)
        ca = np.cos(a)
        out = np.empty((*a.shape, 3), np.float32)
        out[..., 0], out[..., 1] = w * np.sin(a), y
        out[..., 2] = mid + np.where(ca >= 0, df, db) * ca
        return out

    def hang(self, angle: np.ndarray, y: np.ndarray, yaw: float, grow: float | np.ndarray = 0.0) -> np.ndarray:
        """As `around`, but below the ears straight down: hair that hangs."""
        out = self.around(angle, np.minimum(y, 0.4), yaw, grow)
        out[..., 1] = y
        return out

    def outline(self, yaw: float) -> np.ndarray:
        """(n, 3) visible outline: down the right side, up the left side."""
        y = TOP + (self.chin - TOP) * (0.5 - 0.5 * np.cos(np.linspace(0, math.pi, 34)))
        both = self.around(np.array([[180.0], [-180.0]]), np.stack([y, y]), yaw)
        return np.concatenate([both[0], both[1, ::-1]])

    def contour(self, yaw: float) -> np.ndarray:
        """(17, 3) landmarks 0..16: the jaw line; its far half is the visible outline, as annotators mark it."""
        half = self._length(_JAW_Y)
        y = np.concatenate([half, [self.chin], half[::-1]])
        points = self.around(np.where(np.arange(17) < 8, -90.0, 90.0), y, yaw)
        points[8] = self.on_face(np.zeros(1), np.array([self.chin]))[0]
        return points

    def _landmarks(self) -> np.ndarray:
        """(68, 3) points of a face that looks at the camera."""
        table = np.concatenate([self._brow(), self._eye(), self._nose(), self._mouth()], 1)
        at = self.on_face(table[0], table[1], table[2])
        brow, eye = at[:5], at[5:11]
        right = (brow * _MIRROR)[::-1], (eye * _MIRROR)[[3, 2, 1, 0, 5, 4]]
        return np.concatenate([self.contour(0.0), brow, right[0], at[11:20], eye, right[1], at[20:]])

    def _brow(self) -> np.ndarray:
        """(3, 5) x, y, lift of points 17..21: the middle line of the left brow, outer end first."""
        s, e = self.shape, self.expression
        inner = np.linspace(0, 1, 5, dtype=np.float32)
        outer = 1 - inner
        x = (2 * s["brow_len"] + 0.045 * e.furrow) * inner - (s["eye_x"] + 0.015 + s["brow_len"])
        y = s["brow_y"] + s["eye_y"] - s["brow_arch"] * (1 - (2 * inner - 0.7) ** 2 / 1.7) + s["brow_slant"] * outer
        y = y - 0.125 * e.inner * inner**1.3 - 0.115 * e.outer * outer + 0.035 * e.furrow * inner + 0.03 * e.wrinkle
        return np.stack([x, y, np.full(5, 0.07, np.float32)])

    def _eye(self) -> np.ndarray:
        """(3, 6) x, y, lift of points 36..41: the left eye."""
        s, e = self.shape, self.expression
        open_up = min(1.7, max(0.0, 1 + 0.5 * e.lid - 0.28 * e.squint - 0.1 * e.wrinkle))
        up, low = 0.104 * s["eye_h"] * open_up, 0.062 * (1 - 0.75 * e.squint + 0.12 * e.lid)
        if e.lid <= CLOSED:
            up = -0.03
        low = max(low, 0.022 - 0.8 * up, 0.004)
        y = np.array([0, -up, -up * 0.98, 0.012, low, low * 1.08]) + s["eye_y"] + s["eye_tilt"] * _EYE
        return np.stack([_EYE * s["eye_w"] - s["eye_x"], y, _EYE_LIFT])

    def _nose(self) -> np.ndarray:
        """(3, 9) x, y, lift of points 27..35."""
        s, e = self.shape, self.expression
        base, w = s["nose_y"] - 0.03 * e.wrinkle, s["nose_w"] * (1 + 0.08 * e.wrinkle + 0.05 * e.cheek)
        y = np.concatenate([s["eye_y"] + _BRIDGE * (base - 0.14 - s["eye_y"]), base + _NOSE_Y])
        lift = np.concatenate([s["bridge"] - 0.06 + _BRIDGE * (s["nose_z"] - s["bridge"] + 0.06), _NOSE_LIFT])
        return np.stack([_NOSE_X * w * 0.8, y, lift])

    def _mouth(self) -> np.ndarray:
        """(3, 20) x, y, lift of points 48..67."""
        s, e = self.shape, self.expression
        hw = s["mouth_w"] * (1 + 0.2 * e.stretch + 0.12 * max(0.0, e.corner))
        thin = min(1.4, max(0.3, 1 - 0.55 * e.press - 0.15 * max(0.0, e.corner)))
        gap = 0.42 * e.jaw + 0.11 * e.lower
        oval = min(1.0, max(0.0, -e.stretch))  # a pursed mouth opens to an oval: its corners drop
        y = np.where(_LIPS < 0, s["lip_up"], s["lip_low"]) * thin * _LIPS + _SEAM
        y[3] += s["bow"]
        y += 0.4 * oval * gap * (1 - _BULGE) + _LOWER * gap * _BULGE
        y -= _UPPER * (0.02 * e.jaw + 0.075 * e.upper) * _BULGE**0.5
        y -= 0.13 * e.corner * _MOUTH**2 + 0.05 * e.skew * _MOUTH
        y += s["mouth_y"] + 0.03 * e.corner + 0.056 * e.jaw - 0.03 * e.upper - 0.02 * max(0.0, -e.press)
        x = _MOUTH * hw
        return np.stack([x, y * s["length"] ** 0.5, 0.07 - 0.13 * (x / 0.36) ** 2])


def visible_landmarks(head: Head, camera: Camera) -> np.ndarray:
    """(68, 2) float32 landmarks in pixels; the hidden half of the jaw line lies on the visible outline."""
    points = head.points.copy()
    points[:17] = head.contour(camera.yaw)
    return camera.project(points).astype(np.float32)
