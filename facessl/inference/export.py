"""A trained network as files that run without facessl: ONNX, or the folder that timm and transformers load.

`onnx` writes `model.onnx` and its card `model.json` (also in the file's metadata, under `facessl`): a run of
`facessl finetune` with the outputs of its task, anything else with `features` (B, C) and `map` (B, C, h, w). `timm` and
`hf` write `config.json` and `model.safetensors` of the backbone. Each folder has a `README.md` to be completed. Inputs
are normalized RGB images (B, 3, S, S) float32 with any B; the card and `config.json` say how they are made.
"""

import contextlib
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from facessl.core import files
from facessl.core.checkpoint import read_safetensors
from facessl.core.errors import CheckpointError, ConfigError, DataError, UnknownName
from facessl.core.lock import only_writer
from facessl.core.schema import read_json, to_json
from facessl.data.decode import pixels
from facessl.data.source import open_source
from facessl.inference.model_card import model_card
from facessl.inference.trained_task import Trained, load_trained
from facessl.models.backbone import Backbone
from facessl.models.forward import evaluating
from facessl.pretrained.convert import card_of
from facessl.pretrained.load import open_backbone, weight_files
from facessl.tasks.base import Results

FORMATS = ("onnx", "timm", "hf")
#: Format of `model.json`.
_ONNX = "facessl-onnx-1"
#: Largest difference between an exported model and torch, relative to the largest value of an output.
TOLERANCE = 1e-4
#: Bytes of weights above which they stand beside `model.onnx`, as one file of ONNX holds 2 GiB.
_ONE_FILE = 1 << 30
#: Files of an export. The last of each format is what a reader opens first: it comes last and goes first.
_FILES = ("README.md", "model.onnx.data", "model.json", "model.onnx", "model.safetensors", "config.json")


@dataclass
class Network:
    """A network to export."""

    module: nn.Module  # in evaluation mode, on the CPU
    predict: Callable[[Tensor], dict[str, Tensor]]  # normalized images (B, 3, S, S) -> outputs by name
    outputs: str  # what `predict` returns, in words
    backbone: Backbone
    card: Mapping[str, Any]  # of the run
    task: Trained | None = None  # if it is one


def export(run: str | Path, out: str | Path, *, format: str = "onnx", overwrite: bool = False) -> dict[str, Any]:
    """Write a trained network for use without facessl, after comparing it with torch on synthetic faces.

    Args:
        run: run folder, checkpoint or exported weights.
        out: folder to write; its files appear only when all are complete.
        format: onnx, timm or hf (see the module).
        overwrite: replace the folder of an earlier export.

    Returns:
        `out`, `format`, `files`, and `difference`: the largest from torch by output, relative to its largest value.

    Raises:
        CheckpointError: as for `facessl.load_backbone`; or the exported model differs by more than `TOLERANCE`.
        ConfigError: `out` is not empty, or not an export; a package is missing; the network cannot be exported.
        DataError: `out` cannot be written.
    """
    if format not in FORMATS:
        raise UnknownName("export format", format, FORMATS)
    if format == "onnx" and (
        missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if not find_spec(name)]
    ):
        raise ConfigError(f"--format onnx needs {' and '.join(missing)}: pip install 'facessl[onnx]'")
    out = Path(out).resolve()
    files.check_output(out, folder=True)
    with only_writer(out), contextlib.ExitStack() as stack:
        files.remove_temporaries(out)
        _check_replaceable(out, overwrite)
        network = _opened(Path(run), with_task=format == "onnx")
        faces = open_source(f"synthetic:?n=3&size={max(network.backbone.image_size, 32)}")
        images = network.backbone.preprocess([pixels(faces[index]) for index in range(len(faces))])
        with evaluating(network.module):
            expected = {name: value.float() for name, value in network.predict(images).items()}
        folder = stack.enter_context(_completed_folder(out))
        if format == "onnx":
            outputs = _write_onnx(network, list(expected), images, folder)
        else:
            outputs = _write_timm(network, images, folder)
        difference = {name: _difference(expected[name], value) for name, value in outputs.items()}
        for name, value in difference.items():
            if not value <= TOLERANCE:
                raise CheckpointError(
                    f"{name} of the exported model differs from torch's by {value:.1e} of its largest value, more than "
                    f"{TOLERANCE:.0e}: nothing was written; use another --format"
                )
        results = Path(run) / "results.json"
        scores = read_json(results, Results) if results.is_file() else None
        text = model_card(network.card, preprocessing(network), format, scores)
        (folder / "README.md").write_text(text, encoding="utf-8")
        names = sorted(path.name for path in folder.iterdir())
    return {"out": str(out), "format": format, "files": names, "difference": difference}


