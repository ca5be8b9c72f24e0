"""The tab Photo: the faces of a photo and what the models say of them, and the regions that the run found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import cv2
import gradio as gr
import numpy as np

from facessl.app.workspace import Load, Workspace, code, photo_input, plainly, read_photo, warn
from facessl.data.detect import CROP_MARGIN, detect
from facessl.inference import prediction_pictures

if TYPE_CHECKING:
    from facessl.data.detect import Face

#: Pixels of the longer side of a photo that is shown, and of faces whose regions are shown, at most.
_SIDE, _FACES = 1024, 8
_OPACITY = 0.5
#: What can be left out of the picture -> the keys of a face that it needs (`prediction_pictures.draw`).
_LAYERS = {
    "Boxes": ("framed",),
    "Landmarks": ("landmarks", "layout"),
    "Parts": ("mask", "classes"),
    "Expression": ("label", "probabilities"),
    "Attributes": ("attributes",),
}
_TASKS = {"alignment": "Landmarks", "parsing": "Parts", "expression": "Expression", "attributes": "Attributes"}


def tab(work: Workspace) -> None:
    """Build the tab."""
    layers = ["Boxes", *(layer for task, layer in _TASKS.items() if task in work.models)]
    told = [task for task in ("expression", "attributes") if task in work.models]
    missing = [task for task in _TASKS if task not in work.models]
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            photo = photo_input(label="Photo: drop, paste or webcam", height=320, elem_id="photo-photo")
            shown = gr.CheckboxGroup(layers, value=layers, label="Show")
            if missing:
                gr.Markdown(
                    f"Not shown: {', '.join(missing)}. Train a model with `facessl finetune {code(work.run)} SOURCE "
                    f"--task {missing[0]}` and open the page with `--models`.",
                )
            loading = gr.Markdown("Loading the network ...")
        with gr.Column(scale=3, min_width=320):
            picture = gr.Image(label="Faces", interactive=False, format="png", buttons=["download", "fullscreen"])
            overlay = gr.AnnotatedImage(label="Regions: point at one in the list", format="png", visible=False)
            table = gr.Dataframe(
                headers=["#", "side", "score", *told],
                label="Faces",
                interactive=False,
                datatype="str",
                wrap=True,
                visible=False,
            )
    found = gr.State(None, time_to_live=3600)

    def regions() -> Any:
        with work.lock:
            colors = _colors(work)
        if isinstance(colors, str):
            return gr.skip(), gr.skip(), gr.update(value=f"No regions: {colors}.")
        return gr.update(choices=[*layers, "Regions"]), gr.update(color_map=colors), gr.update(visible=False)

    def read(photo: Any, layers: list[str]) -> Any:
        if photo is None:
            return None, *_nothing()
        with work.lock:  # which large photos take turns at, too
            whole = read_photo(photo)
            image = _shrunk(whole)
            faces = detect(image)
            state = (image, faces, _described(work, image, faces), len(whole) / len(image))
        if not faces:
            warn(f"no face was found in {photo[1]}")
        return state, *show(state, layers)

    def show(state: Any, layers: list[str]) -> Any:
        if state is None:
            return _nothing()
        image, faces, described, scale = state
        left_out = {key for layer, keys in _LAYERS.items() if layer not in layers for key in keys}
        drawn = [{k: v for k, v in face.items() if k not in left_out} for face in described]
        over = gr.update(visible=False)
        if "Regions" in layers and faces:
            with work.lock:
                over = gr.update(value=(image, _regions(work, image, faces[:_FACES])), visible=True)
        return (
            prediction_pictures.draw(image, drawn),
            over,
            gr.update(value=_rows(work, described, scale), visible=bool(faces)),
        )

    results = [picture, overlay, table]
    event = {"show_progress": "minimal", "api_visibility": "private"}
    photo.change(plainly(read, lambda: (None, *_nothing())), [photo, shown], [found, *results], **event)
    shown.change(plainly(show), [found, shown], results, **event)
    work.loads.append(Load(regions, [shown, overlay, loading], slow=True))


def _nothing() -> tuple[Any, ...]:
    return None, gr.update(value=None, visible=False), gr.update(value=[], visible=False)


def _shrunk(image: np.ndarray) -> np.ndarray:
    """The photo, its longer side at most `_SIDE` pixels."""
    height, width = image.shape[:2]
    if (factor := _SIDE / max(height, width)) >= 1:
        return image
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _described(work: Workspace, image: np.ndarray, faces: Sequence[Face]) -> list[dict[str, Any]]:
    """What all models say of each face, as `prediction_pictures.draw` takes it."""
    from facessl.inference.predict import frame_of_face

    height, width = image.shape[:2]
    told: list[dict[str, Any]] = [{"box": face.box.tolist(), "score": face.score, "framed": True} for face in faces]
    for trained in work.models.values():
        frames = [frame_of_face(trained, face, height, width) for face in faces]
        if not frames or trained.name not in _TASKS:
            continue
        raw = trained.predict([image] * len(frames), frames)
        for row, frame in enumerate(frames):
            told[row] |= trained.task.describe(raw, row, frame, height, width)
    return told


def _colors(work: Workspace) -> dict[str, str] | str:
    """The color of each region, as in the other pictures of regions; Markdown that says why there are none."""
    from facessl.inference import region_pictures

    method: Any = work.method
    if isinstance(method, str):
        return method
    size = method.backbone.image_size
    count = region_pictures.heatmaps(method, np.zeros((1, size, size, 3), np.uint8)).shape[1]
    return {
        f"region {i + 1}": "#{:02x}{:02x}{:02x}".format(*c) for i, c in enumerate(prediction_pictures.palette(count))
    }


def _regions(work: Workspace, image: np.ndarray, faces: Sequence[Face]) -> list[tuple[np.ndarray, str]]:
    """For each region where it has the largest fraction (H, W), and its name."""
    from facessl.data.face_square import from_box
    from facessl.inference import region_pictures

    method: Any = work.method
    size = method.backbone.image_size
    frames = [from_box(face.box, size, CROP_MARGIN) for face in faces]
    maps = region_pictures.heatmaps(method, np.stack([frame.image(image, "reflect") for frame in frames])).numpy()
    height, width = image.shape[:2]
    over = np.zeros((maps.shape[1], height, width), np.float32)
    for frame, own in zip(frames, maps, strict=True):
        side = cv2.resize(np.ascontiguousarray(own.transpose(1, 2, 0)), (size, size), interpolation=cv2.INTER_LINEAR)
        (left, top), (right, bottom) = frame.inverse_points(np.array([(-0.5, -0.5), (size - 0.5, size - 0.5)])) + 0.5
        corners = np.array([(0, 0), (size, 0), (0, size)], np.float32) - 0.5
        goal = np.array([(left, top), (right, top), (left, bottom)], np.float32) - 0.5
        placed = cv2.warpAffine(side, cv2.getAffineTransform(corners, goal), (width, height), flags=cv2.INTER_LINEAR)
        over = np.maximum(over, placed.reshape(height, width, -1).transpose(2, 0, 1))
    winner = np.where(over.max(0) > 0, over.argmax(0), -1)
    return [(_OPACITY * (winner == i), f"region {i + 1}") for i in range(len(over))]


def _rows(work: Workspace, described: Sequence[dict[str, Any]], scale: float) -> list[list[str]]:
    """The lines of the table; the photo is `scale` times as large as what is shown of it."""
    rows = []
    for number, face in enumerate(described, 1):
        left, top, right, bottom = face["box"]
        row = [str(number), f"{scale * max(right - left, bottom - top):.0f} px", f"{face['score']:.2f}"]
        if "expression" in work.models:
            row.append(f"{face['label']} {face['probabilities'][face['label']]:.2f}")
        if "attributes" in work.models:
            likely = sorted(((p, name) for name, p in face["attributes"].items() if p > 0.5), reverse=True)
            row.append(", ".join(name.replace("_", " ") for _, name in likely) or "none above 0.5")
        rows.append(row)
    return rows
