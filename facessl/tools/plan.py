"""What a pre-training recipe costs on so many GPUs: steps, hours, input, all-reduce, checkpoint; nothing is run.

Parameters and arithmetic are counted on torch's meta device. The images per second of a GPU are an input, best for
several batch sizes: `benchmarks/gpu.sh` measures them. docs/scaling.md says where every constant comes from.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from facessl.config import recipes
from facessl.config.parse import parse
from facessl.config.pretrain import PretrainConfig, unscaled_rate
from facessl.core import plugins
from facessl.core.errors import ConfigError, FaceSSLError
from facessl.core.types import Batch, Progress
from facessl.data.source import open_source
from facessl.pretrained import load
from facessl.training.derived import default_batch, derive

#: Bytes of one image in a tar: a 256-pixel JPEG face (mean of 2,595 real ones) and the tar's own.
IMAGE_BYTES = 12_926 + 772
#: Seconds of one core to decode a 256-pixel JPEG and to crop 224 pixels, measured by `benchmarks/pipeline.py`.
DECODE_SECONDS, CROP_SECONDS = 1 / 5372, (1 / 2352 - 1 / 5372) / 2
#: Assumptions: time of a pass however few its images, and of one small message between all ranks.
FIXED_MILLISECONDS, NORM_MICROSECONDS = 20.0, 40.0
#: Images per pass that a rate given as a plain number was measured at.
MEASURED_BATCH = 256
#: Images of the sets that recipes are named after: VGGFace2's training part, LAION-Face's published subset.
SETS = {"vggface2": 3_141_890, "laionface": 20_000_000}
#: Images per rank and pass below which batch norm's messages weigh more than they bring, or, without messages, its
#: statistics are too coarse (Wu and He, Group Normalization, ECCV 2018: the error grows below 16).
SMALL_BATCH = 16
#: Images of the counted batch; a count per image leaves out what grows with the batch's square (negatives).
_COUNTED = 4


@dataclass(frozen=True)
class Options:
    """What a plan is made for.

    Attributes:
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
        ConfigError: a number out of range.
    """

    recipe: str
    _: KW_ONLY
    gpus: int = 8
    gpu_images_per_second: str | float | None = None
    images: int | None = None
    batch_size: int | None = None
    epochs: int | None = None
    warmup_epochs: float | None = None
    link_gbit: float = 200.0
    cores_per_gpu: float = 12.0
    image_bytes: float = IMAGE_BYTES
    worker_images_per_second: float | None = None
    fixed_milliseconds: float = FIXED_MILLISECONDS
    norm_microseconds: float = NORM_MICROSECONDS

    def __post_init__(self) -> None:
        for name in ("gpus", "link_gbit", "cores_per_gpu", "image_bytes", "worker_images_per_second"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ConfigError(f"{name} = {value} is out of range: give more than 0")
        for name in ("fixed_milliseconds", "norm_microseconds"):
            if not (value := getattr(self, name)) >= 0:
                raise ConfigError(f"{name} = {value} is out of range: give 0 or more")


def plan(options: Options) -> dict[str, Any]:
    """Every number of a plan, as plain values; None: not measured, or not to be counted.

    Raises:
        ConfigError: a recipe of fine-tuning, an unknown number of images, or rates that cannot be read.
    """
    rates = read_rates(options.gpu_images_per_second)
    recipe, gpus = options.recipe, options.gpus
    settings = _settings(options)
    count = options.images or _images(recipe, settings)
    if settings.batch_size is None:
        settings = dataclasses.replace(settings, batch_size=default_batch(count, gpus, "cuda"))
    derived, passes = derive(settings, count), settings.accumulate
    batch, steps = derived.batch_size, derived.total_steps
    network = _network(settings, gpus)
    per_core = options.worker_images_per_second or _worker_rate(settings)
    # Without rates this is not a number, and so is all that follows from it.
    compute = passes * pass_seconds(batch / gpus / passes, rates, options.fixed_milliseconds / 1000)
    norms = network["norm_messages"] * options.norm_microseconds * 1e-6
    all_reduce = network["all_reduce_bytes"] * 8 / (options.link_gbit * 1e9)
    # The input runs beside the step: it counts only where it is the slower of the two. Gradients can be reduced beside
    # the backward pass; what a norm waits for cannot.
    reading = batch / (gpus * options.cores_per_gpu * per_core)
    whole = compute + norms + all_reduce
    step = max(whole, reading)
    hours, rate = steps * step / 3600, batch / step
    result = {
        "recipe": recipe,
        "gpus": gpus,
        "images": count,
        "batch": batch,
        "batch_per_gpu": batch / gpus,
        "steps": steps,
        "images_seen": batch * steps,
        "learning_rate": derived.peak,
        "warmup_steps": derived.warmup_steps,
        **network,
        "all_reduce_seconds": all_reduce,
        "worker_images_per_second_per_core": per_core,
        "compute_seconds_per_step": compute,
        "norm_seconds_per_step": norms if rates else None,
        "seconds_per_step": step,
        "images_per_second": rate,
        "hours": hours,
        "gpu_hours": gpus * hours,
        "hours_with_overlap": steps * max(compute + norms, all_reduce, reading) / 3600,
        "share_of_communication": 1 - compute / whole,
        "read_bytes_per_second": rate * options.image_bytes,
        "decoding_cores": rate / per_core,
        "decoding_cores_per_gpu": rate / per_core / gpus,
        # At the best rate that was given: beside the peak of the GPU it shows a rate that cannot be.
        "teraflops_per_gpu": max(rates.values(), default=math.nan) * network["gigaflop_per_image"] / 1e3,
    }
    result = {key: None if value != value else value for key, value in result.items()}
    return result | {"warnings": _warnings(settings, result, options.cores_per_gpu)}


def read_rates(text: str | float | None) -> dict[int, float]:
    """`1200` -> {256: 1200.0}; `8:400,64:1200` -> {8: 400.0, 64: 1200.0}; None -> {}. ConfigError for anything else."""
    if text is None:
        return {}
    parts = [part.rpartition(":") for part in str(text).split(",")]
    try:
        rates = {int(batch) if colon else MEASURED_BATCH: float(rate) for batch, colon, rate in parts}
    except ValueError:
        rates = {}
    if len(rates) < len(parts) or not all(b > 0 and 0 < r < math.inf for b, r in rates.items()):
        raise ConfigError(
            f"gpu_images_per_second = {text} is not a rate: give images/s, or images/s by images per GPU, as in "
            "8:400,64:1200,256:1500"
        )
    return rates


def pass_seconds(images: float, rates: dict[int, float], fixed: float) -> float:
    """Seconds of a pass by `rates` (images per pass -> images/s), a line between them, `fixed` seconds on no image; nan
    without rates."""
    if not rates:
        return math.nan
    batches = sorted(rates)
    times = [batch / rates[batch] for batch in batches]
    if images >= batches[-1]:
        return images / rates[batches[-1]]
    return float(np.interp(images, [0, *batches], [min(fixed, times[0]), *times]))


def _settings(options: Options) -> PretrainConfig:
    recipe = options.recipe
    if recipe.startswith("downstream/") or "task" in recipes.read_recipe(recipe):
        raise ConfigError(f"{recipe} is a recipe of fine-tuning: plan takes those of pretrain (facessl list recipes)")
    flags = {"batch-size": options.batch_size, "epochs": options.epochs, "optim.warmup-epochs": options.warmup_epochs}
    words = [f"--{flag}={value}" for flag, value in flags.items() if value is not None]
    settings: PretrainConfig = parse(["--config", recipe, *words])
    return settings if options.epochs is None else dataclasses.replace(settings, max_steps=None)


def _images(recipe: str, settings: PretrainConfig) -> int:
    named = [count for name, count in SETS.items() if name in recipe]
    if not named and "source" in recipes.read_recipe(recipe):
        with contextlib.suppress(FaceSSLError):
            named = [len(open_source(settings.source))]
    if not named:
        raise ConfigError(f"how many images {recipe} trains on is not known: give --images N")
    return named[0]


def _worker_rate(settings: PretrainConfig) -> float:
    """Images per second that one core decodes and crops; the crops' cost goes with their pixels."""
    views = settings.views or plugins.find("methods", settings.method["name"]).views
    pixels = sum((view.size * settings.image_size) ** 2 for view in views)
    return 1 / (DECODE_SECONDS + CROP_SECONDS * pixels / 224**2)


