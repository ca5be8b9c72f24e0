"""The tab Map: all faces as points, similar ones near each other, each shown under the pointer."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from facessl.app.faces import Faces
from facessl.app.workspace import Load, Workspace, plainly
from facessl.core import escape, files
from facessl.core.errors import DataError
from facessl.inference.groups import principal_components
from facessl.inference.prediction_pictures import legend

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from facessl.inference.trained_task import Trained

#: Faces of one batch; color of points without classes.
_BATCH, _BLUE = 64, "#4363d8"

#: Shows the face of a point that the pointer is on, and keeps one that is clicked. Plotly's events are not among those
#: that Gradio hands on; the plot is drawn anew when the color changes.
_SCRIPT = """
let pinned = false, requested = -1;
async function face(row, pin) {
  if (pinned && !pin) return;
  requested = row;
  const shown = await server.face(row);
  if (requested !== row) return;
  pinned = pin;
  element.querySelector('img').src = shown.picture;
  element.querySelector('img').style.visibility = 'visible';
  element.querySelector('b').textContent = shown.title;
  element.querySelector('span').textContent = shown.path;
}
setInterval(() => {
  const plot = document.querySelector('#face-map .js-plotly-plot');
  if (!plot || !plot.on || plot.dataset.faces) return;
  plot.dataset.faces = 'shown';
  plot.on('plotly_hover', (event) => face(event.points[0].customdata, false));
  plot.on('plotly_click', (event) => face(event.points[0].customdata, true));
  plot.on('plotly_doubleclick', () => { pinned = false; });
}, 300);
"""
_CSS = ".face { overflow-wrap: anywhere; } .face img { width: 192px; height: 192px; border-radius: 6px; }"
_TEMPLATE = '<div class="face"><img alt="" style="visibility:hidden"><div><b>${value}</b><br><span></span></div></div>'
#: The choice of no color.
_PLAIN = "nothing"


def tab(work: Workspace) -> None:
    """Build the tab."""
    faces = work.faces
    assert faces is not None
    colors = ways_to_color(work)
    placed = functools.cache(lambda: principal_components(faces.unit, 2))
    grouped = work.people is not None and work.people.file.exists()
    first = next((by for by in colors if by != "group" or grouped), _PLAIN)
    with gr.Row():
        with gr.Column(scale=4, min_width=320):
            color = gr.Radio([*colors, _PLAIN], value=first, label="Color")
            plot = gr.Plot(elem_id="face-map", show_label=False)
        with gr.Column(scale=1, min_width=200):
            gr.HTML(
                "Point at a face to see it; click or tap to pin it",
                html_template=_TEMPLATE,
                css_template=_CSS,
                js_on_load=_SCRIPT,
                server_functions=[_shower(faces, work.people)],
            )
            text = gr.Markdown("Placing the faces ...")

    def drawn(by: str) -> Any:
        points, variance = placed()
        classes = colors[by]() if by in colors else [""] * len(faces)
        sentence = f"{len(faces):,} faces by two principal components, {100 * variance:.0f} % of the variance."
        return _figure(points, classes, plain=by not in colors), sentence

    color.change(plainly(drawn), [color], [plot, text], api_visibility="private")
    work.loads.append(Load(lambda: drawn(first), [plot, text]))


def ways_to_color(work: Workspace) -> dict[str, Callable[[], Sequence[str]]]:
    """Name of each coloring -> the class of each face."""
    faces = work.faces
    assert faces is not None
    colors: dict[str, Callable[[], Sequence[str]]] = {}
    labels = set(faces.classes) - {""}
    if labels:
        colors["label"] = lambda: faces.classes
    colors["group"] = lambda: _groups(work.people)
    if "expression" in work.models and faces.source is not None:
        colors["prediction"] = lambda: predictions(work)
        task: Any = work.models["expression"].task
        if labels and labels <= set(task.names):  # else the labels are something else, such as identities
            colors["error"] = lambda: _errors(predictions(work), faces.classes)
    return colors


def _shower(faces: Faces, people: Any) -> Callable[[int], dict[str, str]]:
    """Return the function that the page asks for the face of a point."""

    def face(row: int) -> dict[str, str]:
        if not isinstance(row, int) or not 0 <= row < len(faces):
            return {"picture": "", "title": "", "path": ""}
        picture = base64.b64encode(faces.thumbnails.jpegs([row])[0]).decode()
        title = " · ".join(text for text in (faces.classes[row], people.names[row]) if text) or f"face {row + 1}"
        return {"picture": f"data:image/jpeg;base64,{picture}", "title": title, "path": faces.path(row)}

    return face


def _groups(people: Any) -> list[str]:
    """The name or number of each face's group."""

    def read() -> list[str]:
        people.read()
        named = {number: people.name(number) or f"group {number}" for number in people.groups}
        return [named.get(label, "") for label in people.labels.tolist()]

    names: list[str] = people.locked(read)()
    return names


