"""What a pre-training recipe costs on so many GPUs: steps, hours, input, all-reduce, checkpoint; nothing is run.

Parameters and arithmetic are counted on torch's meta device, so that a plan takes seconds and no memory. What only a
machine can tell, the images per second of one GPU, is an input, best for several batch sizes: `benchmarks/gpu.sh`
measures them. Every other constant says where it was measured, or that it is an assumption and which flag changes it.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from facessl.config import recipes
from facessl.config.parse import parse
from facessl.config.pretrain import PretrainConfig, unscaled_rate
from facessl.core import plugins
from facessl.core.errors import ConfigError, FaceSSLError
from facessl.data.source import open_source
from facessl.tools import counting
from facessl.training.plan import default_batch, derive

#: Bytes that one image takes in a tar: 12,926 of a 256-pixel JPEG face (mean of 2,595 real ones) and 772 of the tar's
#: own (23,242 real faces in 12 tars).
IMAGE_BYTES = 12_926 + 772
#: Seconds of one core (AMD EPYC, JPEG of 256 pixels, commit e05fe686bb0b, docs/performance.md): 5,372 decodes, 2,352
#: with two crops of 224, through the loader to a batch. `benchmarks/pipeline.py` measures a machine's own.
DECODE_SECONDS = 1 / 5372
CROP_SECONDS = (1 / 2352 - 1 / 5372) / 2
#: Assumption (--fixed-milliseconds): what a pass costs however few images it has. A step of FRA or BYOL on ResNet-50
#: issues 2,500 or 1,500 operations (counted), at some 8 microseconds of the host each.
FIXED_MILLISECONDS = 20.0
#: Assumption (--norm-microseconds): one small message between all ranks, between 20 (reported for two nodes) and 60;
#: benchmarks/gpu.sh measures it where there are several GPUs.
NORM_MICROSECONDS = 40.0
#: Images per pass that a rate given as a plain number was measured at: that of benchmarks/gpu.sh.
MEASURED_BATCH = 256
#: Images of the sets that recipes are named after: VGGFace2's training part, LAION-Face's published subset.
SETS = {"vggface2": 3_141_890, "laionface": 20_000_000}
#: Images per rank and pass below which batch norm's messages weigh more than they bring, or, where the ranks' norms
#: are apart, its statistics are too coarse (Wu and He, Group Normalization, ECCV 2018: the error grows below 16).
SMALL_BATCH = 16
#: Share of the run that a warm-up may take.
LONG_WARMUP = 0.2
#: Times the recipe's batch from which scaled rates are told to be untried.
FAR = 4
FLOAT = 4


@dataclass(frozen=True)
class Machine:
    """What a job would run on.

    Attributes:
        gpus: GPUs of the job over all nodes, one process (rank) each.
        rates: images per pass -> images/s of one GPU, the whole step, measured by `benchmarks/gpu.sh`; empty: unknown.
        link_gbit: bandwidth between GPUs in Gbit/s, of the slowest link of the ring.
        cores_per_gpu: for the loader.
        image_bytes: of one image as it is stored.
        worker_images_per_second: of one core, decoded and cropped; None: from the constants above.
        fixed_milliseconds: of a pass on no image.
        norm_microseconds: of one message of a batch norm over the ranks.
    """

    gpus: int
    rates: Mapping[int, float] = field(default_factory=dict)
    link_gbit: float = 200.0
    cores_per_gpu: float = 12.0
    image_bytes: float = IMAGE_BYTES
    worker_images_per_second: float | None = None
    fixed_milliseconds: float = FIXED_MILLISECONDS
    norm_microseconds: float = NORM_MICROSECONDS

    def __post_init__(self) -> None:
        for name in ("gpus", "link_gbit", "cores_per_gpu", "image_bytes", "worker_images_per_second"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} = {value} is out of range: give more than 0")
        for name in ("fixed_milliseconds", "norm_microseconds"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} = {getattr(self, name)} is out of range: give 0 or more")

    def pass_seconds(self, images: float) -> float:
        """Seconds of one GPU for a forward and backward pass of so many images.

        A line between the measured times, down to the fixed time of a pass on none; the last rate above the largest.
        """
        known = sorted((batch, batch / rate) for batch, rate in self.rates.items())
        if images >= known[-1][0]:
            return images / self.rates[known[-1][0]]
        points = [(0, min(self.fixed_milliseconds / 1000, known[0][1])), *known]
        (low, begin), (high, end) = next(pair for pair in itertools.pairwise(points) if images < pair[1][0])
        return begin + (end - begin) * (images - low) / (high - low)


def read_rates(text: str | float | None) -> dict[int, float]:
    """`1200` -> {256: 1200.0}; `8:400,64:1200` -> {8: 400.0, 64: 1200.0}; None -> {}.

    Raises:
        ConfigError: anything else, or a number that is not positive.
    """
    if text is None:
        return {}
    try:
        parts = [part.rpartition(":") for part in str(text).split(",")]
        found = {int(batch) if colon else MEASURED_BATCH: float(rate) for batch, colon, rate in parts}
    except ValueError:
        found = {}
    if not found or len(found) < len(parts) or not all(b > 0 and 0 < r < math.inf for b, r in found.items()):
        raise ConfigError(
            f"gpu_images_per_second = {text} is not a rate: give images/s, or images/s by images per GPU, as in "
            "8:400,64:1200,256:1500"
        )
    return found


def plan(
    recipe: str,
    *,
    gpus: int = 8,
    gpu_images_per_second: str | float | None = None,
    images: int | None = None,
    batch_size: int | None = None,
    epochs: int | None = None,
    warmup_epochs: float | None = None,
    link_gbit: float = 200.0,
    cores_per_gpu: float = 12.0,
    image_bytes: float = IMAGE_BYTES,
    worker_images_per_second: float | None = None,
    fixed_milliseconds: float = FIXED_MILLISECONDS,
    norm_microseconds: float = NORM_MICROSECONDS,
) -> dict[str, Any]:
    """Every number of a plan, as plain values.

    Args:
        recipe: name of `facessl list recipes`, or a YAML file.
        gpus: GPUs of the job over all nodes, one process (rank) each.
        gpu_images_per_second: of one GPU, the whole step, as benchmarks/gpu.sh measures it: by images per GPU, as in
            8:400,64:1200,256:1500, or one number, which is taken for that of 256; null: not known.
        images: of the training set; null: of the set that the recipe is named after, or of its own source.
        batch_size: of all GPUs together, instead of the recipe's.
        epochs: passes over the images, instead of the recipe's.
        warmup_epochs: epochs of linear warm-up, instead of the recipe's.
        link_gbit: Gbit/s between GPUs, of the slowest link: that of the network where there are several nodes.
        cores_per_gpu: processor cores for the loader.
        image_bytes: bytes of one stored image; the default is a 256-pixel JPEG in a tar.
        worker_images_per_second: images of one core, decoded and cropped; null: as measured, see docs/scaling.md.
        fixed_milliseconds: time of a pass that does not shrink with the batch, in ms, used below the smallest batch of
            the given rates; an assumption.
        norm_microseconds: time of one message of a synchronised batch norm, in microseconds; an assumption.

    Raises:
        ConfigError: a recipe of fine-tuning, an unknown number of images, or a number out of range.
    """
    rates = read_rates(gpu_images_per_second)
    machine = Machine(
        gpus, rates, link_gbit, cores_per_gpu, image_bytes, worker_images_per_second, fixed_milliseconds,
        norm_microseconds,
    )  # fmt: skip
    settings = _settings(recipe, batch_size, epochs, warmup_epochs)
    count = images or _images(recipe, settings)
    if settings.batch_size is None:
        settings = dataclasses.replace(settings, batch_size=default_batch(count, machine.gpus, "cuda"))
    derived = derive(settings, count)
    module = counting.build(settings)
    size, cost = counting.size(module), counting.cost(module, settings)
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
        "norm_messages": cost.messages * settings.accumulate if settings.sync_batch_norm and machine.gpus > 1 else 0,
        "gigaflop_per_image": None if cost.flops is None else cost.flops / 1e9,
        "checkpoint_bytes": FLOAT * (size.kept + states * size.trained),
        # Weights, statistics and momentum networks, gradients (twice with several ranks: DDP copies them into
        # buckets), optimiser; activations come on top.
        "memory_bytes_without_activations": FLOAT * (size.kept + (1 + (machine.gpus > 1) + states) * size.trained),
    }
    n = machine.gpus
    found["gradient_bytes"] = FLOAT * size.trained
    found["all_reduce_bytes"] = round(2 * (n - 1) / n * found["gradient_bytes"])
    found["all_reduce_seconds"] = found["all_reduce_bytes"] * 8 / (machine.link_gbit * 1e9)
    found["worker_images_per_second_per_core"] = machine.worker_images_per_second or worker_rate(settings)
    found |= _timed(found, machine, settings.accumulate)
    found["warnings"] = warnings(settings, found, machine) + untried(recipe, settings, found)
    return found


def _settings(
    recipe: str, batch_size: int | None = None, epochs: int | None = None, warmup: float | None = None
) -> PretrainConfig:
    if recipe.startswith("downstream/") or "task" in recipes.read_recipe(recipe):
        raise ConfigError(f"{recipe} is a recipe of fine-tuning: plan takes those of pretrain (facessl list recipes)")
    words = ["--config", recipe]
    words += ["--batch-size", str(batch_size)] if batch_size is not None else []
    words += ["--epochs", str(epochs)] if epochs is not None else []
    words += ["--optim.warmup-epochs", str(warmup)] if warmup is not None else []
    settings: PretrainConfig = parse(words)
    return dataclasses.replace(settings, max_steps=None) if epochs is not None else settings


def _images(recipe: str, settings: PretrainConfig) -> int:
    named = [count for name, count in SETS.items() if name in recipe]
    if named:
        return named[0]
    if "source" in recipes.read_recipe(recipe):
        try:
            return len(open_source(settings.source))
        except FaceSSLError:
            pass
    raise ConfigError(f"how many images {recipe} trains on is not known: give --images N")


def worker_rate(settings: PretrainConfig) -> float:
    """Images per second that one core decodes and crops into the views of `settings`.

    The crops' cost goes with their pixels, and the decode's is that of a 256-pixel file.
    """
    kind = plugins.find("methods", settings.method["name"])
    pixels = sum((view.size * settings.image_size) ** 2 for view in settings.views or kind.views)
    return 1 / (DECODE_SECONDS + CROP_SECONDS * pixels / 224**2)


def _timed(found: dict[str, Any], machine: Machine, passes: int) -> dict[str, Any]:
    """What follows from the speed of a GPU; nothing where that was not measured."""
    names = "compute_seconds_per_step norm_seconds_per_step seconds_per_step images_per_second hours gpu_hours"
    names += " hours_with_overlap share_of_communication read_bytes_per_second decoding_cores decoding_cores_per_gpu"
    names += " teraflops_per_gpu"
    if not machine.rates:
        return dict.fromkeys(names.split())
    compute = passes * machine.pass_seconds(found["batch_per_gpu"] / passes)
    norms = found["norm_messages"] * machine.norm_microseconds * 1e-6
    # The input runs beside the step: it counts only where it is the slower of the two. Gradients can be reduced beside
    # the backward pass; what a norm waits for cannot.
    supply = machine.gpus * machine.cores_per_gpu * found["worker_images_per_second_per_core"]
    slowest_input = found["batch"] / supply
    step = max(compute + norms + found["all_reduce_seconds"], slowest_input)
    overlapped = max(compute + norms, found["all_reduce_seconds"], slowest_input)
    rate = found["batch"] / step
    cores = rate / found["worker_images_per_second_per_core"]
    return {
        "compute_seconds_per_step": compute,
        "norm_seconds_per_step": norms,
        "seconds_per_step": step,
        "images_per_second": rate,
        "hours": found["steps"] * step / 3600,
        "gpu_hours": machine.gpus * found["steps"] * step / 3600,
        "hours_with_overlap": found["steps"] * overlapped / 3600,
        "share_of_communication": 1 - compute / (compute + norms + found["all_reduce_seconds"]),
        "read_bytes_per_second": rate * machine.image_bytes,
        "decoding_cores": cores,
        "decoding_cores_per_gpu": cores / machine.gpus,
        # At the best rate that was given: beside the peak of the GPU it shows a rate that cannot be.
        "teraflops_per_gpu": found["gigaflop_per_image"]
        and max(machine.rates.values()) * found["gigaflop_per_image"] / 1e3,
    }


def warnings(settings: PretrainConfig, found: dict[str, Any], machine: Machine) -> list[str]:
    """Sentences about what would fail or disappoint."""
    told = []
    batch, gpus = found["batch"], machine.gpus
    pieces = gpus * settings.accumulate
    if batch % pieces:
        fitting = [k * pieces for k in (batch // pieces, batch // pieces + 1) if k]
        what = f"{gpus} GPUs" + (f" of {settings.accumulate} micro-batches" if settings.accumulate > 1 else "")
        told.append(f"batch {batch} does not divide by {what}: use --batch-size {' or '.join(map(str, fitting))}")
    seen = batch / pieces
    if found["batch_norms"] and gpus > 1 and seen < SMALL_BATCH:
        fewer = f"; --accumulate 1 gives it {batch / gpus:.3g}" if settings.accumulate > 1 else ""
        told.append(
            f"{seen:.3g} images per GPU and pass: the messages of {found['batch_norms']} batch norms over the ranks "
            f"will weigh more than the work; use fewer GPUs or a larger batch{fewer}"
            if settings.sync_batch_norm
            else f"{seen:.3g} images per GPU and pass is all that each of {found['batch_norms']} batch norms sees, as "
            f"this recipe does not synchronise them: another training than on fewer GPUs{fewer}"
        )
    if found["warmup_steps"] < 100 <= found["steps"] and found["learning_rate"] > settings.optim.lr:
        told.append(
            f"the rate was scaled from {settings.optim.lr:g} to {found['learning_rate']:.3g} for this batch and has "
            f"{found['warmup_steps']} steps of warm-up: set --warmup-epochs (--optim.warmup-epochs of pretrain)"
        )
    if found["warmup_steps"] > LONG_WARMUP * found["steps"]:
        told.append(
            f"warm-up is {found['warmup_steps'] / found['steps']:.0%} of the run: set --warmup-epochs "
            "(--optim.warmup-epochs of pretrain)"
        )
    if found["decoding_cores_per_gpu"] is not None and found["images_per_second"] < 0.999 * batch / (
        found["compute_seconds_per_step"] + found["norm_seconds_per_step"] + found["all_reduce_seconds"]
    ):
        needed = found["batch_per_gpu"] / found["compute_seconds_per_step"]
        told.append(
            f"the GPUs wait for the loader: {machine.cores_per_gpu:g} cores per GPU decode less than "
            f"{needed:.4g} images/s; give each GPU "
            f"{math.ceil(needed / found['worker_images_per_second_per_core'])} cores"
        )
    if not machine.rates:
        told.append("hours need --gpu-images-per-second: measure it on one GPU with benchmarks/gpu.sh")
    return told


def untried(recipe: str, settings: PretrainConfig, found: dict[str, Any]) -> list[str]:
    """Sentences about a batch that is not the recipe's own."""
    meant = recipes.read_recipe(recipe).get("batch_size")
    if meant is None or found["batch"] == meant:
        return []
    kept = unscaled_rate(settings, meant)
    if kept is not None:
        return [kept]
    if max(found["batch"] / meant, meant / found["batch"]) < FAR:
        return []
    return [
        f"the recipe is for batch {meant}: at {found['batch']} the rate is scaled to {found['learning_rate']:.3g}, a "
        "momentum network keeps its momentum; neither was tried"
    ]


