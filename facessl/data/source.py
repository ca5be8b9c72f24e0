"""Sources of images, and how they are written on the command line: `NAME:PATH?option=value`."""

import contextlib
import hashlib
import inspect
import os
import re
import types
import typing
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from facessl.core import plugins
from facessl.core.errors import ConfigError, DataError, PluginError, UnknownName, instead_of
from facessl.core.escape import from_csv, with_slashes
from facessl.core.types import FIELDS, Sample
from facessl.core.values import as_text
from facessl.data.decode import EXTENSIONS, read_file
from facessl.data.index import Table, texts
from facessl.data.skipped import ImageError
from facessl.data.video import FILMS

#: Values of `Source.splits` of a published set whose parts are called by their roles.
TRAIN_TEST = {"train": "train", "test": "test"}
TRAIN_VAL_TEST = {"train": "train", "val": "val", "test": "test"}

_NUMBERS = frozenset({"label", "identity", "group"})
_BYTES = frozenset({"attributes", "visible"})
#: Number of images whose content is in a fingerprint.
_SAMPLED = 8
#: How a stream begins: a command or a URL.
STREAM = re.compile(r"^(pipe:|[a-z]+://)")
_LISTS, _TARS = (".csv", ".tsv", ".txt", ".lst"), (".tar", ".tar.gz", ".tgz")
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", Path: "a path", str: "a text"}
_BOOLS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class Source:
    """Images by position. A plug-in in `data/sources/` is a subclass that takes its path first, then keyword options.

    It calls `Source.__init__` with the names of its images and what is known of each. It overrides `image` where the
    images are not files, `__getitem__` where an image has more files than its own, and `__len__`, `name` and `values`
    where it keeps its lists itself. It raises ConfigError for an option's value, and DataError for a file.

    Options that mean the same in every source: `split` is the part to open; `strict` refuses a part of a published set
    (false takes it); `cache` keeps the list of files in the user's cache folder; `image` is the column of paths of a
    table (auto looks for the usual names), and `root` the folder that they start from (the table's own by default).

    Attributes:
        provides: the optional fields of `Sample` that every item carries.
        columns: those of them that `column` knows without reading an image.
        label_names: class names in the order of the labels; empty if there are none. A label -1 is unknown.
        classes_may_be_people: whether a task that needs identities may take the labels for them.
        attribute_names: names of the attribute columns; empty if there are none.
        group_names: names of the groups of `Sample.group`.
        splits: role (train, val, test) -> value of the option `split` that opens it.
        subsets: name -> (n,) positions in this split of a published test subset (WFLW's "pose", 300W's "challenge").
        layout: name of the landmarks' order in `facessl.data.layouts`.
        mask_names: names of the mask's classes by index, 0 first.
        mask_flip: class of the mirrored image by class of the image; None: classes have no sides.
        pairs: (P, 2) int64 positions of verification pairs; same: (P,) bool; folds: (P,) int64.
        streaming: True if only iteration is possible (pipe, URL): no length, no exact resume, but a method `stream`.
        shards: of a stream: parts that ranks and loader workers can read at the same time.
    """

    provides: frozenset[str] = frozenset()
    columns: frozenset[str] = frozenset()
    label_names: tuple[str, ...] = ()
    classes_may_be_people: bool = False
    attribute_names: tuple[str, ...] = ()
    group_names: tuple[str, ...] = ()
    splits: Mapping[str, str] = {}
    subsets: Mapping[str, np.ndarray] = {}
    layout: str | None = None
    mask_names: tuple[str, ...] = ()
    mask_flip: tuple[int, ...] | None = None
    pairs: np.ndarray | None = None
    same: np.ndarray | None = None
    folds: np.ndarray | None = None
    streaming: bool = False
    shards: int = 1

    def __init__(
        self,
        names: Iterable[str],
        columns: Mapping[str, Any] | None = None,
        *,
        folder: str | Path | None = None,
        file: str | Path = "the source",
        hint: str = "",
    ) -> None:
        """
        Args:
            names: of the N images; paths where `folder` is given, and then the first one must exist.
            columns: field of `Sample` -> N values: label, identity and group become int64, attributes and visible
                uint8, texts stay texts, the others become float32.
            folder: that relative names start from.
            file, hint: where the names were read and what to do if they are wrong, for errors.
        """
        names = list(names) if folder is None else [*map(with_slashes, _stored_names(names, folder))]
        hint = f" ({hint})" if hint else ""
        if not names:
            raise DataError(f"no image in {file}{hint}")
        self._folder = None if folder is None else str(folder)
        # Arrays, not Python objects: forked workers share them without copying.
        table = texts("name", map(os.fsencode, names))
        if not table["name"].all():
            raise DataError(f"{file} names {next(name for name in names if chr(0) in name)!r}: no file has a NUL byte")
        for field, values in (columns or {}).items():
            if len(values) != len(names):
                raise DataError(f"{file} has {len(names)} images but {len(values)} values for {field}")
            if field == "text":
                table |= texts("text", (text.encode("utf-8", "replace") for text in values))
            else:
                table[field] = np.asarray(values, _dtype(field))
        self._table = Table(table, {})
        self.columns = frozenset(columns or ())
        self.provides = self.provides | self.columns
        if self._folder is not None and not os.path.exists(self.name(0)):
            raise DataError(f"{file} names {self.name(0)}, which is missing{hint}")

    def __len__(self) -> int:
        return len(self._table["name.ends"]) - 1

    def __getitem__(self, index: int) -> Sample:
        """Image `index`, mostly as encoded bytes, with its fields. ImageError if it cannot be read."""
        sample = Sample(self.image(index), key=self.key(index))
        for field in self.columns:
            if field == "text":
                sample.text = self._table.text("text", index).decode()
            else:
                value = self._table[field][index]
                setattr(sample, field, int(value) if field in _NUMBERS else value)
        return sample

    def key(self, index: int) -> str:
        """The name by which a person finds image `index`, without reading it. IndexError outside 0 .. N - 1."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return self.name(index)

    def name(self, index: int) -> str:
        """The path of the image's file, for a valid position."""
        name = os.fsdecode(self._table.text("name", index))
        return name if self._folder is None else os.path.join(self._folder, name)

    def inner_name(self, index: int) -> str:
        """The name of image `index` within its source, independent of the location of the source."""
        name = os.fsdecode(self._table.text("name", index))
        return short(name) if os.path.isabs(name) else name

    def image(self, index: int) -> bytes | np.ndarray:
        """Encoded bytes of image `index`, or (H, W, 3) uint8 RGB."""
        return read_file(self.key(index))

    def size(self, index: int) -> int:
        """Bytes of the file of image `index`; 0 if it is not a file or is missing."""
        try:
            return os.stat(self.name(index)).st_size
        except (OSError, ValueError):
            return 0

    def values(self, field: str) -> np.ndarray:
        """(N, ...) values of a field in `columns`."""
        if field == "text":
            return np.array([self._table.text("text", i).decode() for i in range(len(self))], object)
        return self._table[field]

    def column(self, field: str) -> np.ndarray:
        """(N, ...) values of one numeric field of every image; samples are read only if it is not in `columns`.

        Of label, identity and group it is int64, -1 if the image cannot be read.

        Raises:
            ConfigError: a stream, or a source without the field.
        """
        if self.streaming:
            raise ConfigError(f"a stream has no {field}s by position: use shards on a disk, a folder or a list")
        if field not in self.provides:
            raise ConfigError(f"the source has no {field} of its images, which is needed here")
        if field in self.columns:
            return self.values(field)
        numbers = np.full(len(self), -1, np.int64)
        for i in range(len(self)):
            with contextlib.suppress(ImageError):  # an unreadable image is skipped later in any part
                numbers[i] = getattr(self[i], field)
        return numbers

    def fingerprint(self) -> str:
        """Hexadecimal digits that change with what can be learned from the source.

        They cover the names (`inner_name`) and sizes of the images in their order, class names, all `columns`, and a
        few images whole. They are the same on another machine and in another folder.
        """
        digest = hashlib.blake2b(digest_size=16)

        def add(value: Any) -> None:
            if isinstance(value, np.ndarray):
                digest.update(f"{value.dtype}{value.shape}".encode())
                value = repr(value.tolist()) if value.dtype.hasobject else np.ascontiguousarray(value).tobytes()
            digest.update(value if isinstance(value, bytes) else repr(value).encode("utf-8", "surrogateescape"))
            digest.update(b"\n")

        add([sorted(self.provides), self.layout, self.mask_names, self.mask_flip])
        add([self.label_names, self.attribute_names, self.group_names])
        for i in range(len(self)):
            add((self.inner_name(i), self.size(i)))
        for column in sorted(self.columns):
            add(self.values(column))
        for i in np.unique(np.linspace(0, len(self) - 1, _SAMPLED).round().astype(int)).tolist() if len(self) else ():
            try:
                sample = self[i]
            except ImageError:
                add("unreadable")
                continue
            for field in fields(Sample):
                if field.name != "key":
                    add(getattr(sample, field.name))
        return digest.hexdigest()

    def stream(self, *, seed: int | None, epoch: int, rank: int, world_size: int) -> Iterator[Sample]:
        """One pass of a stream over the samples of this rank and loader worker; seed None keeps the stored order."""
        raise NotImplementedError


