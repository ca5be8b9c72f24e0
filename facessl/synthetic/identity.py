"""An identity: everything that stays the same in all images of one person."""

import functools
from dataclasses import dataclass

import numpy as np

#: Skin colors (RGB) from the lightest to the darkest, interpolated.
_SKIN = np.array(
    (
        *((252, 214, 192), (247, 201, 174), (238, 187, 152), (226, 170, 130), (208, 151, 110)),
        *((184, 128, 89), (152, 103, 70), (122, 80, 54), (94, 60, 42), (70, 45, 34)),
    ),
    np.float32,
)
#: Color, and how frequent it is with light and with dark skin.
_HAIR = {
    "black": ((26, 22, 22), 0.10, 0.68),
    "espresso": ((48, 34, 28), 0.18, 0.24),
    "brown": ((84, 56, 38), 0.22, 0.05),
    "chestnut": ((112, 70, 42), 0.16, 0.01),
    "light": ((150, 108, 68), 0.13, 0.0),
    "blond": ((205, 168, 108), 0.13, 0.0),
    "red": ((164, 78, 36), 0.06, 0.0),
    "dyed": ((120, 50, 90), 0.02, 0.02),
}
_IRIS = np.array(
    [(62, 38, 24), (92, 58, 30), (120, 88, 48), (96, 112, 72), (104, 132, 150), (84, 120, 166)], np.float32
)


@dataclass(frozen=True)
class Identity:
    """One person. Colors are RGB 0..255, numbers run from 0 to 1 (age 0 is about 12 years, 1 about 80).

    `shape` holds lengths in head units (see `geometry`) and factors, which the head model reads by name.
    """

    masculinity: float
    age: float
    melanin: float
    skin: np.ndarray
    hair: np.ndarray
    brow_color: np.ndarray
    iris: np.ndarray
    lips: np.ndarray
    hair_style: str
    fringe: float
    parting: float
    gray: float
    beard: float
    moustache: float
    glasses: float
    makeup: float
    freckles: float
    shape: dict[str, float]
    seed: int

    @property
    def long_hair(self) -> bool:
        """Whether the hair falls below the ears."""
        return self.hair_style in ("bob", "long", "wavy")


def _shape(rng: np.random.Generator, m: float, age: float) -> dict[str, float]:
    """Face proportions: each drawn around a mean that leans with masculinity `m` and `age`."""
    child = max(0.0, 0.25 - age) * 4
    spread = {
        "width": (1.0 + 0.03 * child, 0.05),
        "length": (0.955 + 0.03 * (m - 0.5) - 0.06 * child, 0.045),
        "jaw": (0.80 + 0.10 * (m - 0.5) + 0.04 * age, 0.055),
        "chin": (0.40 + 0.12 * (m - 0.5), 0.05),
        "cheek": (0.95, 0.03),
        "forehead": (0.93, 0.04),
        "eye_x": (0.445, 0.022),
        "eye_y": (0.02 + 0.06 * child, 0.025),
        "eye_w": (0.22 + 0.018 * child - 0.01 * (m - 0.5), 0.014),
        "eye_h": (1.0 + 0.18 * child - 0.2 * (m - 0.5) - 0.12 * age, 0.13),
        "eye_tilt": (0.025 - 0.02 * age, 0.028),
        "crease": (0.075, 0.025),
        "iris": (0.098, 0.004),
        "brow_y": (-0.27 + 0.05 * (m - 0.5), 0.025),
        "brow_arch": (0.075 - 0.04 * (m - 0.5), 0.025),
        "brow_slant": (0.03, 0.03),
        "brow_w": (0.052 + 0.03 * (m - 0.5), 0.012),
        "brow_len": (0.29, 0.018),
        "nose_y": (0.675 - 0.06 * child + 0.02 * (m - 0.5), 0.035),
        "nose_w": (0.195 + 0.03 * (m - 0.5), 0.026),
        "nose_z": (0.33 - 0.08 * child + 0.05 * (m - 0.5), 0.05),
        "bridge": (0.15, 0.035),
        "tip": (0.115 + 0.015 * (m - 0.5), 0.016),
        "mouth_y": (0.985 - 0.03 * child, 0.025),
        "mouth_w": (0.345 + 0.02 * (m - 0.5), 0.026),
        "lip_up": (0.085 - 0.025 * (m - 0.5) - 0.03 * age, 0.018),
        "lip_low": (0.118 - 0.025 * (m - 0.5) - 0.03 * age, 0.02),
        "bow": (0.022, 0.01),
        "ear": (1.0 + 0.1 * age, 0.08),
        "hairline": (-0.98 - 0.06 * (m - 0.5), 0.06),
        "volume": (0.15 - 0.05 * m, 0.04),
    }
    z = np.clip(rng.standard_normal(len(spread)), -2.2, 2.2)
    return {name: mean + dev * float(k) for (name, (mean, dev)), k in zip(spread.items(), z, strict=True)}