def _network(settings: PretrainConfig, gpus: int) -> dict[str, Any]:
    """What is counted on the network: sizes, messages of its batch norms per step, arithmetic, bytes (float32)."""
    unread: frozenset[str] = getattr(plugins.find("methods", settings.method["name"]), "initial", frozenset())
    method = {key: value for key, value in settings.method.items() if key not in unread}
    backbone = dataclasses.replace(settings.backbone, pretrained=False)
    with torch.device("meta"):
        module: Any = load.build_method(dataclasses.replace(settings, method=method, backbone=backbone))
    module.train()
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    kept = sum(t.numel() for t in module.state_dict().values())
    states = 1 if settings.optim.name == "lars" else 2
    flops, messages = step_cost(module, settings)
    return {
        "parameters": trained,
        "parameters_kept": kept,
        "batch_norms": sum(isinstance(m, _BatchNorm) for m in module.modules()),
        "norm_messages": messages * settings.accumulate if settings.sync_batch_norm and gpus > 1 else 0,
        "gigaflop_per_image": flops / 1e9,
        "checkpoint_bytes": 4 * (kept + states * trained),
        # Weights, statistics and momentum networks, gradients (twice with several ranks: DDP copies them into
        # buckets), optimiser; activations come on top.
        "memory_bytes_without_activations": 4 * (kept + (1 + (gpus > 1) + states) * trained),
        "gradient_bytes": 4 * trained,
        "all_reduce_bytes": round(2 * (gpus - 1) / gpus * 4 * trained),
    }


