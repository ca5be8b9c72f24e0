"""Synthetic faces with every label: the embedded source for demo, tests and documentation (see docs/synthetic.png)."""

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np

from facessl.core.errors import ConfigError, UnknownName
from facessl.core.types import Sample
from facessl.data.layouts import swapped
from facessl.data.source import Source
from facessl.data.sources._lists import choice
from facessl.data.sources.lapa import CLASSES
from facessl.synthetic.expression import EXPRESSIONS
from facessl.synthetic.identity import Identity, sample_identity
from facessl.synthetic.model import CLOSED
from facessl.synthetic.render import render
from facessl.synthetic.scene import Limits, Scene, sample_scene

ATTRIBUTES = (
    *("smiling", "mouth_open", "eyes_closed", "glasses", "sunglasses", "hat", "beard", "moustache", "makeup"),
    *("earrings", "bald", "long_hair", "curly_hair", "fringe", "gray_hair", "dark_hair", "young", "aged"),
    *("freckles", "turned", "occluded", "blurred"),
)
#: Words of a caption for each expression.
_MOODS = ("neutral", "happy", "surprised", "sad", "angry", "disgusted", "frightened")
#: Attribute -> its words, before the face, behind "with" and at the end of a caption.
_BEFORE = {"young": "young", "aged": "old", "bald": "bald"}
_WITH = {
    **{"glasses": "glasses", "hat": "a hat", "beard": "a beard", "moustache": "a moustache", "makeup": "make-up"},
    **{"earrings": "earrings", "long_hair": "long hair", "curly_hair": "curly hair", "fringe": "a fringe"},
    **{"gray_hair": "gray hair", "dark_hair": "dark hair", "freckles": "freckles", "mouth_open": "an open mouth"},
    **{"eyes_closed": "closed eyes"},
}
_BEHIND = {"turned": "seen from the side", "occluded": "partly covered", "blurred": "out of focus"}


