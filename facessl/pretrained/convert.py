"""Any checkpoint that can be loaded -> `backbone.safetensors` and its card."""

from pathlib import Path
from typing import Any

from facessl.config.paths import located, published
from facessl.core import checkpoint, environment
from facessl.core.errors import ConfigError
from facessl.models.backbone import Backbone
from facessl.pretrained import load


def convert(path: str | Path, out: str | Path, **given: Any) -> dict[str, Any]:
    """Write the backbone of a checkpoint as safetensors under timm's names, with its card inside and beside (.json).

    Args:
        path: as for `load.load_backbone`.
        out: the .safetensors to write; nothing is overwritten.
        given: `name`, `heads`, `mean` and `std` of `load.load_backbone`.

    Returns:
        the card; of an authors' file with `guessed`: settings that neither it nor the caller gives.

    Raises:
        CheckpointError, UnknownName, ConfigError: what `load.load_backbone` refuses.
        ConfigError: `out` is no .safetensors, or it or its card exists.
    """
    path, out = Path(path), Path(out)
    if out.suffix != ".safetensors":
        raise ConfigError(
            f"--out {out} is not a .safetensors file: name one, e.g. {out.with_suffix('.safetensors').name}"
        )
    for file in (out, out.with_suffix(".json")):
        if file.exists():
            raise ConfigError(f"{file} exists and is not overwritten: choose another --out, or move it away")
    backbone, origin = load.open_backbone(path, **given)
    card = card_of(path, backbone, origin)
    checkpoint.write_backbone(out, backbone.model.state_dict(), card)
    return card


def card_of(path: Path, backbone: Backbone, origin: load.Origin | None) -> dict[str, Any]:
    """Return the card of the run or export, or one that names the authors of the checkpoint."""
    if str(path).startswith(load.TIMM):
        method = {"name": "timm", "authors": "timm"}
        return load.backbone_card(backbone, method=method, source=str(path), steps=None, commit=environment.commit())
    if origin is not None:
        method = {"name": origin.family, "authors": origin.authors}
        source = f"authors' checkpoint {path.name}"
        card = load.backbone_card(backbone, method=method, source=source, steps=None, commit=environment.commit())
        return card | {"guessed": sorted(origin.guessed)}
    if file := load.weight_files(path).get("backbone"):
        return published(checkpoint.read_safetensors(file, card_only=True)[1])
    state = checkpoint.read_run(load.checkpoint_of(path))
    config = published(located(state["config"]))
    return load.backbone_card(
        backbone, method=config["method"], source=config["source"], steps=state["step"], commit=environment.commit()
    )