def stored(name: str, folder: str | Path) -> str | None:
    """The file below a folder that a name in a list means; None if there is none.

    Undoes what `escape.csv_row` wrote; the file may have no blanks at its ends, slashes for backslashes, other accents.
    """
    for text in dict.fromkeys(read for way in (name, name.strip()) for read in (from_csv(way), way)):
        for path in dict.fromkeys((text, text.replace("\\", "/"))):
            for form in dict.fromkeys((path, *(unicodedata.normalize(kind, path) for kind in ("NFC", "NFD")))):
                if os.path.exists(os.path.join(folder, form)):
                    return form
    return None


def _stored_names(names: Iterable[str], folder: str | Path) -> list[str]:
    """Apply `stored` to the names that may need it; of names with accents only the first decides for all."""
    paths, accents = [], None
    for name in names:
        odd = "\\" in name or name[:1] == "'" or name != name.strip()
        if not odd and not name.isascii():
            accents = stored(name, folder) != name if accents is None else accents
            odd = accents
        paths.append((stored(name, folder) or name) if odd else name)
    return paths


def short(key: str) -> str:
    """The last two parts of an image's key, which do not depend on the location of the folder."""
    return "/".join(PurePosixPath(key.replace("\\", "/")).parts[-2:])


def _dtype(field: str) -> type:
    if field not in FIELDS:
        valid = ", ".join(sorted(FIELDS))
        raise PluginError(f"a source's column cannot be called {field!r}: name a field of Sample, {valid}")
    return np.int64 if field in _NUMBERS else np.uint8 if field in _BYTES else np.float32


