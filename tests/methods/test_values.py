"""Hyper-parameters that cannot work are refused in one sentence."""

from typing import Any

import pytest

from facessl.core import plugins
from facessl.core.errors import ConfigError
from facessl.models.backbone import Backbone

SMALL = {"hidden": 24, "dim": 16}
TEXT = {"dim": 16, "text_width": 16, "text_depth": 1, "text_heads": 2, "context": 12}
NO_GLOBAL = {"use_global": False, "use_local": False, "use_relation": False}


@pytest.mark.parametrize(
    ("method", "values", "message"),
    [
        ("byol", {"momentum": 1.2}, r"momentum is 1\.2: give a number from 0 to 1"),
        ("farl", {**TEXT, "mask_ratio": 0.01}, "hides 0 of 16"),
        ("farl", {**TEXT, "text_heads": 3}, "text_heads"),
        ("farl", {**TEXT, "masking": "some"}, "masking"),
        ("fra", NO_GLOBAL, "turn one term on"),
        ("fra", {"use_global": False, "decoder_layers": 0}, "turn one term on"),
        ("fra", {"lambda_c": 1.5}, r"lambda_c is 1\.5"),
        ("fra", {"teacher_temperature": 0.0}, r"teacher_temperature is 0\.0"),
        ("fra", {"variant": "papper"}, "'papper'.*paper, official"),
        ("fra", {"mask_embeddings": "images"}, "'images'.*image, batch, free"),
        ("fra", {"query_std": 0.0}, r"query_std is 0\.0"),
        ("fra", {"decoder_width": 100, "decoder_heads": 8}, "decoder_width is 100.*32"),
        ("fra", {"relation": "between"}, "'between'.*within, across, both"),
        ("fra", {"frame_prior": -1}, "frame_prior is -1"),
        ("lewel", {**SMALL, "variant": "bn"}, "variant is 'bn': give one of eman, syncbn"),
        ("lewel", {**SMALL, "heads": 5}, "heads is 5: give a divisor of dim, 16"),
        ("lewel", {**SMALL, "heads": 5, "dim": 15}, "heads is 5: give a divisor of the backbone's channels"),
        ("lewel", {**SMALL, "global_weight": 1.5}, r"global_weight is 1\.5: give a number from 0 to 1"),
        ("mae", {"mask_ratio": 1.0}, r"mask_ratio is 1\.0: give a fraction between 0 and 1"),
        ("mae", {"decoder_width": 16, "decoder_heads": 3}, "decoder width 16 cannot be cut in 3 heads"),
        ("mcf", {"pretrained_blocks": 1}, "give both or neither"),
        ("pcl", {"mix_alpha": 0.5}, r"mix_alpha is 0\.5: give 1 or more"),
        ("pcl", {"temperature": 0}, "temperature is 0: give more than 0"),
        ("pcl", {"decoder_size": 60}, "decoder_size is 60: give a power of two"),
        ("simclr", {"temperature": 0}, "more than 0"),
        ("simclr", {"dim": 0}, "dim is 0: give 1 or more"),
        ("swav", {"epsilon": 0.01}, r"epsilon is 0\.01: give 0\.02 or more"),
        ("swav", {"temperature": 0}, "more than 0"),
        ("swav", {"queue_length": -1}, "give 0 or more"),
        ("swav", {"prototypes": 0}, "give 1 or more"),
    ],
)
def test_impossible_values_are_refused(method: str, values: dict[str, Any], message: str) -> None:
    kind = plugins.find("methods", method)
    masked = getattr(kind, "patches_only", False)
    with pytest.raises(ConfigError, match=message):
        kind(Backbone("test_vit" if masked else "test_resnet", image_size=64), **values)