def preprocessing(network: Network) -> dict[str, Any]:
    """Describe how the input is made from a picture, for the cards."""
    backbone = network.backbone
    steps: dict[str, Any] = {
        "size": [backbone.image_size, backbone.image_size],
        "color": "RGB",
        "orientation": "upright, with the EXIF rotation applied",
        "resize": "bilinear, antialiased (Pillow's BILINEAR), to the square without regard to the aspect ratio",
        "scale": "values / 255, then (x - mean) / std",
        "mean": list(backbone.mean),
        "std": list(backbone.std),
        "layout": "NCHW float32",
    }
    if network.task is None:
        return steps | {"face": "one cropped face, as in the training images"}
    augment, framing = network.task.augment, network.task.card.get("framing") or {}
    if augment.crop == "five_points":
        template = f"template {augment.template} of facessl.data.face_square"
        face = f"turned, so that the five points come to the {template}"
    elif augment.crop == "box":
        face = f"the square around its box, {augment.crop_scale:g} times the longer side"
    elif "margin" in framing:
        face = (
            f"the square around its box, {framing['margin'] * augment.crop_scale:g} times the longer side, and its "
            f"center {framing['lift']:g} of that side above the box's"
        )
    else:
        face = "one cropped face, as in the training images"
    warp = f"; FaRL's warp {augment.warp:g} (facessl.data.face_square.Frame) follows" if augment.warp else ""
    crop = {name: getattr(augment, name) for name in ("crop", "crop_scale", "template", "warp", "border")}
    return steps | {"face": face + warp, "crop": crop}


def _opened(run: Path, *, with_task: bool) -> Network:
    if with_task and "task" in weight_files(run):
        model = load_trained(run)
        task: Any = model.task
        outputs = f"{(task.predict.__doc__ or '').strip()} The center of a view's top-left pixel is (0, 0)."
        return Network(model.module, task.predict, outputs, task.backbone, model.card, model)
    backbone, origin = open_backbone(run)

    def predict(x: Tensor) -> dict[str, Tensor]:
        feature_map, features = backbone.forward_both(x)
        return {"features": features, "map": feature_map}

    outputs = "(B, 3, S, S) normalized -> features (B, C), pooled, and map (B, C, h, w)."
    return Network(backbone, predict, outputs, backbone, card_of(run, backbone, origin))


def _difference(expected: Tensor, value: Tensor) -> float:
    """Largest difference relative to the largest value; NaN if a value is not a number."""
    largest = expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return float(((value - expected).abs().max() / largest).item())


# ---- formats -----------------------------------------------------------------------------------------------------


