"""BYOL, FRA and MCF written the straightforward way: what benchmarks/step.py compares the library's step with.

The same mathematics and sizes as the library's methods at their defaults, in the manner of published releases: plain
torch layers, a pass per view, 1x1 convolutions as heads, images and weights in torch's default (contiguous) layout,
LARS parameter by parameter with norms read back by `.item()`, the momentum network through `state_dict()`, autocast
around the loss, nothing compiled. The backbone is the same timm model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Projector or predictor on (B, C, N): kernels of one."""
    return nn.Sequential(
        nn.Conv1d(inputs, hidden, 1, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Conv1d(hidden, outputs, 1, bias=False),
    )


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Mean cosine over all but dimension 1 (channels)."""
    return (F.normalize(a.float(), dim=1) * F.normalize(b.float(), dim=1)).sum(1).mean()


class BYOL(nn.Module):
    """Online backbone, projector and predictor; a copy of the first two as target."""

    def __init__(self, backbone: str, image_size: int) -> None:
        super().__init__()
        net = timm.create_model(backbone, num_classes=0)
        self.online = nn.ModuleList([net, mlp(net.num_features, 4096, 256)])
        self.target = copy.deepcopy(self.online)
        self.predictor = mlp(256, 4096, 256)

    def loss(self, views: list[Tensor]) -> Tensor:
        """Symmetrised 2 - 2 cos of two views."""
        p1, p2 = (self.predictor(_embed(self.online, x)) for x in views)
        with torch.no_grad():
            z1, z2 = (_embed(self.target, x) for x in views)
        return (2 - 2 * cosine(p1, z2)) + (2 - 2 * cosine(p2, z1))


def _embed(network: nn.ModuleList, x: Tensor) -> Tensor:
    out: Tensor = network[1](network[0](x).unsqueeze(2))
    return out


class Regions(nn.Module):
    """FRA's backbone, projectors and mask decoder."""

    def __init__(self, backbone: str, regions: int = 8, width: int = 256) -> None:
        super().__init__()
        self.net = timm.create_model(backbone, num_classes=0)
        features = self.net.num_features
        self.project = mlp(features, 4096, width)
        self.project_local = mlp(features, 4096, width)
        self.reduce = nn.Conv2d(features, width, 1)
        self.queries = nn.Embedding(regions, width)
        self.self_attention = nn.MultiheadAttention(width, 8, 0.1)
        self.cross_attention = nn.MultiheadAttention(width, 8, 0.1)
        self.feed_forward = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.dropout = nn.Dropout(0.1)
        self.mlp = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Image -> global embedding (B, D, 1), similarity (B, N, hw), region embeddings (B, D, N)."""
        maps = self.net.forward_features(x)  # (B, C, h, w)
        z = self.project(self.net.forward_head(maps, pre_logits=True).unsqueeze(2))
        dense = F.normalize(self.project_local(maps.flatten(2)).float(), dim=1)  # (B, D, hw)
        query = F.normalize(self._decode(maps).float(), dim=2)  # (B, N, D)
        similarity = torch.bmm(query, dense)
        heat = (similarity / 0.1).softmax(1)
        weights = heat / heat.sum(2, keepdim=True)
        pooled = torch.einsum("bchw,bnhw->bcn", maps, weights.unflatten(2, maps.shape[2:]).to(maps.dtype))
        return z, similarity, self.project_local(pooled)

    def _decode(self, maps: Tensor) -> Tensor:
        memory = self.reduce(maps).flatten(2).permute(2, 0, 1)  # (hw, B, D)
        keys = memory + _sine(maps, memory.shape[2])
        queries = self.queries.weight.unsqueeze(1).expand(-1, len(maps), -1)  # (N, B, D)
        x = torch.zeros_like(queries)
        x = self.norms[0](x + self.dropout(self.self_attention(x + queries, x + queries, x)[0]))
        x = self.norms[1](x + self.dropout(self.cross_attention(x + queries, keys, memory)[0]))
        x = self.norms[2](x + self.dropout(self.feed_forward(x)))
        out: Tensor = self.mlp(self.norms[3](x)).transpose(0, 1)
        return out


def _sine(maps: Tensor, channels: int) -> Tensor:
    """DETR's positions (hw, 1, channels), made anew for each image size and call."""
    ones = torch.ones(maps.shape[2:], device=maps.device)
    steps = torch.arange(channels // 2, device=maps.device)
    scale = 10000 ** (2 * (steps // 2) / (channels // 2))
    parts = []
    for dim in (0, 1):
        place = ones.cumsum(dim)
        place = place / (place.max() + 1e-6) * 2 * torch.pi
        angle = place[..., None] / scale
        parts.append(torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), dim=-1).flatten(-2))
    return torch.cat(parts, dim=-1).flatten(0, 1).unsqueeze(1)


class FRA(nn.Module):
    """FRA as in the paper: global and regional consistency, semantic relation with Sinkhorn targets and ME-MAX."""

    def __init__(self, backbone: str, image_size: int) -> None:
        super().__init__()
        self.online = Regions(backbone)
        self.target = copy.deepcopy(self.online)
        self.predictor = mlp(256, 4096, 256)
        self.local_predictor = mlp(256, 4096, 256)

    def loss(self, views: list[Tensor]) -> Tensor:
        """Eq. 8 of two views."""
        online = [self.online(x) for x in views]
        with torch.no_grad():
            target = [self.target(x) for x in views]
        loss = torch.zeros((), device=views[0].device)
        for (z, similarity, regions), (_, same, _), (zt, _, there) in zip(online, target, target[::-1], strict=True):
            loss = loss - 0.5 * cosine(self.predictor(z), zt) - 0.5 * cosine(self.local_predictor(regions), there)
            student = (similarity / 0.1).permute(0, 2, 1).flatten(0, 1)  # (P, N)
            with torch.no_grad():
                teacher = (same / 0.04).permute(0, 2, 1).flatten(0, 1).softmax(1)
                for _ in range(3):
                    teacher = teacher / teacher.sum(0, keepdim=True)
                    teacher = teacher / teacher.sum(1, keepdim=True)
            mean = student.softmax(1).mean(0)
            spread = torch.log(torch.tensor(float(len(mean)))) + (mean * mean.log()).sum()
            loss = loss + 0.1 * (-(teacher * student.log_softmax(1)).sum(1).mean() + spread)
        return loss


class MCF(nn.Module):
    """MCF: masked ViT, decoder, a frozen ViT that compares painting and image, and a momentum encoder."""

    def __init__(self, backbone: str, image_size: int) -> None:
        super().__init__()
        vit = timm.create_model(backbone, num_classes=0, img_size=image_size)
        self.patch: int = vit.patch_embed.patch_size[0]
        width, tokens = vit.num_features, vit.patch_embed.num_patches
        vit.pos_embed.requires_grad_(False)
        self.online = nn.ModuleList([vit, _projector(width)])
        self.target = copy.deepcopy(self.online)
        self.predictor = _head(256)
        self.embed = nn.Linear(width, 512)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 512))
        self.positions = nn.Parameter(torch.randn(1, tokens + 1, 512) * 0.02, requires_grad=False)
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.blocks = nn.Sequential(*(Block(512, 16, qkv_bias=True, norm_layer=norm) for _ in range(8)))  # type: ignore[arg-type]
        self.norm = norm(512)
        self.paint = nn.Linear(512, self.patch**2 * 3)
        self.teacher = timm.create_model(backbone, num_classes=0, img_size=image_size).eval().requires_grad_(False)

    def loss(self, views: list[Tensor]) -> Tensor:
        """1000 x feature distance + 2T InfoNCE of one view."""
        (x,) = views
        latent, restore = self._encode(self.online[0], x)
        painting = self._decode(latent, restore, x.shape)
        with torch.no_grad():
            wanted = self._features(x)
        feature = torch.stack(
            [F.mse_loss(F.normalize(a.float(), dim=2), F.normalize(b.float(), dim=2)) for a, b in
             zip(self._features(painting), wanted, strict=True)]
        ).sum()  # fmt: skip
        q = F.normalize(self.predictor(self.online[1](latent[:, 0])).float(), dim=1)
        with torch.no_grad():
            k = F.normalize(self.target[1](self._encode(self.target[0], x)[0][:, 0]).float(), dim=1)
        logits = q @ k.T / 0.2
        return 1000 * feature + 2 * 0.2 * F.cross_entropy(logits, torch.arange(len(x), device=x.device))

    @staticmethod
    def _encode(vit: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        tokens = vit.patch_embed(x) + vit.pos_embed[:, 1:]
        order = torch.rand(tokens.shape[:2], device=x.device).argsort(1)
        keep = order[:, : tokens.shape[1] // 4]
        tokens = tokens.gather(1, keep[..., None].expand(-1, -1, tokens.shape[2]))
        start = (vit.cls_token + vit.pos_embed[:, :1]).expand(len(x), -1, -1)
        return vit.norm(vit.blocks(torch.cat([start, tokens], dim=1))), order.argsort(1)

    def _decode(self, latent: Tensor, restore: Tensor, shape: torch.Size) -> Tensor:
        x = self.embed(latent)
        hidden = self.mask_token.expand(len(x), restore.shape[1] + 1 - x.shape[1], -1)
        patches = torch.cat([x[:, 1:], hidden.to(x.dtype)], dim=1)
        patches = patches.gather(1, restore[..., None].expand(-1, -1, patches.shape[2]))
        x = torch.cat([x[:, :1], patches], dim=1) + self.positions
        out = self.paint(self.norm(self.blocks(x)))[:, 1:]
        side = shape[2] // self.patch
        grid = out.reshape(len(out), side, side, self.patch, self.patch, 3)
        return torch.einsum("bhwpqc->bchpwq", grid).reshape(shape)

    def _features(self, x: Tensor) -> list[Tensor]:
        found = []
        vit = self.teacher
        x = torch.cat([vit.cls_token.expand(len(x), -1, -1), vit.patch_embed(x)], dim=1) + vit.pos_embed
        for number, block in enumerate(vit.blocks):
            x = block(x)
            if number % 3 == 2:
                found.append(x)
        return found


def _projector(width: int) -> nn.Sequential:
    return nn.Sequential(*_head(width), nn.BatchNorm1d(256, affine=False))


def _head(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, 4096, bias=False), nn.BatchNorm1d(4096), nn.ReLU(inplace=True),
        nn.Linear(4096, 256, bias=False),
    )  # fmt: skip


class LARS:
    """Layer-wise rates, a parameter at a time, norms on the host."""

    def __init__(self, parameters: list[nn.Parameter], lr: float) -> None:
        self.parameters, self.lr = parameters, lr
        self.velocity: dict[nn.Parameter, Tensor] = {}

    @torch.no_grad()
    def step(self) -> None:
        """One update."""
        for p in self.parameters:
            if p.grad is None:
                continue
            d = p.grad
            if p.ndim > 1:
                d = d + 1e-6 * p
                weight, update = p.norm().item(), d.norm().item()
                if weight > 0 and update > 0:
                    d = d * (0.001 * weight / update)
            if p not in self.velocity:
                self.velocity[p] = torch.zeros_like(p)
            v = self.velocity[p]
            v.mul_(0.9).add_(d)
            p.add_(v, alpha=-self.lr)


@torch.no_grad()
def follow(online: nn.Module, target: nn.Module, momentum: float) -> None:
    """Momentum network by way of its state dict."""
    ours, theirs = online.state_dict(), target.state_dict()
    for name, value in theirs.items():
        fresh = momentum * value + (1 - momentum) * ours[name] if value.is_floating_point() else ours[name]
        theirs[name] = fresh.clone()
    target.load_state_dict(theirs)


METHODS: dict[str, type[BYOL] | type[FRA] | type[MCF]] = {"byol": BYOL, "fra": FRA, "mcf": MCF}


def step(
    method: str, backbone: str, image_size: int, views: list[Tensor], autocast: Callable[[], Any], lr: float
) -> Callable[[], None]:
    """A whole training step of `method` on the device of `views` (contiguous, float32, normalized)."""
    model = METHODS[method](backbone, image_size).to(views[0].device)
    model.target.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer: Any = torch.optim.AdamW(trained, lr=lr) if method == "mcf" else LARS(trained, lr)

    def work() -> None:
        for p in trained:
            p.grad = None
        with autocast():
            loss = model.loss(views)
        loss.backward()
        optimizer.step()
        follow(model.online, model.target, 0.996)

    return work
