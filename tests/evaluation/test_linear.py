"""Linear probing: the solvers against scikit-learn, and that the test part decides nothing."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier

from facessl.core.errors import ConfigError, UnknownName
from facessl.data.source import Source, open_source
from facessl.data.subset import Subset
from facessl.evaluation import features
from facessl.evaluation.evaluate import evaluate, untrained
from facessl.evaluation.protocols import _linear_fit, _solvers
from facessl.evaluation.protocols._linear_tasks import LinearTask, Loaded
from facessl.evaluation.protocols.linear import linear
from facessl.inference.trained_task import Embedder, Trained
from facessl.models.backbone import Backbone
from facessl.tasks.base import Labels
from facessl.tasks.verification import Verification
from facessl.views.augment import Augment

Data = tuple[np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture
def data() -> Data:
    """(200, 9) float32 features of very different scales, the same standardized, and (200,) classes of 4."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 200)
    x = rng.normal(size=(4, 9))[y] + 1.5 * rng.normal(size=(200, 9))
    x = (x * 10.0 ** np.arange(-4, 5) + 3).astype(np.float32)
    return x, (x - x.mean(0, dtype=float)) / x.std(0, dtype=float), y


def standardized(path: _solvers.Path, at: int) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients (D, M) and intercepts (M,) for standardized features."""
    weight, bias = path.maps[at]
    return (path.basis._vectors @ weight).numpy(), bias.numpy()


@pytest.mark.parametrize("balanced", [False, True])
def test_logistic_regression_is_that_of_scikit_learn(data: Data, balanced: bool) -> None:
    x, z, y = data
    y = np.where(y == 3, np.where(np.arange(200) % 4, 0, 3), y)  # uneven classes
    weights = 200 / (4 * np.bincount(y))[y] if balanced else None
    lambdas = (1e-1, 1e-2, 1e-4)
    path = _solvers.logistic(x, y, lambdas, weights=weights, dtype=torch.float64, tolerance=1e-9, max_iterations=2000)
    if weights is not None:  # features are standardized with the images' weights
        mean = np.average(x.astype(float), axis=0, weights=weights)
        deviation = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=weights))
        z = (x - mean) / deviation
    for at, value in enumerate(lambdas):
        twin = LogisticRegression(
            C=1 / (value * 200), tol=1e-10, max_iter=20000, class_weight="balanced" if balanced else None
        ).fit(z, y)
        assert path.outputs(x)[at] == pytest.approx(twin.decision_function(z), abs=1e-3)
        weight, bias = standardized(path, at)
        assert weight == pytest.approx(twin.coef_.T, abs=1e-5)
        assert bias == pytest.approx(twin.intercept_, abs=1e-5)


def test_attributes_are_independent_logistic_regressions(data: Data) -> None:
    x, z, y = data
    answers = np.stack([y == 0, y > 1], axis=1).astype(np.uint8)
    path = _solvers.logistic(
        x, answers, [1e-3], loss="attributes", dtype=torch.float64, tolerance=1e-9, max_iterations=2000
    )
    weight, bias = standardized(path, 0)
    for a in range(2):
        twin = LogisticRegression(C=1 / (1e-3 * 200), tol=1e-10, max_iter=20000).fit(z, answers[:, a])
        assert weight[:, a] == pytest.approx(twin.coef_[0], abs=1e-5)
        assert bias[a] == pytest.approx(twin.intercept_[0], abs=1e-5)


def test_ridge_is_that_of_scikit_learn_for_every_penalty(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_solvers, "_PIECE", 27)  # several pieces
    x, z, y = data
    lambdas = (1e3, 1.0, 1e-4)
    path = _solvers.ridge(x, 2.0 * np.eye(4)[y] - 1, lambdas, dtype=torch.float64)
    for at, value in enumerate(lambdas):
        twin = RidgeClassifier(alpha=value * 200).fit(z, y)
        weight, bias = standardized(path, at)
        assert weight == pytest.approx(twin.coef_.T, abs=1e-9)
        assert bias == pytest.approx(twin.intercept_, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ridge_with_more_features_than_images(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_solvers, "_PIECE", 27)
    rng = np.random.default_rng(0)
    x, test = rng.normal(size=(40, 300)).astype(np.float16), rng.normal(size=(7, 300)).astype(np.float16)
    target = rng.normal(size=(40, 3))
    mean, deviation = x.mean(0, dtype=float), x.std(0, dtype=float)
    path = _solvers.ridge(x, target, [10.0, 0.1], dtype=dtype)
    for at, value in enumerate((10.0, 0.1)):
        twin = Ridge(alpha=value * 40).fit((x - mean) / deviation, target)
        expected = twin.predict((test - mean) / deviation)
        assert path.outputs(test)[at] == pytest.approx(expected, abs=1e-4 if dtype == torch.float32 else 1e-6)


def test_descent_follows_its_schedule_and_learns(data: Data) -> None:
    assert [_solvers.rate("adamw", 2e-4, 100, e) for e in (0, 2.5, 5)] == pytest.approx([0, 1e-4, 2e-4])
    assert [_solvers.rate("adamw", 2e-4, 100, e) for e in (52.5, 100)] == pytest.approx([(2e-4 + 1e-6) / 2, 1e-6])
    assert [_solvers.rate("sgd", 0.4, 50, e) for e in (29, 30, 45)] == pytest.approx([0.4, 0.04, 0.004])
    _, z, y = data
    for solver in ("adamw", "sgd"):
        path = _solvers.descent(z.astype(np.float32), y, [0.0], solver=solver, lr=0.05, epochs=150)
        twin = LogisticRegression(C=1e4, max_iter=5000).fit(z, y).score(z, y)
        assert (path.outputs(z.astype(np.float32))[0].argmax(1) == y).mean() > twin - 0.05


# ---- protocol --------------------------------------------------------------------------------------------------


class Fixed(Source):
    """A source whose features are given: image i has the features `rows[i]`; see `given`."""

    label_names = ("a", "b")

    def __init__(self, rows: np.ndarray, label: np.ndarray) -> None:
        super().__init__((f"{i}.jpg" for i in range(len(rows))), {"label": label})
        self.rows, self.label = rows.astype(np.float32), label


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Sources in the order in which their features were asked for."""
    asked: list[Any] = []

    def instead(backbone: Backbone, source: Any, **_: Any) -> features.Features:
        asked.append(source)
        whole = source.source if isinstance(source, Subset) else source
        at = source.positions if isinstance(source, Subset) else np.arange(len(source))
        return features.Features(whole.rows[at], np.arange(len(at)), {"label": whole.label[at]})

    monkeypatch.setattr("facessl.evaluation.protocols.linear.extracted", instead)
    return asked


