"""Linear probing of a frozen backbone on features that are computed once."""

import time
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from facessl.core.errors import ConfigError, UnknownName
from facessl.data.face_square import Crop
from facessl.data.label_fractions import fewer_labels, usable
from facessl.data.source import Source
from facessl.evaluation.features import Features, Kind
from facessl.evaluation.features import features as extracted
from facessl.evaluation.protocols._linear_fit import LAMBDAS, choose, fit_by
from facessl.evaluation.protocols._linear_tasks import KINDS, LinearTask
from facessl.inference.trained_task import Embedder
from facessl.models.backbone import Backbone
from facessl.models.forward import PassOptions
from facessl.tasks.verification import VerificationMeter
from facessl.views.augment import Augment

TASKS = (*KINDS, "verification")
#: On fewer images a difference between penalties is mostly chance.
_FEW = 100


def linear(
    backbone: Backbone | Embedder,
    train: Source,
    test: Source,
    val: Source | None = None,
    *,
    task: str = "auto",
    solver: str = "auto",
    lambdas: Sequence[float] | None = None,
    labels: str = "all",
    balanced: bool = False,
    features: Literal["auto", "pooled", "map"] = "auto",
    crop: Literal["auto", "whole", "box", "five_points"] = "auto",
    crop_scale: float = 1.0,
    flip: bool = False,
    refit: bool = False,
    folds: int = 5,
    epochs: int | None = None,
    lr: float | None = None,
    seed: int = 0,
    cache: bool = True,
    batch_size: int = 64,
    workers: int = 0,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    max_bad: float = 0.05,
) -> dict[str, Any]:
    """Fit a linear map from frozen features to labels, choose its penalty without the test images, and score it there.

    Args:
        backbone: frozen; used in evaluation mode.
        train: labeled images; verification uses none.
        test: labeled images, or a source of pairs.
        val: labeled images that the penalty is chosen on; None: `folds`-fold cross-validation on the training images
            (persons stay together if the source knows them; classes are spread evenly).
        task: expression (classes), attributes, alignment (landmarks), verification (pairs); auto: the first that the
            test source has, of pairs, labels, attributes and landmarks.
        solver: lbfgs (logistic regression), ridge (least squares on -1 and 1, or on coordinates), adamw, sgd; auto:
            ridge for alignment, else lbfgs.
        lambdas: penalties to try, in units of the mean loss of an image, for standardized features; for adamw and sgd
            weight decays. null: `LAMBDAS`.
        labels: all, a percentage such as `10%`, or `25-per-class`, of the training images.
        balanced: classes count alike in the loss.
        features: pooled embedding or flattened map; auto: the map for alignment.
        crop: what the backbone sees (`facessl.data.face_square.frame_of`); auto: the box for alignment if every
            source has one, else the whole image.
        crop_scale: side of that crop over the longer side of the box.
        flip: verification: add the embedding of the mirrored image.
        refit: fit again on training and validation images with the chosen penalty.
        folds: of the cross-validation.
        epochs: of adamw and sgd; null: the papers'.
        lr: of adamw and sgd; null: the papers'.
        seed: of the labels, the folds and the descent.
        cache: keep the features for the next probe, and use those that are there.
        batch_size: images per forward pass.
        workers: loader processes; 0 reads in this one.
        precision: number format of the forward pass: fp32, or bf16 or fp16, which are faster on a GPU (fp16 needs one).
        max_bad: fraction of unreadable images above which it stops.

    Returns:
        Scores of the test images as the task's meter has them, ready for JSON, and beside them:

        lambda: the penalty that was chosen (weight decay of adamw and sgd); None for verification.
        path: every lambda with its score on the images it was chosen on, None if nothing had to be chosen.
        chosen_by, chosen_on: the name of that score, and which images those were; never test images.
        at_edge: the chosen lambda is the first or last one tried, so a better one may lie beyond.
        notes: sentences on what limits the choice.
        task, solver, features, dimensions, labels: that were used; the solver of verification is `none`.
        n_train, n_val, n_test, skipped: images, and those that could not be read.
        extract_seconds, solve_seconds: time of the forward passes (0: read from the cache), and of the rest.

    Raises:
        UnknownName: no such task or solver.
        ConfigError: a source without the labels, options that do not go together, or too few images.
        DataError: a source of which no image can be read.

    Differences from FRA's linear probing (section 4.2 and its released code): adamw has its settings (W from
    N(0, 0.01), b = 0, learning rate 2e-4, weight decay 0.05, 5 epochs of warm-up, cosine to 1e-6, 100 epochs of batches
    of 256) but sees fixed features of images that are not augmented; `facessl finetune --frozen true` augments. Its
    attributes have a head of three layers, here it is one. lbfgs and ridge find the best map instead of approaching it.
    """
    task = _task_of(test, task)
    used = [test] if task == "verification" else [part for part in (train, test, val) if part is not None]
    augment = Augment(crop=_crop_of(used, task, crop), crop_scale=crop_scale)
    if isinstance(backbone, Embedder) and (crop, crop_scale) == ("auto", 1.0):
        augment = backbone.augment
    kind: Kind = "map" if features == "map" or (features == "auto" and task == "alignment") else "pooled"
    options: dict[str, Any] = {"kind": kind, "augment": augment, "cache": cache}
    options |= vars(PassOptions(batch_size, workers, precision, max_bad))
    if task == "verification":
        if test.pairs is None:
            raise ConfigError("verification is measured on pairs, and the source has none: use lfw:PATH, for example")
        embedded, meter = extracted(backbone, test, flip=flip, **options), VerificationMeter(test)
        meter.add({"embeddings": torch.from_numpy(np.array(embedded.array))}, embedded.batch(1))
        return _summary("verification", meter.result(), kind, [embedded])
    if flip:
        raise ConfigError("flip is for verification alone: leave it out")
    solver = _solver_of(task, solver)
    order = _order(solver, lambdas)
    probe = LinearTask(task, train, augment, backbone.image_size)
    for part, name in ((train, "training"), (test, "test"), (val, "validation")):
        if part is not None:
            probe.check(part, name)
    if balanced and probe.kind.loss != "classes":
        raise ConfigError(f"balanced is for classes, and {probe.kind.needs} are none: leave it out")
    train, test = (usable(part, (probe.kind.needs,)) for part in (train, test))
    val = None if val is None else usable(val, (probe.kind.needs,))
    train = fewer_labels(train, labels, seed)
    if not len(train):
        raise ConfigError(f"the task {task} needs training images, and the source has test images alone")
    device = next(backbone.parameters()).device
    fit = fit_by(probe.kind.loss, solver, balanced, device, lr=lr, epochs=epochs, seed=seed)

    learned = probe.load(train, extracted(backbone, train, **options))
    held = None if val is None else probe.load(val, extracted(backbone, val, **options))
    began = time.perf_counter()
    chosen = choose(probe, fit, order, learned, held, refit=refit, folds=folds, seed=seed)
    solving = time.perf_counter() - began
    tested = probe.load(test, extracted(backbone, test, **options))  # not before everything is chosen
    began = time.perf_counter()
    scores = probe.result(tested, chosen.outputs(tested.features.array))
    solving += time.perf_counter() - began
    at_edge = len(order) > 1 and chosen.at in (0, len(order) - 1)
    return {
        **_summary(task, scores, kind, [part.features for part in (tested, learned, held) if part is not None]),
        **{"solver": solver, "labels": labels, "solve_seconds": solving},
        **{"n_train": len(learned.features), "n_val": 0 if held is None else len(held.features)},
        "lambda": order[chosen.at],
        "path": [{"lambda": value, "score": score} for value, score in zip(order, chosen.scores, strict=True)],
        **{"chosen_by": probe.kind.chosen_by, "chosen_on": chosen.images, "at_edge": at_edge},
        "notes": [_at_edge(order, chosen.at, len((held or learned).features))] if at_edge else [],
    }


