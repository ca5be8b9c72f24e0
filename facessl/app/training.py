"""The tab Training: the curves of a run, also while it trains, and its regions over time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr
from markupsafe import Markup

from facessl.app.workspace import Load, Workspace, plainly

if TYPE_CHECKING:
    from facessl.report.folder import RunFolder

#: Seconds between two looks at a run that trains.
_EVERY = 5.0
_CSS = """
.curves { --grid: #d9dce1; --series-0: #2563eb; color: inherit; }
.dark .curves { --grid: #4a5058; --series-0: #74a7ff; }
.curves h3 { margin: 1.2rem 0 .4rem; font-size: 1rem; }
.curves .charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); gap: 1rem; }
.curves figure { margin: 0; } .curves svg { display: block; height: auto; } .curves figcaption { font-size: .85rem; }
"""


def tab(work: Workspace) -> None:
    """Build the tab."""
    status = gr.Markdown("Loading ...")
    with gr.Column(visible=False) as history:
        step = gr.Slider(0, 1, step=1, value=0, label="Regions over time: picture")
        regions = gr.Image(show_label=False, interactive=False, format="png", buttons=["fullscreen"])
    charts = gr.HTML(css_template="", padding=False)
    timer = gr.Timer(_EVERY, active=False)

    newest = gr.State(0)  # place of the last picture that the slider knows

    def shown(at: float, before: int) -> Any:
        run = _read(work)
        pictures = run.pictures()
        last = max(len(pictures) - 1, 0)
        place = place_of(at, before, last)
        return (
            _status(run),
            _charts(run),
            gr.update(visible=bool(pictures)),
            gr.update(maximum=max(last, 1), value=place, interactive=last > 0),
            _picture(run, place),
            gr.Timer(active=not _ended(run)),
            last,
        )

    event = {"show_progress": "hidden", "api_visibility": "private"}
    outputs = [status, charts, history, step, regions, timer, newest]
    timer.tick(plainly(shown), [step, newest], outputs, **event)
    step.release(plainly(lambda at: _picture(_read(work), int(at))), [step], [regions], **event)
    work.loads.append(Load(lambda: shown(0, 0), outputs, slow=True))


def _read(work: Workspace) -> RunFolder:
    """The files of the run."""
    with work.lock:  # which threads that import torch take turns at
        from facessl.report.folder import read_run_folder
    return read_run_folder(work.run)


def place_of(at: float, before: int, last: int) -> int:
    """The picture to show if the slider is at `at` and the last picture was `before`, and is `last` by now."""
    return last if at >= before else min(int(at), last)


def _ended(run: RunFolder) -> bool:
    return bool(run.status.get("finished")) or bool(run.results)


def _status(run: RunFolder) -> str:
    """One line on how far the run is."""
    step, steps = run.last("step"), total_steps(run)
    if step is None:
        return "No step was logged yet."
    text = f"Step {step:,.0f}" + (f" of {steps:,}" if steps else "")
    return f"{text}; the run has ended." if _ended(run) else f"{text}; refreshes every {_EVERY:.0f} s."


def total_steps(run: RunFolder) -> int | None:
    """Steps of the whole run; None if its files do not tell. `steps` in status.json are those done so far."""
    if run.status.get("finished"):
        return run.status.get("steps")
    names = ("max_steps", "epochs", "batch_size")
    steps, epochs, batch = (n if isinstance(n, int) and n > 0 else None for n in map(run.setting, names))
    images = run.status.get("source_images")
    return steps or (epochs * (images // batch) if epochs and images and batch else None)


def _charts(run: RunFolder) -> Markup:
    """All curves, which the report draws alike."""
    from facessl.report import curves

    style = Markup("<style>{}</style>").format(Markup(_CSS))
    parts = [
        Markup("<h3>{}</h3><div class='charts'>{}</div>").format(group.title, Markup("").join(group.charts))
        for group in curves.groups([run])
        if group.charts
    ]
    return Markup("{}<div class='curves'>{}</div>").format(style, Markup("").join(parts))


def _picture(run: RunFolder, place: int) -> Any:
    """The picture of the regions at a place in their history; None if there is none."""
    pictures = run.pictures()
    if not pictures:
        return None
    step, name = pictures[min(place, len(pictures) - 1)]
    picture = run.picture(name)
    if isinstance(picture, str):  # an error
        return gr.update(value=None, label=picture, show_label=True)
    return gr.update(value=picture, label=f"step {step:,}", show_label=True)
