"""CLIP's text encoder and tokenizer, those of open_clip, with random weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from facessl.core.errors import ConfigError


class TextTower(nn.Module):
    """A causal transformer over byte pairs; the sentence's feature is that of its last token, projected.

    The tokenizer comes with open_clip; nothing is downloaded.
    """

    def __init__(self, width: int, depth: int, heads: int, *, context: int, out_features: int) -> None:
        """
        Args:
            width, depth, heads: channels, blocks and attention heads.
            context: tokens a sentence is filled up or cut to, start and end included.
            out_features: D.

        Raises:
            ConfigError: open_clip is not installed.
        """
        super().__init__()
        # Late: these take seconds, and most runs need none of them.
        try:
            from open_clip.tokenizer import SimpleTokenizer
            from open_clip.transformer import QuickGELU, TextTransformer
        except ModuleNotFoundError as error:
            raise ConfigError(f"FaRL's text encoder is open_clip's ({error}): pip install 'facessl[farl]'") from None

        self.tokenizer = SimpleTokenizer(context_length=context)
        self.transformer = TextTransformer(
            context_length=context,
            vocab_size=self.tokenizer.vocab_size,
            width=width,
            heads=heads,
            layers=depth,
            output_dim=out_features,
            act_layer=QuickGELU,
        )

    def forward(self, texts: Sequence[str]) -> Tensor:
        """B sentences -> (B, D)."""
        tower = self.transformer
        tokens = self.tokenizer(list(texts))  # (B, context)
        # What follows a sentence's end, the largest of its tokens, cannot change its feature and is left out.
        length = int(tokens.argmax(1).max()) + 1
        device = tower.token_embedding.weight.device
        tokens = tokens[:, :length].contiguous()
        tokens = (tokens.pin_memory() if device.type == "cuda" else tokens).to(device, non_blocking=True)
        x = tower.token_embedding(tokens) + tower.positional_embedding[:length]
        x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])  # (B, length, width)
        last = x[torch.arange(len(texts), device=device), tokens.argmax(1)]
        return tower.ln_final(last) @ tower.text_projection