def step_cost(module: Any, settings: PretrainConfig) -> tuple[float, int]:
    """Floating-point operations per image of a step on the meta device, and messages of its batch norms over the ranks.

    A norm sends one message forward for each call on training statistics and one backward for each that has a gradient.
    Where the step cannot be run without memory (masks, mixing and captions): nan, and both for every norm and view.
    """
    views = [round(view.size * settings.image_size) for view in settings.views or module.views]
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    messages: list[int] = []

    def called(norm: Any, *_: Any) -> None:
        messages.append((1 + torch.is_grad_enabled()) if norm.training else 0)

    handles = [norm.register_forward_hook(called) for norm in norms]
    try:
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            images = [torch.empty(_COUNTED, 3, side, side) for side in views]
            module.step(Batch(images, [], torch.arange(_COUNTED)), Progress(step=0, total_steps=1)).loss.backward()
    except Exception:  # whatever a method does that has no meaning without memory; there is no list of errors for it
        return math.nan, 2 * len(norms) * len(views)
    finally:
        for handle in handles:
            handle.remove()
    return counter.get_total_flops() / _COUNTED, sum(messages)


def _warnings(settings: PretrainConfig, plan: dict[str, Any], cores_per_gpu: float) -> list[str]:
    """What would fail or disappoint, and a batch that is not the recipe's own."""
    warnings, batch, gpus, accumulate = [], plan["batch"], plan["gpus"], settings.accumulate
    rate, warmup = plan["learning_rate"], plan["warmup_steps"]
    pieces = gpus * accumulate
    if batch % pieces:
        fitting = " or ".join(str(k * pieces) for k in (batch // pieces, batch // pieces + 1) if k)
        what = f"{gpus} GPUs" + (f" of {accumulate} micro-batches" if accumulate > 1 else "")
        warnings.append(f"batch {batch} does not divide by {what}: use --batch-size {fitting}")
    if plan["batch_norms"] and gpus > 1 and batch / pieces < SMALL_BATCH:
        seen = f"{batch / pieces:.3g} images per GPU and pass"
        fewer = f"; --accumulate 1 gives it {batch / gpus:.3g}" if accumulate > 1 else ""
        warnings.append(
            f"{seen}: the messages of {plan['batch_norms']} batch norms over the ranks will weigh more than the work; "
            f"use fewer GPUs or a larger batch{fewer}"
            if settings.sync_batch_norm
            else f"{seen} is all that each of {plan['batch_norms']} batch norms sees, as this recipe does not "
            f"synchronise them: another training than on fewer GPUs{fewer}"
        )
    flag, lr = "set --warmup-epochs (--optim.warmup-epochs of pretrain)", settings.optim.lr
    if warmup < 100 <= plan["steps"] and rate > lr:
        scaled = f"the rate was scaled from {lr:g} to {rate:.3g} for this batch"
        warnings.append(f"{scaled} and has {warmup} steps of warm-up: {flag}")
    if warmup > 0.2 * plan["steps"]:
        warnings.append(f"warm-up is {warmup / plan['steps']:.0%} of the run: {flag}")
    if plan["hours"] is None:
        warnings.append("hours need --gpu-images-per-second: measure it on one GPU with benchmarks/gpu.sh")
    elif plan["decoding_cores_per_gpu"] > 0.999 * cores_per_gpu:
        needed = plan["batch_per_gpu"] / plan["compute_seconds_per_step"]
        warnings.append(
            f"the GPUs wait for the loader: {cores_per_gpu:g} cores per GPU decode less than {needed:.4g} "
            f"images/s; give each GPU {math.ceil(needed / plan['worker_images_per_second_per_core'])} cores"
        )
    meant = recipes.read_recipe(plan["recipe"]).get("batch_size") or batch
    if (kept := unscaled_rate(settings, meant)) is not None:
        warnings.append(kept)
    elif max(batch / meant, meant / batch) >= 4:
        warnings.append(
            f"the recipe is for batch {meant}: at {batch} the rate is scaled to {rate:.3g}, a momentum network keeps "
            "its momentum; neither was tried"
        )
    return warnings


def table(plan: dict[str, Any]) -> str:
    """A plan for people: one line per number, what it is and how it came about."""

    def number(key: str, form: str, scale: float = 1, unit: str = "") -> str:
        value = plan[key]
        return "not known" if value is None else format(value if scale == 1 else value * scale, form) + unit

    per_core = number("worker_images_per_second_per_core", ",.0f")
    rows = [
        ("images per epoch", number("images", ",d"), ""),
        ("batch", number("batch", ",d"), f"{plan['batch_per_gpu']:g} on each of {plan['gpus']} GPUs"),
        ("steps", number("steps", ",d"), f"{plan['images_seen']:,} images"),
        ("peak learning rate", number("learning_rate", ".4g"), f"after {plan['warmup_steps']:,} steps of warm-up"),
        ("parameters trained", number("parameters", ",d"), f"{plan['parameters_kept']:,} with momentum networks"),
        ("arithmetic per image", number("gigaflop_per_image", ",.1f", unit=" GFLOP"),
         f"{number('teraflops_per_gpu', ',.0f', unit=' TFLOP/s')} of a GPU at the best rate given"),
        ("images/s in total", number("images_per_second", ",.0f"), ""),
        ("batch norm over the ranks", number("norm_seconds_per_step", ",.1f", 1e3, " ms"),
         f"{plan['norm_messages']} messages a step"),
        ("hours", number("hours", ",.1f"), f"{number('hours_with_overlap', ',.1f')} if all-reduce hides in compute"),
        ("GPU hours", number("gpu_hours", ",.0f"), ""),
        ("all-reduce per step and GPU", number("all_reduce_bytes", ".3f", 1e-9, " GB"),
         f"{plan['all_reduce_seconds'] * 1e3:.1f} ms, float32 gradients, ring"),
        ("share of communication", number("share_of_communication", ".1%"), "without overlap"),
        ("cores that decode", number("decoding_cores", ",.1f"), f"{per_core} images/s each"),
        ("reading, MB/s", number("read_bytes_per_second", ",.1f", 1e-6), "from shards"),
        ("checkpoint", number("checkpoint_bytes", ".3f", 1e-9, " GB"), "weights, momentum networks, optimiser"),
        ("memory per GPU", number("memory_bytes_without_activations", ".3f", 1e-9, " GB"),
         "without activations, which benchmarks/gpu.sh measures"),
    ]  # fmt: skip
    lines = [f"{name:28} {value:>18}  {note}".rstrip() for name, value, note in rows]
    return "\n".join([plan["recipe"], *lines, *(f"warning: {text}" for text in plan["warnings"])])
