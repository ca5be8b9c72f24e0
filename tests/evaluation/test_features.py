"""Features that are kept for the next probe: when they are used, made anew, and what they hold."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from facessl.core.errors import DataError
from facessl.data.source import Source, open_source
from facessl.data.sources.synthetic import Synthetic
from facessl.data.subset import Subset
from facessl.evaluation.features import features
from facessl.models.backbone import Backbone
from facessl.views.augment import Augment


def test_a_second_probe_needs_no_forward_pass(backbone: Backbone, faces: Path, cache: Path) -> None:
    first = features(backbone, open_source(str(faces)), batch_size=16)
    again = features(backbone, open_source(str(faces)), batch_size=7)
    assert (first.cached, again.cached, again.seconds) == (False, True, 0.0)
    assert np.array_equal(first.array, again.array)
    assert again.array.dtype == np.float32
    assert again.fields["label"].tolist() == [0] * 20 + [1] * 20 + [2] * 20
    with torch.no_grad():
        twin = backbone.eval()(backbone.preprocess([open_source(str(faces)).key(3)]))
    assert again.array[3] == pytest.approx(twin[0].numpy(), abs=1e-5)
    part = features(backbone, Subset(open_source(str(faces)), np.array([3, 50])))
    assert part.cached
    assert np.array_equal(part.array, first.array[[3, 50]])
    assert part.index.tolist() == [0, 1]


def test_whatever_changes_the_features_makes_new_ones(backbone: Backbone, faces: Path, cache: Path) -> None:
    def kept(source: Source, network: Backbone = backbone, **options: Any) -> bool:
        return features(network, source, **options).cached

    assert not kept(open_source(str(faces)))
    assert kept(open_source(str(faces)))
    assert not kept(open_source(str(faces)), augment=Augment(crop_scale=2.0))
    assert not kept(open_source(str(faces)), flip=True)
    assert not kept(open_source(str(faces)), kind="map")
    assert not kept(open_source(str(faces)), precision="bf16")
    assert not kept(open_source(str(faces)), cache=False)
    other = Backbone("test_resnet", image_size=32)
    other.load_state_dict(backbone.state_dict())
    assert kept(open_source(str(faces)), other)
    with torch.no_grad():
        next(other.parameters()).mul_(1.5)
    assert not kept(open_source(str(faces)), other)
    assert not kept(Synthetic(n=6, size=32))
    assert kept(Synthetic(n=6, size=32))
    assert not kept(Synthetic(n=6, size=32, degrade=0.5))  # an option that is not in the keys
    Image.new("RGB", (32, 32)).save(faces / "dark" / "7.png")
    assert not kept(open_source(str(faces)))


def test_an_interrupted_extraction_leaves_nothing(backbone: Backbone, faces: Path, cache: Path) -> None:
    calls = iter((None, None, KeyboardInterrupt))

    def stopping(*_: Any) -> None:
        if stop := next(calls):
            raise stop

    with backbone.model.conv1[0].register_forward_pre_hook(stopping), pytest.raises(KeyboardInterrupt):
        features(backbone, open_source(str(faces)), batch_size=16)
    assert not [*cache.glob("*features*"), *cache.glob(".features*")]


def test_features_that_cannot_be_kept_are_used(
    backbone: Backbone, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        assert not features(backbone, open_source(str(faces))).cached


def test_damaged_features_are_made_again(backbone: Backbone, faces: Path, cache: Path) -> None:
    whole = features(backbone, open_source(str(faces))).array.copy()
    (file,) = cache.glob("features-*")
    file.write_bytes(file.read_bytes()[:-4])
    again = features(backbone, open_source(str(faces)))
    assert not again.cached
    assert np.array_equal(again.array, whole)


def test_unreadable_images_are_left_out_and_remembered(backbone: Backbone, faces: Path, cache: Path) -> None:
    (faces / "light" / "3.png").write_bytes(b"no image")
    for kept in (False, True):
        found = features(backbone, open_source(str(faces)))
        assert found.cached == kept
        assert len(found) == len(found.array) == len(found.fields["label"]) == 59
        assert [Path(key).name for key, _ in found.skipped] == ["3.png"]
    part = features(backbone, Subset(open_source(str(faces)), np.arange(20, 40)))
    assert (part.cached, len(part), len(part.skipped)) == (True, 19, 1)
    for file in (faces / "dark").iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(DataError, match="no image of the source could be read"):
        features(backbone, Subset(open_source(str(faces)), np.arange(20)))


def test_landmarks_are_those_of_the_view(backbone: Backbone) -> None:
    source = Synthetic(n=3, size=64)
    found = features(backbone, source, kind="map", cache=False)
    assert found.array.shape[1] == backbone(torch.zeros(1, 3, 32, 32)).shape[1] * (32 // backbone.stride) ** 2
    stored = np.stack([source[i].landmarks for i in range(3)])  # type: ignore[misc]
    assert found.fields["landmarks"] == pytest.approx((stored + 0.5) / 2 - 0.5, abs=1e-4)
