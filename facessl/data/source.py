"""What a source is, and how one is written on the command line: `NAME:PATH?option=value`."""

from __future__ import annotations

import difflib
import inspect
import os
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from facessl.core import plugins
from facessl.core.errors import ConfigError, DataError, UnknownName
from facessl.core.types import Sample
from facessl.data.decode import EXTENSIONS

_STREAM = re.compile(r"^(pipe:|[a-z]+://)")
_LISTS = (".csv", ".tsv", ".txt", ".lst")
_TARS = (".tar", ".tar.gz", ".tgz")
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", Path: "a path", str: "a text"}
_BOOLS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@runtime_checkable
class Source(Protocol):
    """Images by position. A plug-in class in `data/sources/` takes its path first, then keyword options.

    Attributes:
        provides: the optional fields of `Sample` that every item carries.
        label_names: class names in the order of the labels; empty where there are none.
        attribute_names: names of the attribute columns; empty where there are none.
        streaming: True where only iteration is possible (pipe, URL): no length, no exact resume.

    Members that a source has only where they mean something (read them with `trait`):
        splits: role (train, val, test) -> value of the source's option `split` that opens it.
        subsets: name -> (n,) positions in this split of a published test subset (WFLW's "pose", 300W's "challenge").
        layout: name of the landmarks' order in `facessl.data.layouts`.
        mask_names: names of the mask's classes by index, 0 first.
        mask_flip: class of the mirrored image by class of the image; None: classes have no sides.
        group_names: names of the groups of `Sample.group`.
        pairs: (P, 2) int64 positions of verification pairs; same: (P,) bool; folds: (P,) int64.
    """

    provides: frozenset[str]
    label_names: tuple[str, ...]
    attribute_names: tuple[str, ...]
    streaming: bool

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def key(self, index: int) -> str:
        """What a person finds image `index` by; the image itself is not read."""
        ...


#: Members of a source that not all have, and what stands for their absence.
_ABSENT: dict[str, Any] = {
    "splits": {},
    "subsets": {},
    "layout": None,
    "mask_names": (),
    "mask_flip": None,
    "group_names": (),
    "pairs": None,
    "same": None,
    "folds": None,
}


def trait(source: Any, name: str) -> Any:
    """A member that only some sources have (`Source`, second list), or its empty value."""
    return getattr(source, name, _ABSENT[name])


@runtime_checkable
class Stream(Protocol):
    """What a source with `streaming` has instead of positions.

    Attributes:
        shards: parts that ranks and loader workers can read at the same time.
    """

    shards: int

    def stream(self, *, seed: int | None, epoch: int, rank: int, world_size: int) -> Iterator[Sample]:
        """One pass over the samples of this rank and loader worker; seed None keeps the stored order."""
        ...


def open_source(spec: str | Source) -> Source:
    """The source that `spec` describes; a source is returned as it is.

    Args:
        spec: `NAME:PATH?option=value&option=value`, or a bare path: a folder of images, a tar (also with
            `{000..012}`, `*`, `pipe:` or a URL), or a list of images (.csv, .tsv, .txt, .lst).

    Raises:
        UnknownName: no such source or option; the nearest is given.
        ConfigError: a value that the option does not take, or a single image file.
        DataError: nothing there, or nothing readable.
    """
    if not isinstance(spec, str):
        return spec
    name, path, options = parse(spec)
    cls = plugins.find("data.sources", name)
    values = _converted(cls, name, options)
    try:
        source: Source = cls(path, **values)
    except (OSError, KeyError, ValueError) as error:  # a plug-in that leaves the wording to us
        raise DataError(f"{spec} cannot be opened as {name}: {type(error).__name__}: {error}") from None
    return source


def parse(spec: str) -> tuple[str, str, dict[str, str]]:
    """Split `NAME:PATH?option=value` into plug-in name, path and the options as they were typed.

    A path that exists is never split, so that ':' and '?' may occur in file names. Raises as `open_source`.
    """
    if _exists(spec):
        return _recognise(spec), spec, {}
    name, path = _split_name(spec)
    path, options = _split_options(name, path)
    return name or _recognise(path), path, options


def _exists(path: str) -> bool:
    return bool(path) and os.path.exists(os.path.expanduser(path))


