"""What the tabs share: the run, its networks, read when they are first asked for, and the faces."""

from __future__ import annotations

import contextlib
import functools
import html
import os
import threading
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import gradio as gr
from safetensors import SafetensorError, safe_open

from facessl.app.faces import ENDINGS, Faces, open_faces
from facessl.app.guard import is_inside, tell_failure
from facessl.app.people_table import People
from facessl.core.errors import CheckpointError, ConfigError, DataError, FaceSSLError, no_run
from facessl.core.escape import printable, printable_lines
from facessl.data.decode import decode, read_file

if TYPE_CHECKING:
    from torch import nn

    from facessl.inference.trained_task import Embedder, Trained
    from facessl.models.backbone import Backbone

T = TypeVar("T")

#: What galleries of faces have in common.
GALLERY: dict[str, Any] = {
    "height": "auto",
    "object_fit": "contain",
    "format": "jpeg",
    "show_label": False,
    "fit_columns": False,
    "allow_preview": False,
    "interactive": False,
    "buttons": [],
}


class Load(NamedTuple):
    """What fills some components of a tab when a browser opens the page."""

    function: Callable[[], Any]
    outputs: list[Any]
    slow: bool = False  # imports torch, so that others go first


@dataclass
class Workspace:
    """What the page was opened with.

    Attributes:
        run: run folder, checkpoint, exported backbone or timm:NAME.
        device: gives the device of the networks; it imports torch.
        models: trained tasks, by the name of the task.
        faces: None where the page was opened without a source.
        workers: loader processes; None: as many as there are cores besides this one's.
        people: the groups of the faces and their names; None without faces.
        loads: what the tabs show when a browser opens the page.
        lock: held while a network is read or computes a batch, as several browsers may ask at once.
        pass_lock: held during a pass over all faces, so that two do not slow each other down.
    """

    run: str
    device: Callable[[], str]
    models: dict[str, Trained] = field(default_factory=dict)
    faces: Faces | None = None
    workers: int | None = 0
    people: People | None = None
    loads: list[Load] = field(default_factory=list)
    lock: Any = field(default_factory=threading.RLock)
    pass_lock: Any = field(default_factory=threading.Lock)

    def add(self, model: Trained) -> None:
        """Take a trained task, which from then on predicts one batch at a time for all browsers."""
        task: Any = model.task
        predict = task.predict

        @functools.wraps(predict)
        def one_at_a_time(x: Any) -> Any:
            with self.lock:
                return predict(x)

        task.predict = one_at_a_time
        self.models[model.name] = model

    @functools.cached_property
    def embedder(self) -> Backbone | Embedder:
        """What embeds a photo; asked for under `lock`."""
        from facessl.inference.embed import load_embedder

        return load_embedder(self.run).to(self.device())

    @functools.cached_property
    def method(self) -> nn.Module | str:
        """The method of the run where it has regions, else Markdown that says why there are none; under `lock`."""
        from facessl.methods.base import has_regions
        from facessl.pretrained.load import load_method

        try:
            method: Any = load_method(self.run)
        except FaceSSLError as error:
            return f"`{code(str(error))}`"
        if has_regions(method):
            return method.to(self.device())
        return "this method finds none; `facessl pretrain SOURCE --config fra/regions` trains one that does"


def plainly(function: Callable[..., Any], failed: Callable[[], Any] = gr.skip) -> Callable[..., Any]:
    """A handler whose expected errors the page tells as one sentence; it then shows what `failed` gives, by default
    what it showed before."""

    @functools.wraps(function)
    def handler(*given: Any) -> Any:
        try:
            return function(*given)
        except FaceSSLError as error:
            warn(str(error))
        except OSError as error:
            warn(f"operating system error: {' '.join(str(error).split())}")
        except Exception as error:  # of ours; what fails around a handler is the request's
            traceback.print_exc()
            raise gr.Error("The page failed: its terminal shows why", print_exception=False, title="") from error
        return failed()

    return handler


def picked(event: gr.SelectData, shown: Sequence[T]) -> T:
    """What was clicked, of what the browser was shown.

    Raises:
        DataError: there is nothing at that place.
    """
    if not isinstance(event.index, int) or not 0 <= event.index < len(shown):
        raise DataError("what was clicked is not shown any longer: reload the page")
    return shown[event.index]


