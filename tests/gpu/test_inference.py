"""Views, embeddings and predictions on the GPU against those of the CPU."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import facessl
from facessl.core.types import Batch
from facessl.data.detect import detect_all
from facessl.data.loader import TrainLoader
from facessl.data.prefetch import Prefetcher
from facessl.data.source import open_source
from facessl.inference.trained_task import load_trained
from facessl.methods.fra import FRA
from facessl.models.backbone import Backbone
from facessl.training.finetune import finetune
from facessl.views.geometric import Geometric
from facessl.views.photometric import Photometric
from tests.data.test_detect import photo

FACES = "synthetic:?n=48&size=72"


def views(device: torch.device, workers: int) -> list[Batch]:
    loader = TrainLoader(
        open_source(FACES), Geometric(FRA.views, 64), batch_size=16, seed=5, workers=workers,
        pin_memory=device.type == "cuda",
    )  # fmt: skip
    batches = Prefetcher(iter(loader), device, Photometric(FRA.mean, FRA.std))
    return [next(batches) for _ in range(4)]


def test_views_are_those_of_the_cpu(device: torch.device) -> None:
    """To a gray level: OpenCV rounds to uint8 where torch does not."""
    for on_cpu, on_gpu in zip(views(torch.device("cpu"), 0), views(device, 2), strict=True):
        assert torch.equal(on_cpu.index, on_gpu.index.cpu())
        for a, b in zip(on_cpu.views, on_gpu.views, strict=True):
            difference = (a - b.cpu()).abs() * 255 * min(FRA.std)
            assert difference.mean() < 0.5
            assert difference.quantile(0.99) < 3


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_embeddings_are_those_of_the_cpu(name: str, device: torch.device, exact: None) -> None:
    torch.manual_seed(0)
    backbone = Backbone(name, image_size=64)
    wanted = facessl.embed(backbone, FACES)
    found = facessl.embed(backbone.to(device), FACES)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 * float(np.abs(wanted).max()))


def test_a_model_fine_tuned_on_the_gpu_predicts_alike_on_the_cpu(
    device: torch.device, exact: None, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings: dict[str, Any] = {
        "task": "expression", "out": str(run), "backbone": "resnet10t", "image_size": 64, "batch_size": 8,
        "max_steps": 4, "workers": 0, "device": device.type,
    }  # fmt: skip
    finetune(None, FACES, **settings)
    file = tmp_path / "face.png"
    Image.fromarray(open_source(FACES)[0].image).save(file)
    probabilities = []
    for place in (device, torch.device("cpu")):
        model = load_trained(run)
        model.task.to(place)
        (found,) = facessl.predict(model, [file], out=tmp_path / place.type, crop=False, draw=False, overwrite=True)
        probabilities.append(list(found.faces[0]["probabilities"].values()))
    np.testing.assert_allclose(*probabilities, atol=1e-4)


def test_faces_are_found_where_the_cpu_finds_them(device: torch.device) -> None:
    photos = [photo((100, 40, 200), index=index)[0] for index in range(3)]
    wanted = detect_all(photos)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        found = detect_all(photos, device=device.type)
    again = detect_all(photos)  # the detector on the GPU has networks of its own
    for (on_cpu,), (on_gpu,), (later,) in zip(wanted, found, again, strict=True):
        np.testing.assert_allclose(on_gpu.box, on_cpu.box, atol=0.5)
        np.testing.assert_array_equal(later.box, on_cpu.box)
