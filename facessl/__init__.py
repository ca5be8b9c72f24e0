"""Face representations learned without labels.

```python
import facessl

result = facessl.pretrain("photos/", out="runs/mine")
backbone = facessl.load_backbone("runs/mine")
vectors = facessl.embed(backbone, "photos/")  # (N, C)
scores = facessl.evaluate(backbone, "labelled/", protocol="knn")
tuned = facessl.finetune("runs/mine", "labelled/", task="expression", out="runs/expression")
found = facessl.predict("runs/expression", ["photo.jpg"], out="predictions")
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from facessl.evaluation import evaluate as evaluate
    from facessl.finetuning import finetune as finetune
    from facessl.inference import embed as embed
    from facessl.loading import load_backbone as load_backbone
    from facessl.loading import load_method as load_method
    from facessl.predicting import predict as predict
    from facessl.pretraining import pretrain as pretrain

_HOME = {
    "embed": "facessl.inference",
    "evaluate": "facessl.evaluation",
    "finetune": "facessl.finetuning",
    "load_backbone": "facessl.loading",
    "load_method": "facessl.loading",
    "predict": "facessl.predicting",
    "pretrain": "facessl.pretraining",
}

__all__ = [
    "embed",
    "evaluate",
    "finetune",
    "list_methods",
    "list_recipes",
    "list_sources",
    "load_backbone",
    "load_method",
    "predict",
    "pretrain",
]


def list_methods() -> tuple[str, ...]:
    """Names of the pre-training methods."""
    from facessl import plugins

    return plugins.names("methods")


def list_sources() -> tuple[str, ...]:
    """Names of the sources, as in `NAME:PATH`."""
    from facessl import plugins

    return plugins.names("data.sources")


def list_recipes() -> tuple[str, ...]:
    """Names of the shipped recipes."""
    from facessl import config

    return config.recipes()


def __getattr__(name: str) -> Any:  # imports torch only when it is needed
    if name in _HOME:
        import importlib

        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'facessl' has no attribute {name!r}")
