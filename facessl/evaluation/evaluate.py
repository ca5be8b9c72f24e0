"""Evaluating a frozen backbone by the name of a protocol."""

import copy
import inspect
import os
from typing import Any

import torch
from torch import nn

from facessl.core import plugins
from facessl.core.errors import UnknownName
from facessl.data.overlap import warn_of_overlap
from facessl.data.splits import parts
from facessl.inference.embed import network_of
from facessl.inference.trained_task import Embedder
from facessl.models.backbone import Backbone


def evaluate(
    backbone: str | os.PathLike[str] | Backbone | Embedder,
    source: str | os.PathLike[str],
    *,
    protocol: str = "knn",
    test: str | os.PathLike[str] | None = None,
    val: str | os.PathLike[str] | None = None,
    labels: str = "all",
    baseline: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Evaluate a frozen backbone by a protocol; return its numbers, ready for JSON.

    Args:
        backbone: from `facessl.load_backbone` or `facessl.load_embedder`, which is not changed; or a run folder,
            checkpoint or export, which `load_embedder` then reads.
        source: labeled images, `NAME:PATH?option=value` or a path. Its own training, validation and test parts are
            used if it has them (a folder with train/ and test/ or val/, or a published set); anything else is split
            4 : 1 by a hash of each image's path.
        protocol: one of `facessl list protocols`.
        test, val: other sources as the test and the validation part. A protocol that chooses something takes the
            validation part of the source, or a tenth of the training images (then fits again on all of them); with
            fewer labels it cross-validates on those, unless `val` is given.
        labels: how many training labels are used: all, a percentage such as `10%`, or `25-per-class`.
        baseline: evaluate the same network with random weights as well (key `random_weights`).
        options: keywords of the protocol, e.g. `k=20` of knn, `task="alignment"` of linear. `seed` is also that of
            the choice of labels.

    Returns:
        `headline` and the other scores, numbers of images, and `skipped`: how many could not be read and are in none
        of the others.

    Raises:
        UnknownName: no such protocol, or an option that it does not take.
        CheckpointError: no network there.
        ConfigError, DataError: a source without labels, too small to split, or unreadable.
    """
    protocol_fn = plugins.find("evaluation.protocols", protocol)
    accepted = inspect.signature(protocol_fn).parameters
    valid = {name for name, p in accepted.items() if p.kind is inspect.Parameter.KEYWORD_ONLY} - {"labels"}
    for name in options:
        if name not in valid:
            raise UnknownName(f"option of the protocol {protocol}", name, valid)
    backbone, chooses = network_of(backbone), "val" in accepted
    split = parts(
        source,
        test=test,
        val=val,
        need_val=chooses and labels == "all" and options.get("task") != "verification",
        need_train="task" not in valid,  # a task may be one that trains nothing
        labels=labels,
        needs=("label",) if options.get("task", "auto") in ("auto", "expression") else (),
        seed=int(options.get("seed", 0)),
    )
    warn_of_overlap(split.train, split.test)
    if split.carved and "refit" in valid:
        options.setdefault("refit", True)
    if chooses:
        options["val"] = split.val
    notes = {"test_part": "a fifth of the images, by a hash of their paths"} if split.held_out else {}

    def score(network: Backbone | Embedder) -> dict[str, Any]:
        return {**protocol_fn(network, split.train, split.test, **options), "labels": labels, **notes}

    random = {"random_weights": score(untrained(backbone))} if baseline else {}
    return {**score(backbone), **random}


def untrained(network: Backbone | Embedder) -> Backbone | Embedder:
    """The same network with random weights, the same ones each time."""
    fresh: Any = copy.deepcopy(network)
    backbone = fresh if isinstance(fresh, Backbone) else fresh.model.backbone
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        size, options = backbone.image_size, backbone.timm_options
        backbone.model.load_state_dict(Backbone(backbone.name, image_size=size, **options).model.state_dict())
        for layer in () if isinstance(fresh, Backbone) else fresh.model.head.modules():
            if isinstance(layer, nn.Linear | nn.BatchNorm1d):
                layer.reset_parameters()
    return fresh
