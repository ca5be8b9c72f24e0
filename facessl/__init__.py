"""Face representations learned without labels.

```python
import facessl

facessl.crop("photos/", "faces/")
result = facessl.pretrain("faces/", out="runs/mine")
backbone = facessl.load_backbone("runs/mine")
vectors = facessl.embed(backbone, "faces/")  # (N, C); facessl.embeddings also gives the keys and labels
facessl.write_embeddings("embeddings.parquet", facessl.embeddings(backbone, "faces/"))
similar = facessl.search("runs/mine", "photo.jpg", "embeddings.parquet")
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
    from facessl.core.errors import DataWarning as DataWarning
    from facessl.core.errors import FaceSSLError as FaceSSLError
    from facessl.evaluation.evaluate import evaluate as evaluate
    from facessl.inference.embed import embed as embed
    from facessl.inference.embed import embeddings as embeddings
    from facessl.inference.embed import load_embedder as load_embedder
    from facessl.inference.embedding_formats import Embeddings as Embeddings
    from facessl.inference.embedding_formats import read_embeddings as read_embeddings
    from facessl.inference.embedding_formats import write_embeddings as write_embeddings
    from facessl.inference.export import export as export
    from facessl.inference.groups import group as group
    from facessl.inference.neighbors import search as search
    from facessl.inference.predict import predict as predict
    from facessl.inference.trained_task import load_trained as load_trained
    from facessl.models.backbone import Backbone as Backbone
    from facessl.pretrained.load import load_backbone as load_backbone
    from facessl.pretrained.load import load_method as load_method
    from facessl.tools.crop import crop as crop
    from facessl.tools.crop import crop_face as crop_face
    from facessl.training.finetune import finetune as finetune
    from facessl.training.pretrain import pretrain as pretrain

_HOME = {
    "Backbone": "facessl.models.backbone",
    "DataWarning": "facessl.core.errors",
    "Embeddings": "facessl.inference.embedding_formats",
    "FaceSSLError": "facessl.core.errors",
    "crop": "facessl.tools.crop",
    "crop_face": "facessl.tools.crop",
    "embed": "facessl.inference.embed",
    "embeddings": "facessl.inference.embed",
    "evaluate": "facessl.evaluation.evaluate",
    "export": "facessl.inference.export",
    "finetune": "facessl.training.finetune",
    "group": "facessl.inference.groups",
    "load_backbone": "facessl.pretrained.load",
    "load_embedder": "facessl.inference.embed",
    "load_method": "facessl.pretrained.load",
    "load_trained": "facessl.inference.trained_task",
    "predict": "facessl.inference.predict",
    "pretrain": "facessl.training.pretrain",
    "read_embeddings": "facessl.inference.embedding_formats",
    "search": "facessl.inference.neighbors",
    "write_embeddings": "facessl.inference.embedding_formats",
}

__all__ = [*_HOME, "list_methods", "list_protocols", "list_recipes", "list_sources", "list_tasks"]


def list_methods() -> tuple[str, ...]:
    """Names of the pre-training methods."""
    return plugins.names("methods")


def list_tasks() -> tuple[str, ...]:
    """Names of the downstream tasks of `facessl.finetune`."""
    return plugins.names("tasks")


def list_protocols() -> tuple[str, ...]:
    """Names of the protocols of `facessl.evaluate`."""
    return plugins.names("evaluation.protocols")


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


def __dir__() -> list[str]:
    return sorted(__all__)
