"""Fractions of the labels."""

import itertools

import numpy as np
import pytest

from facessl.core.errors import ConfigError
from facessl.core.types import Sample
from facessl.data.label_fractions import fewer_labels
from facessl.data.source import Source
from facessl.data.subset import Subset


class Many(Source):
    """1000 images of three classes (10, 190 and 800 images); reading one is a mistake in these tests."""

    provides = columns = frozenset({"label"})
    label_names = ("rare", "some", "most")

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> Sample:
        raise AssertionError("an image was read")

    def __init__(self) -> None:
        """Without a list of names."""

    def values(self, field: str) -> np.ndarray:
        return np.repeat([0, 1, 2], [10, 190, 800])


class Plain(Many):
    provides = columns = frozenset({"landmarks"})


def positions(spec: str, seed: int = 0) -> np.ndarray:
    part = fewer_labels(Many(), spec, seed)
    assert isinstance(part, Subset)
    return part.positions


@pytest.mark.parametrize(
    ("spec", "counts"), [("1%", [1, 2, 8]), ("10%", [1, 19, 80]), ("7-per-class", [7, 7, 7]), ("100%", [10, 190, 800])]
)
def test_every_class_has_its_share_and_at_least_one(spec: str, counts: list[int]) -> None:
    assert np.bincount(Many().column("label")[positions(spec)]).tolist() == counts


def test_a_smaller_fraction_is_inside_a_larger_one() -> None:
    chain = [set(positions(spec)) for spec in ("1%", "2.5%", "10%", "50%")]
    assert all(a < b for a, b in itertools.pairwise(chain))
    assert set(positions("3-per-class")) < set(positions("9-per-class"))
    assert set(positions("10%")) != set(positions("10%", seed=1))
    assert positions("10%").tolist() == positions("10%").tolist()


def test_without_classes_images_are_drawn_from_all() -> None:
    assert len(fewer_labels(Plain(), "1%")) == 10
    with pytest.raises(ConfigError, match="needs classes"):
        fewer_labels(Plain(), "5-per-class")


def test_all_is_the_source_itself() -> None:
    source = Many()
    assert fewer_labels(source) is source


@pytest.mark.parametrize("spec", ["10", "0%", "101%", "0-per-class", "few", "-1%", "25-per-clas"])
def test_other_texts_are_refused_in_one_sentence(spec: str) -> None:
    with pytest.raises(ConfigError, match=r"labels=.* cannot be used: write all, a percentage .*25-per-class"):
        fewer_labels(Many(), spec)


def test_more_than_a_class_has_is_refused() -> None:
    with pytest.raises(ConfigError, match="class rare has 10 images"):
        fewer_labels(Many(), "11-per-class")
