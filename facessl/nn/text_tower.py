"""CLIP's text encoder and tokenizer, those of open_clip, with random weights."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class TextTower(nn.Module):
    """A causal transformer over byte pairs; the sentence's feature is that of its last token, projected.

    The tokenizer comes with open_clip; nothing is downloaded.
    """

    def __init__(self, *, width: int, depth: int, heads: int, context: int, out_features: int) -> None:
        """
        Args:
            width: channels.
            depth: number of blocks.
            heads: attention heads; they must divide `width`.
            context: tokens a sentence is filled up or cut to, start and end included.
            out_features: D.
        """
        super().__init__()
        # Late: these take seconds, and most runs need none of them.
        from open_clip.tokenizer import SimpleTokenizer
        from open_clip.transformer import QuickGELU, TextTransformer

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
        tokens = self.tokenizer(list(texts)).to(self.transformer.token_embedding.weight.device)
        out: Tensor = self.transformer(tokens)
        return out
