"""What a pre-training recipe costs on so many GPUs: steps, hours, input, all-reduce, checkpoint; nothing is run.

Parameters are counted on torch's meta device. The images per second of a GPU are an input: `benchmarks/gpu.sh` measures
them. docs/scaling.md says where every constant comes from.
"""

import contextlib
import math
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from facessl.config import recipes
from facessl.config.parse import parse
from facessl.config.pretrain import PretrainConfig, unscaled_rate
from facessl.core import plugins
from facessl.core.errors import ConfigError, FaceSSLError
from facessl.core.values import POSITIVE, check_values
from facessl.data.source import open_source
from facessl.pretrained import load
from facessl.training.derived import default_batch, derive

#: Bytes of one image in a tar; seconds of one core to decode it (256 pixels) and to crop 224 pixels.
IMAGE_BYTES, DECODE_SECONDS, CROP_SECONDS = 12_926 + 772, 1 / 5372, (1 / 2352 - 1 / 5372) / 2
#: Seconds of a pass on no image, an assumption; images per pass that a rate given as a plain number was measured at.
FIXED_SECONDS, MEASURED_BATCH = 0.02, 256
#: Images of the sets that recipes are named after: VGGFace2's training part, LAION-Face's published subset.
SETS = {"vggface2": 3_141_890, "laionface": 20_000_000}


