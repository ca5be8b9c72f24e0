"""How a report looks: HTML that fetches nothing, and Markdown."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from facessl.figures import SERIES
from facessl.report.curves import groups
from facessl.report.folder import RunFolder

_MAX_SKIPPED = 20
_MAX_FRAMES = 8

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #63676e; --page: #ffffff; --card: #f6f7f9;
  --grid: #d9dce1; --good: #1a7f4b; --bad: #c0362c; --series-0: #2563eb; --series-1: #d9480f;
  --series-2: #2b8a3e; --series-3: #9c36b5; --series-4: #0b7285; --series-5: #c2255c; --series-6: #7c5e10;
  --series-7: #5f6770; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #9aa0a8; --page: #15171a; --card: #1e2125;
  --grid: #363b42; --good: #51cf8a; --bad: #ff8078; --series-0: #74a7ff; --series-1: #ff9a5c; --series-2: #69db7c;
  --series-3: #da8ff0; --series-4: #5fd0e0; --series-5: #ff85ad; --series-6: #e0bd5c; --series-7: #adb5bd; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 76rem; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .8rem; padding-bottom: .3rem; border-bottom: 1px solid var(--grid); }
p { margin: .5rem 0; max-width: 46rem; } .soft { color: var(--soft); } code { overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11.2rem, 1fr)); gap: .7rem; margin: 1.4rem 0; }
.tile { background: var(--card); border-radius: .5rem; padding: .7rem .9rem; }
.tile b { display: block; font-size: 1.2rem; line-height: 1.4; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .82rem; display: block; line-height: 1.35; }
.verdict { border-left: 4px solid var(--soft); padding: .5rem .9rem; background: var(--card); max-width: none; }
.verdict.good { border-color: var(--good); } .verdict.bad { border-color: var(--bad); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr)); gap: 1rem; }
.charts svg { display: block; background: var(--card); border-radius: .5rem; padding: .5rem; height: auto; }
.frames { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(34rem, 100%), 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { color: var(--soft); font-size: .85rem; margin-bottom: .25rem; }
img { display: block; max-width: 100%; height: auto; border-radius: .3rem; }
pre { background: var(--card); border-radius: .5rem; padding: .9rem 1.1rem; overflow-x: auto; font-size: .84rem;
  line-height: 1.45; columns: 22rem 2; column-gap: 2.5rem; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem 1.1rem .35rem 0; border-bottom: 1px solid var(--grid); vertical-align: top; }
th { font-weight: 600; color: var(--soft); } td { overflow-wrap: anywhere; } .wide { overflow-x: auto; }
.key { display: inline-block; width: .8rem; height: .8rem; border-radius: .2rem; margin-right: .45rem; }
"""


def run_html(run: RunFolder, numbers: Mapping[str, Any]) -> str:
    """The page of one run; `numbers` is its headline (`facessl.report.headline`)."""
    kind = " on ".join(escape(str(numbers[k])) for k in ("method", "backbone") if numbers[k]) or "Run"
    title = f"{kind}: {escape(run.name)}"
    parts = [
        f"<h1>{kind}</h1>",
        f'<p class="soft">Run <code>{escape(run.name)}</code>, source <code>{escape(str(numbers["source"]))}</code>'
        f"{_finished(numbers)}</p>",
        _tiles(numbers),
        _verdict(numbers),
        *_chart_sections([run]),
        _section("Regions", _regions(run)),
        _section("Regions over time", _frames(run)),
        _section("Configuration", _configuration(run)),
        _section("Skipped images", _skipped(run, numbers)),
        _section("Environment", _environment(run)),
    ]
    return _page(title, parts)


def comparison_html(
    runs: Sequence[RunFolder], numbers: Sequence[Mapping[str, Any]], differing: Mapping[str, Sequence[Any]]
) -> str:
    """The page that compares runs: table, curves on common axes, settings that differ, regions."""
    head, rows = _summary_table(numbers)
    # Runs beyond the colours have no line in the curves, and no key.
    keys = [f'<span class="key" style="background:var(--series-{i})"></span>' for i in range(SERIES)]
    keys += [""] * (len(runs) - SERIES)
    more = f" The curves show the first {SERIES} runs." if len(runs) > SERIES else ""
    body = [[keys[i] + escape(row[0]), *map(escape, row[1:])] for i, row in enumerate(rows)]
    settings = [[escape(name), *(escape(_shown(v)) for v in values)] for name, values in differing.items()]
    pictures = "".join(
        f"<figure><figcaption>{escape(run.name)}</figcaption>{_picture(run.path / 'regions.png', 1600)}</figure>"
        for run in runs
        if (run.path / "regions.png").is_file()
    )
    parts = [
        f"<h1>{len(runs)} runs compared</h1>",
        f'<p class="soft">Losses of different methods or settings are not on one scale; k-NN accuracy is.{more}</p>',
        _table(head, body),
        *_chart_sections(runs),
        _section(
            "Settings that differ",
            _table(["setting", *(r.name for r in runs)], settings) if settings else _missing("None differs."),
        ),
        _section("Regions", f'<div class="frames">{pictures}</div>' if pictures else _missing("No run drew regions.")),
    ]
    return _page(f"{len(runs)} runs compared", parts)


