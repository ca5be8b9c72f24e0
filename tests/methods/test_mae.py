"""MAE against its loss in plain loops."""

import pytest
import torch

from facessl.core.types import Batch, Progress
from facessl.methods.mae import MAE, patch_statistics
from facessl.models.backbone import Backbone
from facessl.models.layers.masking import encode_visible, patchify, random_mask

DECODER = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}


def model(**values):
    torch.manual_seed(0)
    vit = Backbone("vit_tiny_patch16_224", image_size=32, patch_size=8, embed_dim=24, num_heads=2, depth=1)
    return MAE(vit, **DECODER, **values).double().eval()


@pytest.mark.parametrize("norm_pix", [False, True])
def test_loss_is_the_error_of_hidden_pixels(norm_pix):
    mae = model(norm_pix=norm_pix)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 3, 32, 32, generator=generator, dtype=torch.float64)
    noise = torch.rand(3, 16, generator=generator)
    mae.noise = lambda batch: noise
    loss = mae.step(Batch([x], [], torch.arange(3)), Progress(0, 1)).loss.item()
    mask = random_mask(noise, 0.75)
    predicted = mae.decoder(encode_visible(mae.backbone.model, x, mask.keep), mask.restore)
    errors = []
    for image in range(3):
        for patch in range(16):
            if not mask.removed[image, patch]:
                continue
            top, left = patch // 4 * 8, patch % 4 * 8
            cut = x[image, :, top : top + 8, left : left + 8]  # (3, 8, 8)
            if norm_pix:
                cut = (cut - cut.mean()) / (cut.var() + 1e-6).sqrt()
            for row in range(8):
                for column in range(8):
                    for channel in range(3):
                        value = predicted[image, patch, (row * 8 + column) * 3 + channel].item()
                        errors.append((value - cut[channel, row, column].item()) ** 2)
    assert len(errors) == 3 * 12 * 8 * 8 * 3
    assert loss == pytest.approx(sum(errors) / len(errors), rel=1e-12)


def test_masks_are_new_in_every_step_and_come_from_torchs_generator():
    mae, batch = model(), Batch([torch.zeros(2, 3, 32, 32)], [], torch.arange(2))
    torch.manual_seed(3)
    first, second = mae.noise(batch), mae.noise(batch)
    torch.manual_seed(3)
    assert not torch.equal(first, second)
    assert torch.equal(mae.noise(batch), first)


@pytest.mark.parametrize("norm_pix", [False, True])
def test_perfect_predictions_reconstruct_the_image(norm_pix, monkeypatch):
    mae = model(norm_pix=norm_pix)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    perfect = patchify(x, 8)
    if norm_pix:
        mean, deviation = patch_statistics(perfect)
        perfect = (perfect - mean) / deviation
    monkeypatch.setattr(mae.decoder, "forward", lambda latent, restore: perfect)
    painted, removed = mae.reconstruct(x, torch.rand(2, 16))
    torch.testing.assert_close(painted, x)
    assert removed.sum(1).tolist() == [12, 12]
