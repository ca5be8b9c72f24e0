"""The page: its tabs, its style, and its server."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import gradio as gr
from starlette.middleware import Middleware

from facessl.app import errors, map, people, photo, search, training
from facessl.app.guard import Door, Guard
from facessl.app.workspace import Workspace, code, plainly, understood
from facessl.core.errors import ConfigError

#: Bytes of an uploaded photo, at most.
_LARGEST = "64mb"
#: Captions of pictures can be read to their end, also on a phone.
_CSS = """
.caption-label { white-space: normal !important; }
@media (max-width: 640px) { .grid-container { grid-template-columns: repeat(2, minmax(0, 1fr)) !important; } }
"""
_FONTS = ("system-ui", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif")


def build(work: Workspace) -> gr.Blocks:
    """The page of a workspace."""
    tabs: dict[str, tuple[Callable[[Workspace], None], str]] = {
        "Photo": (photo.tab, ""),
        "Search": (search.tab, _no_faces(work)),
        "People": (people.tab, _no_faces(work)),
        "Map": (map.tab, _no_faces(work)),
        "Errors": (errors.tab, _no_errors(work)),
        "Training": (training.tab, _no_training(work)),
    }
    with gr.Blocks(title=f"facessl: {_name(work)}", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        count = "" if work.faces is None else f" · {len(work.faces):,} faces"
        gr.Markdown(f"## `{_name(work)}`{count}")
        for name, (tab, lack) in tabs.items():
            with gr.Tab(name):
                if lack:
                    gr.Markdown(lack)
                else:
                    tab(work)
        event = page.load
        for load in sorted(work.loads, key=lambda load: load.slow):  # one after another, as they share a processor
            options = {"show_progress": "minimal", "api_visibility": "private"}
            event = event(plainly(load.function), None, load.outputs, **options).then
    page.process_api = understood(page.process_api)
    return page


def launch(page: gr.Blocks, *, host: str, port: int | None, share: bool) -> str:
    """Serve a page in threads of this process; returns its address with the token that it asks for.

    Raises:
        ConfigError: the address cannot be used.
    """
    door = Door(host, Path(os.environ["GRADIO_TEMP_DIR"]))
    fonts = list(_FONTS)
    try:
        _, local, public = page.queue(default_concurrency_limit=4, api_open=False).launch(
            server_name=host,
            server_port=port,
            share=share,
            css=_CSS,
            theme=gr.themes.Default(font=fonts, font_mono=["ui-monospace", "DejaVu Sans Mono", "monospace"]),
            allowed_paths=[],
            app_kwargs={"middleware": [Middleware(Guard, door)]},
            max_file_size=_LARGEST,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            show_error=False,
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        address = f"{host}:{port}" if port else host
        raise ConfigError(f"cannot listen on {address} ({error}): name another --host or --port") from None
    except ValueError as error:  # Gradio asked its own address, in vain
        raise ConfigError(
            f"the page does not answer on this machine ({' '.join(str(error).split())[:60]} ...): it may be too busy, "
            "or a proxy may stand before it: try again, or take the address out of the proxy's settings"
        ) from None
    if public:
        door.public.add(urlsplit(public).hostname or "")
    return f"{(public or local).rstrip('/')}/?token={door.token}"


def _name(work: Workspace) -> str:
    return code(Path(work.run).name or work.run)


def _no_faces(work: Workspace) -> str:
    return "" if work.faces else f"No faces were named: open the page with `facessl app {code(work.run)} SOURCE`."


def _no_errors(work: Workspace) -> str:
    run = code(work.run)
    if not work.models:
        return (
            f"No trained model was named: `facessl finetune {run} SOURCE --task expression --out runs/expression` "
            f"makes one, and `facessl app {run} SOURCE --models runs/expression` opens the page with it."
        )
    if work.faces is None or work.faces.source is None:
        return (
            "Mistakes are found on labeled images, and none were named: open the page with "
            f"`facessl app {run} SOURCE --models ...`."
        )
    return ""


def _no_training(work: Workspace) -> str:
    path = Path(work.run)
    if (path / "config.yaml").is_file() or (path / "metrics.csv").is_file():
        return ""
    return f"`{code(work.run)}` is not a run folder: `facessl pretrain SOURCE --out runs/mine` makes one."
