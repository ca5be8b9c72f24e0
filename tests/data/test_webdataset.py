"""Tar shards: the same samples as the WebDataset library gives, by position and as a stream."""

import contextlib
import http.server
import json
import os
import pickle
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import webdataset as wds

from facessl.core.errors import ConfigError, DataError, DataWarning
from facessl.core.types import Sample
from facessl.data.source import open_source
from facessl.data.sources import _tar
from facessl.data.sources.webdataset import WebDataset

from . import make


def captioned(path: Path, start: int, count: int) -> Path:
    members: dict[str, bytes] = {}
    for i in range(start, start + count):
        members[f"{i:03d}.jpg"] = make.jpeg(i)
        members[f"{i:03d}.txt"] = f"face {i}\n".encode()
        members[f"{i:03d}.cls"] = str(i % 3).encode()
    return make.shard(path, members)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three shards of 4 captioned and labeled images."""
    for n in range(3):
        captioned(tmp_path / f"s-{n:03d}.tar", 4 * n, 4)
    return tmp_path


def told(samples: Iterator[Sample] | WebDataset) -> list[tuple[str, int | None, str | None]]:
    if isinstance(samples, Iterator):
        return [(sample.key, sample.label, sample.text) for sample in samples]
    every = [samples[i] for i in range(len(samples))]
    return [(samples.inner_name(i), sample.label, sample.text) for i, sample in enumerate(every)]


EXPECTED = [(f"s-{i // 4:03d}.tar/{i:03d}.jpg", i % 3, f"face {i}") for i in range(12)]


@pytest.mark.parametrize("pattern", ["s-{000..002}.tar", "s-*.tar", "", "s-{000,001}.tar"])
def test_patterns_name_shards_in_order(shards: Path, pattern: str) -> None:
    source = WebDataset(str(shards / pattern))
    assert told(source) == EXPECTED[: len(source)]
    assert len(source) == (8 if "," in pattern else 12)
    assert source.provides == {"text", "label"}
    assert source[5].image == make.jpeg(5)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_member_offsets_agree_with_tarfile(tmp_path: Path, form: int) -> None:
    deep = "/".join(["folder-of-a-long-name"] * 6)  # 131 characters: prefix, long name or PAX record
    members = {f"{deep}/{i}.jpg": make.jpeg(i) for i in range(3)} | {"plain.txt": b"", "x.json": b"{}" * 700}
    path = make.shard(tmp_path / "x.tar", members, form=form, mtime=1.5 if form == tarfile.PAX_FORMAT else 1)
    with tarfile.open(path) as archive:
        expected = [(m.name.encode(), m.offset_data, m.size) for m in archive if m.isreg()]
    assert [tuple(member) for member in _tar.members(path)] == expected


@pytest.mark.filterwarnings("ignore:.*have no .txt")
def test_grouping_is_the_librarys(tmp_path: Path) -> None:
    members = {
        "a.JPG": make.jpeg(1),
        "a.seg.png": b"mask",
        "d.ir/b.jpeg": make.jpeg(2),
        "only.txt": b"no image",
        "c.txt": b"x",
        "c.jpg": make.jpeg(3),
        "__meta__": b"",
        ".hidden.jpg": b"",
        "noending": b"",
    }
    path = make.shard(tmp_path / "x.tar", members)
    theirs = [s["__key__"] for s in wds.WebDataset(str(path), shardshuffle=False) if "jpg" in s or "jpeg" in s]
    assert [key.split("/", 1)[1].rsplit(".", 1)[0] for key, _, _ in told(WebDataset(path))] == theirs
    assert WebDataset(path).provides == frozenset()


@pytest.mark.parametrize("streaming", [False, True])
def test_dots_are_part_of_names_where_the_library_finds_no_image(tmp_path: Path, streaming: bool) -> None:
    members = {"a.jpg": make.jpeg(0), "a.seg.png": b"not an image of its own", "a.cls": b"0"}
    for i in (1, 2):
        members |= {f"d/George_W._Bush_000{i}.jpg": make.jpeg(i), f"d/George_W._Bush_000{i}.cls": str(i).encode()}
    source = WebDataset(make.shard(tmp_path / "x.tar", members), streaming=streaming)
    samples = source.stream(seed=None, epoch=0, rank=0, world_size=1) if streaming else source
    assert [(key, label) for key, label, _ in told(samples)] == [
        ("x.tar/a.jpg", 0),
        ("x.tar/d/George_W._Bush_0001.jpg", 1),
        ("x.tar/d/George_W._Bush_0002.jpg", 2),
    ]


def test_members_need_not_follow_one_another(tmp_path: Path) -> None:
    images = {f"{i}.jpg": make.jpeg(i) for i in range(3)}
    path = make.shard(tmp_path / "x.tar", images | {f"{i}.cls": str(i).encode() for i in (2, 0, 1)})
    assert [label for _, label, _ in told(WebDataset(path))] == [0, 1, 2]


@pytest.mark.fault("A5", "one sample without a label dropped the labels of all shards")
def test_an_image_without_label_or_caption(shards: Path) -> None:
    make.shard(shards / "s-003.tar", {"x.jpg": make.jpeg(0)})
    with pytest.warns(DataWarning, match=r"s-003\.tar/x\.jpg has no \.txt \(1 of 13 images have none\)"):
        source = WebDataset(shards)
    assert source.provides == {"label"}
    assert source.column("label").tolist() == [label for _, label, _ in EXPECTED] + [-1]
    assert (source[12].label, source[0].label) == (-1, EXPECTED[0][1])


def test_caption_in_json(tmp_path: Path) -> None:
    rows = [{"caption": "a smile"}, {"caption": None}]
    members = {}
    for i, row in enumerate(rows):
        members |= {f"{i}.jpg": make.jpeg(i), f"{i}.json": json.dumps(row).encode()}
    source = WebDataset(make.shard(tmp_path / "x.tar", members))
    assert [text for _, _, text in told(source)] == ["a smile", ""]


def test_index_is_kept_and_only_changed_shards_are_read(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    WebDataset(shards)
    scanned: list[str] = []
    real = _tar._scan
    monkeypatch.setattr(_tar, "_scan", lambda path: (scanned.append(path.name), real(path))[1])
    assert told(WebDataset(shards)) == EXPECTED
    assert scanned == []
    captioned(shards / "s-001.tar", 50, 2)
    found = told(WebDataset(shards))
    assert scanned == ["s-001.tar"]
    assert [key for key, _, _ in found[3:7]] == [
        "s-000.tar/003.jpg",
        "s-001.tar/050.jpg",
        "s-001.tar/051.jpg",
        "s-002.tar/008.jpg",
    ]
    assert found[-1] == EXPECTED[-1]


def test_a_forked_and_a_pickled_copy_read_the_same(shards: Path) -> None:
    source = WebDataset(shards)
    assert source[0].image == make.jpeg(0)  # opens the shard before the fork
    child = os.fork()
    if child == 0:
        os._exit(0 if told(source) == EXPECTED else 1)
    assert told(source) == EXPECTED
    assert os.waitpid(child, 0)[1] == 0
    assert told(pickle.loads(pickle.dumps(source))) == EXPECTED


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda p: p.unlink(), r"no such shard: .*s-001\.tar"),
        (lambda p: p.write_bytes(b""), r"s-001\.tar is empty"),
        (lambda p: p.write_text("hello"), r"s-001\.tar is not a tar file"),
        (lambda p: cut(p, 700), r"s-001\.tar is truncated: 004\.jpg"),
        (lambda p: cut(p, p.read_bytes().index(b"005.jpg") + 200), r"s-001\.tar is truncated or damaged at byte"),
        (lambda p: make.shard(p, {"a.txt": b"x", "a.b.ppm": b"y"}), r"no image in the shard .*s-001\.tar"),
        (lambda p: p.write_bytes(b"\x1f\x8b\x08" + bytes(600)), r"s-001\.tar is compressed with gzip"),
    ],
    ids=["missing", "empty", "text", "cut in a file", "cut in a header", "no images", "gzip"],
)
def test_a_bad_shard_is_named(shards: Path, break_it: object, reason: str) -> None:
    break_it(shards / "s-001.tar")  # type: ignore[operator]
    with pytest.raises(DataError, match=reason):
        WebDataset(str(shards / "s-{000..002}.tar"))


def test_a_label_that_is_no_number_is_named(tmp_path: Path) -> None:
    source = WebDataset(make.shard(tmp_path / "x.tar", {"a.jpg": make.jpeg(0), "a.cls": b"happy"}))
    with pytest.raises(DataError, match=r"the \.cls of \S+x\.tar/a\.jpg holds b'happy', not a class number"):
        source[0]


def one_pass(source: WebDataset, **where: int) -> list[str]:
    return [sample.key for sample in source.stream(**({"seed": 0, "epoch": 0, "rank": 0, "world_size": 1} | where))]


def test_a_pipe_gives_the_same_samples(shards: Path) -> None:
    source = WebDataset(f"pipe:cat {shards}/s-{{000..002}}.tar")
    assert source.streaming
    assert source.provides == {"text", "label"}
    plain = [sample.text for sample in source.stream(seed=None, epoch=0, rank=0, world_size=1)]
    assert plain == [text for _, _, text in EXPECTED]


def test_stream_order_belongs_to_seed_and_epoch(shards: Path) -> None:
    source = WebDataset(shards, streaming=True)
    orders = [one_pass(source, seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert one_pass(source) == orders[0]
    assert len({tuple(order) for order in orders}) == 4
    assert all(sorted(order) == [key for key, _, _ in EXPECTED] for order in orders)


def test_ranks_divide_the_shards_of_a_stream(shards: Path) -> None:
    source = WebDataset(shards, streaming=True)
    parts = [one_pass(source, rank=rank, world_size=2) for rank in (0, 1)]
    assert sorted(parts[0] + parts[1]) == [key for key, _, _ in EXPECTED]


def test_streams_over_http(shards: Path) -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(shards))  # type: ignore[arg-type]

        def log_message(self, *args: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        source = WebDataset(url + "/s-{000..002}.tar")
        assert sorted(one_pass(source)) == [key for key, _, _ in EXPECTED]
        with pytest.raises(DataError, match=r"cannot read the shard http://.*/missing\.tar"):
            WebDataset(url + "/missing.tar")
        server.shutdown()


def test_stream_errors(shards: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read the shard pipe:\.\.\. \(1 of 1\): .*(status 3|nothing came)"):
        WebDataset("pipe:exit 3")
    with pytest.raises(ConfigError, match="cannot be read by position"):
        WebDataset("pipe:cat x.tar", streaming=False)
    cut(shards / "s-001.tar", 700)
    with pytest.raises(DataError, match=r"cannot read the shard .*s-001\.tar"):
        one_pass(WebDataset(shards, streaming=True))
    whole = (shards / "s-002.tar").read_bytes()
    at = whole.index(b"009.jpg")
    (shards / "s-002.tar").write_bytes(whole[:at] + b"\xff" * 200 + whole[at + 200 :])
    with pytest.raises(DataError, match=r"cannot read the shard .*s-002\.tar: it is truncated or damaged at byte"):
        one_pass(WebDataset(shards / "s-002.tar", streaming=True))


@pytest.mark.fault("E14", "the token of a `pipe:` source stood in every image's key, and in the error where it broke")
def test_a_stream_tells_no_command(shards: Path) -> None:
    source = WebDataset(f"pipe:cat {shards}/s-00{{0,1}}.tar #SECRET")
    assert one_pass(source, seed=None)[::4] == ["pipe:... (1 of 2)/000.jpg", "pipe:... (2 of 2)/004.jpg"]
    (shards / "s-001.tar").write_bytes(b"no tar")
    for broken in (
        f"pipe:cat {shards}/s-001.tar #SECRET",
        "odd://me:SECRET@host/x.tar",
        "https://h/x.tar?SECRET&${NO}",
    ):
        with pytest.raises(DataError) as told:
            WebDataset(broken)
        assert "SECRET" not in str(told.value)


@pytest.mark.fault("E9", "deep nesting and 1e400 in a .json or traits.json were tracebacks")
@pytest.mark.parametrize("odd", ["[" * 100_000, '{"caption": ' + "[" * 100_000, '{"facessl": 1, "identity": 1e400}'])
@pytest.mark.parametrize("streaming", [False, True])
def test_json_that_nothing_can_read_is_no_traceback(tmp_path: Path, odd: str, streaming: bool) -> None:
    """It is not used as a caption, or it is one sentence."""
    for row in (odd, '{"facessl": 1}'):
        make.shard(tmp_path / "x.tar", {"a.jpg": make.jpeg(0), "a.json": row.encode()})
        with contextlib.suppress(DataError):
            source = WebDataset(tmp_path / "x.tar", streaming=streaming)
            assert source.provides <= {"text", "identity"}
            source.fingerprint()
        (tmp_path / "traits.json").write_text(odd)


@pytest.mark.fault("E11", "a pipe called x.tar was waited for without end")
@pytest.mark.parametrize("name", ["x.tar", "*.tar", "x.tar?streaming=true"])
def test_only_regular_files_are_shards(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "x.tar")
    with pytest.raises(DataError, match=r"the shard .*x\.tar is not a regular file"):
        open_source(f"webdataset:{tmp_path}/{name}")


@pytest.mark.fault("E4", "a file called `pipe:COMMAND` in a folder that `*.tar` matched was run by a stream")
def test_a_file_name_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captioned(tmp_path / "real.tar", 0, 2)
    (tmp_path / "real.tar").rename(tmp_path / "pipe:touch PWNED; cat real #.tar")
    monkeypatch.chdir(tmp_path)
    found = list(WebDataset("*.tar", streaming=True).stream(seed=None, epoch=0, rank=0, world_size=1))
    assert [sample.label for sample in found] == [0, 1]
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.fault("E7", "a negative size hung the index, and headers of gigabytes exhausted memory")
@pytest.mark.parametrize(
    ("kind", "size", "reason"),
    [
        (b"0", b"-0000001000", "is not a tar file|truncated or damaged|negative size"),
        (b"x", b"70000000000", "has a member a.jpg of 7,516,192,768 bytes, more than 1,048,576"),
        (b"L", b"00020000000", "has a member a.jpg of 4,194,304 bytes, more than 1,048,576"),
        (b"0", b"70000000000", "has a member a.jpg of 7,516,192,768 bytes, more than 268,435,456"),
    ],
)
@pytest.mark.parametrize("options", ["?cache=false", "?streaming=true"])
def test_sizes_that_no_member_has_are_refused(
    tmp_path: Path, kind: bytes, size: bytes, reason: str, options: str
) -> None:
    block = bytearray(b"a.jpg".ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + size + b"\0" + bytes(12))
    block += b" " * 8 + kind + bytes(100) + b"ustar\00000" + bytes(247)
    block[148:156] = b"%06o\0 " % sum(block)
    with open(tmp_path / "x.tar", "wb") as file:
        file.write(block)
        file.truncate(2**33)  # sparse
    with pytest.raises(DataError, match=reason):
        open_source(f"webdataset:{tmp_path}/x.tar{options}")


@pytest.mark.fault("E15", "a list of 900 million shards hung")
def test_a_list_of_too_many_shards_is_refused() -> None:
    with pytest.raises(DataError, match="names 900,000,000 shards, more than 1,000,000"):
        WebDataset("x-{000000000..449999999}-{a,b}.tar")