def predictions(work: Workspace) -> list[str]:
    """The expression that the model predicts for each face, "" if it cannot be read; cached in a file."""
    faces, trained = work.faces, work.models["expression"]
    assert faces is not None
    assert faces.source is not None
    file = faces.file(f"expression-{_mark(trained)}.parquet")
    with work.pass_lock:
        task: Any = trained.task
        paths = [escape.printable(key) for key in faces.rows.keys]
        labels = _cached(file, paths, {"", *task.names})
        if labels is None:
            labels = _predicted(trained, faces)
            with files.completed(file, private=True) as partial:
                pq.write_table(pa.table({"path": paths, "prediction": labels}), partial)
    return labels


def _cached(file: Path, paths: list[str], names: set[str]) -> list[str] | None:
    """Read the predictions of a file; None if they are not of these paths or not among these names."""
    with contextlib.suppress(OSError, ValueError, KeyError, pa.ArrowException), files.open_regular(file) as raw:
        table = pq.read_table(raw)
        labels = table["prediction"].to_pylist()
        if (
            table["path"].to_pylist() == paths
            and all(isinstance(name, str) for name in labels)
            and names >= set(labels)
        ):
            return labels
    return None


def _mark(trained: Trained) -> str:
    """Digits of the weights of a model."""
    digest = hashlib.blake2b(repr(sorted(trained.card["task"].items())).encode(), digest_size=6)
    for name, tensor in trained.module.state_dict().items():
        digest.update(name.encode() + tensor.float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _predicted(trained: Trained, faces: Faces) -> list[str]:
    from facessl.data.decode import pixels

    source, labels = faces.source, [""] * len(faces)
    assert source is not None
    places = {source.key(i): i for i in range(len(source))}
    progress = gr.Progress()
    for start in range(0, len(faces), _BATCH):
        progress((start, len(faces)), unit="faces")
        batch = []
        for row in range(start, min(start + _BATCH, len(faces))):
            with contextlib.suppress(DataError, KeyError):
                batch.append((row, pixels(source[places[faces.rows.keys[row]]])))
        if not batch:
            continue
        sizes = [image.shape[:2] for _, image in batch]
        frames = [trained.augment.frame_of_picture(height, width, trained.image_size) for height, width in sizes]
        raw = trained.predict([image for _, image in batch], frames)
        for place, (row, _) in enumerate(batch):
            labels[row] = trained.task.describe(raw, place, frames[place], *sizes[place])["label"]
    return labels


def _errors(predicted: Sequence[str], known: Sequence[str]) -> list[str]:
    return [
        "" if not a or not b else "right" if a == b else f"{b} taken for {a}"
        for a, b in zip(predicted, known, strict=True)
    ]


def _figure(points: np.ndarray, classes: Sequence[str], *, plain: bool) -> go.Figure:
    """A point per face (N, 2), a trace per class, which the legend turns on and off."""
    import plotly.graph_objects as go

    names, numbers, colors = legend(classes)
    figure = go.Figure()
    for number, (name, color) in enumerate(zip(names, colors, strict=True)):
        rows = np.flatnonzero(numbers == number)
        if len(rows):
            figure.add_scattergl(
                x=points[rows, 0].round(4),
                y=points[rows, 1].round(4),
                customdata=rows,
                mode="markers",
                name="faces" if plain else f"{html.escape(name)} ({len(rows):,})",
                marker={
                    "color": "#4363d8" if plain else color,
                    "size": 5 if len(classes) > 2000 else 8,
                    "opacity": 0.8,
                },
                hoverinfo="none",
            )
    axis = {"showgrid": False, "zeroline": False, "showticklabels": False, "title": None}
    figure.update_layout(
        xaxis=axis,
        yaxis={**axis, "scaleanchor": "x"},
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        height=560,
        dragmode="pan",
        showlegend=not plain,
        legend={"orientation": "h", "y": -0.02},
        template="plotly_white",
    )
    return figure
