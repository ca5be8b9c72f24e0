"""Every shipped recipe parses, builds its schedule, and says where it comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

import facessl
from facessl import config

ROOT = Path(facessl.__file__).parent / "recipes"


@pytest.mark.parametrize("name", config.recipes())
def test_recipe_is_valid_and_has_its_header(name: str) -> None:
    text = (ROOT / f"{name}.yaml").read_text()
    for field in ("# command:", "# source:", "# hardware:", "# score:", "# status:"):
        assert field in text, f"{name} lacks {field}"
    assert f"--config {name}" in text, "the command must be the recipe's own"
    parsed = config.parse(["--config", name])
    assert config.from_dict(parsed.to_dict()) == parsed
