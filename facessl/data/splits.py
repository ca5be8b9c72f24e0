"""Training, validation and test images of a protocol."""

import hashlib
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from facessl.core import plugins
from facessl.core.errors import ConfigError
from facessl.core.values import as_text
from facessl.data.label_fractions import fewer_labels, usable
from facessl.data.location import redacted
from facessl.data.source import Source, open_source, parse, short
from facessl.data.subset import Subset

#: Role -> names of folders and values of a column `split` with that role, in any case.
ROLES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
#: Fraction of the images that is held out for testing, and the number of images below which it is that of each class:
#: of 50 images the hash takes 5 to 16.
_TEST, _SMALL = 0.2, 1000
_ROLE_OF = {name: role for role, names in ROLES.items() for name in names}


def role(name: str) -> str | None:
    """The part of a data set (train, val or test) that `name` stands for, or None."""
    return _ROLE_OF.get(name.strip().lower())


def roles(names: Iterable[str]) -> dict[str, str]:
    """`Source.splits` of parts with these names: the role of each as key and value, its own name if it has none."""
    return {role(name) or name: role(name) or name for name in sorted(set(names))}


def part_folders(root: Path) -> dict[str, Path]:
    """The sub-folders that are called after a part, by role. ConfigError if two have the same role."""
    folders: dict[str, Path] = {}
    for name in sorted(os.listdir(root)):
        part = role(name)
        if part is None or not (root / name).is_dir():
            continue
        if part in folders:
            raise ConfigError(f"{folders[part]} and {root / name} are both called after the {part} part: rename one")
        folders[part] = root / name
    return folders


@dataclass(frozen=True)
class Splits:
    """The parts of a source."""

    train: Source  # training images; empty if there are only test images and none are needed
    val: Source | None  # images to select on; None if none are needed
    test: Source  # images to test on
    carved: bool = False  # `val` was taken out of the training images

    @property
    def held_out(self) -> bool:
        """`test` was taken out of the same images as `train`: the source has no part of its own for testing."""
        return _whole(self.train) is _whole(self.test) and len(self.train) > 0


def parts(
    spec: str | os.PathLike[str],
    *,
    test: str | os.PathLike[str] | None = None,
    val: str | os.PathLike[str] | None = None,
    val_fraction: float = 0.1,
    need_val: bool = True,
    need_train: bool = True,
    labels: str = "all",
    seed: int = 0,
    needs: Iterable[str] = (),
) -> Splits:
    """Training, validation and test source.

    The test part is `test` if it is given; else the part that the source itself has for testing (the role `test`
    of its `splits`, or of the folders `train` and `test` in a folder; `val` where there is no `test`); else one fifth
    of the images, by a hash of each image's key: the last two parts of its path, so that the split survives moving
    the folder. Where classes are needed and there are fewer than `_SMALL` images, it is one fifth of every class that
    has five images or more. A source that is written with `split=` is one part and is divided by the hash.

    The validation part is `val` if it is given; else the source's own; else `val_fraction` of the training images,
    by another hash of the key, or of the identity where the source provides it, so that no person is in both (unless
    the identity is what is classified). It is never taken from the test part.

    With fewer labels these are drawn first and the validation part is carved out of them; the source's own
    validation part would bring labels that are not counted, and is used only where `val` names it.

    Args:
        spec: how a source is written on the command line, or a path object.
        test, val: other sources for these parts; of one with `splits` the part of that role is opened.
        val_fraction: fraction of the training images that is carved out.
        need_val: whether a validation part is wanted.
        need_train: whether images to train on are needed; False accepts a source with test images alone.
        needs: fields that the protocol needs of every image; see `facessl.data.label_fractions.usable`.
        labels, seed: as in `facessl.data.label_fractions.fewer_labels`, for the training images.

    Raises:
        ConfigError: a stream that would have to be split, a source so small that a part is empty or without training
            images, or a column `split` with an unknown value.
    """
    spec = as_text(spec)
    if not isinstance(spec, str):
        raise ConfigError(f"the source is of type {type(spec).__name__}, which has no parts: give a path or NAME:PATH")
    named, whole = _parts_of(spec)
    own: dict[str, str | Source] = dict(named) or {"train": whole}
    if test is not None:
        own["test"] = _part_of(as_text(test), "test")
    elif "test" not in own and "val" in own:
        own["test"] = own.pop("val")
    if "test" not in own:
        own["train"], own["test"] = _held_out(
            redacted(spec), usable(open_source(own["train"]), needs), needs, need_train
        )
    if "train" not in own and need_train:
        raise ConfigError(f"{redacted(spec)} has images to test on and none to train on: name a source to train on")
    tested = usable(open_source(own["test"]), needs)
    train = fewer_labels(usable(open_source(own["train"]), needs), labels, seed) if "train" in own else _empty(tested)
    if val is not None:
        return Splits(train, usable(open_source(_part_of(as_text(val), "val")), needs), tested)
    if not need_val:
        return Splits(train, None, tested)
    if "val" in own and labels == "all":
        return Splits(train, usable(open_source(own["val"]), needs), tested)
    if train.streaming:
        raise ConfigError(f"{redacted(spec)} is a stream and cannot be split: name a validation source with --val")
    if not len(train):
        return Splits(train, None, tested)
    train, held = carve(train, val_fraction, name=redacted(spec))
    return Splits(train, held, tested, carved=True)


