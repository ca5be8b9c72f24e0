"""The page answers the browsers that were given its address, and shows no file that was not uploaded."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from PIL import Image

from tests.helpers import free_port

pytest.importorskip("gradio", reason="the extra `app` is not installed")
pytest.importorskip("plotly", reason="the extra `app` is not installed")

from facessl.app.guard import Door
from facessl.app.page import build, launch
from facessl.app.serve import prepare, serve
from facessl.app.workspace import Workspace, open_workspace, photo_input
from facessl.core.errors import CheckpointError, ConfigError


class Page(NamedTuple):
    host: str
    query: str
    folder: Path

    def ask(self, path: str, body: Any = None, **headers: str) -> tuple[int, str, str]:
        """Status, text and cookie of an answer."""
        with contextlib.closing(http.client.HTTPConnection(self.host, timeout=30)) as connection:
            data = None if body is None else json.dumps(body)
            given = {} if body is None else {"Content-Type": "application/json"}
            connection.request("GET" if body is None else "POST", path, data, {**given, **headers})
            answer = connection.getresponse()
            cookie = (answer.getheader("set-cookie") or "").partition(";")[0]
            return answer.status, answer.read().decode(), cookie


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A page without faces, served by this process."""
    folder = tmp_path_factory.mktemp("guard")
    Image.new("RGB", (64, 64)).save(folder / "private.png")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_TEMP_DIR", "HF_HUB_DISABLE_TELEMETRY", "no_proxy", "NO_PROXY"):
            patch.setenv(name, "")  # what `prepare` sets is taken back
        (folder / "uploads").mkdir()
        prepare(str(folder / "uploads"))
        blocks = build(Workspace(str(folder), lambda: "cpu"))
        address = urlsplit(launch(blocks, host="127.0.0.1", port=free_port(), share=False))
        yield Page(address.netloc, f"?{address.query}", folder)
        blocks.close(verbose=False)


def test_the_token_is_asked_for_and_kept_by_the_browser(page: Page) -> None:
    assert page.ask("/")[:1] == (403,)
    assert page.ask("/config")[0] == page.ask("/?token=wrong")[0] == 403
    status, _, cookie = page.ask(f"/{page.query}")
    assert (status, page.ask("/config", Cookie=f"odd={{[; {cookie}")[0]) == (200, 200)
    assert page.ask("/config?token=wrong", Cookie=cookie)[::2] == (200, "")  # a link of another site logs nobody out


def test_the_browser_is_told_to_fetch_nothing_from_other_addresses(page: Page) -> None:
    with contextlib.closing(http.client.HTTPConnection(page.host, timeout=30)) as connection:
        connection.request("GET", f"/{page.query}")
        policy = connection.getresponse().getheader("content-security-policy") or ""
    assert policy.startswith("default-src 'self' ")
    assert "http" not in policy


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/config", {"Host": "rebound.example:7860"}),
        ("/config", {"Origin": "http://localhost:3000"}),
        ("/config", {"Origin": "null"}),
        ("/config", {"Origin": "http://["}),
        ("/gradio_api/file=https://example.com/a.png", {}),
        ("/gradio_api/proxy=https://example.com/a.png", {}),
    ],
)
def test_other_sites_are_refused_even_with_the_token(page: Page, path: str, headers: dict[str, str]) -> None:
    assert page.ask(path + page.query)[0] == (200 if headers else 403)
    assert page.ask(path + page.query, **headers)[0] == 403