def parts_that_disagree() -> tuple[Fixed, Fixed, Fixed]:
    """Training labels are noisy, so that a large penalty is best on one part and a small one on the other.

    The first feature is the class; the others allow to learn the noise of the training labels by heart. Validation
    images have the true classes; the test images are the training images, so that learning by heart is best there.
    """
    rng = np.random.default_rng(0)

    def part(n: int) -> tuple[np.ndarray, np.ndarray]:
        truth = np.arange(n) % 2
        return np.concatenate([(4 * truth - 2)[:, None], rng.normal(size=(n, 120))], axis=1), truth

    (x, truth), (z, clean) = part(300), part(400)
    noisy = np.where(np.arange(300) // 2 % 10 < 3, 1 - truth, truth)
    return Fixed(x, noisy), Fixed(z, clean), Fixed(x, noisy)


@pytest.mark.parametrize("with_val", [True, False])
def test_the_penalty_is_never_chosen_on_test_images(backbone: Backbone, given: list[Any], with_val: bool) -> None:
    train, val, test = parts_that_disagree()
    options: dict[str, Any] = {"lambdas": (100.0, 10.0, 1e-4), "solver": "ridge"}
    result = linear(backbone, train, test, val if with_val else None, **options)
    assert result["lambda"] != 1e-4
    assert given[-1] is test  # not even looked at before the choice
    by_test = linear(backbone, train, test, test, **options)  # what a choice on test images would give
    assert by_test["lambda"] == 1e-4
    assert by_test["accuracy"] > result["accuracy"]
    turned = linear(backbone, train, Fixed(test.rows, 1 - test.label), val if with_val else None, **options)
    assert (turned["lambda"], turned["path"]) == (result["lambda"], result["path"])


@pytest.mark.parametrize(
    ("images", "said"),
    [(400, "the largest of the 2 that were tried: a better"), (60, "but 60 images are too few to tell")],
)
def test_a_penalty_at_the_edge_is_said(backbone: Backbone, given: list[Any], images: int, said: str) -> None:
    train, val, test = parts_that_disagree()
    val = Fixed(val.rows[:images], val.label[:images])
    result = linear(backbone, train, test, val, solver="ridge", lambdas=(1.0, 1e-4))
    assert result["at_edge"]
    assert said in result["notes"][0]


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.fault("B12", "nothing scored the same network with random weights beside a trained one")
def test_random_weights_are_scored_beside(backbone: Backbone, faces: Path, cache: Path, trained: bool) -> None:
    network: Any = copy.deepcopy(backbone)
    if trained:
        task: Any = Verification(network, Labels(identities=3), dim=24)
        network = Embedder(Trained(task, 32, Augment(), {}))
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(1.1)
    before = copy.deepcopy(network.state_dict())
    found = evaluate(network, str(faces), k=3, baseline=True)
    first, again = untrained(network).state_dict(), untrained(network).state_dict()
    assert first.keys() == before.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    changed = [name for name in first if not torch.equal(first[name], before[name])]
    assert any("conv" in name for name in changed)
    assert any("head" in name for name in changed) == trained
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert found["random_weights"] == evaluate(untrained(network), str(faces), k=3)


def test_refitting_uses_both_parts_and_keeps_the_penalty(backbone: Backbone, given: list[Any]) -> None:
    train, val, _ = parts_that_disagree()
    fresh = Fixed(val.rows[200:], val.label[200:])
    val = Fixed(val.rows[:200], val.label[:200])
    once = linear(backbone, train, fresh, val, solver="ridge")
    twice = linear(backbone, train, fresh, val, solver="ridge", refit=True)
    assert (once["lambda"], once["path"]) == (twice["lambda"], twice["path"])
    both = Fixed(np.concatenate([train.rows, val.rows]), np.concatenate([train.label, val.label]))
    direct = linear(backbone, both, fresh, solver="ridge", lambdas=(once["lambda"],))
    assert twice["accuracy"] == direct["accuracy"] != once["accuracy"]


def test_persons_stay_in_one_fold() -> None:
    found = features.Features(np.zeros((60, 2)), np.arange(60), {"identity": np.arange(60) // 4})
    label = np.arange(60) // 4 % 3
    source: Any = Fixed(np.zeros((60, 2)), label)
    made = LinearTask("expression", source, Augment(), 32)
    fold = _linear_fit._folds(made, Loaded(source, found, label), 5, 0)
    assert all(len(set(fold[4 * person : 4 * person + 4])) == 1 for person in range(15))
    assert np.array_equal(np.bincount(fold), [12] * 5)
    assert all(np.bincount(label[fold == f]).tolist() == [4, 4, 4] for f in range(5))


def test_probe_of_a_folder(backbone: Backbone, faces: Path, cache: Path) -> None:
    found = evaluate(backbone, str(faces), protocol="linear")
    assert found["accuracy"] == 1.0
    wanted = {"name": "accuracy", "value": 1.0, "interval": [1.0, 1.0], "better": "higher", "unit": "fraction"}
    assert found["headline"] == wanted
    assert (found["n_train"] + found["n_val"] + found["n_test"], found["labels"]) == (60, "all")
    assert len(found["path"]) == 13
    json.dumps(found)
    few = evaluate(backbone, str(faces), protocol="linear", labels="3-per-class")
    assert (few["n_train"], few["n_val"], few["labels"]) == (9, 0, "3-per-class")
    assert few["chosen_on"].startswith("5-fold")
    assert evaluate(backbone, str(faces), labels="3-per-class", k=1)["n_train"] == 9  # any protocol


@pytest.mark.parametrize(
    ("options", "headline"),
    [
        ({"task": "attributes"}, "mean_accuracy"),
        ({"task": "attributes", "solver": "ridge"}, "mean_accuracy"),
        ({"task": "alignment"}, "nme_"),
        ({"task": "expression", "solver": "adamw", "epochs": 2}, "accuracy"),
    ],
)
def test_every_task_on_synthetic_faces(backbone: Backbone, cache: Path, options: dict[str, Any], headline: str) -> None:
    found = evaluate(backbone, "synthetic:?n=90&size=32", protocol="linear", lambdas=(100.0, 1.0), **options)
    assert found["headline"]["name"].startswith(headline)
    low, high = found["headline"]["interval"]
    assert low <= found["headline"]["value"] <= high
    if options["task"] == "alignment":
        assert found["constant"]["answer"] == "mean shape"
        assert found["headline"]["value"] < found["constant"]["scores"][found["headline"]["name"]]


def test_pairs_are_compared_without_training(backbone: Backbone, faces: Path, cache: Path) -> None:
    source: Any = open_source(str(faces))
    x = backbone.preprocess([source.key(i) for i in range(60)])
    with torch.no_grad():
        plain = backbone.eval()(x)
        both = plain + backbone(x.flip(3))
    assert features.features(backbone, source, flip=True).array == pytest.approx(both.numpy(), abs=1e-4)
    first, second = np.arange(0, 56, 2), np.arange(1, 57, 2)
    source.same, source.folds = np.repeat([True, False], 28), np.tile(np.arange(28) % 4, 2)
    for step in (20, 2):  # different pairs of another brightness, and of nearly always the same one
        other = (second + step) % 60
        source.pairs = np.concatenate([np.stack([first, second], 1), np.stack([first, other], 1)])
        areas = []
        for flip, rows in ((False, plain), (True, both)):
            found = linear(backbone, Subset(source, np.zeros(0, int)), source, flip=flip)
            assert found["task"] == "verification"
            same, different = (torch.cosine_similarity(rows[first], rows[at]) for at in (second, other))
            areas.append(float((same[:, None] > different).double().mean()))
            assert found["roc_auc"] == pytest.approx(areas[-1])
        assert (areas == [1, 1]) if step == 20 else (areas[0] != areas[1])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"sover": "ridge"}, UnknownName, "did you mean 'solver'"),
        ({"solver": "newton"}, UnknownName, "unknown solver 'newton'"),
        ({"task": "parsing"}, UnknownName, "unknown task of a linear probe"),
        ({"task": "attributes"}, ConfigError, "needs attributes, and the training source gives label"),
        ({"lambdas": (0.0, 1.0)}, ConfigError, "numbers above 0"),
        ({"labels": "ten"}, ConfigError, "labels=ten cannot be used"),
        ({"crop": "box"}, ConfigError, "crop box needs"),
        ({"flip": True}, ConfigError, "verification alone"),
        ({"task": "alignment", "solver": "sgd"}, ConfigError, "use ridge for alignment"),
        ({"protocol": "knn", "solver": "ridge"}, UnknownName, "unknown option of the protocol knn 'solver'"),
    ],
)
def test_mistakes_are_one_sentence(
    backbone: Backbone, faces: Path, cache: Path, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        evaluate(backbone, str(faces), **{"protocol": "linear", **options})
