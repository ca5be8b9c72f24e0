"""Images in tar shards, grouped as the WebDataset library groups them: `000.jpg`, `000.txt`, `000.cls` are one."""

from __future__ import annotations

import glob
import itertools
import json
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import webdataset as wds

from facessl.core.errors import ConfigError, DataError
from facessl.core.types import FIELDS, Sample
from facessl.data import records
from facessl.data.decode import EXTENSIONS, ImageError
from facessl.data.sources._tar import IMAGE_SUFFIXES, PARTS, shard_index

_MAX_OPEN = 256


class WebDataset:
    """Tar shards on a disk by position, or a stream of shards from a pipe or a URL.

    By position: an index of member offsets is built from the tar headers on first use and kept in the user's
    cache; shards of which the size or time changed are read again. Captions come from `.txt`, else from
    "caption" in `.json`; labels from `.cls`. Shards of `facessl pack` also give back every other field that the packed
    source had (`facessl.data.records`), and with `traits.json` beside them its class names, layout, subsets and pairs.

    As a stream: the shards are shuffled and divided among ranks and workers, and the samples pass through the
    WebDataset library's shuffle buffer.

    Attributes:
        provides: "text" and "label" where every image has them (of a stream: where its first image has); of packed
            shards all that their first image has.
        shards: number of tar files, the most that ranks x workers can read a stream with.
        layout, subsets, mask_names, ...: of packed shards, where their source had them (`facessl.data.source.Source`).
    """

    attribute_names: tuple[str, ...] = ()
    label_names: tuple[str, ...] = ()

    def __init__(
        self, path: str | Path, *, streaming: bool | None = None, shuffle: int = 1000, cache: bool = True
    ) -> None:
        """
        Args:
            path: a tar, several as `{000..012}` or `*`, a folder of tars, `pipe:COMMAND`, or a URL.
            streaming: read in order instead of by position; None: only what cannot be read otherwise.
            shuffle: samples in the shuffle buffer of a stream; 0 keeps the order.
            cache: keep the index in the user's cache folder.

        Raises:
            DataError: a shard that is missing, truncated, no tar, or without images.
            ConfigError: a pipe or URL by position, or a negative buffer.
        """
        remote = _is_remote(str(path))
        if remote and streaming is False:
            raise ConfigError(f"{path} is a stream and cannot be read by position: leave streaming=false away")
        if shuffle < 0:
            raise ConfigError(f"the shuffle buffer has {shuffle} samples, but it must have 0 or more")
        self.streaming = remote or bool(streaming)
        self._paths = _expand(str(path), remote)
        self.shards = len(self._paths)
        self._shuffle = shuffle
        self._open: dict[int, int] = {}
        if self.streaming:
            first = next(self.stream(seed=None, epoch=0, rank=0, world_size=1), None)
            if first is None:
                raise DataError(f"no image in {path} (looked for members ending in {', '.join(EXTENSIONS)})")
            self.provides = frozenset(f for f in FIELDS if getattr(first, f) is not None)
            if not remote:
                vars(self).update(records.read_traits(Path(self._paths[0]).parent, None))
            return
        self._table = shard_index([Path(p).absolute() for p in self._paths], cache)
        every = {part: part in self._table.columns and bool((self._table[part][:, 0] >= 0).all()) for part in PARTS}
        first_json = self._read(0, "json", 0, self._paths[0]) if every["json"] else b""
        packed = records.parsed(first_json)
        self._caption = "txt" if every["txt"] else "json" if _has_caption(first_json) else None
        self._fields = records.fields(packed) if packed else frozenset()
        named = {"text": bool(self._caption), "label": every["cls"], "mask": bool(packed) and every["mask.png"]}
        self.provides = self._fields | {field for field, there in named.items() if there}
        if packed:
            vars(self).update(records.read_traits(Path(self._paths[0]).parent, self._numbers))

    def __len__(self) -> int:
        if self.streaming:
            raise TypeError("a stream has no length")
        return int(self._table["first"][-1])

    def __getitem__(self, index: int) -> Sample:
        """Image `index` as encoded bytes. Raises ImageError where the shard can no longer be read."""
        key, shard = self.key(index), self._shard(index)
        sample = Sample(self._read(shard, "image", index, key), key=key)
        if self._caption:
            sample.text = _text(self._caption, self._read(shard, self._caption, index, key))
        if "label" in self.provides:
            sample.label = _label(self._read(shard, "cls", index, key), key)
        if self._fields:
            records.restore(sample, records.parsed(self._read(shard, "json", index, key)) or {})
        if "mask" in self.provides:
            records.restore_mask(sample, self._read(shard, "mask.png", index, key))
        return sample

    def key(self, index: int) -> str:
        """`shard.tar/member` of image `index`, without reading it."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        shard = os.path.basename(self._paths[self._shard(index)])
        return f"{shard}/{os.fsdecode(self._table.text('key', index))}"

    def _shard(self, index: int) -> int:
        return int(np.searchsorted(self._table["first"], index, side="right")) - 1

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def stream(self, *, seed: int | None, epoch: int, rank: int, world_size: int) -> Iterator[Sample]:
        """The samples of one pass that fall to this rank and loader worker.

        Args:
            seed: of the order of the shards and of the buffer; None keeps the order.
            epoch: another order for each.
            rank, world_size: every world_size-th shard from rank on.

        Raises:
            DataError: a shard that cannot be read.
        """
        mixing = None if seed is None else seed * 1_000_003 + epoch
        buffer = self._shuffle if seed is not None else 0
        stages = [
            wds.SimpleShardList(self._paths, seed=mixing),
            # wds.split_by_node asks the environment, which says nothing under SLURM in a spawned worker.
            lambda shards: itertools.islice(shards, rank, None, world_size),
            wds.split_by_worker,
            wds.tarfile_to_samples(),
        ]
        if buffer:
            stages.append(wds.shuffle(buffer, rng=random.Random(mixing)))
        try:
            for raw in wds.DataPipeline(*stages):
                sample = _from_raw(raw)
                if sample is not None:
                    yield sample
        except DataError:
            raise
        except Exception as error:  # tarfile, OSError, subprocess: whatever a stream can break with
            shard = next((a for a in error.args if isinstance(a, str) and a in self._paths), self._paths[0])
            raise DataError(f"cannot read the shard {shard}: {_why(error)}") from None

    def _numbers(self) -> np.ndarray:
        """(N,) int64 positions that packed images had in their source, which are their names."""
        return np.array([int(self._table.text("key", i).partition(b".")[0]) for i in range(len(self))], np.int64)

    def _read(self, shard: int, part: str, index: int, key: str) -> bytes:
        offset, size = self._table[part][index].tolist()
        # pread has no position of its own, so forked workers may share a descriptor.
        descriptor = self._open.get(shard)
        try:
            if descriptor is not None:
                data = os.pread(descriptor, size, offset)
            else:
                descriptor = os.open(self._paths[shard], os.O_RDONLY)
                data = os.pread(descriptor, size, offset)
                if len(self._open) < _MAX_OPEN:
                    self._open[shard] = descriptor
                else:
                    os.close(descriptor)
        except OSError as error:
            raise ImageError(key, error.strerror or str(error)) from None
        if len(data) != size:
            raise ImageError(key, "its shard became shorter while it was in use")
        return data


def _is_remote(path: str) -> bool:
    return path.startswith("pipe:") or "://" in path


def _why(error: Exception) -> str:
    """An error of the library's pipeline in a few words."""
    text = str(error.args[0] if error.args else error)
    status = re.search(r"exit (\d+)", text)
    if status:
        return f"the command that reads it ended with status {status[1]}"
    return "nothing came from it" if text == "empty file" else text


