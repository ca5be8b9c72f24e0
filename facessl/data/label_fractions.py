"""A few of the labels: `10%` of the images, `25-per-class`, or `all`; and classes of two sources by name."""

import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from facessl.core.errors import ConfigError, DataWarning, listed, many
from facessl.core.types import Sample
from facessl.data.source import Source
from facessl.data.subset import Subset

_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%")
_EACH = re.compile(r"(\d+)-per-class")


def fewer_labels(source: Source, spec: str = "all", seed: int = 0) -> Source:
    """The images whose labels may be used; for one seed, 1 % is inside 10 %, 5 per class are inside 25 per class.

    Args:
        source: with random access (unless all are taken).
        spec: `all`; a percentage such as `1%` or `10%`: of each class where the source has class labels, at least one
            image of each, and of all images otherwise; or a number such as `25-per-class`.
        seed: of the choice.

    Raises:
        ConfigError: another text, more images than a class has, a number per class without classes, or a stream.
    """
    if spec == "all":
        return source
    fraction, each = _parsed(spec)
    if source.streaming:
        raise ConfigError(f"labels={spec} needs images by position, and the source is a stream: use shards on a disk")
    if not len(source):
        return source
    if each is not None and "label" not in source.provides:
        raise ConfigError(
            f"labels={spec} needs classes, and the source has none: name their column as labels-csv:FILE?label=COLUMN, "
            "or use a folder with one sub-folder per class, or a percentage such as 10%"
        )
    classes = source.column("label") if "label" in source.provides else np.zeros(len(source), np.int64)
    order = np.random.default_rng((seed, 1)).permutation(len(source))
    chosen = []
    for label in np.unique(classes[classes >= 0]).tolist():
        members = order[classes[order] == label]  # the first ones of a fixed order, so that subsets nest
        count = max(1, round(fraction * len(members))) if each is None else each
        if count > len(members):
            name = source.label_names[label] if label < len(source.label_names) else str(label)
            raise ConfigError(f"labels={spec}: class {name} has {len(members)} images: use at most that many per class")
        chosen.append(members[:count])
    if not chosen:
        raise ConfigError(f"labels={spec}: no image of the source can be read")
    return Subset(source, np.sort(np.concatenate(chosen)))


class _People(Subset):
    """A source whose classes are identities."""

    def __init__(self, source: Source) -> None:
        super().__init__(source, np.arange(len(source)))
        self.provides, self.columns = source.provides | {"identity"}, source.columns | {"identity"}

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        return replace(sample, identity=sample.label)

    def values(self, field: str) -> np.ndarray:
        return super().values("label" if field == "identity" else field)


def usable(source: Source, needs: Iterable[str]) -> Source:
    """The images of a source (a stream: all) whose fields that a task needs are known.

    Images without a label or identity are left out with a DataWarning, and the classes of a folder stand for the
    identities that it does not have.
    """
    if source.streaming:
        return source
    if "identity" in set(needs) - source.provides and source.classes_may_be_people and "label" in source.provides:
        source = _People(source)
    for field in {"label", "identity"} & set(needs) & source.columns & source.provides:
        unknown = np.flatnonzero(source.column(field) < 0)
        if len(unknown):
            first = source.key(int(unknown[0]))
            more = f" and {many(len(unknown) - 1, 'more image')}" if len(unknown) > 1 else ""
            warnings.warn(
                f"left out, because they have no {field}: {first}{more} (of {len(source)}): put images into the folder "
                "of their class, fill in their cells, or remove them",
                DataWarning,
                stacklevel=2,
            )
            source = Subset(source, np.setdiff1d(np.arange(len(source)), unknown))
    return source


def same_classes(labels: np.ndarray, names: tuple[str, ...], target: tuple[str, ...], part: str = "test") -> np.ndarray:
    """Labels (N,) into `names` as indices into `target`; if one source has no names, the numbers mean the same.

    ConfigError if `part`, the first source, has a class that `target` lacks.
    """
    if names == target or not (names and target):
        return labels
    return class_mapping(names, target, "classes", part)[labels]


def class_mapping(names: Sequence[str], target: Sequence[str], what: str = "classes", part: str = "test") -> np.ndarray:
    """Return the (len(names),) int64 position in `target` of each of `names`; ConfigError if one is missing."""
    index = {name: i for i, name in enumerate(target)}
    if unknown := sorted(set(names) - set(index)):
        raise ConfigError(
            f"the {part} source has {what} that training lacks: {listed(unknown)} (it has {listed(target)})"
        )
    return np.array([index[name] for name in names], np.int64)


def _parsed(spec: str) -> tuple[float, int | None]:
    """Fraction of the images, or 0 and the number per class."""
    if match := _PERCENT.fullmatch(spec.strip()):
        fraction = float(match[1]) / 100
        if 0 < fraction <= 1:
            return fraction, None
    elif (match := _EACH.fullmatch(spec.strip())) and int(match[1]) > 0:
        return 0.0, int(match[1])
    raise ConfigError(
        f"labels={spec} cannot be used: write all, a percentage above 0% and up to 100% (10%), or a number per class "
        "(25-per-class)"
    )
