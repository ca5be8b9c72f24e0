"""Orders of facial landmarks: which point becomes which in a mirrored image, which points measure the face, and which
lie along one of its parts.

All indices count from 0. "Left" is the image's left: in each order the first eye is the one at small x.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from facessl.core.errors import UnknownName


@dataclass(frozen=True)
class Layout:
    """One order of landmarks."""

    name: str  # in sources and recipes
    points: int  # number of landmarks K
    # K indices; landmark i of an image is landmark flip[i] of the mirrored image. Its own inverse.
    flip: tuple[int, ...]
    ocular: tuple[int, int]  # outer corners of the left and of the right eye (the inter-ocular unit of NME)
    # Landmarks whose mean is the left pupil, and those of the right one (the inter-pupil unit); None: the order has no
    # pupils.
    pupils: tuple[tuple[int, ...], tuple[int, ...]] | None
    # The landmarks along each part of the face; a closed edge ends with its first landmark. Those of ibug68 and wflw98
    # are STAR's; aflw19 and lapa106, which STAR does not use, follow the same parts.
    edges: tuple[tuple[int, ...], ...]


def layout(name: str) -> Layout:
    """The order called `name`. Raises UnknownName, which lists the known ones."""
    if name not in _LAYOUTS:
        raise UnknownName("landmark layout", name, _LAYOUTS)
    return _LAYOUTS[name]


def names() -> tuple[str, ...]:
    """Names of all orders, sorted."""
    return tuple(sorted(_LAYOUTS))


def _to(first: int, last: int) -> tuple[int, ...]:
    """first, ..., last, upwards or downwards."""
    step = 1 if last >= first else -1
    return tuple(range(first, last + step, step))


def _ring(first: int, last: int) -> tuple[int, ...]:
    return (*_to(first, last), first)


def swapped(count: int, pairs: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """0, 1, ..., count - 1 with the two numbers of each pair exchanged."""
    flip = list(range(count))
    for i, j in pairs:
        flip[i], flip[j] = j, i
    return tuple(flip)


def _flip(points: int, runs: Iterable[tuple[tuple[int, ...], tuple[int, ...]]]) -> tuple[int, ...]:
    return swapped(points, (pair for left, right in runs for pair in zip(left, right, strict=True)))


# Runs of points on the left, each with the run that mirrors it. The structure of each order stands beside them.
_IBUG68 = (
    (_to(0, 7), _to(16, 9)),  # jaw 0-16, chin 8
    (_to(17, 21), _to(26, 22)),  # brows, left to right; the nose bridge 27-30 is central
    (_to(31, 32), _to(35, 34)),  # under the nose
    (_to(36, 39), _to(45, 42)),  # eyes: outer corner, upper lid, inner corner,
    (_to(40, 41), _to(47, 46)),  # lower lid
    (_to(48, 50), _to(54, 52)),  # outer lip: left corner, along the top,
    (_to(59, 58), _to(55, 56)),  # back along the bottom
    (_to(60, 61), _to(64, 63)),  # inner lip likewise
    (_to(67, 67), _to(65, 65)),
)
_BROWS = (
    (_to(33, 37), _to(46, 42)),  # upper edges: the left one inwards, the right one outwards
    (_to(38, 41), _to(50, 47)),  # lower edges: the left one outwards, the right one inwards
)
_WFLW98 = (
    (_to(0, 15), _to(32, 17)),  # contour 0-32, chin 16
    *_BROWS,  # the nose bridge 51-54 is central
    (_to(55, 56), _to(59, 58)),  # under the nose
    (_to(60, 64), _to(72, 68)),  # eyes: outer corner, upper lid, inner corner (68 is the right eye's inner one),
    (_to(65, 67), _to(75, 73)),  # lower lid
    (_to(76, 78), _to(82, 80)),  # outer lip
    (_to(87, 86), _to(83, 84)),
    (_to(88, 89), _to(92, 91)),  # inner lip
    (_to(95, 95), _to(93, 93)),
    ((96,), (97,)),  # pupils
)
_AFLW19 = (
    (_to(0, 2), _to(5, 3)),  # brows: outer end, middle, inner end
    (_to(6, 8), _to(11, 9)),  # eyes: outer corner, pupil, inner corner
    ((12,), (14,)),  # sides of the nose; 13 is its tip
    ((15,), (17,)),  # mouth corners; 16 is its center, 18 the chin
)
_LAPA106 = (
    (_to(0, 15), _to(32, 17)),  # contour 0-32, chin 16
    *_BROWS,  # the nose bridge 51-54 is central
    (_to(55, 59), _to(65, 61)),  # around the nose, 60 below its tip
    (_to(66, 70), _to(79, 75)),  # eyes: outer corner, upper lid, inner corner,
    (_to(71, 73), _to(82, 80)),  # lower lid,
    ((74,), (83,)),  # center
    (_to(84, 86), _to(90, 88)),  # outer lip
    (_to(95, 94), _to(91, 92)),
    (_to(96, 97), _to(100, 99)),  # inner lip
    ((103,), (101,)),
    ((104,), (105,)),  # pupils
)

_EDGES: dict[str, tuple[tuple[int, ...], ...]] = {
    # contour, brows, bridge and foot of the nose, eyes, outer and inner lip
    "ibug68": (
        _to(0, 16), _to(17, 21), _to(22, 26), _to(27, 30), _to(31, 35),
        _ring(36, 41), _ring(42, 47), _ring(48, 59), _ring(60, 67),
    ),
    "wflw98": (
        _to(0, 32), _ring(33, 41), _ring(42, 50), _to(51, 54), _to(55, 59),
        _ring(60, 67), _ring(68, 75), _ring(76, 87), _ring(88, 95),
    ),
    "lapa106": (
        _to(0, 32), _ring(33, 41), _ring(42, 50), _to(51, 54), _to(55, 65),
        _ring(66, 73), _ring(75, 82), _ring(84, 95), _ring(96, 103),
    ),
    # brows, eyes, nose, mouth; the chin is on none
    "aflw19": (_to(0, 2), _to(3, 5), _to(6, 8), _to(9, 11), _to(12, 14), _to(15, 17)),
}  # fmt: skip
_LAYOUTS = {
    one.name: one
    for one in (
        # Without pupils of their own, the 68 points take the means of the lids (300-W's inter-pupil distance).
        Layout("ibug68", 68, _flip(68, _IBUG68), (36, 45), (_to(36, 41), _to(42, 47)), _EDGES["ibug68"]),
        Layout("wflw98", 98, _flip(98, _WFLW98), (60, 72), ((96,), (97,)), _EDGES["wflw98"]),
        Layout("aflw19", 19, _flip(19, _AFLW19), (6, 11), ((7,), (10,)), _EDGES["aflw19"]),
        Layout("lapa106", 106, _flip(106, _LAPA106), (66, 79), ((104,), (105,)), _EDGES["lapa106"]),
    )
}
