"""Settings that name files: absolute in a run folder, without secrets outside it."""

import os
from collections.abc import Callable, Mapping
from typing import Any

from facessl.data.location import absolute, redacted, shareable

#: Settings that name images, and settings that name other files.
SOURCES, FILES = ("source", "test", "val", "knn", "knn_test"), ("run", "teacher", "decoder_checkpoint", "dvae")


def located(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with absolute paths, valid in any working folder."""

    def file(name: str) -> str:
        return absolute(name) if name != "none" and os.path.exists(os.path.expanduser(name)) else name

    return changed(values, dict.fromkeys(SOURCES, absolute) | dict.fromkeys(FILES, file))


def without_secrets(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without commands and credentials in sources."""
    return changed(values, dict.fromkeys(SOURCES, redacted))


def published(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of checkpoints and cards: no credentials and no folders of this machine in sources."""
    return changed(values, dict.fromkeys((*SOURCES, "run"), shareable))


def changed(values: Mapping[str, Any], by_name: Mapping[str, Callable[[str], str]]) -> dict[str, Any]:
    """Apply a function by name to the texts of nested settings."""
    out = dict(values)
    for name, value in values.items():
        if isinstance(value, Mapping):
            out[name] = changed(value, by_name)
        elif isinstance(value, str) and name in by_name:
            out[name] = by_name[name](value)
    return out
