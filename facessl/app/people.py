"""The tab People: groups of similar faces, and the names that the user gives them, kept in a table."""

from __future__ import annotations

import threading
from typing import Any

import gradio as gr

from facessl.app.workspace import GALLERY, Load, Workspace, code, picked, plainly
from facessl.core.errors import many
from facessl.inference.groups import group

#: Groups and faces of one that are shown, at most, and images above which principal components are compared.
_GROUPS, _MEMBERS, _MANY, _COMPONENTS = 200, 120, 16_000, 50


def tab(work: Workspace) -> None:
    """Build the tab."""
    faces = work.faces
    people = work.people
    assert faces is not None
    assert people is not None
    with gr.Row():
        least = gr.Slider(2, 50, value=5, step=1, label="Minimum group size", scale=2)
        find = gr.Button("Find groups", variant="primary", scale=1)
    status = gr.Markdown()
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            gr.Markdown("Groups: click one to see its faces and to name it.")
            gallery = gr.Gallery(label="Groups", elem_id="people-groups", columns=4, **GALLERY)
        with gr.Column(scale=2, min_width=280):
            with gr.Row():
                name = gr.Textbox(
                    label="Name", placeholder="click a group first", max_lines=1, max_length=people.LONGEST, scale=3
                )
                save = gr.Button("Save", scale=1, min_width=80)
            title = gr.Markdown()
            members = gr.Gallery(label="Faces of the group", elem_id="people-faces", columns=4, **GALLERY)
    chosen, listed = gr.State([]), gr.State([])  # rows of the chosen group; those of each group that is shown
    busy = threading.Lock()

    @people.locked
    def shown() -> Any:
        people.read()
        numbers = people.groups[:_GROUPS]
        rows = [people.members(number).tolist() for number in numbers]
        pictures = faces.thumbnails.pictures([own[0] for own in rows])
        cells = [
            (picture, f"{people.name(number) or f'group {number}'} · {len(own)}")
            for picture, number, own in zip(pictures, numbers, rows, strict=True)
        ]
        grouped = int((people.labels >= 0).sum())
        text = f"{many(len(people.groups), 'group')} of {grouped:,} faces; {len(faces) - grouped:,} in none."
        if len(people.groups) > _GROUPS:
            text += f" The {_GROUPS} largest are shown."
        if not people.groups:
            text += " A smaller minimum group size finds more."
        if not people.file.exists():
            text = "Not grouped yet."
        return cells, f"{text} Names and groups are kept in `{code(str(people.file))}`", rows

    def regroup(least: int) -> Any:
        with busy:
            components = _COMPONENTS if len(faces) > _MANY else None
            people.regroup(group(faces.rows, min_cluster_size=int(least), pca_components=components))
        return *shown(), [], "", None, ""

    def choose(event: gr.SelectData, listed: list[list[int]]) -> Any:
        own = picked(event, listed)  # as this browser sees them: another one may have found other groups
        return own, _title(len(own)), faces.thumbnails.pictures(own[:_MEMBERS]), people.name_of(own)

    def rename(rows: list[int], name: str | None) -> Any:
        if not rows:
            gr.Warning("Click a group first", title="")
        else:
            people.rename(rows, " ".join((name or "").split()))
        return shown()

    event = {"api_visibility": "private"}
    groups = [gallery, status, listed]
    find.click(
        plainly(regroup), [least], [*groups, chosen, title, members, name], show_progress_on=[status, gallery], **event
    )
    gallery.select(plainly(choose), [listed], [chosen, title, members, name], show_progress="minimal", **event)
    for press in (save.click, name.submit):
        press(plainly(rename), [chosen, name], groups, show_progress="minimal", **event)
    work.loads.append(Load(shown, groups))


def _title(count: int) -> str:
    return f"{many(count, 'face')} of the group" + (f", the {_MEMBERS} most confident" if count > _MEMBERS else "")
