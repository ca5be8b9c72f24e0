"""What the report of a fine-tuning run shows of `results.json`: headline, scores, tables by class, subset and group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from facessl.report import parts
from facessl.report.folder import RunFolder

#: Larger confusion matrices are not drawn.
_MAX_CLASSES = 20
#: Tables with a row per class: key of results.json -> heading.
_BY_CLASS = {"per_class": "Accuracy by class", "accuracy": "Accuracy by attribute", "f1": "F1 by class"}


def task_headline(run: RunFolder) -> dict[str, Any]:
    """What is said of a fine-tuning run beside the numbers that all runs have.

    Keys: task, protocol (linear where the backbone was frozen), started_from, labels, headline (`name`, `value`,
    `interval`, `better`; None before the run has ended), selected (`step`, `by`, and the score on the part that
    was selected on), train_images, test_images.
    """
    test = _test(run)
    return {
        "task": run.results.get("task") or run.setting("task.name"),
        "protocol": protocol(run),
        "started_from": run.setting("run"),
        "labels": run.setting("labels"),
        "headline": test.get("headline"),
        "selected": run.results.get("selected"),
        "train_images": run.results.get("train_images"),
        "test_images": test.get("images"),
    }


def protocol(run: RunFolder) -> str | None:
    """The protocol by the name that published numbers have: a frozen backbone is `linear`."""
    if run.setting("frozen"):
        return "linear"
    named = run.results.get("protocol") or run.setting("protocol")
    return None if named is None else str(named).partition(" ")[0]


def tiles(n: Mapping[str, Any], run: RunFolder) -> list[tuple[str, str, str]]:
    """Name, value and note of the first tiles: headline, the other scores with an interval, images."""
    found, test = n["headline"], _test(run)
    out = []
    if found:
        unit = found.get("unit", "share")
        near = parts.interval(found["name"], found["interval"], unit)
        value = parts.score(found["name"], found["value"], unit)
        out.append((f"{parts.spoken(found['name'])} (test)", value, _ninety_five(near)))
    others = [k for k in test if f"{k}_interval" in test and not (found and k == found["name"])]
    for name in others[:3]:
        unit = _unit(test, name)
        near = parts.interval(name, test[f"{name}_interval"], unit)
        out.append((parts.spoken(name), parts.score(name, test[name], unit), _ninety_five(near)))
    images = f"{parts.count(n['test_images'])} test images"
    return [*out, ("training images", parts.count(n["train_images"]), f"labels: {parts.shown(n['labels'])}; {images}")]


def verdict(n: Mapping[str, Any], run: RunFolder) -> str:
    """In words: how the weights were selected, and whether the score is above the commonest answer."""
    if not n["headline"]:
        why = run.problems.get("results.json", "no scores in it")
        return f'<p class="verdict">No scores (results.json: {escape(why)}); a run is scored at its end.</p>'
    return _selection(n) + _above_majority(n["headline"], _test(run))


def sections(run: RunFolder) -> list[str]:
    """Every table that results.json can fill, as sections."""
    test = _test(run)
    if not test:
        return []
    out = [parts.section("Scores", _scores(test))]
    for key, title in _BY_CLASS.items():
        if isinstance(test.get(key), Mapping):
            out.append(parts.section(title, _bars(test[key])))
    if test.get("confusion"):
        out.append(parts.section("Confusion", _confusion(test["confusion"], _names(run, test))))
    if test.get("subsets"):
        out.append(parts.section("Subsets", _subsets(test)))
    if test.get("groups"):
        out.append(parts.section("Groups", "".join(_group(k, v, _unit(test, k)) for k, v in test["groups"].items())))
    return out


def group_pipes(run: RunFolder) -> list[str]:
    """Lines of Markdown: every metric by group; none where there are no groups."""
    test = _test(run)
    out = []
    for name, found in (test.get("groups") or {}).items():
        unit = _unit(test, name)
        rows = [
            [row["name"], parts.count(row["images"]), parts.score(name, row["value"], unit),
             parts.interval(name, row["interval"], unit)]
            for row in found["groups"]
        ]  # fmt: skip
        head = ["group", "images", parts.spoken(name), "95 % interval"]
        out += [f"## {run.name}: {parts.spoken(name)} by group", "", *parts.pipes(head, rows), ""]
    return out


def summary(numbers: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table that compares fine-tuning runs."""
    head = ["run", "task", "backbone", "started from", "labels", "source", "score", "95 % interval", "test images"]
    rows = []
    for n in numbers:
        found = n["headline"] or {"name": "", "value": None, "interval": None}
        name, unit = found["name"], found.get("unit", "share")
        rows.append(
            [
                *(n["run"], f"{parts.shown(n['task'])} ({parts.shown(n['protocol'])})", parts.shown(n["backbone"])),
                *(parts.shown(n["started_from"]), parts.shown(n["labels"]), parts.shown(n["source"])),
                f"{parts.spoken(name)} {parts.score(name, found['value'], unit)}".strip(),
                *(parts.interval(name, found["interval"], unit), parts.count(n["test_images"])),
                parts.duration(n["seconds"]),
            ]
        )
    return [*head, "time"], rows


# ---- sentences -------------------------------------------------------------------------------------------------


def _selection(n: Mapping[str, Any]) -> str:
    chosen = n["selected"] or {}
    if chosen.get("by") == "test":
        return (
            '<p class="verdict bad">The weights were selected on the test part, as some published numbers were: the '
            "score is optimistic.</p>"
        )
    if chosen.get("by") == "val":
        unit = (n["headline"] or {}).get("unit", "share")
        told = f"{parts.spoken(chosen['name'])} {parts.score(chosen['name'], chosen['value'], unit)}"
        return (
            f'<p class="verdict good">Weights of step {chosen["step"]:,}, selected on the validation part '
            f"({escape(told)}); the test part was scored once.</p>"
        )
    return '<p class="verdict good">The last weights: nothing was selected; the test part was scored once.</p>'


