"""The tab Map: all faces as points, similar ones near each other, each shown under the pointer."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import html
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from facessl.app.faces import Faces
from facessl.app.workspace import Load, Workspace, plainly
from facessl.core import files, tables
from facessl.core.errors import DataError
from facessl.inference.groups import principal_components
from facessl.inference.prediction_pictures import palette

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from facessl.inference.trained_task import Trained

#: Classes with a color of their own, the largest ones.
_COLORED = 20
#: Faces that a model sees at a time.
_BATCH = 64
_OTHERS, _NONE = "others", "none"
_GRAY = ("#a8adb5", "#c9ccd1")

#: Shows the face of a point that the pointer is on, and keeps one that is clicked. Plotly's events are not among those
#: that Gradio hands on; the plot is drawn anew when the color changes.
_SCRIPT = """
let kept = false, asked = -1;
async function face(row, keep) {
  if (kept && !keep) return;
  asked = row;
  const found = await server.face(row);
  if (asked !== row) return;
  kept = keep;
  element.querySelector('img').src = found.picture;
  element.querySelector('img').style.visibility = 'visible';
  element.querySelector('b').textContent = found.title;
  element.querySelector('span').textContent = found.path;
}
setInterval(() => {
  const plot = document.querySelector('#face-map .js-plotly-plot');
  if (!plot || !plot.on || plot.dataset.faces) return;
  plot.dataset.faces = 'shown';
  plot.on('plotly_hover', (event) => face(event.points[0].customdata, false));
  plot.on('plotly_click', (event) => face(event.points[0].customdata, true));
  plot.on('plotly_doubleclick', () => { kept = false; });
}, 300);
"""
_CSS = ".face { overflow-wrap: anywhere; } .face img { width: 192px; height: 192px; border-radius: 6px; }"
_TEMPLATE = '<div class="face"><img alt="" style="visibility:hidden"><div><b>${value}</b><br><span></span></div></div>'


def tab(work: Workspace) -> None:
    """Build the tab."""
    faces = work.faces
    assert faces is not None
    colors = ways_to_color(work)
    placed = functools.cache(lambda: principal_components(faces.unit, 2))
    first = next(iter(colors))
    with gr.Row():
        with gr.Column(scale=4, min_width=320):
            color = gr.Radio([*colors, "nothing"], value=first, label="Color")
            plot = gr.Plot(elem_id="face-map", show_label=False)
        with gr.Column(scale=1, min_width=200):
            gr.HTML(
                "Hover to see a face; click to pin it",
                html_template=_TEMPLATE,
                css_template=_CSS,
                js_on_load=_SCRIPT,
                server_functions=[_shower(work)],
            )
            told = gr.Markdown("Placing the faces ...")

    def drawn(by: str) -> Any:
        points, variance = placed()
        classes = colors[by]() if by in colors else [""] * len(faces)
        text = f"{len(faces):,} faces by two principal components, {100 * variance:.0f} % of the variance."
        return _figure(points, classes, plain=by not in colors), text

    color.change(plainly(drawn), [color], [plot, told], api_visibility="private")
    work.loads.append(Load(lambda: drawn(first), [plot, told]))


def ways_to_color(work: Workspace) -> dict[str, Callable[[], Sequence[str]]]:
    """What the points can be colored by -> the class of each face."""
    faces = work.faces
    assert faces is not None
    colors: dict[str, Callable[[], Sequence[str]]] = {}
    labels = set(faces.classes) - {""}
    if labels:
        colors["label"] = lambda: faces.classes
    colors["group"] = lambda: _groups(work)
    if "expression" in work.models and faces.source is not None:
        colors["prediction"] = lambda: predictions(work)
        task: Any = work.models["expression"].task
        if labels and labels <= set(task.names):  # else the labels are something else, such as identities
            colors["error"] = lambda: _errors(predictions(work), faces.classes)
    return colors


def _shower(work: Workspace) -> Callable[[int], dict[str, str]]:
    faces, people = work.faces, work.people
    assert faces is not None
    assert people is not None

    def face(row: int) -> dict[str, str]:
        if not isinstance(row, int) or not 0 <= row < len(faces):
            return {"picture": "", "title": "", "path": ""}
        picture = base64.b64encode(faces.thumbnails.jpegs([row])[0]).decode()
        title = " · ".join(text for text in (faces.classes[row], people.names[row]) if text) or f"face {row + 1}"
        return {"picture": f"data:image/jpeg;base64,{picture}", "title": title, "path": faces.path(row)}

    return face


def _groups(work: Workspace) -> list[str]:
    """The name or number of each face's group."""
    people = work.people
    assert people is not None

    @people.locked
    def read() -> list[str]:
        people.read()
        named = {number: people.name(number) or f"group {number}" for number in people.groups}
        return [named.get(label, "") for label in people.labels.tolist()]

    found: list[str] = read()
    return found


