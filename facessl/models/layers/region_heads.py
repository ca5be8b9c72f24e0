"""Heads of FRA: projectors, mask embeddings and the heatmaps of regions that they give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from facessl.core.distributed import all_reduce_mean
from facessl.core.precision import at_least_float32
from facessl.models.layers import frame
from facessl.models.layers.decoder import MaskDecoder
from facessl.models.layers.heads import MLPHead

#: What one network makes of one view, as far as a term needs it:
#: "z" (B, D), global embedding; "similarity" (B, h, w, N) float32, S with N last; "regions" (B, N, D), facial
#: embeddings z^m; "mask_embedding" (N, D) float32, detached, only where mask embeddings are averaged over the batch.
Outputs = dict[str, Tensor]

#: Rows and columns of the table of `frame_prior`, and the standard deviation that it starts with.
PRIOR_CELLS = 12
PRIOR_STD = 0.1


class RegionHeads(nn.Module):
    """Projectors and mask decoder that follow the backbone in both networks of FRA, as far as the terms need them."""

    def __init__(
        self,
        features: int,
        *,
        regions: int,
        hidden: int,
        out_features: int,
        with_global: bool,
        with_local: bool,
        with_relation: bool,
        temperature: float,
        averaged: bool,
        separate: bool,
        frame_prior: float,
        query_std: float,
        decoder: Mapping[str, Any] | None,
    ) -> None:
        """
        Args:
            features: C, channels of the backbone's map and embedding.
            regions: N, number of heatmaps.
            hidden: width of the projectors' hidden layer.
            out_features: D, width of projections and mask embeddings.
            with_global, with_local, with_relation: which terms need something of the heads.
            temperature: of the softmax that makes the heatmaps.
            averaged: mask embeddings are averaged over the global batch.
            separate: regions have a projector of their own (else the pixels' local projector).
            frame_prior: weight of the learned table over the stored image; 0: none.
            query_std: standard deviation of the initial queries, or of mask embeddings without a decoder.
            decoder: sizes of `MaskDecoder`; None: mask embeddings are N learned vectors.
        """
        super().__init__()
        self.averaged = averaged
        self.heatmap_temperature = temperature
        self.with_regions = with_local
        self.projector = MLPHead(features, hidden=hidden, out_features=out_features) if with_global else None
        self.finds_regions = with_local or with_relation
        self.frame_prior = frame_prior
        self.decoder: MaskDecoder | None = None
        if not self.finds_regions:
            return
        self.local_projector = MLPHead(features, hidden=hidden, out_features=out_features)
        own = with_local and separate
        self.region_projector = MLPHead(features, hidden=hidden, out_features=out_features) if own else None
        if frame_prior:
            self.prior = nn.Parameter(PRIOR_STD * torch.randn(regions, PRIOR_CELLS, PRIOR_CELLS))
        if decoder is None:
            self.mask_embedding = nn.Parameter(query_std * torch.randn(regions, out_features))
            return
        self.decoder = MaskDecoder(features, queries=regions, out_features=out_features, query_std=query_std, **decoder)
        if averaged:
            self.prototype: Tensor
            self.register_buffer("prototype", torch.zeros(regions, out_features))

    def forward(self, features: Tensor, pooled: Tensor, crops: Tensor | None = None) -> Outputs:
        """Map (B, C, h, w), pooled embedding (B, C) and what the view shows, (B, 5) or None -> `Outputs`."""
        out: Outputs = {}
        if self.projector is not None:
            out["z"] = self.projector(pooled)
        if self.finds_regions:
            embedding = self.mask_embedding if self.decoder is None else self.decoder(features)  # (N, D) or (B, N, D)
            if self.averaged:
                embedding = all_reduce_mean(at_least_float32(embedding).mean(0))  # (N, D)
                out["mask_embedding"] = embedding.detach()
            similarity = self.similarity(features, embedding, crops)
            out["similarity"] = similarity.unflatten(1, features.shape[2:])  # (B, hw, N) -> (B, h, w, N)
            if self.with_regions:
                out["regions"] = self._regions(features, self.heatmaps(similarity))
        return out

    def stored_embedding(self, features: Tensor) -> Tensor:
        """Mask embeddings (B, N, D) or (N, D) outside of training; features (B, C, h, w)."""
        if self.decoder is None:
            return self.mask_embedding
        return self.prototype if self.averaged else self.decoder(features)

    def similarity(self, features: Tensor, embedding: Tensor, crops: Tensor | None = None) -> Tensor:
        """S: cosine of Eq. 1's dense map with mask embeddings, plus the prior where there is one.

        Args:
            features: (B, C, h, w).
            embedding: (B, N, D) or (N, D).
            crops: (B, 5), what the view shows (`Batch.crops`); None: the whole image.

        Returns:
            (B, hw, N), at least float32.
        """
        dense = self.local_projector(features).flatten(2).transpose(1, 2)  # (B, D, h, w) -> (B, hw, D)
        with torch.autocast(dense.device.type, enabled=False):
            pixel = F.normalize(at_least_float32(dense), dim=-1)
            query = F.normalize(at_least_float32(embedding), dim=-1)
            cosines = pixel @ query.transpose(-1, -2)
        return cosines + self.frame_prior * self._prior(features, crops) if self.frame_prior else cosines

    def _prior(self, features: Tensor, crops: Tensor | None) -> Tensor:
        """The table at the places of a view's cells: (B, C, h, w) and (B, 5) or None -> (B, hw, N), or (1, hw, N)."""
        if crops is None:
            crops = at_least_float32(self.prior.new_zeros(1, 5))
            crops[:, 2:4] = 1
        table = self.prior.permute(1, 2, 0).expand(len(crops), -1, -1, -1)  # (N, 12, 12) -> (B, 12, 12, N)
        return frame.read(table, *frame.places(crops, *features.shape[2:])).flatten(1, 2)

    def heatmaps(self, similarity: Tensor) -> Tensor:
        """M: softmax of S (B, hw, N) over the N regions -> (B, hw, N)."""
        return (similarity / self.heatmap_temperature).softmax(-1)

    def _regions(self, features: Tensor, maps: Tensor) -> Tensor:
        """Eq. 4 and 5: map (B, C, h, w) averaged with weights M (B, hw, N), then projected -> (B, N, D)."""
        tiny = torch.finfo(maps.dtype).tiny  # a very low temperature may leave a region without any weight
        weights = maps / maps.sum(1, keepdim=True).clamp_min(tiny)
        pooled = features.flatten(2) @ weights.to(features.dtype)  # (B, C, hw) @ (B, hw, N) -> (B, C, N)
        out: Tensor = (self.region_projector or self.local_projector)(pooled).transpose(1, 2)
        return out
