"""Face representations learned without labels.

```python
import facessl

facessl.crop("photos/", "faces/")
result = facessl.pretrain("faces/", out="runs/mine")
backbone = facessl.load_backbone("runs/mine")
vectors = facessl.embed(backbone, "faces/")  # (N, C)
similar = facessl.search("runs/mine", "photo.jpg", "embeddings.parquet")  # of `facessl embed`
groups = facessl.group("embeddings.parquet")
scores = facessl.evaluate(backbone, "labeled/", protocol="knn")
tuned = facessl.finetune("runs/mine", "labeled/", task="expression", out="runs/expression")
predictions = facessl.predict("runs/expression", ["photo.jpg"], out="predictions")
facessl.export("runs/expression", "exports/expression", format="onnx")
```
"""

import importlib
from typing import TYPE_CHECKING, Any

from facessl.core import plugins

__version__ = "0.2.0"

if TYPE_CHECKING:
    from facessl.evaluation.evaluate import evaluate as evaluate
    from facessl.inference.embed import embed as embed
    from facessl.inference.export import export as export
    from facessl.inference.groups import group as group
    from facessl.inference.neighbors import search as search
    from facessl.inference.predict import predict as predict
    from facessl.pretrained.load import load_backbone as load_backbone
    from facessl.pretrained.load import load_method as load_method
    from facessl.tools.crop import crop as crop
    from facessl.training.finetune import finetune as finetune
    from facessl.training.pretrain import pretrain as pretrain

_HOME = {
    "crop": "facessl.tools.crop",
    "embed": "facessl.inference.embed",
    "evaluate": "facessl.evaluation.evaluate",
    "export": "facessl.inference.export",
    "finetune": "facessl.training.finetune",
    "group": "facessl.inference.groups",
    "load_backbone": "facessl.pretrained.load",
    "load_method": "facessl.pretrained.load",
    "predict": "facessl.inference.predict",
    "pretrain": "facessl.training.pretrain",
    "search": "facessl.inference.neighbors",
}

__all__ = [*_HOME, "list_methods", "list_recipes", "list_sources"]


def list_methods() -> tuple[str, ...]:
    """Names of the pre-training methods."""
    return plugins.names("methods")


def list_sources() -> tuple[str, ...]:
    """Names of the sources, as in `NAME:PATH`."""
    return plugins.names("data.sources")


def list_recipes() -> tuple[str, ...]:
    """Names of the shipped recipes."""
    from facessl.config.recipes import recipes

    return recipes()


def __getattr__(name: str) -> Any:  # imports torch only if it is needed
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'facessl' has no attribute {name!r}")