class Synthetic(Source):
    """Procedural faces: image `i` depends on `seed`, `i` and the options below only, on every machine and process.

    Args:
        path: empty; the source draws its images.
        n: number of images; image `i` does not depend on it.
        seed: of the population and of the pictures.
        size: side of the square images in pixels.
        identities: number of persons; each image shows one of them, drawn uniformly.
        yaw, pitch, roll: largest angles in degrees. Positive yaw turns the nose to the image's right, positive
            pitch lifts it, positive roll turns the face clockwise.
        occlusion: probability of a hand, a scarf, a surgical mask or a thing in front of the face.
        degrade: 0 to 1, strength of blur, sensor noise, color cast and tone changes.
        zoom: 1 to 1.6, size of the face; at 1.5 it fills the picture, and most of hair and background are cut off.
        studio: the same light, backdrop and clothes in all pictures, nothing worn on the face, eyes straight ahead:
            pictures differ by person, expression and pose (and by `occlusion` and `degrade`).
        label: what `Sample.label` is: "expression" or "identity".
        captions: `Sample.text` is a sentence about expression and attributes.
        group: attribute (a name of `attribute_names`) that divides the images into the groups "not NAME" and "NAME".
        keep: MiB of drawn images that each process keeps, so that later epochs need not draw them again.

    Sample fields:
        image (size, size, 3) uint8 RGB; label in the order of `label_names`; identity; attributes (A,) uint8;
        pose (3,) float32 yaw, pitch, roll in degrees; box (4,) float32, that of the landmarks.
        landmarks (68, 2) float32, iBUG order; points of a hidden jaw half lie on the visible outline, other hidden
        points where they would be seen.
        mask (size, size) uint8, the 11 classes of LaPa: 0 background, 1 skin, 2 left eyebrow, 3 right eyebrow,
        4 left eye, 5 right eye, 6 nose, 7 upper lip, 8 inner mouth, 9 lower lip, 10 hair. Left is the image's left
        for an upright face, as in LaPa's files: class 2 lies on landmarks 17..21, class 4 on 36..41. Only what is
        visible is labeled: hats, dark lenses and occluders are background, as are ears, neck and clothes; clear
        glasses and beards keep the class of what lies under them.
    """

    provides = frozenset({"label", "landmarks", "mask", "identity", "attributes", "pose", "box"})
    columns = frozenset({"label", "identity"})
    label_names: tuple[str, ...] = EXPRESSIONS
    attribute_names = ATTRIBUTES
    layout = "ibug68"
    mask_names = CLASSES
    mask_flip = swapped(len(CLASSES), [(2, 3), (4, 5)])

    def __init__(
        self,
        path: str = "",
        *,
        n: int = 4096,
        seed: int = 0,
        size: int = 128,
        identities: int = 512,
        yaw: float = 40.0,
        pitch: float = 20.0,
        roll: float = 20.0,
        occlusion: float = 0.12,
        degrade: float = 1.0,
        zoom: float = 1.0,
        studio: bool = False,
        label: str = "expression",
        captions: bool = False,
        group: str | None = None,
        keep: int = 256,
    ) -> None:
        if path:
            raise ConfigError(
                f"the source 'synthetic' draws its images and takes no path, but got {path!r}; leave it out"
            )
        options = {name: value for name, value in locals().items() if name not in ("self", "path", "__class__")}
        self._options = options | {"keep": None}  # how many are kept changes no image
        for name, (low, high) in _RANGES.items():
            if not low <= options[name] <= high:
                kind = "whole number" if isinstance(high, int) else "number"
                raise ConfigError(f"synthetic: {name} must be a {kind} from {low} to {high:g}, not {options[name]!r}")
        choice("synthetic", "label", label, ("expression", "identity"))
        self._by_identity, self._captions, self._group = label == "identity", captions, None
        if self._by_identity:
            self.label_names = tuple(f"person {i}" for i in range(identities))
        if captions:
            self.provides = self.provides | {"text"}
        if group is not None:
            if group not in ATTRIBUTES:
                raise UnknownName("attribute of synthetic", group, ATTRIBUTES)
            self._group, self.group_names = ATTRIBUTES.index(group), (f"not {group}", group)
            self.provides = self.provides | {"group"}
        self.n, self.seed, self.side, self.identities = n, seed, size, identities
        self._limits = Limits(yaw, pitch, roll, occlusion, degrade, zoom, studio)
        self._capacity = keep * 2**20 // (4 * size * size)  # samples: an image has three bytes a pixel, a mask one
        self._cache: dict[int, Sample] = {}

    def __len__(self) -> int:
        return self.n

    def name(self, index: int) -> str:
        return f"synthetic/{self.seed}/{index:07d}"

    inner_name = name

    def __getitem__(self, index: int) -> Sample:
        """Image `index`. Its arrays are shared: do not write to them."""
        key = self.key(index)
        if index in self._cache:
            return replace(self._cache[index])
        sample = self._draw(index, key)
        if len(self._cache) < self._capacity:
            self._cache[index] = replace(sample)
        return sample

    def image(self, index: int) -> bytes | np.ndarray:
        return self[index].image

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}}

    def values(self, field: str) -> np.ndarray:
        by_identity = field == "identity" or self._by_identity
        plans = (self._plan(i) for i in range(self.n))
        return np.array([person if by_identity else scene.label for person, _, scene in plans], np.int64)

    def fingerprint(self) -> str:
        """Digits that depend on the options, which determine all images, and on two images."""
        digest = hashlib.blake2b(repr(self._options).encode(), digest_size=16)
        for index in (0, self.n - 1):
            digest.update(np.ascontiguousarray(self[index].image).tobytes())
        return digest.hexdigest()

    def _plan(self, index: int) -> tuple[int, Identity, Scene]:
        """Person, face and scene of image `index`."""
        rng = np.random.default_rng((self.seed, 2, int(index)))
        person = int(rng.integers(self.identities))
        who = sample_identity(self.seed, person)
        scene = sample_scene(rng, who, self.side, self._limits)
        return person, who, scene

    def _draw(self, index: int, key: str) -> Sample:
        person, who, scene = self._plan(index)
        picture = render(who, scene, self.side)
        camera = scene.camera
        attributes = _attributes(who, scene, picture.landmarks)
        return Sample(
            image=picture.image,
            key=key,
            label=person if self._by_identity else scene.label,
            text=_caption(scene.label, attributes) if self._captions else None,
            landmarks=picture.landmarks,
            box=np.concatenate([picture.landmarks.min(0), picture.landmarks.max(0)]),
            mask=picture.mask,
            identity=person,
            attributes=attributes,
            pose=np.array([camera.yaw, camera.pitch, camera.roll], np.float32),
            group=None if self._group is None else int(attributes[self._group]),
        )


