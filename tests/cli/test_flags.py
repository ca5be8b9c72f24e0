"""Flags: words that mean null, the help of settings, defaults of the command line."""

import contextlib
import re

import pytest
import yaml
from torch import nn

from facessl.cli import main, networks
from facessl.core import environment, plugins
from facessl.evaluation import evaluate
from facessl.inference import embed
from tests.helpers import refused


@pytest.mark.parametrize("word", ["None", "none", "null"])
def test_none_is_null_where_it_is_no_name(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--method", "fra", "--method.mask-embeddings", word, f"--max-steps={word}", "--out", word]
    assert main(["pretrain", "synthetic:?n=8", *words, "--print-config"]) == 0
    told = yaml.safe_load(capsys.readouterr().out)
    assert told["method"]["mask_embeddings"] is None
    assert told["max_steps"] is None
    assert told["out"] == (None if word == "null" else word), "a folder may have this name"
    assert "no-run does not exist" in refused(capsys, "embed", "no-run", "x", "--threads", word, f"--workers={word}")


def test_help_says_null_and_not_none(capsys: pytest.CaptureFixture[str]) -> None:
    helps = [["pretrain", "--method", name] for name in plugins.names("methods")]
    helps += [["finetune", "--task", name] for name in plugins.names("tasks")]
    helps += [["probe", "--protocol", name] for name in plugins.names("evaluation.protocols")]
    for words in helps:
        with contextlib.suppress(SystemExit):
            main([*words, "--help"])
        told = capsys.readouterr().out
        assert "usage:" in told
        assert not re.search(r"\bNone\b", told), words


def test_a_probe_reads_with_the_workers_of_embed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(networks, "computing_device", lambda *_: "cpu")
    monkeypatch.setattr(embed, "load_embedder", lambda _: nn.Identity())
    monkeypatch.setattr(environment, "cores", lambda: 5)
    given: list[int] = []

    def evaluated(*_: object, workers: int, **__: object) -> dict[str, object]:
        given.append(workers)
        return {"headline": {"name": "accuracy", "value": 1.0, "interval": [1.0, 1.0], "unit": "fraction"}}

    monkeypatch.setattr(evaluate, "evaluate", evaluated)
    for words in ([], ["--workers", "0"], ["--protocol", "linear"]):
        assert main(["probe", "run", "x", *words]) == 0
    assert given == [4, 0, 4]
