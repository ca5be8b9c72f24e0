"""A scene: everything that changes from image to image of an identity."""

import math
from dataclasses import dataclass, replace

import numpy as np

from facessl.synthetic.expression import EXPRESSIONS, Expression, sample_expression
from facessl.synthetic.geometry import Camera
from facessl.synthetic.identity import Identity
from facessl.synthetic.model import CLOSED

BACKDROPS = ("gradient", "blurred", "bokeh", "wall", "studio")
HATS = ("cap", "beanie", "brim")
OCCLUDERS = ("hand", "scarf", "patch", "surgical_mask")
_WARM, _GREEN = np.array([1.0, 0.1, -1.0]), np.array([-0.5, 1.0, -0.5])  # axes of a camera's white balance


@dataclass(frozen=True)
class Limits:
    """The user's options for scenes; angles in degrees, zoom a factor, the rest from 0 to 1."""

    yaw: float = 40.0
    pitch: float = 20.0
    roll: float = 20.0
    occlusion: float = 0.12
    degrade: float = 1.0
    zoom: float = 1.0
    # One light, one backdrop, one set of clothes, no accessories and a straight look in all pictures
    studio: bool = False


@dataclass(frozen=True)
class Scene:
    """Pose, expression, light, accessories and camera of one image."""

    label: int  # index of the expression in `EXPRESSIONS`
    expression: Expression
    camera: Camera
    sun: np.ndarray  # (3,) direction to the main light in the upright view frame
    # key, fill: RGB strengths of the main light and of the light from all around.
    key: np.ndarray
    fill: np.ndarray
    # backdrop, hat, occluder: one of `BACKDROPS`; of `HATS` and of `OCCLUDERS`, or "none".
    backdrop: str
    glasses: str  # "none", "clear" or "dark"
    hat: str
    # beard, moustache, makeup: 0 to 1, as worn today.
    beard: float
    moustache: float
    makeup: float
    earrings: bool
    gaze: tuple[float, float]  # (2,) direction of the eyes, -1 to 1, right and down
    occluder: str
    blur: float  # standard deviation in pixels of an image 128 pixels wide; motion: (2,) pixels of the same
    motion: tuple[float, float]
    noise: float  # standard deviation of the sensor noise, 0..255
    cast: np.ndarray  # (3,) color gains; gamma, contrast: of the tone curve
    gamma: float
    contrast: float
    clothes: np.ndarray
    seed: int


def _camera(rng: np.random.Generator, size: int, limits: Limits) -> Camera:
    def angle(limit: float, fraction: float) -> float:
        return float(np.clip(rng.normal(0, fraction * limit), -limit, limit)) if limit else 0.0

    yaw = float(rng.uniform(-limits.yaw, limits.yaw)) if rng.uniform() < 0.4 else angle(limits.yaw, 0.35)
    unit = size * 0.252 * limits.zoom * math.exp(rng.normal(0, 0.07))
    x, y = rng.normal(0, 0.018, 2) * size
    middle = (size - 1) / 2
    lifted = (0.01 + 0.27 * (limits.zoom - 1)) * size  # a larger face keeps its mouth in the picture, not its hair
    return Camera(yaw, angle(limits.pitch, 0.4), angle(limits.roll, 0.4), unit, (middle + x, middle + y - lifted))


def _light(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Direction, key color, fill color."""
    a = math.radians(float(np.clip(rng.normal(0, 45), -85, 85)))
    h = math.radians(float(np.clip(rng.normal(35, 18), -15, 75)))
    sun = np.array([math.sin(a) * math.cos(h), -math.sin(h), math.cos(a) * math.cos(h)], np.float32)
    warmth = rng.normal(0, 0.05)
    ratio = rng.uniform(0.35, 0.72)
    key = (1.0 - 0.56 * ratio) * np.array([1 + warmth, 1, 1 - warmth], np.float32)
    fill = (0.21 + 0.46 * ratio) * np.array([1 - 0.7 * warmth, 1, 1 + 0.7 * warmth], np.float32)
    return sun, key, fill


def sample_scene(rng: np.random.Generator, identity: Identity, size: int, limits: Limits) -> Scene:
    """A picture of `identity`; draws from `rng` only."""
    label = int(rng.integers(len(EXPRESSIONS)))
    expression = sample_expression(rng, EXPRESSIONS[label])
    if rng.uniform() < 0.02:
        expression = replace(expression, lid=CLOSED - 0.15, squint=0.0)
    camera = _camera(rng, size, limits)
    sun, key, fill = _light(rng)
    shaved, u = rng.uniform() < 0.15, rng.uniform(size=10)
    glasses = "none"
    if u[0] < (0.75 if identity.glasses else 0.05):
        glasses = "dark" if u[1] < 0.14 else "clear"
    occluder = OCCLUDERS[int(rng.integers(len(OCCLUDERS)))] if u[2] < limits.occlusion else "none"
    worst = limits.degrade
    scene = Scene(
        label=label,
        expression=expression,
        camera=camera,
        sun=sun,
        key=key,
        fill=fill,
        backdrop=BACKDROPS[int(rng.integers(len(BACKDROPS)))],
        glasses=glasses,
        hat=HATS[int(rng.integers(3))] if u[3] < 0.09 else "none",
        beard=0.25 * identity.beard if shaved else identity.beard,
        moustache=0.0 if shaved else identity.moustache,
        makeup=identity.makeup if u[4] < 0.8 else 0.0,
        earrings=bool(identity.masculinity < 0.4 and u[5] < 0.4),
        gaze=(float(np.clip(rng.normal(0, 0.28), -0.8, 0.8)), float(np.clip(rng.normal(0.02, 0.16), -0.5, 0.5))),
        occluder=occluder,
        blur=worst * float(rng.uniform(0.4, 1.3)) if u[6] < 0.15 else 0.0,
        motion=(worst * float(rng.normal(0, 2.0)), worst * float(rng.normal(0, 1.2))) if u[7] < 0.05 else (0.0, 0.0),
        noise=worst * float(rng.gamma(1.2, 1.1)),
        cast=(1 + worst * (rng.normal(0, 0.05) * _WARM + rng.normal(0, 0.012) * _GREEN)).astype(np.float32),
        gamma=float(np.exp(worst * rng.normal(0, 0.13))),
        contrast=float(np.exp(worst * rng.normal(0, 0.08))),
        clothes=np.clip(rng.uniform(25, 225) + rng.normal(0, 1, 3) * rng.choice((8.0, 40.0)), 8, 245).astype(
            np.float32
        ),
        seed=int(rng.integers(2**31)),
    )
    if not limits.studio:
        return scene
    return replace(  # all but identity, expression, pose and lens is the same in every studio image
        scene,
        sun=np.array([0.29, -0.5, 0.82], np.float32),
        key=np.full(3, 0.7, np.float32),
        fill=np.full(3, 0.45, np.float32),
        backdrop="studio",
        glasses="none",
        hat="none",
        beard=identity.beard,
        moustache=identity.moustache,
        makeup=identity.makeup,
        earrings=False,
        gaze=(0.0, 0.0),
        clothes=np.array([90, 90, 110], np.float32),
        seed=0,
    )
