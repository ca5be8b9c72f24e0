"""The tab Search: the faces most similar to a photo, and from one of them on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from facessl.app.faces import Faces
from facessl.app.workspace import GALLERY, Workspace, photo_input, picked, plainly
from facessl.core.errors import FaceSSLError
from facessl.inference import neighbors


def tab(work: Workspace) -> None:
    """Build the tab."""
    faces = work.faces
    assert faces is not None
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            photo = photo_input(label="Photo: drop, paste or webcam", height=280, elem_id="search-photo")
            crop = gr.Checkbox(
                True,
                label="Crop the largest face",
                info="as facessl crop does; off: the photo is framed as the faces are",
            )
            count = gr.Slider(6, 60, value=12, step=6, label="Faces")
            query = gr.Image(label="Searched for", height=130, interactive=False, visible=False, buttons=[])
        with gr.Column(scale=3, min_width=320):
            gr.Markdown("The nearest faces and their cosine distances. Click one to search on.")
            gallery = gr.Gallery(
                label="Nearest faces", columns=4, elem_id="search-faces", **{**GALLERY, "height": "fit-content"}
            )
            table = gr.Dataframe(
                headers=["rank", "distance", "path"], interactive=False, datatype="str", wrap=True, visible=False
            )
    shown, searched = gr.State([]), gr.State(None)  # rows of the faces shown; the row searched for, None for the photo

    def nothing() -> Any:
        return [], [], gr.update(visible=False), gr.update(visible=False), None

    def by_photo(photo: Any, crop: bool, count: int) -> Any:
        if photo is None:
            return nothing()
        path, name = photo
        try:
            with work.lock:
                nearest = neighbors.search(work.embedder, path, faces.rows, k=int(count), crop=crop)
        except FaceSSLError as error:
            raise type(error)(str(error).replace(path, Path(name).name)) from None
        return *_listed(faces, nearest.rows.tolist(), nearest.distances.tolist()), gr.update(visible=False), None

    def by_face(chosen: gr.SelectData, rows: list[int], count: int) -> Any:
        return by_row(picked(chosen, rows), count)

    def by_row(row: int, count: int) -> Any:
        distances, near = neighbors.nearest(faces.unit[row : row + 1], faces.unit, int(count))
        (picture,) = faces.thumbnails.pictures([row])
        query = gr.update(value=picture, visible=True, label=f"Searched for: {faces.name(row)}")
        return *_listed(faces, near[0].tolist(), distances[0].tolist()), query, row

    def again(photo: Any, crop: bool, count: int, row: int | None) -> Any:
        return by_photo(photo, crop, count) if row is None else by_row(row, count)

    results = [shown, gallery, table, query, searched]
    event = {"show_progress": "minimal", "api_visibility": "private"}
    for control in (photo, crop):
        control.change(plainly(by_photo, nothing), [photo, crop, count], results, **event)
    count.release(plainly(again), [photo, crop, count, searched], results, **event)
    gallery.select(plainly(by_face), [shown, count], results, **event)


def _listed(faces: Faces, rows: list[int], distances: list[float]) -> tuple[Any, ...]:
    """The rows, their pictures, and the table."""
    pictures = faces.thumbnails.pictures(rows)
    cells = [(picture, f"{away:.3f}") for picture, away in zip(pictures, distances, strict=True)]
    lines = [
        [str(rank), f"{away:.4f}", faces.path(row)]
        for rank, (row, away) in enumerate(zip(rows, distances, strict=True), 1)
    ]
    return rows, cells, gr.update(value=lines, visible=True)