def open_source(spec: str | os.PathLike[str] | Source) -> Source:
    """The source that `spec` describes; a source is returned as it is.

    Args:
        spec: `NAME:PATH?option=value&option=value`, or a bare path: a folder of images, one image, a video, a tar
            (also with `{000..012}`, `*`, `pipe:` or a URL), or a list of images (.csv, .tsv, .txt, .lst); or a path
            object.

    Raises:
        UnknownName: no such source or option; the nearest is given.
        ConfigError: a value that the option does not take, or no source at all.
        DataError: nothing there, or nothing readable.
    """
    if isinstance(spec, Source):
        return spec
    if not isinstance(spec := as_text(spec), str):
        raise ConfigError(f"the source is of type {type(spec).__name__}: give a path, NAME:PATH or an opened source")
    name, path, options = parse(spec)
    cls, shown = plugins.find("data.sources", name), name.replace("_", "-")
    hints = _keywords(cls)
    for key in options:
        if key not in hints:
            raise UnknownName(f"option of the source {shown}", key, hints)
    values = {key: _value(f"{shown}?{key}", value, hints[key]) for key, value in options.items()}
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
        return _recognize(spec), spec, {}
    name, path = _split_name(spec)
    path, options = _split_options(name, path)
    return name or _recognize(path), path, options


