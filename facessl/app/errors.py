"""The tab Errors: mistakes of a trained model on labeled faces."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import gradio as gr

from facessl.app.workspace import GALLERY, Workspace, plainly
from facessl.core.errors import DataError
from facessl.core.escape import printable

if TYPE_CHECKING:
    from facessl.evaluation.mistakes import Mistakes
    from facessl.tasks.base import Example

#: All faces are shown, not as many as fit, and a click enlarges one.
_GALLERY = {**GALLERY, "allow_preview": True, "height": "fit-content"}


def tab(work: Workspace) -> None:
    """Build the tab."""
    with gr.Row():
        task = gr.Radio(list(work.models), value=next(iter(work.models)), label="Model", scale=2)
        count = gr.Slider(4, 48, value=12, step=4, label="Mistakes", scale=2)
        find = gr.Button("Find mistakes", variant="primary", scale=1)
    scored = gr.Markdown("The model is scored on all faces, which takes a while.")
    gr.Markdown("Worst and most confident mistakes")
    worst = gr.Gallery(label="Worst and most confident mistakes", columns=4, **_GALLERY)
    gr.Markdown("Evenly spaced predictions, right or wrong")
    typical = gr.Gallery(label="Evenly spaced predictions", columns=4, **_GALLERY)

    def show(task: str | None, count: float) -> Any:
        if task is None:
            raise DataError("choose a model first")
        mistakes = mistakes_of(work, task, int(count))
        parts = [[(mistakes.picture(one), _words(one)) for one in part] for part in (mistakes.worst, mistakes.typical)]
        return _score(mistakes), *parts

    find.click(
        plainly(show), [task, count], [scored, worst, typical], show_progress_on=[scored], api_visibility="private"
    )


def mistakes_of(work: Workspace, task: str, count: int) -> Mistakes:
    """The mistakes of a model on all faces."""
    from facessl.core.launch import loader_workers
    from facessl.evaluation.mistakes import find_mistakes

    faces = work.faces
    assert faces is not None
    assert faces.source is not None
    with work.pass_lock:
        return find_mistakes(work.models[task], faces.source, count=count, workers=loader_workers(work.workers))


def _words(example: Example) -> str:
    """The label, the prediction, and its score."""
    from facessl.report.results import caption

    words = caption(asdict(example))
    return printable("  ".join(filter(None, (words["answer"], words["number"]))))


def _score(mistakes: Mistakes) -> str:
    """The headline of the scores."""
    from facessl.report.results import headline_text

    return f"{headline_text(mistakes.scores)}, on {mistakes.scores['images']:,} images."