@pytest.mark.parametrize("meta", [{}, {"meta": {"_type": "gradio.FileData"}}], ids=["without meta", "with meta"])
@pytest.mark.parametrize("path", ["private.png", "missing.png", "/etc/passwd", "https://example.com/a.png"])
def test_a_request_that_names_another_file_is_refused(page: Page, path: str, meta: dict[str, Any]) -> None:
    path = path if "/" in path else str(page.folder / path)
    body = {"data": [{"path": path, "orig_name": "x", **meta}, ["Boxes"]], "fn_index": 0, "session_hash": "one"}
    status, told, _ = page.ask(f"/gradio_api/queue/join{page.query}", body)
    assert (status, told) == (403, "The request names a file that was not uploaded, or is not valid JSON.\n")
    body["data"] = [None, ["Boxes"]]
    assert page.ask(f"/gradio_api/queue/join{page.query}", body)[0] == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("queue/join", {"fn_index": 99, "data": []}),
        ("queue/join", {"fn_index": 10**30, "data": []}),
        ("queue/join", {"fn_index": 0, "data": []}),
        ("queue/join", {"fn_index": 0, "data": ["x", ["Boxes"]]}),
        ("queue/join", {"fn_index": 0, "data": [None, [10**400]]}),
        ("queue/join", {"fn_index": 0, "data": [{"path": 7}, 12]}),
        ("queue/join", {"fn_index": 0, "data": [float("nan"), ["Boxes"]]}),
        ("component_server", {"component_id": 999, "fn_name": "face", "data": 0}),
        ("run/predict", {"fn_index": 0, "data": []}),
    ],
)
def test_a_forged_request_is_one_sentence(page: Page, path: str, body: Any, capsys: pytest.CaptureFixture[str]) -> None:
    session = "".join(character for character in json.dumps(body) if character.isalnum())[:40]
    status, told, _ = page.ask(f"/gradio_api/{path}{page.query}", {**body, "session_hash": session})
    if status == 200:  # what came of an event is asked for
        told = page.ask(f"/gradio_api/queue/data{page.query}&session_hash={session}")[1]
    assert "was not understood" in told or status == 403
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    assert printed.count("facessl app: ") == printed.count("\n") == (status != 403)


def test_a_photo_is_an_upload_whoever_asks(page: Page) -> None:
    import gradio as gr
    from gradio.data_classes import ImageData

    uploaded, link = page.folder / "uploads" / "a.png", page.folder / "uploads" / "link.png"
    link.symlink_to(page.folder / "private.png")
    taken = photo_input().preprocess
    assert taken(ImageData(path=str(uploaded), orig_name="a.png")) == (str(uploaded), "a.png")
    for path in (link, page.folder / "private.png", page.folder / "missing.png"):
        with pytest.raises(gr.Error, match="not uploaded"):
            taken(ImageData(path=str(path), orig_name="a.png"))


def test_large_requests_are_refused_before_they_are_read(page: Page) -> None:
    assert page.ask(f"/gradio_api/upload{page.query}", {}, **{"Content-Length": str(100 << 20)})[0] == 403
    assert page.ask(f"/gradio_api/queue/join{page.query}", "x" * (5 << 20))[0] == 403


def test_a_linked_folder_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "app").symlink_to(tmp_path / "elsewhere")
    options = {"models": (), "cache": None, "batch_size": 4, "workers": 0, "device": lambda: "cpu"}
    with pytest.raises(ConfigError, match="app is a link"):
        open_workspace(str(tmp_path / "run"), "synthetic:?n=4&size=32", **options)
    assert not list((tmp_path / "elsewhere").iterdir())
    for source in ("synthetic:?n=4&size=32", "embeddings.parquet", None):
        with pytest.raises(CheckpointError, match="nope does not exist: name a run folder, a checkpoint or an"):
            open_workspace(str(tmp_path / "nope"), source, **options)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_uploads_are_removed_when_the_page_is_told_to_end(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(signal, name) or os.name == "nt":
        pytest.skip("Windows has no such signal")
    made: list[Path] = []

    def launched(*_: Any, **__: Any) -> str:
        made[0].joinpath("upload.png").touch()
        threading.Timer(0.5, os.kill, (os.getpid(), getattr(signal, name))).start()
        return ""

    monkeypatch.setattr("facessl.app.serve.prepare", lambda folder: made.append(Path(folder)))
    monkeypatch.setattr("facessl.app.workspace.open_workspace", lambda *_, **__: SimpleNamespace(faces=None))
    monkeypatch.setattr("facessl.app.page.build", lambda _: SimpleNamespace(close=lambda **_: None))
    monkeypatch.setattr("facessl.app.page.launch", launched)
    before = signal.signal(getattr(signal, name), lambda *_: pytest.fail(f"{name} is not handled"))
    try:
        serve("run")
        assert not made[0].exists()
    finally:
        signal.signal(getattr(signal, name), before)


@pytest.mark.parametrize(
    ("listened", "asked", "opens"),
    [
        ("127.0.0.1", "LOCALHOST:9000", True),
        ("127.0.0.1", "[::1]:7860", True),
        ("127.0.0.1", "192.168.0.7:7860", False),
        ("faces.example", "faces.example", True),
        ("0.0.0.0", "192.168.0.7:7860", True),
        ("0.0.0.0", "evil.example", False),
        ("0.0.0.0", "", False),
    ],
)
def test_host_names_of_the_page(listened: str, asked: str, opens: bool, tmp_path: Path) -> None:
    assert Door(listened, tmp_path).opens(asked) is opens
