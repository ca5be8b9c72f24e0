"""What a source is, and how one is written on the command line: `NAME:PATH?option=value`."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from facessl.batch import Sample


@runtime_checkable
class Source(Protocol):
    """Images by position. A plug-in class in `data/sources/` takes its path first, then keyword options.

    Attributes:
        provides: the optional fields of `Sample` that every item carries.
        label_names: class names in the order of the labels; empty where there are none.
        attribute_names: names of the attribute columns; empty where there are none.
        streaming: True where only iteration is possible (pipe, URL): no length, no exact resume.
    """

    provides: frozenset[str]
    label_names: tuple[str, ...]
    attribute_names: tuple[str, ...]
    streaming: bool

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...
