"""Settings that name images and other files: absolute in a run folder, without secrets outside it."""

import os
from collections.abc import Callable, Mapping
from typing import Any

from facessl.data.location import absolute, redacted, shareable

#: Settings that name images, and settings that name other files.
SOURCES, FILES = ("source", "test", "val", "knn", "knn_test"), ("run", "teacher", "decoder_checkpoint", "dvae")


def located(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with absolute paths, so that they mean the same in another working folder."""

    def file(name: str) -> str:
        return absolute(name) if name != "none" and os.path.exists(os.path.expanduser(name)) else name

    return changed(values, dict.fromkeys(SOURCES, absolute) | dict.fromkeys(FILES, file))


def without_secrets(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings whose sources have no commands and credentials."""
    return changed(values, dict.fromkeys(SOURCES, redacted))


def published(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as checkpoints and cards hold them: of sources no credentials and no folders of this machine."""
    return changed(values, dict.fromkeys((*SOURCES, "run"), shareable))


def changed(values: Mapping[str, Any], by_name: Mapping[str, Callable[[str], str]]) -> dict[str, Any]:
    """Nested settings with a function applied to the texts of these names."""
    out = dict(values)
    for name, value in values.items():
        if isinstance(value, Mapping):
            out[name] = changed(value, by_name)
        elif isinstance(value, str) and name in by_name:
            out[name] = by_name[name](value)
    return out