def carve(source: Source, fraction: float = 0.1, *, name: str = "the source") -> tuple[Subset, Subset]:
    """Divide a source by hash: all but `fraction` of its images (to within one image or person), and the rest.

    Persons stay together where the source provides identities and these are not its classes. ConfigError: a fraction
    out of range, or fewer than two images or persons in the source, called `name`.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"a validation fraction of {fraction} is out of range: give a number between 0 and 1")
    person = source.column("identity") if "identity" in source.provides else None
    label = source.column("label") if person is not None and "label" in source.provides else None
    groups = inseparable_groups(len(source), person, label, [source.key(i) for i in range(len(source))])
    sizes = np.bincount(groups)
    if len(sizes) < 2:
        raise ConfigError(f"{name} has too few images or persons to set some apart: name a validation source")
    # Not the checksum that chose the test part: CRCs of a name with and without a prefix differ by a constant, so the
    # part that is carved out of the remaining images could be empty.
    first: dict[int, str] = {}  # the smallest short key of each group's images, so that numbering does not matter
    for i, group in enumerate(groups.tolist()):
        key = short(source.key(i))
        first[group] = min(first.get(group, key), key)

    def rank(group: int) -> bytes:
        return hashlib.blake2b(first[group].encode("utf-8", "surrogateescape"), digest_size=8).digest()

    order = sorted(range(len(sizes)), key=rank)
    filled = np.cumsum(sizes[order])
    count = int(np.searchsorted(filled, fraction * len(groups)) + 1)
    held = np.isin(groups, order[: min(count, len(sizes) - 1)])
    return Subset(source, np.flatnonzero(~held)), Subset(source, np.flatnonzero(held))


def inseparable_groups(n: int, person: np.ndarray | None, label: np.ndarray | None, keys: Sequence[str]) -> np.ndarray:
    """(n,) int64 numbers 0, 1, ...: images with the same number must stay in one part.

    These are images of one `person` (n,), -1 if unknown, unless these identities are the classes `label` (n,), or
    faces of one photo, which have one of `keys` (empty: none).
    """
    alone = np.unique(keys, return_inverse=True)[1] if len(keys) else np.arange(n)
    if person is not None and label is not None:
        pairs = np.unique(np.stack([person, label]), axis=1)
        person = None if pairs.shape[1] == len(np.unique(person)) == len(np.unique(label)) else person
    if person is None:
        return alone.astype(np.int64)
    known = np.where(person < 0, person.max(initial=0) + 1 + alone, person)
    return np.unique(known, return_inverse=True)[1].astype(np.int64)


def at_most(source: Source, count: int) -> Source:
    """`source`, or `count` images spread evenly over it if it has more."""
    if source.streaming or len(source) <= count:
        return source
    return Subset(source, np.linspace(0, len(source) - 1, count).round())


def _parts_of(spec: str) -> tuple[dict[str, str], str | Source]:
    """Return how to open each part that the source itself has, by role, and all of it (or the opened source)."""
    name, path, options = parse(spec)
    if "split" in options:  # a part that the user chose
        return {}, spec
    root = Path(path).expanduser()
    folders = part_folders(root) if name == "folder" and root.is_dir() else {}
    if "train" in folders and len(folders) > 1:
        return {role: _spec(name, folder, options) for role, folder in folders.items()}, spec
    whole: Any = spec
    splits = plugins.find("data.sources", name).splits
    if not splits:
        whole = open_source(spec)  # a list has a column of splits or has none: only the opened source knows
        splits = whole.splits
    odd = next((value for value in splits if value not in ROLES), None)
    if odd is not None:
        known = ", ".join(f"{role} ({', '.join(names[1:])})" for role, names in ROLES.items())
        raise ConfigError(
            f"{spec} has the split {odd!r}, which is not one of {known}: correct it, or choose the rows with "
            "split=VALUE (split=none: all)"
        )
    return {role: _spec(name, path, options | {"split": value}) for role, value in splits.items()}, whole


def _part_of(spec: str, role: str) -> str | Source:
    """The part of the source `spec` with that role, or all of it if it has none."""
    parts, whole = _parts_of(spec)
    return parts.get(role, whole)


def _spec(name: str, path: str | Path, options: Mapping[str, Any]) -> str:
    query = "&".join(f"{key}={value}" for key, value in options.items())
    return f"{name}:{path}{'?' if query else ''}{query}"


def _held_out(name: str, source: Source, needs: Iterable[str], need_train: bool) -> tuple[Source, Source]:
    """Four fifths and one fifth of a source (`name`, for errors) by the hash of the keys."""
    if source.pairs is not None and not need_train:
        return _empty(source), source
    if source.streaming:
        raise ConfigError(f"{name} is a stream and cannot be split: name a test source with --test")
    keys = (short(source.key(i)).encode("utf-8", "surrogateescape") for i in range(len(source)))
    rank = np.fromiter(map(zlib.crc32, keys), np.int64, len(source))
    is_test = rank < _TEST * 2**32
    if len(source) < _SMALL and "label" in needs and "label" in source.provides:
        label = source.column("label")
        for members in (np.flatnonzero(label == value) for value in np.unique(label)):
            if len(members) >= 1 / _TEST:
                last = np.sort(rank[members])[round(_TEST * len(members)) - 1]
                is_test[members] = rank[members] <= last  # faces of one photo have one rank
    if is_test.all() or not is_test.any():
        raise ConfigError(f"{name} has {len(source)} images, too few to split: name a test source with --test")
    return Subset(source, np.flatnonzero(~is_test)), Subset(source, np.flatnonzero(is_test))


def _whole(source: Source) -> Source:
    return _whole(source.source) if isinstance(source, Subset) else source


def _empty(source: Source) -> Subset:
    return Subset(source, np.zeros(0, np.int64))
