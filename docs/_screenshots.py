"""Takes the pictures of the page in docs/app.md, on synthetic faces: `make screenshots`.

The runs that the page shows are tiny, and made once, in runs/screenshots. Names of tabs behind the command take these
alone, and `--width 500 --out FOLDER` takes them elsewhere, as a phone shows them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from facessl.cli import main as facessl
from facessl.data.source import open_source

DOCS = Path(__file__).parent
#: From the root of the repository, as the page shows a path of it.
RUNS = Path("runs/screenshots")
#: Of the page: seen from the front, with nothing before them.
_SHOWN = "synthetic:?n=240&size=96&seed=6&identities=24&yaw=20&occlusion=0"
_EPOCHS = {"expression": 6, "alignment": 8, "parsing": 5, "attributes": 5}
#: Pixels: of the window, of a picture's height at most, and of a face in the photo.
_WIDTH, _HEIGHT, _FACES = 1300, 1400, 200


def make_runs() -> None:
    """A run of FRA, a model of each task, and a photo of two faces."""
    plain = ["--image-size", "48", "--workers", "0", "--device", "cpu"]
    if not (RUNS / "demo").is_dir():
        often = ["--max-steps", "24", "--log-every", "2", "--monitor.every", "6", "--monitor.images", "32"]
        knn = ["--monitor.knn", "synthetic:?n=120&size=64&seed=1&identities=10&label=identity"]
        words = ["synthetic:?n=256&size=64", "--config", "fra/demo", "--batch-size", "32"]
        facessl(["pretrain", *words, *often, *knn, "--monitor.knn-images", "80", *plain, "--out", str(RUNS / "demo")])
    for task, epochs in _EPOCHS.items():
        if not (RUNS / task).is_dir():
            size = ["--backbone", "test_resnet", "--batch-size", "16", "--epochs", str(epochs), "--log-every", "4"]
            words = ["none", "synthetic:?n=240&size=64", "--task", task, *size]
            facessl(["finetune", *words, *plain, "--out", str(RUNS / task)])
    for table in (RUNS / "demo" / "app").glob("*.people.csv"):
        table.unlink()
    photo = Image.new("RGB", (640, 400), (90, 110, 120))
    source = open_source(f"synthetic:?n=2&seed=3&yaw=15&occlusion=0&size={_FACES}")
    for number in range(2):
        photo.paste(Image.fromarray(source[number].image), (80 + 280 * number, 60 + 80 * number))
    photo.save(RUNS / "photo.png")


@contextlib.contextmanager
def served() -> Iterator[str]:
    """The address of the page."""
    models = [str(RUNS / task) for task in _EPOCHS]
    words = ["app", str(RUNS / "demo"), _SHOWN, "--models", *models, "--device", "cpu", "--workers", "0"]
    with subprocess.Popen([sys.executable, "-m", "facessl", *words], stdout=subprocess.PIPE, text=True) as page:
        assert page.stdout is not None
        try:
            yield next(line for line in page.stdout if "(Ctrl-C" in line).split()[2]
        finally:
            page.send_signal(signal.SIGTERM)


def photo(page: Any) -> None:
    """Two faces, with what the models say and with the regions."""
    page.get_by_label("Regions").check(timeout=120_000)
    page.set_input_files("#photo-photo input[type=file]", RUNS / "photo.png")
    page.get_by_role("gridcell").filter(has_text="px").nth(1).wait_for()
    page.get_by_text("region 1", exact=True).first.wait_for()


def search(page: Any) -> None:
    """The faces nearest to one of them."""
    page.set_input_files("#search-photo input[type=file]", RUNS / "photo.png")
    page.locator("#search-faces .thumbnail-item").nth(3).click()
    page.get_by_text("Searched for: ").wait_for()


def people(page: Any) -> None:
    """Groups, the first with a name."""
    page.get_by_label("number input for Minimum group size").fill("3")
    page.get_by_role("button", name="Find groups").click()
    page.locator("#people-groups .thumbnail-item").first.click()
    page.locator("#people-faces .thumbnail-item").first.wait_for()
    page.get_by_label("Name").fill("Ada")
    page.get_by_role("button", name="Save").click()
    page.locator("#people-groups .caption-label").filter(has_text="Ada").wait_for()


def map(page: Any) -> None:
    """All faces, one of them clicked."""
    page.wait_for_function("document.querySelector('#face-map .js-plotly-plot')?.dataset.faces")
    page.evaluate(
        "document.querySelector('#face-map .js-plotly-plot').emit('plotly_click', {points: [{customdata: 4}]})"
    )
    page.wait_for_function("document.querySelector('.face img').src.startsWith('data:image/jpeg')")


def errors(page: Any) -> None:
    """Mistakes of the expression model."""
    page.get_by_role("button", name="Find mistakes").click()
    page.get_by_text(", predicted ").first.wait_for()


def training(page: Any) -> None:
    """The curves of the run, and its regions over time."""
    page.locator(".curves figure svg").first.wait_for()


TABS = (photo, search, people, map, errors, training)


def main() -> None:
    """Takes the pictures that are asked for."""
    names = [tab.__name__ for tab in TABS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tabs", nargs="*", help=f"of {', '.join(names)}; by default all")
    parser.add_argument("--width", type=int, default=_WIDTH, help="of the window in pixels")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of the pictures")
    given = parser.parse_args()
    os.chdir(DOCS.parent)
    make_runs()
    given.out.mkdir(parents=True, exist_ok=True)
    with served() as address, sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(300_000)
        page.goto(address)
        for tab in TABS:
            if tab.__name__ in (given.tabs or names):
                page.set_viewport_size({"width": _WIDTH, "height": 900})
                page.get_by_role("tab", name=tab.__name__.capitalize()).click()
                tab(page)
                page.set_viewport_size({"width": given.width, "height": 900})
                page.wait_for_timeout(2000)  # spinners and pictures
                file = given.out / f"app-{tab.__name__}.png"
                page.screenshot(path=file, full_page=True)
                with Image.open(file) as picture:
                    picture = picture.convert("RGB").crop((0, 0, picture.width, min(picture.height, _HEIGHT)))
                picture.quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)
        browser.close()


if __name__ == "__main__":
    main()