class _Positional(nn.Module):
    """`Network.predict` with a tuple of outputs, as the exporter wants it."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.module, self.predict = network.module, network.predict
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(value.float() for value in self.predict(images).values())


def _write_onnx(network: Network, names: list[str], images: Tensor, folder: Path) -> dict[str, Tensor]:
    """Return ONNX Runtime's outputs, in batches of one and two."""
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                _Positional(network),
                (images[:2],),
                dynamo=True,
                verbose=False,
                input_names=["images"],
                output_names=names,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
    except (torch.onnx.OnnxExporterError, RuntimeError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise ConfigError(f"{network.backbone.name} cannot be exported to ONNX by torch: {reason}") from None
    assert program is not None
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # names of source files on this machine
    ports = (*program.model.graph.inputs, *program.model.graph.outputs)
    shapes = {port.name: [d if isinstance(d, int) else str(d) for d in port.shape or ()] for port in ports}
    if isinstance(shapes["images"][0], int):
        raise ConfigError(
            f"torch exports {network.backbone.name} for a fixed batch only: use x.shape[0] instead of len(x) in its "
            "forward pass"
        )
    training = dict(network.card)
    card = {
        "format": _ONNX,
        "inputs": {"images": shapes.pop("images")},
        "outputs": shapes,
        "about_outputs": network.outputs,
        "labels": {name: value for name, value in training.pop("labels", {}).items() if value},
        "preprocessing": preprocessing(network),
        "training": {name: value for name, value in training.items() if name not in ("format", "augment", "framing")},
    }
    program.model.metadata_props["facessl"] = to_json(card)
    file = folder / "model.onnx"
    weights = sum(value.nbytes for value in network.module.state_dict().values())
    program.save(file, external_data=weights > _ONE_FILE)
    (folder / "model.json").write_text(to_json(card, indent=2) + "\n", encoding="utf-8")

    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    parts = [session.run(None, {"images": batch.numpy()}) for batch in (images[:1], images[1:])]
    return {name: torch.cat([torch.from_numpy(part[i]) for part in parts]) for i, name in enumerate(names)}


def _write_timm(network: Network, images: Tensor, folder: Path) -> dict[str, Tensor]:
    """Return the features that timm makes with the files."""
    backbone = network.backbone
    if not timm.model_entrypoint(backbone.name).__module__.startswith("timm."):
        raise ConfigError(f"{backbone.name} is a network of facessl, which timm does not have: use --format onnx")
    size = backbone.image_size
    own = backbone.model.pretrained_cfg
    config = {
        "architecture": backbone.name,
        "num_classes": 0,
        "num_features": backbone.num_features,
        "model_args": backbone.model_args,
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "fixed_input_size": "img_size" in backbone.model_args,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "mean": backbone.mean,
            "std": backbone.std,
            "num_classes": 0,
            "first_conv": own.get("first_conv"),
            "classifier": own.get("classifier"),
        },
        # For transformers, which would otherwise guess it.
        "model_type": "timm_wrapper",
        "architectures": ["TimmWrapperModel"],
        "facessl": dict(network.card),
    }
    (folder / "config.json").write_text(to_json(config, indent=2) + "\n", encoding="utf-8")
    tensors = {name: value.contiguous() for name, value in backbone.model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt", "card": to_json(network.card)})
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    with evaluating(model):
        return {"features": model(images)}


# ---- the folder --------------------------------------------------------------------------------------------------


def _check_replaceable(out: Path, overwrite: bool) -> None:
    """Raise ConfigError unless a folder is empty or, with `overwrite`, an earlier export."""
    present = {path.name for path in out.iterdir() if path.name != ".lock"}
    if present and not overwrite:
        raise ConfigError(f"--out {out} is not empty and is not overwritten: name another folder, or use --overwrite")
    own = {path.name for path in out.iterdir() if path.is_file() and not path.is_symlink()} & set(_FILES)
    if others := sorted(present - own):
        raise ConfigError(
            f"--overwrite replaces only what `facessl export` wrote, and {out} also has {others[0]}: name another --out"
        )
    cards = [read_json(out / name, dict[str, Any]) for name in ("config.json", "model.json") if name in own]
    if "model.safetensors" in own:
        card = read_safetensors(out / "model.safetensors", card_only=True)[1]
        cards.append({"facessl": card} if card else {})
    if present and not any("facessl" in card or card.get("format") == _ONNX for card in cards):
        raise ConfigError(
            f"--overwrite replaces only what `facessl export` wrote, and {out} is not: name another --out"
        )


@contextlib.contextmanager
def _completed_folder(out: Path) -> Iterator[Path]:
    """A folder in `out` whose files replace an earlier export at the end, one by one, as `out` may be mounted."""
    new, old = files.temporary_beside(out / "new"), files.temporary_beside(out / "old")
    try:
        new.mkdir()
        old.mkdir()
        yield new
        for path in new.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        moves = [(out / name, old / name) for name in reversed(_FILES) if (out / name).exists()]
        moves += [(new / name, out / name) for name in _FILES if (new / name).exists()]
        with contextlib.ExitStack() as undo:
            for source, target in moves:
                source.replace(target)
                undo.callback(os.replace, target, source)
            undo.pop_all()
        files.sync_folder(out)
    except OSError as error:
        raise DataError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        for folder in (new, old):
            shutil.rmtree(folder, ignore_errors=True)