@dataclass(frozen=True)
class Options:
    """Options of `plan`.

    Attributes:
        recipe: name of `facessl list recipes`, or a YAML file.
        gpus: of the job over all nodes, one process (rank) each.
        gpu_images_per_second: of one GPU, the whole step, as benchmarks/gpu.sh measures it: by images per GPU, as in
            8:400,64:1200,256:1500, or one number, which is taken for that of 256; null: not known.
        images: of the training set; null: of the recipe's source, or of the set that the recipe is named after.
        batch_size: of all GPUs together, instead of the recipe's.
        epochs: passes over the images, instead of the recipe's.
        warmup_epochs: epochs of linear warm-up, instead of the recipe's.
        link_gbit: Gbit/s between GPUs, of the slowest link: that of the network where there are several nodes.
        cores_per_gpu: processor cores for the loader.
        worker_images_per_second: images of one core, decoded and cropped; null: as measured, see docs/scaling.md.
        norm_microseconds: time of one message of a synchronized batch norm, in microseconds; an assumption.
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
    worker_images_per_second: float | None = None
    norm_microseconds: float = 40.0

    def __post_init__(self) -> None:
        check_values(self, {"gpus images batch_size epochs link_gbit cores_per_gpu worker_images_per_second": POSITIVE})


def plan(options: Options) -> dict[str, Any]:
    """Compute the numbers of a plan as plain values; None: not known without rates."""
    rates, gpus = read_rates(options.gpu_images_per_second), options.gpus
    settings, count = _settings(options)
    derived, batch, passes = derive(settings, count), settings.batch_size or 0, settings.accumulate
    network, views = _network(settings, gpus)
    seconds = DECODE_SECONDS + CROP_SECONDS * sum(side**2 for side in views) / 224**2
    per_core = options.worker_images_per_second or 1 / seconds
    compute = passes * pass_seconds(batch / gpus / passes, rates)
    norms = network["norm_messages"] * options.norm_microseconds * 1e-6
    all_reduce = network["all_reduce_bytes"] * 8 / (options.link_gbit * 1e9)
    # Reading overlaps with the step, and the reduction of gradients with the backward pass, but not that of norms.
    reading = batch / (gpus * options.cores_per_gpu * per_core)
    step = max(compute + norms + all_reduce, reading)
    hours, rate = derived.total_steps * step / 3600, batch / step
    result = {
        **{"recipe": options.recipe, "gpus": gpus, "images": count, "batch": batch, "batch_per_gpu": batch / gpus},
        **{"steps": derived.total_steps, "learning_rate": derived.peak, "warmup_steps": derived.warmup_steps},
        **network,
        **{"compute_seconds_per_step": compute, "norm_seconds_per_step": norms, "all_reduce_seconds": all_reduce},
        **{"images_per_second": rate, "hours": hours, "gpu_hours": gpus * hours},
        "hours_with_overlap": derived.total_steps * max(compute + norms, all_reduce, reading) / 3600,
        "read_megabytes_per_second": rate * IMAGE_BYTES * 1e-6,
        "decoding_cores": rate / per_core,
    }
    result = {key: None if value != value else value for key, value in result.items()}
    return result | {"warnings": _warnings(settings, result, options.cores_per_gpu)}


def read_rates(text: str | float | None) -> dict[int, float]:
    """`1200` -> {256: 1200.0}; `8:400,64:1200` -> {8: 400.0, 64: 1200.0}; None -> {}. ConfigError: another text."""
    parts = [] if text is None else [part.rpartition(":") for part in str(text).split(",")]
    with contextlib.suppress(ValueError):
        rates = {int(batch) if colon else MEASURED_BATCH: float(rate) for batch, colon, rate in parts}
        if len(rates) == len(parts) and all(b > 0 and 0 < r < math.inf for b, r in rates.items()):
            return rates
    raise ConfigError(
        f"gpu_images_per_second = {text} is not a rate: give images/s, or by batch 8:400,64:1200,256:1500"
    )


def pass_seconds(images: float, rates: dict[int, float]) -> float:
    """Seconds of a pass, interpolated from `rates` (images per pass -> images/s); nan without rates."""
    if not rates:
        return math.nan
    largest, times = max(rates), {batch: batch / rates[batch] for batch in sorted(rates)}
    times = {0: min(FIXED_SECONDS, *times.values()), **times}
    return max(images / largest, 1) * float(np.interp(images, [*times], [*times.values()]))


def _settings(options: Options) -> tuple[PretrainConfig, int]:
    """The recipe, changed by the options, and the number of its images."""
    name, recipe = options.recipe, recipes.read_recipe(options.recipe)
    if "task" in recipe:
        raise ConfigError(f"{name} is a recipe of fine-tuning: plan takes those of pretrain (facessl list recipes)")
    flags = {"batch-size": options.batch_size, "epochs": options.epochs, "optim.warmup-epochs": options.warmup_epochs}
    settings = parse(["--config", name, *(f"--{flag}={v}" for flag, v in flags.items() if v is not None)])
    images = options.images
    if images is None and "source" in recipe:
        with contextlib.suppress(FaceSSLError):
            images = len(open_source(settings.source))
    if images is None and not Path(name).is_file():
        images = next((count for part, count in SETS.items() if part in name), None)
    if images is None:
        raise ConfigError(f"how many images {name} trains on is not known: give --images N")
    batch = settings.batch_size or default_batch(images, options.gpus, "cuda")
    return replace(settings, batch_size=batch, max_steps=None if options.epochs else settings.max_steps), images


def _network(settings: PretrainConfig, gpus: int) -> tuple[dict[str, Any], list[int]]:
    """Counts of the network, bytes in float32; and the sides of its views in pixels."""
    initial: frozenset[str] = getattr(plugins.find("methods", settings.method["name"]), "initial", frozenset())
    method = {key: value for key, value in settings.method.items() if key not in initial}
    backbone = replace(settings.backbone, pretrained=False)
    with torch.device("meta"):
        module: Any = load.build_method(replace(settings, method=method, backbone=backbone))
    views = [round(view.size * settings.image_size) for view in settings.views or module.views]
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    # One message of each view forward, and one backward if the network is trained.
    messages = len(views) * sum(1 + any(p.requires_grad for p in norm.parameters()) for norm in norms)
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    stored = sum(t.numel() for t in module.state_dict().values())
    states = 1 if settings.optim.name == "lars" else 2
    return {
        "parameters": trained,
        "batch_norms": len(norms),
        "norm_messages": messages * settings.accumulate if settings.sync_batch_norm and gpus > 1 else 0,
        "checkpoint_bytes": 4 * (stored + states * trained),
        # Gradients twice with several ranks, as DDP copies them into buckets.
        "memory_bytes_without_activations": 4 * (stored + (1 + (gpus > 1) + states) * trained),
        "all_reduce_bytes": round(2 * (gpus - 1) / gpus * 4 * trained),
    }, views


def _warnings(settings: PretrainConfig, plan: dict[str, Any], cores_per_gpu: float) -> list[str]:
    warnings, batch, gpus, accumulate = [], plan["batch"], plan["gpus"], settings.accumulate
    pieces, warmup, steps = gpus * accumulate, plan["warmup_steps"], plan["steps"]
    if batch % pieces:
        fitting = " or ".join(str(k * pieces) for k in (batch // pieces, batch // pieces + 1) if k)
        warnings.append(f"batch {batch} does not divide by {gpus} GPUs x {accumulate}: use --batch-size {fitting}")
    if plan["batch_norms"] and gpus > 1 and batch / pieces < 16:  # where its error grows (Wu and He, ECCV 2018)
        more = f", or --accumulate 1, which gives them {batch / gpus:.3g}" if accumulate > 1 else ""
        few = f"batch norms see {batch / pieces:.3g} images per GPU and pass"
        warnings.append(f"{plan['batch_norms']} {few}: use fewer GPUs or a larger batch{more}")
    flag, lr, rate = "set --warmup-epochs (--optim.warmup-epochs of pretrain)", settings.optim.lr, plan["learning_rate"]
    if warmup < 100 <= steps and rate > lr:
        warnings.append(f"the rate was scaled from {lr:g} to {rate:.3g} and has {warmup} steps of warm-up: {flag}")
    if warmup > 0.2 * steps:
        warnings.append(f"warm-up is {warmup / steps:.0%} of the run: {flag}")
    if plan["hours"] is None:
        warnings.append("hours need --gpu-images-per-second: measure it on one GPU with benchmarks/gpu.sh")
    elif plan["decoding_cores"] > 0.999 * cores_per_gpu * gpus:
        needed = cores_per_gpu * plan["batch"] / plan["images_per_second"] / plan["compute_seconds_per_step"]
        warnings.append(f"the GPUs wait for the loader: give each GPU {math.ceil(needed)} cores")
    recipe_batch = recipes.read_recipe(plan["recipe"]).get("batch_size") or batch
    if (warning := unscaled_rate(settings, recipe_batch)) is not None:
        warnings.append(warning)
    elif max(batch / recipe_batch, recipe_batch / batch) >= 4:
        warnings.append(f"the recipe is for batch {recipe_batch}: {batch} with a rate of {rate:.3g} was not tried")
    return warnings


def table(plan: dict[str, Any]) -> str:
    """Table of a plan: a line for each number and each warning."""
    forms = {float: ",.6g", int: ",", str: ""}
    texts = {k: "not known" if v is None else format(v, forms[type(v)]) for k, v in plan.items() if k != "warnings"}
    lines = [f"{key.replace('_', ' '):34} {text:>18}" for key, text in texts.items()]
    return "\n".join([*lines, *(f"warning: {text}" for text in plan["warnings"])])
