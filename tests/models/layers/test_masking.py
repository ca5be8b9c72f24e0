"""Masks, patches, the encoder that leaves patches out, and its fixed positions."""

import math

import pytest
import torch

from facessl.core.errors import CheckpointError, ConfigError
from facessl.models.backbone import Backbone
from facessl.models.layers.masking import (
    check_maskable,
    encode_visible,
    fix_positions,
    random_mask,
    unpatchify,
)
from facessl.models.layers.positions import sincos_positions
from facessl.models.mae_decoder import MAEDecoder


def vit(**options):
    torch.manual_seed(0)
    return Backbone("vit_tiny_patch16_224", image_size=64, embed_dim=24, num_heads=2, depth=2, **options)


def test_mask_keeps_the_smallest_noise_and_restores_the_order():
    noise = torch.rand(3, 16, generator=torch.Generator().manual_seed(0))
    mask = random_mask(noise, 0.75)
    for row, keep, restore, removed in zip(noise.tolist(), *(m.tolist() for m in mask), strict=True):
        order = sorted(range(16), key=row.__getitem__)
        assert keep == order[:4]
        assert [order[place] for place in restore] == list(range(16))
        assert [i for i in range(16) if not removed[i]] == sorted(order[:4])


EVERY = [{}, {"reg_tokens": 2}, {"no_embed_class": True}, {"pre_norm": True}, {"dynamic_img_size": True}]


@pytest.mark.parametrize("options", EVERY, ids=str)
def test_with_every_patch_it_is_the_whole_vit(options):
    backbone = vit(**options).eval()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    everything = torch.arange(16).expand(2, -1)
    torch.testing.assert_close(encode_visible(backbone.model, x, everything), backbone.model.forward_features(x))


def test_hidden_patches_do_not_matter_and_cost_no_block():
    backbone = vit().eval()
    seen = []
    backbone.model.blocks[0].register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    mask = random_mask(torch.rand(2, 16, generator=torch.Generator().manual_seed(2)), 0.75)
    hidden = unpatchify(mask.removed[:, :, None].expand(-1, -1, 16 * 16 * 3).float(), 16, (4, 4))
    latent = encode_visible(backbone.model, x, mask.keep)
    torch.testing.assert_close(encode_visible(backbone.model, x + 5 * hidden, mask.keep), latent)
    assert seen == [1 + 4, 1 + 4]


def test_sincos_table_against_plain_loops():
    table = sincos_positions(2, 3, 8)
    for row in range(2):
        for column in range(3):
            expected = [
                function(position / 10000 ** (i / 2))
                for position in (column, row)
                for function in (math.sin, math.cos)
                for i in range(2)
            ]
            assert table[row * 3 + column].tolist() == pytest.approx(expected, abs=1e-12)


def test_fixed_positions_do_not_learn_and_leave_the_class_token_alone():
    model = vit().model
    fix_positions(model)
    assert not model.pos_embed.requires_grad
    assert not model.pos_embed[0, 0].any()
    torch.testing.assert_close(model.pos_embed[0, 1:], sincos_positions(4, 4, 24).float())


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("resnet10t", {}, "give a ViT"),
        ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}, "give a ViT"),
        ("vit_tiny_patch16_224", {"global_pool": "avg"}, "fc_norm: false"),
    ],
)
def test_backbones_that_cannot_be_masked_are_refused(name, options, reason):
    backbone = Backbone(name, image_size=64, **options)
    with pytest.raises(ConfigError, match=reason):
        check_maskable(backbone.model, name)


def test_decoder_puts_tokens_back_and_paints_with_positions():
    torch.manual_seed(0)
    decoder = MAEDecoder(24, grid=(4, 4), patch=2, width=16, depth=1, heads=2)
    entered = {}
    decoder.blocks.register_forward_pre_hook(lambda module, args: entered.update(tokens=args[0]))
    mask = random_mask(torch.rand(2, 16), 0.75)
    latent = torch.randn(2, 5, 24)
    assert decoder(latent, mask.restore).shape == (2, 16, 2 * 2 * 3)
    embedded = decoder.embed(latent)
    torch.testing.assert_close(entered["tokens"][:, 0], embedded[:, 0])
    for image in range(2):
        for patch in range(16):
            keep = mask.keep[image].tolist()
            own = embedded[image, 1 + keep.index(patch)] if patch in keep else decoder.mask_token[0, 0]
            torch.testing.assert_close(entered["tokens"][image, 1 + patch], own + decoder.positions[patch])


def decoder(depth=3, width=16):
    return MAEDecoder(24, grid=(4, 4), patch=2, width=width, depth=depth, heads=2)


@pytest.mark.parametrize("layout", ["mae", "own"])
def test_some_decoder_blocks_start_from_a_file(layout):
    source, target = decoder(), decoder()
    before = [p.clone() for p in target.blocks[2].parameters()]
    named = source.state_dict()
    if layout == "mae":
        state = {"model": {n.replace("blocks.", "decoder_blocks."): v for n, v in named.items()}}
    else:
        state = {"method": {f"decoder.{n}": v for n, v in named.items()}}
    target.load_blocks(state, 2, "mae.pth")
    for ours, theirs in zip(target.blocks[:2].parameters(), source.blocks[:2].parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert all(torch.equal(a, b) for a, b in zip(before, target.blocks[2].parameters(), strict=True))


@pytest.mark.parametrize("given", [{"depth": 1}, {"width": 8}])
def test_decoder_blocks_that_do_not_fit_are_named(given):
    state = {n.replace("blocks.", "decoder_blocks."): v for n, v in decoder(**given).state_dict().items()}
    with pytest.raises(CheckpointError, match=r"mae\.pth does not fit the first 2 decoder blocks.*attn"):
        decoder().load_blocks(state, 2, "mae.pth")
