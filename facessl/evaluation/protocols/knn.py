"""Weighted k-nearest-neighbor classification of frozen embeddings: a label-efficient look at a backbone."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from facessl.core.errors import ConfigError
from facessl.core.types import Batch
from facessl.data.label_fractions import same_classes, usable
from facessl.data.source import Source
from facessl.inference.embed import embeddings
from facessl.inference.trained_task import Embedder
from facessl.models.backbone import Backbone
from facessl.models.forward import PassOptions
from facessl.tasks.expression import ExpressionMeter

#: Similarities held at once: 64 M float32 are 256 MB, whatever the number of images.
_CHUNK = 2**26


def knn(
    backbone: Backbone | Embedder,
    train: Source,
    test: Source | None = None,
    *,
    k: int = 20,
    temperature: float = 0.07,
    batch_size: int = 64,
    workers: int = 0,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    max_bad: float = 0.05,
) -> dict[str, Any]:
    """Classify the test images by the labels of their nearest training images.

    Args:
        backbone: frozen; its embeddings are compared by cosine similarity.
        train: labeled source.
        test: labeled source; None classifies each image of `train` by all the others (leave-one-out).
        k: neighbors that vote.
        temperature: a neighbor's vote weighs exp(cosine / temperature).
        batch_size: images per forward pass.
        workers: loader processes; 0 reads in this one.
        precision: number format of the forward pass: fp32, or bf16 or fp16, which are faster on a GPU (fp16 needs one).
        max_bad: fraction of unreadable images above which it stops.

    Returns:
        Scores of the test images as the meter of the expression task has them, ready for JSON; n_train, n_test and
        skipped (images), k, temperature and leave_one_out.

    Raises:
        ConfigError: no labels, k above the number of training images, or a test class that training lacks.
        DataError: a source of which no image can be read.

    Source: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018,
    section 3.4; k = 20 as in Caron et al., "DINO", ICCV 2021.
    """
    for source, role in ((train, "train"), (test, "test")):
        if source is not None and "label" not in source.provides:
            raise ConfigError(
                f"k-NN needs labels, and the {role} source has none: use a folder with one sub-folder per class, or "
                "labels-csv:FILE?label=COLUMN"
            )
    train = usable(train, ("label",))
    test = None if test is None else usable(test, ("label",))
    if len(train.label_names) == 1:
        raise ConfigError(f"k-NN needs two or more classes, and the train source has {train.label_names[0]} alone")
    options = vars(PassOptions(batch_size, workers, precision, max_bad))
    bank = embeddings(backbone, train, **options)
    query = bank if test is None else embeddings(backbone, test, **options)
    assert bank.labels is not None
    assert query.labels is not None
    target = same_classes(query.labels, query.label_names, bank.label_names)
    predicted = classify(
        torch.from_numpy(bank.array),
        torch.from_numpy(bank.labels),
        None if test is None else torch.from_numpy(query.array),
        k=k,
        temperature=temperature,
        device=next(backbone.parameters()).device,
    )
    tested = train if test is None else test
    names = bank.label_names or tuple(map(str, range(1 + int(max(bank.labels.max(), target.max())))))
    group = tested.column("group")[query.index] if "group" in tested.provides and not tested.streaming else None
    batch = Batch(views=[], params=[], index=torch.from_numpy(query.index), label=torch.from_numpy(target))
    batch.group = None if group is None else torch.from_numpy(group)
    meter = ExpressionMeter(names, tested)
    for start in range(0, len(target), 1024):  # of a thousand classes, a row has a thousand numbers
        answers = F.one_hot(predicted[start : start + 1024], len(names))
        meter.add({"probabilities": answers}, batch.slice(start, start + 1024))
    return {
        **{"protocol": "knn", **meter.result(), "n_train": len(bank), "n_test": len(query)},
        **{"k": k, "temperature": temperature, "leave_one_out": test is None},
        "skipped": len(bank.skipped) + (0 if test is None else len(query.skipped)),
    }


def classify(
    train: Tensor,
    labels: Tensor,
    test: Tensor | None,
    *,
    k: int = 20,
    temperature: float = 0.07,
    device: torch.device | str = "cpu",
) -> Tensor:
    """(N,) int64 class of each test embedding, on the CPU: a weighted vote of its k nearest training embeddings.

    Embeddings are (M, C) with labels (M,), and (N, C), of any length; `test` None is leave-one-out over `train`. A vote
    weighs exp(cosine / temperature). The similarities are computed on `device`, a few test rows at a time.

    Raises:
        ConfigError: k outside 1..M (M - 1 for leave-one-out), or a temperature that is not positive.
    """
    available = len(train) - (test is None)
    if not 1 <= k <= available:
        raise ConfigError(f"k = {k} neighbors cannot be taken from {available} training images: use 1 to {available}")
    if temperature <= 0:
        raise ConfigError(f"temperature {temperature} must be above 0")
    bank = F.normalize(train.to(device, torch.float32), dim=1)  # (M, C)
    labels = labels.to(device)
    classes = int(labels.max()) + 1
    queries = train if test is None else test
    predicted = []
    rows = max(1, _CHUNK // len(train))
    for start in range(0, len(queries), rows):
        part = F.normalize(queries[start : start + rows].to(device, torch.float32), dim=1)  # (n, C)
        similarity = part @ bank.T  # (n, M)
        if test is None:
            own = torch.arange(len(part), device=device)
            similarity[own, own + start] = -torch.inf
        nearest, position = similarity.topk(k, dim=1)  # (n, k)
        votes = torch.zeros(len(part), classes, device=device)
        votes.scatter_add_(1, labels[position], ((nearest - 1) / temperature).exp())
        predicted.append(votes.argmax(dim=1).cpu())
    return torch.cat(predicted)