def _palette(rng: np.random.Generator, melanin: float, gray: float) -> dict[str, np.ndarray]:
    """Colors that go together, by their names in `Identity`."""
    k = melanin * (len(_SKIN) - 1)
    low = min(int(k), len(_SKIN) - 2)
    skin = _SKIN[low] + (k - low) * (_SKIN[low + 1] - _SKIN[low])
    skin = skin * (1 + rng.normal(0, 0.018, 3)) + rng.normal(0, 1) * np.array([2.5, 0, -4.0])
    odds = np.array([light * (1 - melanin) ** 2 + dark * melanin for _, light, dark in _HAIR.values()])
    name = list(_HAIR)[int(rng.choice(len(_HAIR), p=odds / odds.sum()))]
    natural = np.asarray(_HAIR[name][0], np.float32) * rng.uniform(0.82, 1.18)
    silver = np.array([196, 194, 192], np.float32) * rng.uniform(0.75, 1.05)
    hair = natural + (silver - natural) * gray
    brow = np.minimum(natural * (0.85 if name != "dyed" else 0.4), skin * 0.62)
    brow = brow + (silver * 0.7 - brow) * gray * 0.6
    fair = float(np.clip(1.15 - 2.2 * melanin, 0, 1))
    iris = _IRIS[int(rng.integers(0, 2 + round(4 * fair)))] * rng.uniform(0.85, 1.15)
    rose = np.array([186, 92, 90], np.float32) * (1 - 0.45 * melanin)
    lips = skin * 0.5 + rose * 0.5 + rng.normal(0, 4, 3)
    colors = {"skin": skin, "hair": hair, "brow_color": brow, "iris": iris, "lips": lips}
    return {name: np.clip(color, 0, 255).astype(np.float32) for name, color in colors.items()}


def _hair_style(rng: np.random.Generator, m: float, age: float, melanin: float) -> str:
    odds = {
        "bald": 0.10 * m * (0.3 + age),
        "crop": 0.34 * m + 0.02,
        "side_part": 0.30 * m + 0.04,
        "curly": 0.12,
        "afro": 0.02 + 0.16 * melanin,
        "bob": 0.24 * (1 - m),
        "long": 0.28 * (1 - m),
        "wavy": 0.24 * (1 - m),
        "tied": 0.18 * (1 - m),
        "receding": 0.28 * m * max(0.0, age - 0.35) * 2,
    }
    p = np.fromiter(odds.values(), float)
    return list(odds)[int(rng.choice(len(p), p=p / p.sum()))]


@functools.lru_cache(maxsize=2048)
def sample_identity(seed: int, index: int) -> Identity:
    """Identity `index` of the population `seed`; the same on every machine."""
    rng = np.random.default_rng((seed, 1, index))
    m = float(np.clip(rng.beta(0.6, 0.6), 0, 1))
    age = float(np.clip(rng.beta(1.6, 1.9), 0, 1))
    melanin = float(rng.uniform())
    gray = float(np.clip((age - 0.55) * 2.6 + rng.normal(0, 0.25), 0, 1)) if age > 0.5 else 0.0
    colors = _palette(rng, melanin, gray)
    style = _hair_style(rng, m, age, melanin)
    grown = m > 0.55 and age > 0.22
    beard = float(rng.choice((0.0, 0.25, 0.6, 1.0), p=(0.45, 0.2, 0.15, 0.2))) if grown else 0.0
    moustache = 1.0 if beard > 0.5 else float(grown and rng.uniform() < 0.14)
    fringe = float(rng.uniform(0.5, 1)) if style in ("bob", "long", "wavy", "crop") and rng.uniform() < 0.35 else 0.0
    return Identity(
        masculinity=m,
        age=age,
        melanin=melanin,
        **colors,
        hair_style=style,
        fringe=fringe,
        parting=float(rng.uniform(-0.6, 0.6)),
        gray=gray,
        beard=beard,
        moustache=moustache,
        glasses=float(rng.uniform() < 0.12 + 0.25 * age),
        makeup=float(np.clip(rng.uniform(-0.3, 1), 0, 1)) if m < 0.42 and age > 0.12 else 0.0,
        freckles=float(rng.uniform(0.4, 1)) if melanin < 0.45 and rng.uniform() < 0.16 else 0.0,
        shape=_shape(rng, m, age),
        seed=int(rng.integers(2**31)),
    )