def markdown(runs: Sequence[RunFolder], numbers: Sequence[Mapping[str, Any]]) -> str:
    """Headline table, loss terms and monitors of one or several runs, to be pasted."""
    head, rows = _summary_table(numbers)
    out = [f"# {runs[0].name}" if len(runs) == 1 else f"# {len(runs)} runs compared", "", *_pipes(head, rows), ""]
    for run, values in zip(runs, numbers, strict=True):
        columns = ["loss", *run.terms, *(c for c in run.table if c.startswith("monitor/"))]
        lines = [[c, _short(run.first(c)), _short(run.last(c))] for c in columns if run.last(c) is not None]
        out += [f"## {run.name}: start and end", "", *_pipes(["value", "start", "end"], lines), ""] if lines else []
        out += [f"{run.name}: {sentence}" for sentence in [*(values["collapse"] or []), *values["notes"]]]
    return "\n".join(out).rstrip() + "\n"


# ---- headline --------------------------------------------------------------------------------------------------


def _tiles(n: Mapping[str, Any]) -> str:
    tiles = [
        ("steps", _count(n["steps"]), f"{n['epochs']:.1f} epochs" if n["epochs"] else ""),
        ("images seen", _count(n["images"]), f"{_shown(n['image_size'])} px, batch {_shown(n['batch_size'])}"),
        ("images per second", _count(n["images_per_second"]), _waiting(n)),
        ("wall time", _duration(n["seconds"]), ""),
        ("final loss", _short(n["loss"]), f"{_short(n['loss_first'])} at the start"),
    ]
    if n["knn"]:
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
        return "".join(f'<p class="verdict bad">{escape(_sentence(s))}</p>' for s in n["collapse"])
    notes = "".join(f'<p class="verdict">{escape(_sentence(s))}</p>' for s in n["notes"])
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
                _shown(n["method"]),
                _shown(n["backbone"]),
                _count(n["steps"]),
                _count(n["images"]),
                _count(n["images_per_second"]),
                _duration(n["seconds"]),
                _short(n["loss"]),
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
    parts = [f"95\u00a0% interval {100 * interval[0]:.1f} to {100 * interval[1]:.1f}"] if interval else []
    parts += [f"mean class {100 * per_class:.1f}\u00a0%"] if per_class is not None else []
    return "; ".join(parts)


def _waiting(n: Mapping[str, Any]) -> str:
    return "" if n["data_wait"] is None else f"{100 * n['data_wait']:.0f} % of it waiting for data"


# ---- sections --------------------------------------------------------------------------------------------------


def _chart_sections(runs: Sequence[RunFolder]) -> list[str]:
    why = "; ".join(f"{run.name}/metrics.csv {p}" for run in runs if (p := run.problems.get("metrics.csv")))
    return [
        _section(
            group.title,
            f'<div class="charts">{"".join(group.charts)}</div>'
            if group.charts
            else _missing(f"{group.lack}{f' ({why})' if why else ''}."),
        )
        for group in groups(runs)
    ]


def _regions(run: RunFolder) -> str:
    if not (run.path / "regions.png").is_file():
        return _missing("No picture: regions.png is not there (the method has no regions, or the run has not ended).")
    return _picture(run.path / "regions.png", 2400)


def _frames(run: RunFolder) -> str:
    taken = run.pictures()
    if not taken:
        return _missing("No pictures: regions/ is not there or empty.")
    chosen = sorted({round(i) for i in np.linspace(0, len(taken) - 1, _MAX_FRAMES)})
    frames = [
        f"<figure><figcaption>step {taken[i][0]:,}</figcaption>{_picture(taken[i][1], 1100)}</figure>" for i in chosen
    ]
    return f'<div class="frames">{"".join(frames)}</div>'


def _configuration(run: RunFolder) -> str:
    if not run.config:
        return _missing(f"config.yaml: {run.problems.get('config.yaml', 'empty')}.")
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
    total = n["images"] / n["epochs"] if n["epochs"] and n["images"] else None
    share = f", {100 * len(run.skipped) / total:.2g} % of the source" if total else ""
    more = f" The first {_MAX_SKIPPED}:" if len(run.skipped) > _MAX_SKIPPED else ""
    rows = [[f"<code>{escape(key)}</code>", escape(reason)] for key, reason in run.skipped[:_MAX_SKIPPED]]
    count = len(run.skipped)
    what = "1 image was" if count == 1 else f"{count:,} images were"
    return f"<p>{what} skipped{share}.{more}</p>{_table(['image', 'reason'], rows)}"


def _environment(run: RunFolder) -> str:
    if not run.environment:
        return _missing(f"environment.json: {run.problems.get('environment.json', 'empty')}.")
    rows = []
    for name, value in run.environment.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else _shown(value)
        rows.append([escape(name), escape(shown)])
    return _table(["", ""], rows)


def _picture(path: Path, width: int) -> str:
    """The picture as a data URI, at most `width` pixels wide; a sentence where it cannot be read."""
    try:
        with Image.open(path) as image:
            picture = image.convert("RGB")
    except OSError as error:
        return _missing(f"{path.name} cannot be read: {error}.")
    if picture.width > width:
        picture = picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, format="WEBP", quality=88, method=4)
    data = base64.b64encode(out.getvalue()).decode()
    return (
        f'<img alt="{escape(path.stem)}" width="{picture.width}" height="{picture.height}" '
        f'src="data:image/webp;base64,{data}">'
    )


# ---- small parts -----------------------------------------------------------------------------------------------


def _page(title: str, parts: Sequence[str]) -> str:
    head = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
    )
    return head + "\n".join(parts) + "\n</body>\n</html>\n"


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>"


def _missing(sentence: str) -> str:
    return f'<p class="soft">{escape(sentence)}</p>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; `rows` are HTML already, `head` is text."""
    top = "".join(f"<th>{escape(h)}</th>" for h in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table>{f"<tr>{top}</tr>" if any(head) else ""}{body}</table></div>'


def _pipes(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _shown(value: Any) -> str:
    return "-" if value is None else str(value)


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _count(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}" if value != int(value) else f"{value:.0f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
