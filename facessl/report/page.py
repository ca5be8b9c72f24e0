"""A report as HTML, which fetches nothing and escapes whatever a run's files hold, and as Markdown."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import yaml
from PIL import Image

from facessl.inference.prediction_pictures import class_colors
from facessl.report import results, text
from facessl.report.curves import groups
from facessl.report.examples import FOLDER, SHOWN
from facessl.report.folder import RunFolder, by_task
from facessl.report.results import Cell

_MAX_SKIPPED = 20
_MAX_FRAMES = 8
_MAX_HEIGHT = 16_000  # of WebP
Numbers = Mapping[str, Any]


def run_html(run: RunFolder, numbers: Numbers, published: Mapping[str, Any] | None) -> str:
    """The page of one run, with its headline (`facessl.report.write.headline`) and `paper.section`."""
    kind = " on ".join(str(numbers[k]) for k in ("task" if run.tuned else "method", "backbone") if numbers[k]) or "Run"
    kind = kind[:1].upper() + kind[1:] if run.tuned else kind
    test, headline = run.test, numbers.get("headline") or {}
    passed = numbers["images"] / numbers["epochs"] if numbers["epochs"] and numbers["images"] else None
    totals = (run.status.get("source_images"), run.results.get("train_images"), passed)  # the last: whole batches alone
    size, pictures = len(test.get("confusion") or ()), run.pictures()
    named = (test.get("class_names") or (), tuple(test.get("per_class") or ()), tuple(map(str, range(size))))
    subsets = (test.get("subsets") or {}).values()
    return render(
        "run.html",
        title=f"{kind}: {run.name}",
        kind=kind,
        run=run,
        n=numbers,
        published=published,
        groups=groups([run]),
        problems=_problems([run]),
        frames=[
            pictures[i] for i in sorted({round(i) for i in np.linspace(0, len(pictures) - 1, _MAX_FRAMES)}) if pictures
        ],
        configuration=run.config and yaml.dump(run.config, Dumper=_Lines, sort_keys=False),
        total=next((n for n in totals if n and isinstance(n, int | float)), None),
        most_skipped=_MAX_SKIPPED,
        environment=[(name, _flat(value)) for name, value in run.environment.items()],
        others=results.other_scores(run),
        clear=[sentence for sentence, clear in results.against_baselines(run) if clear],
        rows=results.score_rows(run),
        without=", ".join(name for name in numbers.get("baselines", {}) if name != "random weights") or "chance",
        galleries=_galleries(run),
        baselines=results.baselines_text(numbers["baselines"], headline) if headline else "",
        names=next(names for names in named if len(names) == size),
        subset_scores=dict.fromkeys(k for row in subsets for k in row if not k.endswith("_interval") and k != "images"),
    )


def comparison_html(
    runs: Sequence[RunFolder],
    numbers: Sequence[Numbers],
    differing: Sequence[tuple[Sequence[int], Mapping[str, Sequence[Any]]]],
    published: Mapping[str, Any] | None,
) -> str:
    """The page that compares runs: a table for each task, curves on common axes, settings that differ, regions.

    `differing`: for each group of comparable runs, their positions and the settings in which they differ.
    """
    return render(
        "comparison.html",
        title=f"{len(runs)} runs compared",
        runs=runs,
        tuned=any(run.tuned for run in runs),
        untuned=not all(run.tuned for run in runs),
        tables=_tables(runs, numbers),
        published=published,
        groups=groups(runs),
        problems=_problems(runs),
        differing=[
            {
                "head": ["setting", *(runs[i].name for i in positions)],
                "rows": [(name, *map(text.format_value, values)) for name, values in settings.items()],
            }
            for positions, settings in differing
        ],
    )


def markdown(runs: Sequence[RunFolder], numbers: Sequence[Numbers]) -> str:
    """Headline tables, loss terms and monitors of one or several runs, to be pasted."""
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs compared"
    pairs = list(zip(runs, numbers, strict=True))
    return render("report.md", title=title, tables=_tables(runs, numbers), runs=pairs).rstrip() + "\n"


def render(template: str, **values: Any) -> str:
    """A template of `templates/` with these values, which are escaped in HTML."""
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=jinja2.select_autoescape(default=True, disabled_extensions=("md",)),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shared = (results.unit, _picture, _knn_change, _knn_details)
    env.filters |= {function.__name__.lstrip("_"): function for function in (*text.FILTERS, *shared)}
    return env.get_template(template).render(values)


def _tables(runs: Sequence[RunFolder], numbers: Sequence[Numbers]) -> list[dict[str, Any]]:
    """A table of the pre-training runs and one for each task.

    Keys: title, head, rows, positions (the runs'), and best, for each row the columns in which no run is better.
    """
    tables = []
    for positions in by_task(runs):
        task = runs[positions[0]].kind if runs[positions[0]].tuned else ""
        rows = [results.summary(numbers[i], runs[i]) if task else _summary(numbers[i]) for i in positions]
        head = list(dict.fromkeys(column for row in rows for column in row))
        cells = [[row.get(column, Cell("-")) for column in head] for row in rows]
        tables.append(
            {
                "title": task[:1].upper() + task[1:] or "Pre-training",
                **{"positions": positions, "head": head, "best": _best(cells)},
                "rows": [[cell.text for cell in row] for row in cells],
            }
        )
    return tables


def _best(rows: Sequence[Sequence[Cell]]) -> list[list[int]]:
    """Columns in which each row is best, if rows differ."""
    best: list[list[int]] = [[] for _ in rows]
    for column, cells in enumerate(zip(*rows, strict=True)):
        ranks = [cell.rank for cell in cells if cell.rank is not None]
        for i, cell in enumerate(cells):
            if cell.rank is not None and max(ranks) == cell.rank > min(ranks):
                best[i].append(column)
    return best


def _galleries(run: RunFolder) -> list[dict[str, Any]]:
    """The pictures of a fine-tuned model's answers, by kind: title, a sentence, and each picture with its caption."""
    galleries, names = [], run.examples.get("classes", [])[1:]
    colors = ["#" + bytes(color).hex() for color in class_colors(len(names) + 1)[1:]]
    for kind, title in (("worst", "Worst mistakes"), ("typical", "Typical predictions")):
        listed = run.examples.get(kind, [])[:SHOWN]
        if listed:
            measure, attribute = listed[0]["measure"], listed[0].get("attribute")
            pictures = [
                {**results.caption(example), "file": f"{FOLDER}/{example['file']}", "keys": example.get("keys") or []}
                for example in listed
            ]
            about = _about(kind, measure, bool(attribute))
            galleries.append(
                {"title": title, "about": about, "pictures": pictures, "legend": list(zip(names, colors, strict=True))}
            )
    return galleries


def _about(kind: str, measure: str, attributes: bool) -> str:
    dense = measure not in ("probability", "cosine similarity")
    sides = " Left what was predicted, right the label." if dense else ""
    if kind == "typical":
        return f"Spread evenly over the test part; no score was looked at.{sides}"
    if dense:
        return f"The test images with the worst {text.format_name(measure)}, the worst first.{sides}"
    if measure == "probability":
        which = ", one of each attribute" if attributes else ""
        return f"Wrong answers on the test part that the model was surest of{which}, the most confident first."
    return "Misclassified pairs of the test part, those farthest from the threshold first."


def _summary(n: Numbers) -> dict[str, Cell]:
    knn = n["knn"] or {}
    per_class = knn.get("mean_class_accuracy")
    cells = {
        "run": n["run"],
        "method": text.format_value(n["method"]),
        "backbone": text.format_value(n["backbone"]),
        "steps": text.count(n["steps"]),
        "images": text.count(n["images"]),
        "images/s": text.count(n["images_per_second"]),
        "time": text.duration(n["seconds"]),
        "loss": text.short(n["loss"]),
        "k-NN": _knn_change(n) + _bounds(knn["interval"]) if knn else "-",
        "mean class": f"{100 * per_class:.1f} %" if per_class is not None else "-",
        "collapse": "not watched" if n["collapse"] is None else ("yes" if n["collapse"] else "no"),
    }
    ranks = {"k-NN": knn.get("accuracy"), "mean class": per_class}
    return {column: Cell(cell, ranks.get(column)) for column, cell in cells.items()}


def _knn_change(n: Numbers) -> str:
    first, last = n["knn_first"]["accuracy"], n["knn"]["accuracy"]
    return f"{100 * first:.1f}\u00a0→\u00a0{100 * last:.1f}\u00a0%"


def _bounds(interval: Sequence[float] | None) -> str:
    return f"\n({100 * interval[0]:.1f} to {100 * interval[1]:.1f}\u00a0%)" if interval else ""


def _knn_details(knn: Mapping[str, Any]) -> str:
    interval, per_class = knn["interval"], knn["mean_class_accuracy"]
    details = [f"95\u00a0% interval {100 * interval[0]:.1f} to {100 * interval[1]:.1f}"] if interval else []
    details += [f"mean class {100 * per_class:.1f}\u00a0%"] if per_class is not None else []
    return "; ".join(details)


def _problems(runs: Sequence[RunFolder]) -> str:
    return "; ".join(f"{run.name}/metrics.csv {p}" for run in runs if (p := run.problems.get("metrics.csv")))


def _flat(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else text.format_value(value)


def _picture(run: RunFolder, name: str, width: int) -> dict[str, Any] | str:
    """Attributes of an `img` that holds the picture, at most `width` pixels wide; a sentence if it is damaged."""
    picture, out = run.picture(name), io.BytesIO()
    if isinstance(picture, str):
        return picture
    picture.thumbnail((width, _MAX_HEIGHT), Image.Resampling.LANCZOS, reducing_gap=None)
    picture.save(out, format="WEBP", quality=88, method=4)
    source = f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"
    return {"alt": Path(name).stem, "width": picture.width, "height": picture.height, "src": source}


class _Lines(yaml.SafeDumper):
    """YAML with short lists on one line."""


def _list(dumper: _Lines, value: list[Any]) -> yaml.SequenceNode:
    nested = any(isinstance(item, dict | list) for item in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=not nested)


_Lines.add_representer(list, _list)