def predictions(work: Workspace) -> list[str]:
    """The expression that the model says of each face; "" where it cannot be read. Kept in a file."""
    faces, trained = work.faces, work.models["expression"]
    assert faces is not None
    assert faces.source is not None
    file = faces.file(f"expression-{_mark(trained)}.parquet")
    with work.pass_lock:
        task: Any = trained.task
        paths = [tables.printable(key) for key in faces.rows.keys]
        told = _kept(file, paths, {"", *task.names})
        if told is None:
            told = _predicted(trained, faces)
            with files.completed(file, private=True) as partial:
                pq.write_table(pa.table({"path": paths, "prediction": told}), partial)
    return told


def _kept(file: Path, paths: list[str], names: set[str]) -> list[str] | None:
    """The predictions in a file; None where they are not of these paths or not among these names."""
    with contextlib.suppress(OSError, ValueError, KeyError, pa.ArrowException), files.open_regular(file) as raw:
        table = pq.read_table(raw)
        told = table["prediction"].to_pylist()
        if table["path"].to_pylist() == paths and all(isinstance(name, str) for name in told) and names >= set(told):
            return told
    return None


def _mark(trained: Trained) -> str:
    """Digits of the weights of a model."""
    digest = hashlib.blake2b(repr(sorted(trained.card["task"].items())).encode(), digest_size=6)
    for name, tensor in trained.module.state_dict().items():
        digest.update(name.encode() + tensor.float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _predicted(trained: Trained, faces: Faces) -> list[str]:
    from facessl.data.loader import pixels

    source, found = faces.source, [""] * len(faces)
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
        images = [image for _, image in batch]
        sizes = [image.shape[:2] for image in images]
        frames = [trained.augment.frame_of_picture(height, width, trained.image_size) for height, width in sizes]
        raw = trained.predict(images, frames)
        for place, (row, _) in enumerate(batch):
            height, width = sizes[place]
            found[row] = trained.task.describe(raw, place, frames[place], height, width)["label"]
    return found


def _errors(predicted: Sequence[str], known: Sequence[str]) -> list[str]:
    return [
        "" if not a or not b else "right" if a == b else f"{b} taken for {a}"
        for a, b in zip(predicted, known, strict=True)
    ]


def _figure(points: np.ndarray, classes: Sequence[str], *, plain: bool) -> go.Figure:
    """A point per face (N, 2), a trace per class, which the legend turns on and off."""
    import plotly.graph_objects as go

    names = [name for name, _ in Counter(name for name in classes if name).most_common(_COLORED)]
    place = {name: i for i, name in enumerate(names)} | {"": len(names) + 1}
    numbers = np.array([place.get(name, len(names)) for name in classes])
    shades = ["#{:02x}{:02x}{:02x}".format(*color) for color in palette(len(names))]
    shades += ("#4363d8", "#4363d8") if plain else _GRAY
    figure = go.Figure()
    for number, (name, shade) in enumerate(zip([*names, _OTHERS, _NONE], shades, strict=True)):
        own = np.flatnonzero(numbers == number)
        if len(own):
            figure.add_scattergl(
                x=points[own, 0].round(4),
                y=points[own, 1].round(4),
                customdata=own,
                mode="markers",
                name=f"{html.escape(name)} ({len(own):,})" if not plain else "faces",
                marker={"color": shade, "size": 5 if len(classes) > 2000 else 8, "opacity": 0.8},
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