def _above_majority(found: Mapping[str, Any], test: Mapping[str, Any]) -> str:
    common = test.get("majority_class", test.get("majority"))
    if common is None or not found["interval"] or found["interval"][0] is None:
        return ""
    shown = parts.score("", float(common))
    if found["interval"][0] > common:
        return f'<p class="verdict good">Above always answering the commonest ({shown}), beyond the interval.</p>'
    return f'<p class="verdict bad">Not clearly above always answering the commonest ({shown}).</p>'


def _ninety_five(near: str) -> str:
    return f"95\u00a0% interval {near}" if near else ""


# ---- tables ----------------------------------------------------------------------------------------------------


def _test(run: RunFolder) -> Mapping[str, Any]:
    test = run.results.get("test")
    return test if isinstance(test, Mapping) else {}


def _unit(test: Mapping[str, Any], name: str) -> str:
    """The unit of a score, as the task says it (`facessl.tasks.base.Meter`)."""
    found = test.get("headline") or {}
    unit = found.get("unit", "share") if found.get("name") == name else (test.get("units") or {}).get(name, "share")
    return str(unit)


def _scores(test: Mapping[str, Any]) -> str:
    rows = []
    for name, value in test.items():
        if isinstance(value, Mapping | list) or name.endswith("_interval"):
            continue
        unit = _unit(test, name)
        near = parts.interval(name, test.get(f"{name}_interval"), unit)
        rows.append([escape(parts.spoken(name)), escape(parts.score(name, value, unit)), escape(near)])
    return parts.table(["score", "value", "95 % interval"], rows)


def _bars(values: Mapping[str, float | None]) -> str:
    """A row and a bar per class."""
    rows = []
    for name, value in values.items():
        width = 0 if value is None else max(0.0, min(1.0, value))
        bar = f'<span class="bar" style="width:{9 * width:.2f}rem"></span>'
        rows.append([escape(str(name)), parts.score("", value), bar])
    half = (len(rows) + 1) // 2 if len(rows) > 12 else len(rows)
    return f'<div class="two">{parts.table(["", "", ""], rows[:half])}{parts.table([""], rows[half:])}</div>'


def _names(run: RunFolder, test: Mapping[str, Any]) -> list[str]:
    """Names of the rows of the confusion matrix."""
    size = len(test["confusion"])
    for names in (run.label_names, tuple(test.get("per_class", ()))):
        if len(names) == size:
            return [str(name) for name in names]
    return [str(k) for k in range(size)]


def _confusion(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """Counts, each row tinted by its share; green on the diagonal, red beside it."""
    if len(matrix) > _MAX_CLASSES:
        return parts.missing(f"{len(matrix)} classes are too many to draw; the counts are in results.json.")
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = []
    for i, row in enumerate(matrix):
        total = sum(row) or 1
        cells = []
        for j, cell in enumerate(row):
            tone = "var(--good)" if i == j else "var(--bad)"
            tint = f"color-mix(in srgb, {tone} {round(70 * cell / total)}%, var(--card))"
            share = f"{100 * cell / total:.1f} % of {escape(names[i])}"
            cells.append(f'<td style="background:{tint}" title="{share}">{cell:,}</td>')
        body.append(f"<tr><th>{escape(names[i])}</th>{''.join(cells)}</tr>")
    return (
        '<p class="soft">A row is a true class, a column a predicted one; the tint is the share of the row.</p>'
        f'<div class="wide"><table class="confusion"><tr><th></th>{head}</tr>{"".join(body)}</table></div>'
    )


def _subsets(test: Mapping[str, Any]) -> str:
    subsets: Mapping[str, Mapping[str, Any]] = test["subsets"]
    names = dict.fromkeys(k for row in subsets.values() for k in row if not k.endswith("_interval") and k != "images")
    rows = []
    for subset, row in subsets.items():
        cells = [escape(subset), parts.score("", row.get("images"))]
        for name in names:
            unit = _unit(test, name)
            near = parts.interval(name, row.get(f"{name}_interval"), unit)
            cells += [escape(parts.score(name, row.get(name), unit)), escape(near)]
        rows.append(cells)
    head = [cell for name in names for cell in (parts.spoken(name), "95 % interval")]
    return parts.table(["subset", "images", *head], rows)


def _group(name: str, found: Mapping[str, Any], unit: str) -> str:
    """One metric by group, its gap and what chance would show."""
    rows = []
    for row in found["groups"]:
        near = parts.interval(name, row["interval"], unit)
        mark = "" if row["counted"] else "too few images for the gap"
        value = parts.score(name, row["value"], unit)
        rows.append([escape(row["name"]), parts.score("", row["images"]), escape(value), escape(near), mark])
    told = ""
    if found.get("gap") is not None:
        near = parts.interval(name, found["gap_interval"], unit)
        told = f"<p>Gap {parts.score(name, found['gap'], unit)} ({near}); worst: {escape(str(found['worst']))}."
        chance = found.get("gap_by_chance")
        told += f" Random groups of these sizes differ by up to {parts.score(name, chance, unit)}." if chance else ""
        told += f" {escape(parts.sentence(found['note']))}</p>" if found.get("note") else "</p>"
    return parts.table(["group", "images", parts.spoken(name), "95 % interval", ""], rows) + told