def _split_name(spec: str) -> tuple[str, str]:
    """Plug-in name ("" where none is written) and the rest."""
    known = plugins.names("data.sources")
    head, colon, rest = spec.partition(":")
    if colon and head.replace("-", "_") in known:
        return head.replace("-", "_"), rest
    bare, question, options = spec.partition("?")
    if bare.replace("-", "_") in known:
        return bare.replace("-", "_"), question + options
    if _STREAM.match(spec):
        return "webdataset", spec
    # One letter is a Windows drive; a slash or dot before the colon belongs to a path.
    if colon and len(head) > 1 and re.fullmatch(r"[\w-]+", head):
        raise UnknownName("source", head.replace("_", "-"), [name.replace("_", "-") for name in known])
    return "", spec


def _split_options(name: str, path: str) -> tuple[str, dict[str, str]]:
    if _exists(path) or "?" not in path:
        return path, {}
    before, _, query = path.rpartition("?")
    pairs = [part.partition("=") for part in query.split("&") if part]
    if _STREAM.match(before):
        # The query of a URL is its own unless it holds one of our options.
        ours = _keywords(plugins.find("data.sources", name))
        if not any(key in ours for key, _, _ in pairs):
            return path, {}
    for key, equals, _ in pairs:
        if not equals:
            raise ConfigError(f"the source {name or before}: {key!r} is not an option: write it as option=value")
    return before, {key: value for key, _, value in pairs}


def _recognise(path: str) -> str:
    """Name of the plug-in for a bare path."""
    if not path:
        raise ConfigError("the source is empty: name a folder of images, a tar, a list, or NAME:PATH")
    full, low = os.path.expanduser(path), path.lower()
    if os.path.isdir(full):
        return "webdataset" if os.path.isfile(os.path.join(full, "pack.json")) else "folder"  # of `facessl pack`
    if _STREAM.match(path) or low.endswith(_TARS):
        return "webdataset"
    if not os.path.exists(full):
        raise DataError(f"no such file or folder: {path}{_beside(full)}")
    if low.endswith(_LISTS):
        return "imagelist"
    if low.endswith(EXTENSIONS):
        folder = os.path.dirname(path) or "."
        raise ConfigError(f"{path} is a single image: name its folder instead ({folder})")
    known = ", ".join(name.replace("_", "-") for name in plugins.names("data.sources"))
    raise DataError(f"{path} is not a folder, tar or list: name what it is as NAME:{path} with NAME one of {known}")


def _beside(path: str) -> str:
    """The end of the sentence on a path that is not there: what is called like it, or what to give."""
    above, name = os.path.split(path.rstrip("/"))
    if not os.path.isdir(above or "."):
        return f" ({above} is not there, either): name a folder of images, a list, a tar, or NAME:PATH"
    near = difflib.get_close_matches(name, os.listdir(above or "."), n=1)
    return f": did you mean {os.path.join(above, near[0])}?" if near else ": name a folder of images, or NAME:PATH"


def _keywords(cls: Any) -> dict[str, Any]:
    """Keyword options of a plug-in class and their types."""
    hints = typing.get_type_hints(cls.__init__ if inspect.isclass(cls) else cls)
    return {
        name: hints.get(name, str)
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def _converted(cls: Any, name: str, options: dict[str, str]) -> dict[str, Any]:
    keywords = _keywords(cls)
    for key in options:
        if key not in keywords:
            raise UnknownName(f"option of the source {name.replace('_', '-')}", key, keywords)
    shown = name.replace("_", "-")
    return {key: _value(f"{shown}?{key}", value, keywords[key]) for key, value in options.items()}


def _value(option: str, text: str, hint: Any) -> Any:
    """`text` as the type that the constructor asks for."""
    choices = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if types.NoneType in choices and text.lower() in ("none", "null"):
        return None
    choices = tuple(choice for choice in choices if choice is not types.NoneType)
    for kind in (bool, int, float, Path, str):  # narrowest first, so that "3" for int | str is a number
        if kind not in choices:
            continue
        try:
            return _BOOLS[text.lower()] if kind is bool else kind(text)
        except (KeyError, ValueError):
            continue
    for choice in choices:
        if typing.get_origin(choice) is typing.Literal and text in typing.get_args(choice):
            return text
    wanted = " or ".join(_KINDS.get(choice) or ", ".join(map(str, typing.get_args(choice))) for choice in choices)
    raise ConfigError(f"{option}={text} cannot be used: it must be {wanted}")