#: Option -> least and largest value; whole numbers if these are.
_RANGES = {
    "n": (1, 10_000_000),
    "seed": (0, 2**32 - 1),
    "size": (32, 1024),
    "identities": (1, 10_000_000),
    "keep": (0, 2**20),
    "yaw": (0, 45.0),
    "pitch": (0, 25.0),
    "roll": (0, 180.0),
    "occlusion": (0, 1.0),
    "degrade": (0, 1.0),
    "zoom": (1, 1.6),
}


def _caption(expression: int, attributes: np.ndarray) -> str:
    """A sentence such as "a young happy face with glasses and dark hair, seen from the side"."""
    present = {name for name, value in zip(ATTRIBUTES, attributes, strict=True) if value}
    before = [words for name, words in _BEFORE.items() if name in present]
    worn = [words for name, words in _WITH.items() if name in present]
    if "sunglasses" in present:
        worn = ["sunglasses", *(words for words in worn if words != "glasses")]
    listed = ", ".join(worn[:-1]) + " and " + worn[-1] if len(worn) > 1 else "".join(worn)
    behind = "".join(f", {words}" for name, words in _BEHIND.items() if name in present)
    face = " ".join(["a", *before, _MOODS[expression], "face"])
    return (
        face.replace("a old", "an old").replace("a angry", "an angry") + (f" with {listed}" if listed else "") + behind
    )


def _attributes(who: Identity, scene: Scene, marks: np.ndarray) -> np.ndarray:
    """(A,) uint8: what is drawn, in the order of `ATTRIBUTES`."""
    unit, e = scene.camera.unit, scene.expression
    hairy = who.hair_style != "bald"
    truth = {
        "smiling": e.corner > 0.4,
        "mouth_open": float(np.linalg.norm(marks[66] - marks[62])) > 0.05 * unit,
        "eyes_closed": e.lid <= CLOSED,
        "glasses": scene.glasses != "none",
        "sunglasses": scene.glasses == "dark",
        "hat": scene.hat != "none",
        "beard": scene.beard > 0.5,
        "moustache": scene.moustache > 0.3,
        "makeup": scene.makeup > 0.15,
        "earrings": scene.earrings,
        "bald": not hairy,
        "long_hair": who.long_hair,
        "curly_hair": who.hair_style in ("curly", "afro"),
        "fringe": who.fringe > 0 and scene.hat == "none",
        "gray_hair": hairy and who.gray > 0.5,
        "dark_hair": hairy and float(who.hair.mean()) < 62,
        "young": who.age < 0.25,
        "aged": who.age > 0.65,
        "freckles": who.freckles > 0,
        "turned": abs(scene.camera.yaw) > 20,
        "occluded": scene.occluder != "none",
        "blurred": scene.blur > 0.7 or float(np.hypot(*scene.motion)) > 1,
    }
    return np.array([truth[name] for name in ATTRIBUTES], np.uint8)
