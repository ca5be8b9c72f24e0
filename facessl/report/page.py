"""How a report looks: HTML that fetches nothing, and Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import yaml

from facessl.report import parts, results
from facessl.report.curves import groups
from facessl.report.folder import RunFolder
from facessl.report.svg import SERIES

_MAX_SKIPPED = 20
_MAX_FRAMES = 8


def run_html(run: RunFolder, numbers: Mapping[str, Any], published: str = "") -> str:
    """The page of one run.

    Args:
        run: of `facessl pretrain` or `facessl finetune`.
        numbers: its headline (`facessl.report.write.headline`).
        published: section that compares it with published scores, or nothing.
    """
    first = "task" if run.tuned else "method"
    kind = " on ".join(escape(str(numbers[k])) for k in (first, "backbone") if numbers[k]) or "Run"
    kind = kind[:1].upper() + kind[1:] if run.tuned else kind
    how = f", protocol {escape(parts.shown(numbers['protocol']))}" if run.tuned else ""
    begun = f", started from <code>{escape(parts.shown(numbers['started_from']))}</code>" if run.tuned else ""
    blocks = [
        f"<h1>{kind}</h1>",
        f'<p class="soft">Run <code>{escape(run.name)}</code>{how}, source '
        f"<code>{escape(str(numbers['source']))}</code>{begun}{_finished(numbers)}</p>",
        _tiles(run, numbers),
        results.verdict(numbers, run) if run.tuned else _verdict(numbers),
        *results.sections(run),
        published,
        *_chart_sections([run]),
        *([] if run.tuned else [parts.section("Regions", _regions(run))]),
        *([] if run.tuned else [parts.section("Regions over time", _frames(run))]),
        parts.section("Configuration", _configuration(run)),
        parts.section("Skipped images", _skipped(run, numbers)),
        parts.section("Environment", _environment(run)),
    ]
    return parts.whole_page(f"{kind}: {escape(run.name)}", blocks)


def comparison_html(
    runs: Sequence[RunFolder],
    numbers: Sequence[Mapping[str, Any]],
    differing: Mapping[str, Sequence[Any]],
    published: str = "",
) -> str:
    """The page that compares runs: tables, curves on common axes, settings that differ, regions."""
    settings = [[escape(name), *(escape(parts.shown(v)) for v in values)] for name, values in differing.items()]
    pictures = "".join(
        f"<figure><figcaption>{escape(run.name)}</figcaption>{parts.picture(run.path / 'regions.png', 1600)}</figure>"
        for run in runs
        if (run.path / "regions.png").is_file()
    )
    regions = f'<div class="frames">{pictures}</div>' if pictures else parts.missing("No run drew regions.")
    more = f" The curves show the first {SERIES} runs." if len(runs) > SERIES else ""
    tuned = [run.tuned for run in runs]
    said = "" if all(tuned) else "Losses of different methods or settings are not on one scale; k-NN accuracy is."
    said += " Scores compare where the test images are the same." if any(tuned) else ""
    blocks = [
        f"<h1>{len(runs)} runs compared</h1>",
        f'<p class="soft">{said}{more}</p>',
        *_tables(runs, numbers),
        published,
        *_chart_sections(runs),
        parts.section(
            "Settings that differ",
            parts.table(["setting", *(r.name for r in runs)], settings) if settings else parts.missing("None differs."),
        ),
        *([] if all(tuned) else [parts.section("Regions", regions)]),
    ]
    return parts.whole_page(f"{len(runs)} runs compared", blocks)


def markdown(runs: Sequence[RunFolder], numbers: Sequence[Mapping[str, Any]]) -> str:
    """Headline tables, loss terms and monitors of one or several runs, to be pasted."""
    out = [f"# {runs[0].name}" if len(runs) == 1 else f"# {len(runs)} runs compared", ""]
    for _, (head, rows) in _by_kind(runs, numbers):
        out += [*parts.pipes(head, rows), ""]
    for run, values in zip(runs, numbers, strict=True):
        columns = ["loss", *run.terms, *(c for c in run.table if c.startswith("monitor/"))]
        lines = [[c, parts.short(run.first(c)), parts.short(run.last(c))] for c in columns if run.last(c) is not None]
        out += results.group_pipes(run)
        start = [f"## {run.name}: start and end", "", *parts.pipes(["value", "start", "end"], lines), ""]
        out += start if lines else []
        out += [f"{run.name}: {sentence}" for sentence in [*(values["collapse"] or []), *values["notes"]]]
    return "\n".join(out).rstrip() + "\n"


def _by_kind(
    runs: Sequence[RunFolder], numbers: Sequence[Mapping[str, Any]]
) -> list[tuple[list[int], tuple[list[str], list[list[str]]]]]:
    """Positions of the pre-training and of the fine-tuning runs, each with head and rows of their table."""
    out = []
    for tuned, summary in ((False, _summary_table), (True, results.summary)):
        chosen = [i for i, run in enumerate(runs) if run.tuned == tuned]
        if chosen:
            out.append((chosen, summary([numbers[i] for i in chosen])))
    return out


def _tables(runs: Sequence[RunFolder], numbers: Sequence[Mapping[str, Any]]) -> list[str]:
    """The tables of `_by_kind`; runs beyond the colours have no line in the curves, and no key."""
    keys = [f'<span class="key" style="background:var(--series-{i})"></span>' for i in range(SERIES)]
    keys += [""] * (len(runs) - SERIES)
    return [
        parts.table(
            head, [[keys[i] + escape(row[0]), *map(escape, row[1:])] for i, row in zip(chosen, rows, strict=True)]
        )
        for chosen, (head, rows) in _by_kind(runs, numbers)
    ]


# ---- headline --------------------------------------------------------------------------------------------------


def _tiles(run: RunFolder, n: Mapping[str, Any]) -> str:
    tiles = [
        *(results.tiles(n, run) if run.tuned else []),
        ("steps", parts.count(n["steps"]), f"{n['epochs']:.1f} epochs" if n["epochs"] else ""),
        (
            "images seen",
            parts.count(n["images"]),
            f"{parts.shown(n['image_size'])} px, batch {parts.shown(n['batch_size'])}",
        ),
        ("images per second", parts.count(n["images_per_second"]), _waiting(n)),
        ("wall time", parts.duration(n["seconds"]), ""),
        ("final loss", parts.short(n["loss"]), f"{parts.short(n['loss_first'])} at the start"),
    ]
    if n.get("knn"):
        tiles.append(("k-NN accuracy", _knn_change(n), _knn_details(n)))
    cells = "".join(
        f'<div class="tile"><span>{name}</span><b>{escape(value)}</b><span>{escape(note)}</span></div>'
        for name, value, note in tiles
    )
    return f'<div class="tiles">{cells}</div>'


def _verdict(n: Mapping[str, Any]) -> str:
    if n["collapse"] is None:
        return '<p class="verdict">Collapse was not watched: set --monitor.every.</p>'
    if n["collapse"]:
        return "".join(f'<p class="verdict bad">{escape(parts.sentence(s))}</p>' for s in n["collapse"])
    notes = "".join(f'<p class="verdict">{escape(parts.sentence(s))}</p>' for s in n["notes"])
    said = []
    for name, words in (("embedding_std", "embedding spread"), ("usage_entropy", "regions in use")):
        if n["monitors"].get(name) is not None:
            said.append(f"{words} {n['monitors_first'][name]:.2f} → {n['monitors'][name]:.2f}")
    return f'<p class="verdict good">No collapse: {escape(", ".join(said) or "nothing stands out")}.</p>{notes}'


def _summary_table(numbers: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    head = [
        "run",
        "method",
        "backbone",
        "steps",
        "images",
        "images/s",
        "time",
        "loss",
        "k-NN",
        "mean class",
        "collapse",
    ]
    rows = []
    for n in numbers:
        per_class = n["knn"] and n["knn"]["mean_class_accuracy"]
        rows.append(
            [
                n["run"],
                parts.shown(n["method"]),
                parts.shown(n["backbone"]),
                parts.count(n["steps"]),
                parts.count(n["images"]),
                parts.count(n["images_per_second"]),
                parts.duration(n["seconds"]),
                parts.short(n["loss"]),
                _knn_change(n) if n["knn"] else "-",
                f"{100 * per_class:.1f} %" if per_class is not None else "-",
                "not watched" if n["collapse"] is None else ("yes" if n["collapse"] else "no"),
            ]
        )
    return head, rows


def _finished(n: Mapping[str, Any]) -> str:
    return "" if n["finished"] is None else f", {'finished' if n['finished'] else 'stopped before its end'}"


def _knn_change(n: Mapping[str, Any]) -> str:
    first, last = n["knn_first"]["accuracy"], n["knn"]["accuracy"]
    return f"{100 * first:.1f}\u00a0→\u00a0{100 * last:.1f}\u00a0%"


def _knn_details(n: Mapping[str, Any]) -> str:
    interval, per_class = n["knn"]["interval"], n["knn"]["mean_class_accuracy"]
    said = [f"95\u00a0% interval {100 * interval[0]:.1f} to {100 * interval[1]:.1f}"] if interval else []
    said += [f"mean class {100 * per_class:.1f}\u00a0%"] if per_class is not None else []
    return "; ".join(said)


def _waiting(n: Mapping[str, Any]) -> str:
    return "" if n["data_wait"] is None else f"{100 * n['data_wait']:.0f} % of it waiting for data"


# ---- sections --------------------------------------------------------------------------------------------------


def _chart_sections(runs: Sequence[RunFolder]) -> list[str]:
    why = "; ".join(f"{run.name}/metrics.csv {p}" for run in runs if (p := run.problems.get("metrics.csv")))
    return [
        parts.section(
            group.title,
            f'<div class="charts">{"".join(group.charts)}</div>'
            if group.charts
            else parts.missing(f"{group.lack}{f' ({why})' if why else ''}."),
        )
        for group in groups(runs)
    ]


def _regions(run: RunFolder) -> str:
    if not (run.path / "regions.png").is_file():
        return parts.missing(
            "No picture: regions.png is not there (the method has no regions, or the run has not ended)."
        )
    return parts.picture(run.path / "regions.png", 2400)


def _frames(run: RunFolder) -> str:
    taken = run.pictures()
    if not taken:
        return parts.missing("No pictures: regions/ is not there or empty.")
    chosen = sorted({round(i) for i in np.linspace(0, len(taken) - 1, _MAX_FRAMES)})
    frames = [
        f"<figure><figcaption>step {taken[i][0]:,}</figcaption>{parts.picture(taken[i][1], 1100)}</figure>"
        for i in chosen
    ]
    return f'<div class="frames">{"".join(frames)}</div>'


def _configuration(run: RunFolder) -> str:
    if not run.config:
        return parts.missing(f"config.yaml: {run.problems.get('config.yaml', 'empty')}.")
    return f"<pre>{escape(yaml.dump(run.config, Dumper=_Lines, sort_keys=False))}</pre>"


class _Lines(yaml.SafeDumper):
    """YAML with short lists on one line."""


def _list(dumper: _Lines, value: list[Any]) -> yaml.SequenceNode:
    short = not any(isinstance(item, (dict, list)) for item in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=short)


_Lines.add_representer(list, _list)


def _skipped(run: RunFolder, n: Mapping[str, Any]) -> str:
    if not run.skipped:
        return "<p>None: every image that was asked for could be read.</p>"
    passed = n["images"] / n["epochs"] if n["epochs"] and n["images"] else None  # whole batches alone
    total = run.status.get("source_images") or run.results.get("train_images") or passed
    share = f", {100 * len(run.skipped) / total:.2g} % of the source" if total else ""
    more = f" The first {_MAX_SKIPPED}:" if len(run.skipped) > _MAX_SKIPPED else ""
    rows = [[f"<code>{escape(key)}</code>", escape(reason)] for key, reason in run.skipped[:_MAX_SKIPPED]]
    count = len(run.skipped)
    what = "1 image was" if count == 1 else f"{count:,} images were"
    return f"<p>{what} skipped{share}.{more}</p>{parts.table(['image', 'reason'], rows)}"


def _environment(run: RunFolder) -> str:
    if not run.environment:
        return parts.missing(f"environment.json: {run.problems.get('environment.json', 'empty')}.")
    rows = []
    for name, value in run.environment.items():
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else parts.shown(value)
        rows.append([escape(name), escape(text)])
    return parts.table(["", ""], rows)
