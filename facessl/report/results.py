"""What the report of a fine-tuning run takes from `results.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from facessl.report.folder import RunFolder
from facessl.report.text import count, duration, format_name, format_value, interval, score


def task_headline(run: RunFolder) -> dict[str, Any]:
    """What is said of a fine-tuning run beside the numbers that all runs have.

    Keys: task, protocol (linear where the backbone was frozen), started_from, labels, headline (`name`, `value`,
    `interval`, `better`; None before the run has ended), baselines, selected (`step`, `by`, and the score on the part
    that was selected on), train_images, test_images, notes.
    """
    common, above = majority(run)
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
        "notes": [f"not clearly above always answering the majority class ({common})"] if common and not above else [],
    }


def protocol(run: RunFolder) -> str | None:
    """The protocol by the name that published numbers have: a frozen backbone is `linear`."""
    if run.setting("frozen"):
        return "linear"
    named = run.results.get("protocol") or run.setting("protocol")
    return None if named is None else str(named).partition(" ")[0]


def baselines(scores: Mapping[str, Any]) -> dict[str, float]:
    """What the headline's score is of answers that need no training, or no pre-training, as far as it was measured."""
    untrained = (scores.get("random_weights") or {}).get("headline") or {}
    found = {
        "majority class": scores.get("majority_class", scores.get("majority")),
        "mean shape": scores.get("mean_shape_nme"),
        "random weights": untrained.get("value"),
    }
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


def majority(run: RunFolder) -> tuple[str, bool]:
    """The score of always answering the majority class ("": not known), and whether the interval lies above it."""
    common = baselines(run.test).get("majority class")
    low = ((run.test.get("headline") or {}).get("interval") or [None])[0]
    return ("", False) if low is None or common is None else (score(common), low > common)


def unit(run: RunFolder, name: str) -> str:
    """The unit of a score, as the task says it (`facessl.tasks.base.Meter`)."""
    headline = run.test.get("headline") or {}
    unit = headline.get("unit") if headline.get("name") == name else (run.test.get("units") or {}).get(name)
    return unit if unit is not None else "fraction"


def beside(found: Mapping[str, float], headline: Mapping[str, Any]) -> str:
    """Baselines as text: "majority class 37.90 %, random weights 43.20 %"."""
    unit = headline.get("unit") or "fraction"
    return ", ".join(f"{name} {score(value, headline['name'], unit)}" for name, value in found.items())


def told(scores: Mapping[str, Any]) -> str:
    """The headline of a result as text: "accuracy 81.20 % (80.10 to 82.30 %); majority class 37.90 %"."""
    first = scores["headline"]
    name, unit = first["name"], first.get("unit") or "fraction"
    text = f"{format_name(name)} {score(first['value'], name, unit)} ({interval(first['interval'], name, unit)})"
    return "; ".join(filter(None, (text, beside(baselines(scores), first))))


def summary(n: Mapping[str, Any]) -> dict[str, str]:
    """A fine-tuning run's row in the table that compares runs, by column."""
    headline = n["headline"] or {"name": ""}
    name, unit = headline["name"], headline.get("unit") or "fraction"
    return {
        "run": n["run"],
        "task": f"{format_value(n['task'])} ({format_value(n['protocol'])})",
        "score": f"{format_name(name)} {score(headline.get('value'), name, unit)}".strip(),
        "95 % interval": interval(headline.get("interval"), name, unit),
        "baselines": beside(n["baselines"], headline) or "-",
        "backbone": format_value(n["backbone"]),
        "started from": format_value(n["started_from"]),
        "labels": format_value(n["labels"]),
        "source": format_value(n["source"]),
        "test images": count(n["test_images"]),
        "time": duration(n["seconds"]),
    }
