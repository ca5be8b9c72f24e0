"""The page in a real browser: every tab, bad photos, names that are HTML, two browsers; nothing leaves the machine."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

from facessl.cli import main
from facessl.data.source import open_source
from tests.helpers import environment, free_port

pytest.importorskip("gradio", reason="the extra `app` is not installed")
pytest.importorskip("plotly", reason="the extra `app` is not installed")
api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
api.expect.set_options(timeout=60_000)
CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    if os.environ.get("GITHUB_ACTIONS") and sys.platform == "linux":
        pytest.fail("no chromium on this machine, which GitHub installs", pytrace=False)
    pytest.skip("no chromium on this machine", allow_module_level=True)

#: A file and a class whose names would run as HTML.
FILE, CLASS = "<img src=x onerror=window.hit=1>.jpg", "<img src=x onerror=window.hit=2>"
TINY = ["--backbone", "test_resnet", "--image-size", "32", "--batch-size", "8", "--workers", "0", "--device", "cpu"]


class Served(NamedTuple):
    """A page and what it was opened with."""

    url: str
    token: str
    folder: Path
    run: Path


class Window(NamedTuple):
    """A page in the browser, and what went wrong on it."""

    page: Any
    wrong: list[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 faces of two classes, a photo of two faces, one of none, a broken one, a run and a model."""
    folder = tmp_path_factory.mktemp("page")
    source = open_source("synthetic:?n=32&size=96&seed=3")
    faces = [Image.fromarray(source[i].image) for i in range(len(source))]
    for number, face in enumerate(faces[:30]):
        place = folder / "faces" / ("calm" if number % 2 else CLASS)
        place.mkdir(parents=True, exist_ok=True)
        face.save(place / (FILE if number == 4 else f"{number:02d}.jpg"), quality=95)
    two = Image.new("RGB", (420, 240), (90, 110, 120))
    for number, face in enumerate(faces[30:]):
        two.paste(face.resize((192, 192)), (12 + 204 * number, 24))
    two.save(folder / "two.png")
    Image.new("RGB", (200, 160), (90, 110, 120)).save(folder / "none <b>.png")
    (folder / "broken <b>.jpg").write_bytes((folder / "faces" / "calm" / "01.jpg").read_bytes()[:300])
    steps = ["--max-steps", "2", "--log-every", "1", "--monitor.every", "1", "--monitor.images", "8"]
    assert not main(["pretrain", str(folder / "faces"), *TINY, *steps, "--out", str(folder / "run")])
    steps = ["--epochs", "1", "--task", "expression", "--optim.warmup-epochs", "0"]
    assert not main(["finetune", "none", str(folder / "faces"), *TINY, *steps, "--out", str(folder / "model")])
    return folder


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    """The page, with variables that would publish it; it must end well when it is told to."""
    port, temporary, log = free_port(), folder / "temporary", folder / "log.txt"
    temporary.mkdir()
    shell = {
        "GRADIO_SHARE": "True",
        "GRADIO_ALLOWED_PATHS": "/",
        "GRADIO_SERVER_NAME": "0.0.0.0",
        "TMPDIR": str(temporary),
    }
    words = ["app", str(folder / "run"), str(folder / "faces"), "--models", str(folder / "model"), "--device", "cpu"]
    with log.open("w") as out:
        command = [sys.executable, "-m", "facessl", *words, "--workers", "0", "--port", str(port)]
        process = subprocess.Popen(command, cwd=folder, env=environment(**shell), stdout=out, stderr=out)
        try:
            while "(Ctrl-C" not in log.read_text():
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
            url, _, token = log.read_text().partition("facessl app: ")[2].split()[0].partition("?token=")
            assert url == f"http://127.0.0.1:{port}/"
            yield Served(url, token, folder, folder / "run")
        finally:
            process.terminate()
            code = process.wait(60)
    told = log.read_text()
    assert code == 0
    assert "Traceback" not in told
    assert told.count("http") == 1  # one address: this machine's
    assert not list(temporary.glob("facessl-app-*"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_context()  # which keeps the scripts of the page from one window to the next
        browser.close()


@pytest.fixture
def page(browser: Any, served: Served) -> Iterator[Any]:
    """The page in a window of its own, without errors, requests to others, or a name that ran as HTML."""
    window = opened(browser, served)
    yield window.page
    assert window.page.evaluate("window.hit") is None
    assert window.wrong == []
    window.page.close()


def opened(browser: Any, served: Served) -> Window:
    page, wrong = browser.new_page(), []
    page.set_viewport_size({"width": 1300, "height": 900})
    page.set_default_timeout(60_000)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    here = (served.url, served.url.replace("http", "ws"), "data:", "blob:")
    page.on("request", lambda asked: None if asked.url.startswith(here) else wrong.append(asked.url))
    page.goto(f"{served.url}?token={served.token}")
    return Window(page, wrong)


def turn_to(page: Any, tab: str) -> None:
    page.get_by_role("tab", name=tab).click()


def test_a_photo_shows_its_faces_and_their_regions(page: Any, folder: Path) -> None:
    turn_to(page, "Photo")
    page.set_input_files("#photo-photo input[type=file]", folder / "two.png")
    api.expect(page.get_by_role("gridcell").filter(has_text="px")).to_have_count(2)
    assert page.get_by_text("region 1").count() == 0
    page.get_by_label("Regions").check()
    page.get_by_role("button", name="region 1").or_(page.get_by_text("region 1", exact=True)).first.wait_for()


@pytest.mark.parametrize("tab", ["Photo", "Search"])
@pytest.mark.parametrize(("name", "sentence"), [("broken <b>.jpg", "broken <b>.jpg"), ("none <b>.png", "o face")])
def test_a_bad_photo_is_one_sentence(page: Any, folder: Path, tab: str, name: str, sentence: str) -> None:
    turn_to(page, tab)
    page.set_input_files(f"#{tab.lower()}-photo input[type=file]", folder / name)
    toast = page.get_by_test_id("toast-body")
    api.expect(toast).to_contain_text(sentence)
    told = toast.inner_text()
    assert str(folder) not in told  # the user's name of it, not that of the uploaded copy
    assert "/tmp" not in told


def test_search_finds_the_photo_itself_and_goes_on_from_a_face(page: Any, folder: Path) -> None:
    turn_to(page, "Search")
    page.get_by_label("Crop the largest face").uncheck()
    page.set_input_files("#search-photo input[type=file]", folder / "faces" / CLASS / FILE)
    api.expect(page.locator("#search-faces .caption-label").first).to_have_text("0.000")
    api.expect(page.get_by_role("gridcell").filter(has_text=FILE)).to_have_count(1)
    page.locator("#search-faces .thumbnail-item").first.click()
    page.get_by_text(f"Searched for: {FILE}").wait_for()
    more = page.get_by_label("number input for Faces")
    more.fill("18")
    more.blur()
    api.expect(page.locator("#search-faces .thumbnail-item")).to_have_count(18)
    page.get_by_text(f"Searched for: {FILE}").wait_for()


def test_names_of_people_are_kept_and_seen_by_another_browser(page: Any, browser: Any, served: Served) -> None:
    turn_to(page, "People")
    page.get_by_label("Minimum group size").first.fill("2")
    page.get_by_role("button", name="Find groups").click()
    page.locator("#people-groups .thumbnail-item").first.click()
    page.locator("#people-faces .thumbnail-item").first.wait_for()
    page.get_by_label("Name").fill("<b>=Ada</b>")
    page.get_by_role("button", name="Save").click()
    page.locator("#people-groups .caption-label").filter(has_text="<b>=Ada</b>").wait_for()
    other = opened(browser.browser, served)
    turn_to(other.page, "People")
    other.page.locator("#people-groups .caption-label").filter(has_text="<b>=Ada</b>").wait_for()
    other.page.close()
    (table,) = (served.run / "app").glob("*.people.csv")
    with table.open(newline="") as file:
        assert {line["name"] for line in csv.DictReader(file) if line["group"] == "0"} == {"<b>=Ada</b>"}


def test_the_map_shows_the_face_of_a_point(page: Any, folder: Path) -> None:
    turn_to(page, "Map")
    plot = page.locator("#face-map .js-plotly-plot")
    plot.wait_for()
    page.wait_for_function("document.querySelector('#face-map .js-plotly-plot').dataset.faces")
    page.evaluate(
        "document.querySelector('#face-map .js-plotly-plot').emit('plotly_click', {points: [{customdata: 4}]})"
    )
    page.wait_for_function("document.querySelector('.face img').src.startsWith('data:image/jpeg')")
    key = open_source(str(folder / "faces")).key(4)
    assert key.endswith("10.jpg"), "the fifth name of the first class"
    api.expect(page.locator(".face span")).to_have_text(key)
    api.expect(page.locator(".face b")).to_have_text(CLASS)
    page.get_by_label("error").check()
    entry = re.compile(r"(right|.+ taken for .+) \((\d+)\)")
    legend = plot.locator(".legendtext")
    api.expect(legend.first).to_have_text(re.compile(rf"^{entry.pattern}$"))
    told = [entry.fullmatch(text) for text in legend.all_text_contents()]
    assert sum(int(match[2]) for match in told if match) == 30, "every face is right or taken for another class"


def test_mistakes_are_shown_with_label_and_prediction(page: Any) -> None:
    turn_to(page, "Errors")
    page.get_by_role("button", name="Find mistakes").click()
    page.get_by_text("on 30 images").wait_for()
    page.get_by_text(", predicted ").first.wait_for()


def test_the_curves_and_regions_of_the_run(page: Any) -> None:
    turn_to(page, "Training")
    page.get_by_text("Step 2 of 2; the run has ended").wait_for()
    assert page.locator(".curves figure svg").count() > 5
    page.get_by_text("step 2", exact=True).wait_for()


@pytest.mark.parametrize("file", ["log.txt", "/etc/hostname", "../log.txt"])
def test_no_other_file_is_served(served: Served, file: str) -> None:
    path = file if os.path.isabs(file) else str(served.folder / file)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(
            f"{served.url}gradio_api/file={urllib.parse.quote(path)}?token={served.token}", timeout=30
        )
    assert refused.value.code in (403, 404)
