"""A test part may lack classes, or number them otherwise: they are matched by name."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from facessl.core.errors import ConfigError
from facessl.core.types import Batch
from facessl.tasks.attributes import AttributesMeter
from facessl.tasks.expression import ExpressionMeter
from facessl.tasks.parsing import ParsingMeter
from facessl.views.augment import Augment

NAMES = ("a", "b", "c")


def source(**values: Any) -> Any:
    return SimpleNamespace(**{"group_names": (), "subsets": {}, **values})


def batch(**values: Any) -> Batch:
    return Batch(views=[torch.zeros(2, 3, 4, 4)], params=[], index=torch.arange(2), **values)


@pytest.mark.fault("B7", "finetune refused test images that lack a class, an attribute or a mask class of training")
def test_the_test_part_is_matched_by_name() -> None:
    classes = ExpressionMeter(NAMES, source(), ("c", "a"))
    classes.add({"probabilities": torch.eye(3)[[2, 0]]}, batch(label=torch.tensor([0, 1])))
    assert classes.result()["per_class"] == {"a": 1.0, "c": 1.0}
    yes = AttributesMeter(NAMES, source(attribute_names=("c", "a")))
    yes.add({"probabilities": torch.tensor([[0.0, 1, 1], [1, 1, 0]])}, batch(attributes=torch.tensor([[1, 0], [0, 1]])))
    assert yes.result()["accuracy"] == {"c": 1.0, "a": 1.0}
    masks = ParsingMeter(NAMES, source(mask_names=("a", "c")), Augment())
    assert masks.training_class[np.array([0, 1, 255])].tolist() == [0, 2, 255]
    for make in (
        lambda: ExpressionMeter(NAMES, source(), ("a", "d")),
        lambda: AttributesMeter(NAMES, source(attribute_names=("a", "d"))),
        lambda: ParsingMeter(NAMES, source(mask_names=("a", "d")), Augment()),
    ):
        with pytest.raises(ConfigError, match=r"that training lacks: d \(it has a, b, c\)"):
            make()
