"""Transformer decoder from learnable queries and an image's features to one mask embedding per query."""

from torch import Tensor, nn

from facessl.models.layers.positions import sine_positions


class DecoderLayer(nn.Module):
    """Post-norm decoder layer of DETR: self-attention of the queries, attention to the image, feed-forward."""

    def __init__(self, width: int, *, heads: int, feed_forward: int, dropout: float) -> None:
        """`width` is D; dropout follows every block and applies inside the feed-forward and to attention weights."""
        super().__init__()
        self.self_attention = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.cross_attention = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.linear1 = nn.Linear(width, feed_forward)
        self.linear2 = nn.Linear(feed_forward, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, queries: Tensor, keys: Tensor, memory: Tensor) -> Tensor:
        """State (B, N, D) of N queries -> (B, N, D); the embedding `queries` (N, D) is added to `x` as query and key,
        `keys` and `memory` (B, P, D) are the image with and without positions."""
        q = x + queries
        attended, _ = self.self_attention(q, q, x, need_weights=False)
        x = self.norm1(x + self.dropout(attended))
        attended, _ = self.cross_attention(x + queries, keys, memory, need_weights=False)
        x = self.norm2(x + self.dropout(attended))
        hidden = self.dropout(self.linear1(x).relu())
        return self.norm3(x + self.dropout(self.linear2(hidden)))


class MaskDecoder(nn.Module):
    """N learnable queries attend to an image and become N mask embeddings (FRA, Fig. 2; MaskFormer).

    A 1x1 projection to the decoder's width, DETR's sine positions on the keys, decoder layers that start from
    zeros, a last layer norm and a three-layer MLP.
    """

    def __init__(
        self,
        in_features: int,
        *,
        queries: int = 8,
        layers: int = 1,
        out_features: int = 256,
        width: int = 256,
        heads: int = 8,
        feed_forward: int = 256,
        dropout: float = 0.1,
        query_std: float = 1.0,
    ) -> None:
        """
        Args:
            in_features, out_features: C, channels of the feature map, and D, those of a mask embedding.
            queries, query_std: N, number of mask embeddings, and standard deviation of the initial queries.
            layers: decoder layers, at least 1; `heads`, `feed_forward` and `dropout` are theirs.
            width: channels inside the decoder, a multiple of 4 and of `heads`.
        """
        super().__init__()
        self.project = nn.Linear(in_features, width)
        self.queries = nn.Embedding(queries, width)
        self.layers = nn.ModuleList(
            DecoderLayer(width, heads=heads, feed_forward=feed_forward, dropout=dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, out_features)
        )
        nn.init.normal_(self.queries.weight, std=query_std)
        nn.init.kaiming_uniform_(self.project.weight, a=1)  # the released FRA's, from Caffe2: within sqrt(3 / C)
        nn.init.zeros_(self.project.bias)
        for parameter in self.layers.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)  # as DETR starts its transformer

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) feature map -> (B, N, D) mask embeddings, one set per image."""
        memory = self.project(features.flatten(2).transpose(1, 2))  # (B, hw, width)
        keys = memory + sine_positions(*features.shape[2:], memory.shape[2], memory.device, memory.dtype)
        queries = self.queries.weight
        x = queries.new_zeros(len(features), *queries.shape)  # (B, N, width)
        for layer in self.layers:
            x = layer(x, queries, keys, memory)
        return self.mlp(self.norm(x))