def understood(process: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
    """Gradio's `process_api`, where an event that does not fit its components is one sentence, in the terminal and for
    the browser. The page itself sends none, but others who have its address can."""

    @functools.wraps(process)
    async def processed(*given: Any, **named: Any) -> T:
        try:
            return await process(*given, **named)
        except Exception as error:
            if isinstance(error, gr.Error) and not error.print_exception:
                raise
            tell_failure("an event", error)
            raise gr.Error("The event was not understood: reload the page", print_exception=False, title="") from None

    return processed


def warn(sentence: str) -> None:
    """Tell a sentence in the corner of the page."""
    gr.Warning(_text(sentence), duration=20, title="")


def _text(sentence: str) -> str:
    """A sentence, which may name files and labels, as the HTML that messages of the page are."""
    return html.escape(printable_lines(sentence[:1].upper() + sentence[1:]))


def code(name: str) -> str:
    """A name as text for between the backquotes of Markdown."""
    return printable(name).replace("`", "'")


def photo_input(**options: Any) -> Any:
    """Takes a photo from a file, the clipboard or the webcam; handlers get (path, name) or None, and read it
    themselves, so that what a broken one says is ours."""
    photo: Any = gr.Image(sources=["upload", "clipboard", "webcam"], type="filepath", **options)

    def uploaded(payload: Any) -> Any:
        if payload is None or not payload.path:
            return None
        if not is_inside(payload.path, os.environ["GRADIO_TEMP_DIR"]):  # Gradio takes any path without `meta`
            raise gr.Error("The photo was not uploaded here", print_exception=False, title="")
        return payload.path, payload.orig_name or "the photo"

    photo.preprocess = uploaded  # a subclass would have Gradio write a .pyi beside it
    return photo


def read_photo(photo: tuple[str, str]) -> Any:
    """(H, W, 3) uint8 of an uploaded photo. DataError, with the name of the upload: it cannot be read."""
    path, name = photo
    return decode(read_file(path), key=Path(name).name)


def open_workspace(
    run: str,
    source: str | None,
    *,
    models: Sequence[str],
    cache: Path | None,
    batch_size: int,
    workers: int | None,
    device: Callable[[], str],
) -> Workspace:
    """Read what the page is opened with; arguments as for `facessl.app.serve.serve`.

    Torch and timm, which take seconds to import, are so only where a network is needed now.

    Raises:
        ConfigError: two models of a task, or no folder for the cache.
        CheckpointError, DataError: no network or no faces there.
    """
    if not run.startswith("timm:") and not Path(run).exists():
        raise CheckpointError(no_run(run))
    own = [run] if _is_task(run) else []
    work = Workspace(run, device, workers=workers)
    for path in [*own, *models]:
        from facessl.inference.trained_task import load_trained

        model = load_trained(path)
        if model.name in work.models:
            raise ConfigError(f"{path} is a second model of {model.name}: name one of each task with --models")
        model.module.to(device())
        work.add(model)
    if source is None:
        if not own and not Path(run).is_dir():
            work.embedder  # noqa: B018  a network that is not there is told before the page opens
        return work
    folder = cache if cache is not None else Path(run) / "app"
    if cache is None and not Path(run).is_dir() and Path(source).suffix not in ENDINGS:
        raise ConfigError(f"{run} is not a folder that could hold the embeddings of {source}: name one with --cache")
    if cache is None and folder.is_symlink():
        raise ConfigError(f"{folder} is a link, which is not written through: remove it, or name a folder with --cache")
    work.faces = open_faces(source, lambda: work.embedder, folder, batch_size=batch_size, workers=workers)
    work.people = People.of(work.faces)
    return work


def _is_task(run: str) -> bool:
    """Whether a run is one of `facessl finetune`; the usual run of `facessl pretrain` is known without torch."""
    path = Path(run)
    if not path.is_dir() and path.suffix != ".safetensors":
        return False
    if path.is_dir() and not (path / "model.safetensors").is_file():
        backbone = path / "backbone.safetensors"
        if not backbone.is_file():
            return False
        with contextlib.suppress(SafetensorError, OSError), safe_open(backbone, "np") as weights:
            if '"facessl-backbone-1"' in (weights.metadata() or {}).get("card", ""):
                return False
    from facessl.pretrained.load import weight_files  # which tells what is wrong with a file

    return "task" in weight_files(run)
