"""Serving the page on this machine, as soon as it can be, and making its thumbnails behind that."""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.util
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from facessl.core.errors import ConfigError, FaceSSLError

if TYPE_CHECKING:
    from facessl.app.faces import Faces


def prepare(folder: str) -> None:
    """Make Gradio a server of this machine alone: no variable of the shell changes it, and nothing is sent out.

    Args:
        folder: of the pictures that the browser is shown and the photos that it uploads.

    Raises:
        ConfigError: the extra is not installed.
    """
    if missing := [name for name in ("gradio", "plotly") if importlib.util.find_spec(name) is None]:
        raise ConfigError(f"facessl app needs {' and '.join(missing)}: pip install 'facessl[app]'")
    for name in [name for name in os.environ if name.startswith(("GRADIO_", "SPACE")) or name == "SYSTEM"]:
        del os.environ[name]
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder, "HF_HUB_DISABLE_TELEMETRY": "1"}
    for name in ("no_proxy", "NO_PROXY"):  # Gradio asks its own address whether it is there
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1", "localhost"]))
    if "gradio" not in sys.modules:
        sys.meta_path.insert(0, _WithoutStubs())


class _WithoutStubs(importlib.abc.MetaPathFinder):
    """Imports Gradio without the type stubs that it writes anew for each of its components whenever it is imported,
    which is two fifths of the time that takes (1.1 of 2.8 s of one core)."""

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        """As of any finder: nothing, but for the module that writes them."""
        if name != "gradio.component_meta":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def executed(module: ModuleType) -> None:
                execute(module)
                module.create_or_modify_pyi = lambda *_: None  # type: ignore[attr-defined]

            spec.loader.exec_module = executed  # type: ignore[method-assign]
        return spec


def serve(
    run: str,
    source: str | None = None,
    *,
    models: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    cache: Path | None = None,
    batch_size: int = 64,
    workers: int | None = 0,
    device: Callable[[], str] = lambda: "cpu",
) -> None:
    """Serve the page until it is interrupted.

    Args:
        run: run folder, checkpoint, exported backbone or timm:NAME.
        source: the faces: images as on the command line, or a file that `facessl embed` wrote (.parquet, .npy).
        models: run folders of `facessl finetune`, one of a task at most.
        host: address that is listened on.
        port: port that is listened on; None: the first free one from 7860.
        share: also serve it to everybody who has the link that Gradio's servers give.
        cache: folder of the embeddings of a source and of its thumbnails; None: `app` in the run folder.
        batch_size: images per forward pass.
        workers: loader processes; None: as many as there are cores besides this one's.
        device: gives the device of the networks, and is asked when the first one is read.

    Raises:
        ConfigError: the extra is not installed, the port is taken, or the folder may not be written to.
        CheckpointError, DataError: no network or no faces there.
    """
    if port is not None and not 1 <= port <= 65535:
        raise ConfigError(f"--port {port} is out of range: give a number from 1 to 65535")
    with tempfile.TemporaryDirectory(prefix="facessl-app-") as folder:
        prepare(folder)
        from facessl.app.guard import is_address
        from facessl.app.page import build, launch
        from facessl.app.workspace import open_workspace

        work = open_workspace(
            run, source, models=models, cache=cache, batch_size=batch_size, workers=workers, device=device
        )
        page = build(work)
        address = launch(page, host=host, port=port, share=share)
        print(f"facessl app: {address}  (Ctrl-C ends it)", flush=True)
        if share or not is_address(host.replace("localhost", "127.0.0.1"), "is_loopback"):
            who = "everybody on the internet" if share else "everybody on your network"
            print(f"facessl app: {who} who has this address sees all faces and can rename them", file=sys.stderr)
        end = threading.Event()
        previous: dict[Any, Any] = {}
        for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP, and nohup ignores it
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, lambda *_: end.set())
        try:
            with _making_thumbnails(work.faces):
                end.wait()
        except KeyboardInterrupt:
            print(file=sys.stderr)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            page.close(verbose=False)


@contextlib.contextmanager
def _making_thumbnails(faces: Faces | None) -> Iterator[None]:
    """Thumbnails that are not there yet are made meanwhile, by a thread that ends with the block."""
    ended = threading.Event()

    def make() -> None:
        try:
            if faces is not None:
                faces.thumbnails.make(ended.is_set)
        except FaceSSLError as error:
            print(f"facessl app: thumbnails are not kept: {error}", file=sys.stderr)

    thread = threading.Thread(target=make, daemon=True)  # it may be waiting for the lock of another page
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=5)
