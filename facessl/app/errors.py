"""The tab Errors: what a trained model gets wrong on labeled faces."""

from __future__ import annotations

from typing import Any

import gradio as gr

from facessl.app.workspace import Workspace, plainly
from facessl.core.errors import DataError
from facessl.core.tables import printable
from facessl.evaluation.mistakes import find_mistakes


def tab(work: Workspace) -> None:
    """Build the tab."""
    faces = work.faces
    assert faces is not None
    assert faces.source is not None
    with gr.Row():
        task = gr.Radio(list(work.models), value=next(iter(work.models)), label="Model", scale=2)
        count = gr.Slider(4, 48, value=12, step=4, label="Mistakes", scale=2)
        find = gr.Button("Find mistakes", variant="primary", scale=1)
    told = gr.Markdown()
    worst = gr.Gallery(label="Worst and most confident mistakes", columns=4, **_GALLERY)
    typical = gr.Gallery(label="Typical answers", columns=4, **_GALLERY)

    def found(task: str, count: float) -> Any:
        with work.lock:
            mistakes = find_mistakes(work.models[task], faces.source, count=int(count), workers=work.workers)
            pictures = [[_cell(mistakes, one) for one in part] for part in (mistakes.worst, mistakes.typical)]
        return _score(mistakes.scores), *pictures

    find.click(plainly(found), [task, count], [told, worst, typical], api_visibility="private")
