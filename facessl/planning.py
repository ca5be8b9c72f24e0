"""What a pre-training recipe costs on so many GPUs: steps, hours, input, all-reduce, checkpoint; nothing is run.

Parameters are counted on torch's meta device, so that a plan takes seconds and no memory. What only a machine can
tell, the images per second of one GPU, is an input: `benchmarks/gpu.sh` measures it. Every other constant was
measured and says where.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from facessl import config as configuration
from facessl import loading, plugins
from facessl.batch import Sample
from facessl.config import RunConfig
from facessl.data.source import open_source
from facessl.errors import ConfigError, FaceSSLError
from facessl.parsing import parse
from facessl.pretraining import derive

#: Bytes that one image takes in a tar: 12,926 of a 256-pixel JPEG face (mean of 2,595 real ones) and 772 of the tar's
#: own (23,242 real faces in 12 tars).
IMAGE_BYTES = 12_926 + 772
#: Seconds of one core (AMD EPYC, 224-pixel JPEG, commit e0a5ddc20c33): 3,470 decodes, 1,670 with two crops of 224.
#: `benchmarks/pipeline.py` measures a machine's own.
DECODE_SECONDS = 1 / 3470
CROP_SECONDS = (1 / 1670 - 1 / 3470) / 2
#: Images of the sets that recipes are named after: VGGFace2's training part, LAION-Face's published subset.
SETS = {"vggface2": 3_141_890, "laionface": 20_000_000}
#: Images per rank and pass below which batch norm's messages weigh more than they bring.
SMALL_BATCH = 16
FLOAT = 4


@dataclass(frozen=True)
class Machine:
    """What a job would run on.

    Attributes:
        gpus: ranks.
        images_per_second: of one GPU, the whole step, measured by `benchmarks/gpu.sh`; None: unknown.
        link_gbit: bandwidth between GPUs in Gbit/s, of the slowest link of the ring.
        cores_per_gpu: for the loader.
        image_bytes: of one image as it is stored.
        worker_images_per_second: of one core, decoded and cropped; None: from the constants above.
    """

    gpus: int
    images_per_second: float | None = None
    link_gbit: float = 200.0
    cores_per_gpu: float = 12.0
    image_bytes: float = IMAGE_BYTES
    worker_images_per_second: float | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and not value > 0:
                raise ConfigError(f"{field.name} = {value} is out of range: give more than 0")


@dataclass(frozen=True)
class Size:
    """Numbers of a method's network.

    Attributes:
        trained: parameters with a gradient, what is all-reduced.
        kept: elements of the state dict, with momentum networks and statistics; what a checkpoint holds.
        norms: batch norms.
    """

    trained: int
    kept: int
    norms: int


class _Counted:
    """A source of which only the length is known."""

    provides: frozenset[str] = frozenset()
    label_names: tuple[str, ...] = ()
    attribute_names: tuple[str, ...] = ()
    streaming = False

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Sample:
        raise IndexError(index)

    def key(self, index: int) -> str:
        raise IndexError(index)


def plan(
    recipe: str,
    *,
    gpus: int = 8,
    gpu_images_per_second: float | None = None,
    images: int | None = None,
    batch_size: int | None = None,
    epochs: int | None = None,
    link_gbit: float = 200.0,
    cores_per_gpu: float = 12.0,
    image_bytes: float = IMAGE_BYTES,
    worker_images_per_second: float | None = None,
) -> dict[str, Any]:
    """Every number of a plan, as plain values.

    Args:
        recipe: name of `facessl list recipes`, or a YAML file.
        gpus: ranks.
        gpu_images_per_second: of one GPU, the whole step, as benchmarks/gpu.sh measures it; null: not known.
        images: of the training set; null: of the set that the recipe is named after, or of its own source.
        batch_size: of all GPUs together, instead of the recipe's.
        epochs: instead of the recipe's.
        link_gbit: Gbit/s between GPUs, of the slowest link: that of the network where there are several nodes.
        cores_per_gpu: processor cores for the loader.
        image_bytes: of one stored image; by default that of a 256-pixel JPEG in a tar.
        worker_images_per_second: images of one core, decoded and cropped; null: as measured, see docs/scaling.md.

    Raises:
        ConfigError: a recipe of fine-tuning, an unknown number of images, or a number out of range.
    """
    machine = Machine(gpus, gpu_images_per_second, link_gbit, cores_per_gpu, image_bytes, worker_images_per_second)
    settings = _settings(recipe, batch_size, epochs)
    count = images or _images(recipe, settings)
    if settings.batch_size is None:
        whole = max(1, min(256 * machine.gpus, count) // machine.gpus) * machine.gpus
        settings = dataclasses.replace(settings, batch_size=whole)
    derived = derive(settings, _Counted(count), settings)
    size = measure(settings)
    batch, steps = derived.batch_size, derived.total_steps
    seen = batch * steps
    states = 1 if settings.optim.name == "lars" else 2
    found: dict[str, Any] = {
        "recipe": recipe,
        "gpus": machine.gpus,
        "images": count,
        "batch": batch,
        "batch_per_gpu": batch / machine.gpus,
        "steps": steps,
        "images_seen": seen,
        "learning_rate": derived.peak,
        "warmup_steps": derived.warmup_steps,
        "parameters": size.trained,
        "parameters_kept": size.kept,
        "batch_norms": size.norms,
        "checkpoint_bytes": FLOAT * (size.kept + states * size.trained),
        # Weights, statistics and momentum networks, gradients, optimiser; activations come on top.
        "memory_bytes_without_activations": FLOAT * (size.kept + (1 + states) * size.trained),
    }
    n = machine.gpus
    found["gradient_bytes"] = FLOAT * size.trained
    found["all_reduce_bytes"] = round(2 * (n - 1) / n * found["gradient_bytes"])
    found["all_reduce_seconds"] = found["all_reduce_bytes"] * 8 / (machine.link_gbit * 1e9)
    found["worker_images_per_second_per_core"] = machine.worker_images_per_second or worker_rate(settings)
    found |= _timed(found, machine)
    found["warnings"] = warnings(settings, found, machine)
    return found


def _settings(recipe: str, batch_size: int | None, epochs: int | None) -> RunConfig:
    if recipe.startswith("downstream/") or "task" in configuration.read_recipe(recipe):
        raise ConfigError(f"{recipe} is a recipe of fine-tuning: plan takes those of pretrain (facessl list recipes)")
    words = ["--config", recipe]
    words += ["--batch-size", str(batch_size)] if batch_size is not None else []
    words += ["--epochs", str(epochs)] if epochs is not None else []
    settings: RunConfig = parse(words)
    return dataclasses.replace(settings, max_steps=None) if epochs is not None else settings


def _images(recipe: str, settings: RunConfig) -> int:
    named = [count for name, count in SETS.items() if name in recipe]
    if named:
        return named[0]
    if "source" in configuration.read_recipe(recipe):
        try:
            return len(open_source(settings.source))
        except FaceSSLError:
            pass
    raise ConfigError(f"how many images {recipe} trains on is not known: give --images N")


def measure(settings: RunConfig) -> Size:
    """Parameters of the method that `settings` build, without memory for them."""
    kind = plugins.find("methods", settings.method["name"])
    unread: frozenset[str] = getattr(kind, "initial", frozenset())
    method = {key: value for key, value in settings.method.items() if key not in unread}
    backbone = dataclasses.replace(settings.backbone, pretrained=False)
    with torch.device("meta"):
        module: Any = loading.build_method(dataclasses.replace(settings, method=method, backbone=backbone))
    return Size(
        trained=sum(p.numel() for p in module.parameters() if p.requires_grad),
        kept=sum(t.numel() for t in module.state_dict().values()),
        norms=sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules()),
    )


def worker_rate(settings: RunConfig) -> float:
    """Images per second that one core decodes and crops into the views of `settings`.

    The crops' cost goes with their pixels, and the decode's is that of a 224-pixel file.
    """
    kind = plugins.find("methods", settings.method["name"])
    pixels = sum((view.size * settings.image_size) ** 2 for view in settings.views or kind.views)
    return 1 / (DECODE_SECONDS + CROP_SECONDS * pixels / 224**2)


def _timed(found: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """What follows from the speed of a GPU; nothing where that was not measured."""
    names = "compute_seconds_per_step seconds_per_step images_per_second hours gpu_hours hours_with_overlap"
    names += " share_of_communication read_bytes_per_second decoding_cores decoding_cores_per_gpu"
    if machine.images_per_second is None:
        return dict.fromkeys(names.split())
    compute = found["batch_per_gpu"] / machine.images_per_second
    # The input runs beside the step: it counts only where it is the slower of the two.
    supply = machine.gpus * machine.cores_per_gpu * found["worker_images_per_second_per_core"]
    slowest_input = found["batch"] / supply
    step = max(compute + found["all_reduce_seconds"], slowest_input)
    overlapped = max(compute, found["all_reduce_seconds"], slowest_input)
    rate = found["batch"] / step
    cores = rate / found["worker_images_per_second_per_core"]
    return {
        "compute_seconds_per_step": compute,
        "seconds_per_step": step,
        "images_per_second": rate,
        "hours": found["steps"] * step / 3600,
        "gpu_hours": machine.gpus * found["steps"] * step / 3600,
        "hours_with_overlap": found["steps"] * overlapped / 3600,
        "share_of_communication": found["all_reduce_seconds"] / (compute + found["all_reduce_seconds"]),
        "read_bytes_per_second": rate * machine.image_bytes,
        "decoding_cores": cores,
        "decoding_cores_per_gpu": cores / machine.gpus,
    }


def warnings(settings: RunConfig, found: dict[str, Any], machine: Machine) -> list[str]:
    """Sentences about what would fail or disappoint."""
    told = []
    batch, gpus = found["batch"], machine.gpus
    pieces = gpus * settings.accumulate
    if batch % pieces:
        fitting = [k * pieces for k in (batch // pieces, batch // pieces + 1) if k]
        what = f"{gpus} GPUs" + (f" of {settings.accumulate} micro-batches" if settings.accumulate > 1 else "")
        told.append(f"batch {batch} does not divide by {what}: use --batch-size {' or '.join(map(str, fitting))}")
    if settings.sync_batch_norm and found["batch_norms"] and gpus > 1 and batch / pieces < SMALL_BATCH:
        told.append(
            f"{batch / pieces:.3g} images per GPU and pass: the messages of {found['batch_norms']} batch norms over "
            "the ranks will weigh more than the work; use fewer GPUs or a larger batch"
        )
    if found["warmup_steps"] < 100 <= found["steps"] and found["learning_rate"] > settings.optim.lr:
        told.append(
            f"the rate was scaled from {settings.optim.lr:g} to {found['learning_rate']:.3g} for this batch and has "
            f"{found['warmup_steps']} steps of warm-up: set --optim.warmup-epochs"
        )
    if found["decoding_cores_per_gpu"] is not None and found["images_per_second"] < 0.999 * batch / (
        found["compute_seconds_per_step"] + found["all_reduce_seconds"]
    ):
        told.append(
            f"the GPUs wait for the loader: {machine.cores_per_gpu:g} cores per GPU decode less than "
            f"{machine.images_per_second:g} images/s; give each GPU "
            f"{math.ceil((machine.images_per_second or 0) / found['worker_images_per_second_per_core'])} cores"
        )
    if machine.images_per_second is None:
        told.append("hours need --gpu-images-per-second: measure it on one GPU with benchmarks/gpu.sh")
    return told


def table(found: dict[str, Any]) -> str:
    """A plan for people: one line per number, what it is and how it came about."""
    gigabytes = 1e-9

    def number(key: str, form: str, scale: float | None = None) -> str:
        if found[key] is None:
            return "not known"
        return format(found[key] if scale is None else found[key] * scale, form)

    rows = [
        ("images per epoch", number("images", ",d"), ""),
        ("batch", number("batch", ",d"), f"{found['batch_per_gpu']:g} on each of {found['gpus']} GPUs"),
        ("steps", number("steps", ",d"), f"{found['images_seen']:,} images"),
        ("peak learning rate", number("learning_rate", ".4g"), f"after {found['warmup_steps']:,} steps of warm-up"),
        ("parameters trained", number("parameters", ",d"), f"{found['parameters_kept']:,} with momentum networks"),
        ("images/s in total", number("images_per_second", ",.0f"), ""),
        ("hours", number("hours", ",.1f"), f"{number('hours_with_overlap', ',.1f')} if all-reduce hides in compute"),
        ("GPU hours", number("gpu_hours", ",.0f"), ""),
        ("all-reduce per step and GPU", number("all_reduce_bytes", ".3f", gigabytes) + " GB",
         f"{found['all_reduce_seconds'] * 1e3:.1f} ms, float32 gradients, ring"),
        ("share of communication", number("share_of_communication", ".1%"), "without overlap"),
        ("cores that decode", number("decoding_cores", ",.1f"),
         f"{found['worker_images_per_second_per_core']:,.0f} images/s each"),
        ("reading, MB/s", number("read_bytes_per_second", ",.1f", 1e-6), "from shards"),
        ("checkpoint", number("checkpoint_bytes", ".3f", gigabytes) + " GB", "weights, momentum networks, optimiser"),
        ("memory per GPU", number("memory_bytes_without_activations", ".3f", gigabytes) + " GB",
         "without activations, which benchmarks/gpu.sh measures"),
    ]  # fmt: skip
    lines = [f"{name:28} {value:>18}  {note}".rstrip() for name, value, note in rows]
    return "\n".join([found["recipe"], *lines, *(f"warning: {text}" for text in found["warnings"])])
