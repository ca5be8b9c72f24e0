"""Scores of a fine-tuning run (`results.json`) as the report shows them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from facessl.data.source import short
from facessl.report.folder import RunFolder
from facessl.report.text import count, duration, format_name, format_value, interval, score

#: Prefixes of the scores of which lower ones are better.
_LOWER = ("nme", "fr@", "eer")
_SETTINGS = ("protocol", "backbone", "started_from", "labels", "source")


class Cell(NamedTuple):
    """A cell of a table that compares runs."""

    text: str
    rank: float | None = None  # of a score: the larger, the better


def task_headline(run: RunFolder) -> dict[str, Any]:
    """Return the headline of a fine-tuning run, without the numbers that all runs have.

    Keys: task, protocol (linear if the backbone was frozen), started_from, labels, headline (`name`, `value`,
    `interval`, `better`; None before the run has ended), baselines, selected (`step`, `by`, and the score on the part
    that was selected on), train_images, test_images, notes.
    """
    return {
        "task": run.results.get("task") or run.setting("task.name"),
        "protocol": protocol(run),
        "started_from": run.setting("run"),
        "labels": run.setting("labels"),
        "headline": run.test.get("headline"),
        "baselines": baselines(run.test),
        "selected": run.results.get("selected"),
        "train_images": run.results.get("train_images"),
        "test_images": run.test.get("images"),
        "notes": [f"not clearly {text}" for text, clear in against_baselines(run) if not clear],
    }


def protocol(run: RunFolder) -> str | None:
    """The protocol by the name that published numbers have: a frozen backbone is `linear`."""
    if run.setting("frozen"):
        return "linear"
    named = run.results.get("protocol") or run.setting("protocol")
    return None if named is None else str(named).partition(" ")[0]


def baselines(scores: Mapping[str, Any]) -> dict[str, float]:
    """Return the headline score of answers without training, or without pre-training, if it was measured."""
    untrained = (scores.get("random_weights") or {}).get("headline") or {}
    constant = scores.get("constant") or {"answer": "", "scores": {}}
    values = {
        "majority class": _majority(scores),
        constant["answer"]: constant["scores"].get((scores.get("headline") or {}).get("name")),
        "random weights": untrained.get("value"),
    }
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}


def _majority(scores: Mapping[str, Any]) -> float | None:
    """The accuracy of always giving the most frequent answer; of pairs that of saying all are of one kind."""
    same, different = scores.get("same"), scores.get("different")
    if same and different:
        return float(max(same, different) / (same + different))
    value: float | None = scores.get("majority_class", scores.get("majority"))
    return value


def without_looking(scores: Mapping[str, Any]) -> dict[str, float]:
    """Return the known scores of an answer that does not look at the image.

    These are the most frequent class or value, the mean shape or the most frequent class of each pixel, and chance for
    scores of a ranking.
    """
    constant = dict((scores.get("constant") or {"scores": {}})["scores"])
    common, classes = _majority(scores), len(scores.get("per_class") or ())
    if common is not None:
        constant |= {"accuracy": common, "mean_accuracy": common, "mean_balanced_accuracy": 0.5}
    if common is not None and classes:
        constant |= {"mean_class_accuracy": 1 / classes, "macro_f1": 2 * common / (1 + common) / classes}
    if scores.get("same"):
        rates = (name for name in scores if name.startswith("tar@far=") and not name.endswith("_interval"))
        constant |= {"roc_auc": 0.5, "eer": 0.5} | {name: float(name.partition("=")[2]) for name in rates}
    return {name: value for name, value in constant.items() if isinstance(value, int | float)}


def against_baselines(run: RunFolder) -> list[tuple[str, bool]]:
    """Compare with each baseline: "above always answering the majority class (37.90 %)", and whether it is clear."""
    headline = run.test.get("headline") or {}
    low, high = headline.get("interval") or (None, None)
    if low is None or high is None:
        return []
    comparisons, lower = [], headline.get("better") == "lower"
    for name, value in baselines(run.test).items():
        number = score(value, headline["name"], headline.get("unit") or "fraction")
        than = "always answering the majority class" if name == "majority class" else name
        than = f"the {name}" if name in ("mean shape", "most frequent class of each pixel") else than
        word = "better than" if name != "majority class" else "below" if lower else "above"
        comparisons.append((f"{word} {than} ({number})", high < value if lower else low > value))
    return comparisons


def score_rows(run: RunFolder) -> list[dict[str, Any]]:
    """The rows of the table of all scores.

    Keys: name, value, interval, baseline, as text; bar, the places on a bar in per cent of its length (`value`, and
    if they are known `low`, `high`, `baseline`), None for counts.
    """
    chance, rows = without_looking(run.test), []
    for name, value in sorted(run.test.items(), key=lambda item: isinstance(item[1], int)):  # counts last
        plain = isinstance(value, int | float | None) and not name.endswith("_interval")
        if not plain or name in ("majority_class", "majority"):
            continue
        own_unit, near, base = unit(run, name), run.test.get(f"{name}_interval"), chance.get(name)
        rows.append(
            {
                "name": format_name(name),
                "value": score(value, name, own_unit),
                "interval": interval(near, name, own_unit),
                "baseline": "" if base is None or value is None else score(float(base), name, own_unit),
                "bar": _bar(value, near, base) if isinstance(value, float) and own_unit == "fraction" else None,
            }
        )
    return rows


def _bar(value: float, near: Any, base: float | None) -> dict[str, float] | None:
    """Places on a bar that ends at 1, or a little beyond the largest number if all are small."""
    low, high = near if isinstance(near, list | tuple) and len(near) == 2 and None not in near else (None, None)
    places = {"value": value, "low": low, "high": high, "baseline": base}
    known = {name: float(place) for name, place in places.items() if place is not None}
    if len(known) < 2:  # nothing to see it beside
        return None
    largest = max(known.values())
    if min(known.values()) < 0 or largest > 1:
        return None
    end = 1 if largest > 0.3 else 1.25 * largest or 1
    return {name: round(100 * place / end, 2) for name, place in known.items()}


def caption(example: Mapping[str, Any]) -> dict[str, str]:
    """An answer in words: `answer`, `number` and `key`, the name of its image."""
    label, predicted = example.get("label") or "", example.get("prediction") or ""
    answer = label and (f"{label} (right)" if label == predicted else f"{label}, predicted {predicted}")
    if attribute := example.get("attribute"):
        answer = f"{attribute.replace('_', ' ')}: {answer}"
    measure, value = example["measure"], example.get("value")
    own_unit = "" if measure == "cosine similarity" else "fraction"
    keys = " and ".join(short(key) for key in example.get("keys") or ())
    return {"answer": answer, "number": f"{format_name(measure)} {score(value, measure, own_unit)}", "key": keys}


def unit(run: RunFolder, name: str) -> str:
    """The unit of a score, as the task gives it (`facessl.tasks.base.Meter`)."""
    headline = run.test.get("headline") or {}
    unit = headline.get("unit") if headline.get("name") == name else (run.test.get("units") or {}).get(name)
    return unit if unit is not None else "fraction"


def baselines_text(values: Mapping[str, float], headline: Mapping[str, Any]) -> str:
    """Baselines as text: "majority class 37.90 %, random weights 43.20 %"."""
    unit = headline.get("unit") or "fraction"
    return ", ".join(f"{name} {score(value, headline['name'], unit)}" for name, value in values.items())


def headline_text(scores: Mapping[str, Any]) -> str:
    """The headline of a result as text: "accuracy 81.20 % (80.10 to 82.30 %); majority class 37.90 %"."""
    first = scores["headline"]
    name, unit = first["name"], first.get("unit") or "fraction"
    text = f"{format_name(name)} {score(first['value'], name, unit)} ({interval(first['interval'], name, unit)})"
    return "; ".join(filter(None, (text, baselines_text(baselines(scores), first))))


def summary(n: Mapping[str, Any], run: RunFolder) -> dict[str, Cell]:
    """A fine-tuning run's row in the table that compares runs of its task, by column."""
    headline = n["headline"] or {"name": ""}
    name, lower = headline["name"], headline.get("better") == "lower"
    first = _cell(headline.get("value"), headline.get("interval"), name, headline.get("unit") or "fraction", lower)
    others = {
        format_name(other): _cell(
            run.test[other], run.test[f"{other}_interval"], other, unit(run, other), other.startswith(_LOWER)
        )
        for other in other_scores(run)
    }
    settings = {key.replace("_", " "): Cell(format_value(n[key])) for key in _SETTINGS}
    return {
        "run": Cell(n["run"]),
        format_name(name) or "score": first,
        "baselines": Cell(baselines_text(n["baselines"], headline) or "-"),
        **others,
        **settings,
        "test images": Cell(count(n["test_images"])),
        "time": Cell(duration(n["seconds"])),
    }


def other_scores(run: RunFolder) -> list[str]:
    """Names of the scores with an interval beside the headline's, the first three."""
    first = (run.test.get("headline") or {}).get("name")
    return [name for name in run.test if f"{name}_interval" in run.test and name != first][:3]


def _cell(value: Any, near: Any, name: str, unit: str, lower: bool) -> Cell:
    bounds = interval(near, name, unit)
    text = f"{score(value, name, unit)}\n({bounds})" if bounds else score(value, name, unit)
    rank = float(-value if lower else value) if isinstance(value, int | float) else None
    return Cell(text, rank)