def table(found: dict[str, Any]) -> str:
    """A plan for people: one line per number, what it is and how it came about."""
    gigabytes = 1e-9

    def number(key: str, form: str, scale: float | None = None, unit: str = "") -> str:
        if found[key] is None:
            return "not known"
        return format(found[key] if scale is None else found[key] * scale, form) + unit

    rows = [
        ("images per epoch", number("images", ",d"), ""),
        ("batch", number("batch", ",d"), f"{found['batch_per_gpu']:g} on each of {found['gpus']} GPUs"),
        ("steps", number("steps", ",d"), f"{found['images_seen']:,} images"),
        ("peak learning rate", number("learning_rate", ".4g"), f"after {found['warmup_steps']:,} steps of warm-up"),
        ("parameters trained", number("parameters", ",d"), f"{found['parameters_kept']:,} with momentum networks"),
        ("arithmetic per image", number("gigaflop_per_image", ",.1f", unit=" GFLOP"),
         f"{number('teraflops_per_gpu', ',.0f', unit=' TFLOP/s')} of a GPU at the best rate given"),
        ("images/s in total", number("images_per_second", ",.0f"), ""),
        ("batch norm over the ranks", number("norm_seconds_per_step", ",.1f", 1e3, " ms"),
         f"{found['norm_messages']} messages a step"),
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
