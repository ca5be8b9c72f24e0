"""Judging a frozen backbone by the name of a protocol."""

from __future__ import annotations

from typing import Any

from facessl import plugins
from facessl.backbones import Backbone
from facessl.protocols._splits import split_source


def evaluate(
    backbone: Backbone, source: str, *, protocol: str = "knn", test: str | None = None, **options: Any
) -> dict[str, Any]:
    """Headline numbers of a protocol, ready for JSON.

    Args:
        backbone: from `facessl.load_backbone`; it is not changed.
        source: labelled images, `NAME:PATH?option=value` or a path. A folder with train/ and test/ (or val/) is used
            as such; anything else is split 4 : 1 by a hash of each image's path.
        protocol: one of `facessl list protocols`.
        test: another source as the test part.
        options: keywords of the protocol, e.g. `k=20` of knn.

    Raises:
        UnknownName: no such protocol.
        ConfigError, DataError: a source without labels, too small to split, or unreadable.
    """
    judge = plugins.find("protocols", protocol)
    train, held_out = split_source(source, test)
    summary: dict[str, Any] = judge(backbone, train, held_out, **options).summary()
    return summary