def _expand(path: str, remote: bool) -> list[str]:
    """The shards that `path` names, in order."""
    full = path if remote else os.path.expanduser(path)
    if not remote and os.path.isfile(full):
        return [os.path.abspath(full)]
    if not remote and os.path.isdir(full):
        full = os.path.join(glob.escape(full), "*.tar")
    try:
        names = wds.shardlists.expand_urls(full)
    except (ValueError, AssertionError):  # the library's: unbalanced braces, ${NAME} without a value
        raise DataError(f"cannot expand {path}: write several shards for example as shard-{{000..012}}.tar") from None
    if remote:
        return names
    shards: list[str] = []
    for name in names:
        found = sorted(glob.glob(name)) if glob.has_magic(name) else [name] if os.path.isfile(name) else []
        if not found:
            raise DataError(f"no such shard: {name}")
        shards += found
    # Absolute: the library takes a file called "pipe:..." for a command to run.
    return [os.path.abspath(shard) for shard in shards]


def _from_raw(raw: dict[str, Any]) -> Sample | None:
    """A sample of the library's pipeline; None where it has no image."""
    suffix = next((suffix for suffix in IMAGE_SUFFIXES if suffix in raw), None)
    if suffix is None:
        return None
    shard = raw["__url__"] if raw["__url__"].startswith("pipe:") else os.path.basename(raw["__url__"])
    key = f"{shard}/{raw['__key__']}.{suffix}"
    caption = next((part for part in ("txt", "json") if part in raw), None)
    sample = Sample(raw[suffix], key=key, label=_label(raw["cls"], key) if "cls" in raw else None)
    packed = records.parsed(raw.get("json", b""))
    if packed:
        records.restore(sample, packed)
        if "mask.png" in raw:
            records.restore_mask(sample, raw["mask.png"])
    if caption == "txt" or (caption and not packed):
        sample.text = _text(caption, raw[caption])
    return sample


def _text(part: str, data: bytes) -> str:
    """The caption in a `.txt` or `.json` member; empty where the JSON has none."""
    if part == "txt":
        return data.decode("utf-8", "replace").strip()
    try:
        return str(json.loads(data).get("caption") or "").strip()
    except (ValueError, AttributeError):
        return ""


def _has_caption(data: bytes) -> bool:
    try:
        value = json.loads(data)
    except ValueError:
        return False
    return isinstance(value, dict) and "caption" in value


def _label(data: bytes, key: str) -> int:
    try:
        return int(data)
    except ValueError:
        raise DataError(f"the .cls of {key} holds {data[:20]!r}, not a class number") from None