def _summary(task: str, scores: dict[str, Any], kind: Kind, parts: list[Features]) -> dict[str, Any]:
    """The result if nothing is fitted; `parts` begin with the test part."""
    return {
        **{"protocol": "linear", "task": task, **scores, "lambda": None, "solver": "none", "labels": "none"},
        **{"features": kind, "dimensions": parts[0].array.shape[1]},
        **{"n_train": 0, "n_val": 0, "n_test": len(parts[0]), "skipped": sum(len(part.skipped) for part in parts)},
        **{"extract_seconds": sum(part.seconds for part in parts), "solve_seconds": 0.0},
        **{"path": [], "chosen_by": "", "chosen_on": "nothing to choose", "at_edge": False, "notes": []},
    }


def _at_edge(order: tuple[float, ...], at: int, chosen_on: int) -> str:
    end, further = ("largest", "larger") if at == 0 else ("smallest", "smaller")
    note = f"the best penalty, {order[at]:.3g}, is the {end} of the {len(order)} that were tried"
    if chosen_on < _FEW:
        return f"{note}, but {chosen_on} images are too few to tell penalties apart: choose it on more images (--val)"
    return f"{note}: a better one may lie beyond, so try {further} --lambdas as well"


def _task_of(test: Source, task: str) -> str:
    if task in TASKS:
        return task
    if task != "auto":
        raise UnknownName("task of a linear probe", task, ("auto", *TASKS))
    if test.pairs is not None:
        return "verification"
    fields = {"label": "expression", "attributes": "attributes", "landmarks": "alignment"}
    for name, other in fields.items():
        if name in test.provides:
            return other
    raise ConfigError(
        f"a linear probe needs one of pairs, {', '.join(fields)}, and the test source has none of them: put the images "
        "in one folder per class, or name the column of a table (labels-csv:FILE?label=COLUMN)"
    )


def _crop_of(used: list[Source], task: str, crop: str) -> Crop:
    if crop == "auto":
        boxes = task == "alignment" and all("box" in part.provides for part in used)
        return "box" if boxes else "whole"
    if crop not in ("whole", "box", "five_points"):
        raise UnknownName("crop", crop, ("auto", "whole", "box", "five_points"))
    missing = crop != "whole" and any(crop not in part.provides for part in used)
    if missing:
        raise ConfigError(f"the crop {crop} needs the {crop} of every image, which a source lacks: use crop=whole")
    return crop  # type: ignore[return-value]


def _solver_of(task: str, solver: str) -> str:
    if solver not in ("auto", *LAMBDAS):
        raise UnknownName("solver", solver, ("auto", *LAMBDAS))
    if task == "alignment" and solver not in ("auto", "ridge"):
        raise ConfigError(f"the solver {solver} is for classes and attributes: use ridge for alignment")
    return ("ridge" if task == "alignment" else "lbfgs") if solver == "auto" else solver


def _order(solver: str, lambdas: Sequence[float] | None) -> tuple[float, ...]:
    order = tuple(sorted(set(LAMBDAS[solver] if lambdas is None else lambdas), reverse=True))
    lowest = min(order, default=-1.0)
    if not lowest >= 0 or (lowest == 0 and solver in ("lbfgs", "ridge")):
        raise ConfigError(f"lambdas {list(lambdas or ())} cannot be used: give one or more numbers above 0")
    return order