def _exists(path: str) -> bool:
    return bool(path) and os.path.exists(os.path.expanduser(path))


def _split_name(spec: str) -> tuple[str, str]:
    """Plug-in name ("" if none is written) and the rest."""
    known = plugins.names("data.sources")
    head, colon, rest = spec.partition(":")
    if colon and head.replace("-", "_") in known:
        return head.replace("-", "_"), rest
    bare, question, options = spec.partition("?")
    if bare.replace("-", "_") in known:
        return bare.replace("-", "_"), question + options
    if STREAM.match(spec):
        return "webdataset", spec
    # One letter is a Windows drive; a slash or dot before the colon belongs to a path.
    if colon and len(head) > 1 and re.fullmatch(r"[\w-]+", head):
        plugins.known("data.sources", head)
    return "", spec


def _split_options(name: str, path: str) -> tuple[str, dict[str, str]]:
    if _exists(path) or "?" not in path:
        return path, {}
    before, _, query = path.rpartition("?")
    pairs = [part.partition("=") for part in query.split("&") if part]
    if STREAM.match(before):
        # The query of a URL is its own unless it holds one of our options.
        options = _keywords(plugins.find("data.sources", name))
        if not any(key in options for key, _, _ in pairs):
            return path, {}
    for key, equals, _ in pairs:
        if not equals:
            raise ConfigError(f"the source {name or before}: {key!r} is not an option: write it as option=value")
    return before, {key: value for key, _, value in pairs}


def _recognize(path: str) -> str:
    """Name of the plug-in for a bare path."""
    if not path:
        raise ConfigError("the source is empty: name a folder of images, a tar, a list, or NAME:PATH")
    full, low = os.path.expanduser(path), path.lower()
    if os.path.isdir(full):
        return "webdataset" if os.path.isfile(os.path.join(full, "pack.json")) else "folder"  # of `facessl pack`
    if STREAM.match(path) or low.endswith(_TARS):
        return "webdataset"
    if not os.path.exists(full):
        raise DataError(f"no such file or folder: {path}{_similar_path(full)}")
    if low.endswith(_LISTS):
        return "imagelist"
    if low.endswith((*EXTENSIONS, *FILMS)):
        return "video" if low.endswith(FILMS) else "folder"
    known = ", ".join(name.replace("_", "-") for name in plugins.names("data.sources"))
    raise DataError(f"{path} is not a folder, tar or list: name what it is as NAME:{path} with NAME one of {known}")


def _similar_path(path: str) -> str:
    """End of the sentence on a missing path: a similar name, or what to give."""
    above = os.path.dirname(path.rstrip("/"))
    if not os.path.isdir(above or "."):
        return f" ({above} is not there, either): name a folder of images, a list, a tar, or NAME:PATH"
    return f": {instead_of(path, 'name a folder of images, or NAME:PATH')}"


def _keywords(cls: Any) -> dict[str, Any]:
    """Options of a source with their types. PluginError: one that is not keyword-only, or has no type."""
    hints = typing.get_type_hints(cls.__init__)
    options = list(inspect.signature(cls).parameters.values())[1:]
    for option in options:
        if option.kind is not option.KEYWORD_ONLY or option.name not in hints:
            raise PluginError(
                f"the source {cls.__name__}: its option {option.name!r} must be keyword-only and have a type, as "
                "`limit` in def __init__(self, path: str, *, limit: int = 0)"
            )
    return {option.name: hints[option.name] for option in options}


def _value(option: str, text: str, hint: Any) -> Any:
    """`text` as the type that the constructor asks for."""
    choices = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if types.NoneType in choices and text.lower() in ("none", "null"):
        return None
    kinds = [kind for kind in _KINDS if kind in choices]  # narrowest first, so that "3" for int | str is a number
    for kind in kinds:
        with contextlib.suppress(KeyError, ValueError):
            return _BOOLS[text.lower()] if kind is bool else kind(text)
    raise ConfigError(f"{option}={text} cannot be used: it must be {' or '.join(_KINDS[kind] for kind in kinds)}")
