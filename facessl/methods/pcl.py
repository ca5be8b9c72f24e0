"""PCL (arXiv:2211.13490): face-aware and pose features reconstruct a face and its mirror image, each contrasted."""

import functools
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from facessl.core.distributed import all_gather_rows, all_reduce_mean, rank, world_size
from facessl.core.precision import at_least_float32, full_precision
from facessl.core.types import Batch, Progress, Step
from facessl.core.values import FROM_0, FROM_1, POSITIVE, check_values
from facessl.models.backbone import Backbone
from facessl.views.spec import View

_JITTER = (0.8, 0.8, 0.8, 0.2)
_PATCH = View(scale=(0.16, 0.16), ratio=(1, 1), flip=0.0, jitter=_JITTER, blur=0.8)
_WHOLE = View(scale=(1, 1), ratio=(1, 1), flip=0.0, jitter=_JITTER, blur=0.8)
_MIRROR = View(scale=(1, 1), ratio=(1, 1), flip=1.0, jitter=_JITTER, blur=0.8)
#: The image itself; two patches for the face-aware contrast; two whole images for the pose contrast, and its negatives.
PCL_VIEWS = (
    View(scale=(1, 1), ratio=(1, 1), flip=0.0, jitter_p=0.0, grayscale=0.0),
    *(_PATCH, _PATCH),
    *(_WHOLE, _WHOLE),
    *(_MIRROR, _MIRROR),
)


@dataclass(frozen=True)
class PCLArgs:
    """Hyper-parameters of PCL; the defaults are the released configuration's.

    Attributes:
        temperature: of both contrastive terms.
        mix_alpha: negatives are mixed in pairs by weights from Beta(mix_alpha, mix_alpha), 1 or more; null: not mixed.
        noise: standard deviation of the Gaussian noise on the input of the reconstruction, in units of the normalized
            image (PCL's normalization leaves 0..1 as it is). Drawn in training mode only.
        balance: temperature of the dynamic weight averaging between the two contrastive terms; null: both weigh 1.
        width: channels of the face-aware and the pose branch; each feature is 16 x width wide (a 4 x 4 map).
        hidden: width of the hidden layer of the two projection heads.
        dim: D, width of the projections.
        decoder_width: channels that the decoder starts with; a multiple of 4.
        decoder_size: side in pixels of the images that the decoder makes, a power of two; the image is averaged down
            to it.
    """

    temperature: float = 0.07
    mix_alpha: float | None = 1.6
    noise: float = 0.4
    balance: float | None = 2.0
    width: int = 128
    hidden: int = 2048
    dim: int = 512
    decoder_width: int = 512
    decoder_size: int = 64

    def __post_init__(self) -> None:
        check_values(
            self,
            {
                "temperature balance": POSITIVE,
                "mix_alpha width hidden dim": FROM_1,
                "noise": FROM_0,
                "decoder_width": (lambda v: v >= 4 and v % 4 == 0, "a multiple of 4"),
                "decoder_size": (lambda v: v in (4, 8, 16, 32, 64, 128, 256), "a power of two from 4 to 256"),
            },
            prefix="method.",
        )


#: Side of the map that a feature is flattened from.
GRID = 4


class Branch(nn.Module):
    """Face-aware or pose feature from the backbone's map: two 3x3 convolutions with LeakyReLU, flattened."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        first, second = (nn.Conv2d(c, width, 3, padding=1) for c in (channels, width))
        for conv in (first, second):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(conv.get_parameter("bias"))
        self.layers = nn.Sequential(first, nn.LeakyReLU(0.1), second, nn.LeakyReLU(0.1))

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, h, w) -> (B, 16 * width); a map that is not 4 x 4 is averaged (or repeated) to that."""
        return F.adaptive_avg_pool2d(self.layers(features), GRID).flatten(1)


def projection_head(features: int, hidden: int, dim: int) -> nn.Sequential:
    """Linear, ReLU, linear, batch norm: (B, features) -> (B, dim)."""
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, dim), nn.BatchNorm1d(dim))


class ImageDecoder(nn.Module):
    """An image from a feature: a linear layer to a map of 1 x 1, doublings, each with a 3x3 convolution, tanh."""

    def __init__(self, features: int, *, width: int, size: int) -> None:
        """`width`: channels of the 1 x 1 map; half of it follow, a quarter before the last convolution; `size`: side in
        pixels, a power of two."""
        super().__init__()
        self.fc = nn.Linear(features, width)
        doublings = int(math.log2(size))
        channels = [width, *[width // 2] * (doublings - 2), width // 4, 3]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(channels))
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for b in channels[1:-1])

    def forward(self, feature: Tensor) -> Tensor:
        """(B, F) -> (B, 3, size, size) in -1..1."""
        x = self.fc(feature)[..., None, None]
        for i, conv in enumerate(self.convs):
            x = F.interpolate(F.relu(x), scale_factor=2, mode="bilinear", align_corners=False)
            x = conv(x) if i == len(self.norms) else self.norms[i](conv(x))
        return x.tanh()


class PCL(nn.Module):
    """Pose-disentangled contrastive learning (Liu et al., CVPR 2023) on any backbone with a feature map.

    Two branches on the backbone's map give a face-aware and a pose feature of the image and of its mirror image.
    A decoder turns the direction of their sum into an image: own face-aware feature with own and with the mirror's
    pose, four L1 terms; both features are made orthogonal. The face-aware feature has an InfoNCE between patches of an
    image against other images, the pose feature one between views of an image against views of its mirror image, both
    with negatives mixed in pairs, weighed against each other by dynamic weight averaging:
    L = reconstruction + orthogonality + w_f face_contrast + w_p pose_contrast.

    `batch.views` are the image, two patches, two whole images, and from the sixth on the pose negatives. The released
    64-pixel network is the backbone `pcl_facecycle`; `backbone` is exported without the branches.

    Differences:
        Written from the released code. There, an iteration makes three optimizer steps on three batches; here one step
        takes the sum on one batch, with two pose negatives per image (more views are more negatives). Patches lie
        anywhere in the image, blur is a whole Gaussian, the edge filter is left out, and maps that are not 4 x 4 are
        averaged to it. In a stream, which has no epochs, w_f and w_p stay 1. All differences: docs/methods/pcl.md.
    """

    Args: ClassVar[type[PCLArgs]] = PCLArgs
    needs: ClassVar[frozenset[str]] = frozenset()
    defaults: ClassVar[Mapping[str, Any]] = {
        "optim": {"name": "adamw", "lr": 1e-4, "reference_batch": 256, "weight_decay": 1e-3, "warmup_epochs": 0}
    }
    views: ClassVar[tuple[View, ...]] = PCL_VIEWS
    view_count: ClassVar[tuple[int, int | None]] = (6, None)
    mean: ClassVar[tuple[float, float, float]] = (0.0, 0.0, 0.0)
    std: ClassVar[tuple[float, float, float]] = (1.0, 1.0, 1.0)
    batch_wide: ClassVar[str] = "the negatives"

    def __init__(self, backbone: Backbone, **values: Any) -> None:
        """`values` are fields of `PCLArgs`."""
        super().__init__()
        self.args = args = PCLArgs(**values)
        features = GRID**2 * args.width
        self.backbone = backbone
        self.face_branch, self.pose_branch = (Branch(backbone.num_features, args.width) for _ in range(2))
        self.face_head, self.pose_head = (projection_head(features, args.hidden, args.dim) for _ in range(2))
        self.decoder = ImageDecoder(features, width=args.decoder_width, size=args.decoder_size)
        self.balance = LossBalance(2, args.balance)

    def step(self, batch: Batch, progress: Progress) -> Step:
        """Loss of six or more views (B, 3, S, S).

        Logs `reconstruction` (sum of the four L1 terms), `orthogonality` (sum over image and mirror image),
        `face_contrast`, `pose_contrast`, unweighted, and the weights of the last two, `face_weight` and `pose_weight`.
        """
        image, *contrast = batch.views
        terms = self._reconstruction(image)
        mixing = Mixing(self.args.mix_alpha, seed=progress.step, device=image.device)
        features = self.backbone.forward_features
        face = self.face_head(self.face_branch(features(torch.cat(contrast[:2]))))  # (2B, D)
        terms["face_contrast"] = face_contrast(face, mixing, self.args.temperature)
        pose, mirrored = (
            self.pose_head(self.pose_branch(features(torch.cat(views)))) for views in (contrast[2:4], contrast[4:])
        )
        negatives = mirrored.unflatten(0, (len(contrast) - 4, len(image)))  # (K, B, D)
        terms["pose_contrast"] = pose_contrast(pose, negatives, mixing, self.args.temperature)
        balanced = torch.stack([terms["face_contrast"], terms["pose_contrast"]])
        weights = self.balance.weights(progress.epoch)
        if self.training and torch.is_grad_enabled():
            self.balance.add(balanced)
        loss = terms["reconstruction"] + terms["orthogonality"] + (weights * balanced).sum()
        logs = {name: value.detach() for name, value in terms.items()}
        return Step(loss, logs | {"face_weight": weights[0], "pose_weight": weights[1]})

    def _reconstruction(self, image: Tensor) -> dict[str, Tensor]:
        """The first two terms, of the image (B, 3, S, S) and its mirror image."""
        faces, poses, targets = [], [], []
        for side in (image, image.flip(-1)):
            noisy = side + self.args.noise * torch.randn_like(side) if self.training and self.args.noise else side
            features = self.backbone.forward_features(noisy)
            faces.append(self.face_branch(features))
            poses.append(self.pose_branch(features))
            targets.append(F.adaptive_avg_pool2d(at_least_float32(side), self.args.decoder_size))
        losses = []
        for pose, target in zip(poses, targets, strict=True):  # the image follows the pose, whoever gives the face
            for face in faces:
                decoded = self.decoder(F.normalize(at_least_float32(face) + at_least_float32(pose), dim=1))
                losses.append((at_least_float32(decoded) - target).abs().mean())
        orthogonal = [orthogonality(f, p) for f, p in zip(faces, poses, strict=True)]
        return {"reconstruction": torch.stack(losses).sum(), "orthogonality": orthogonal[0] + orthogonal[1]}

    def after_step(self, progress: Progress) -> None:
        """Add the contrastive losses to the means that their weights come from."""
        self.balance.update(progress.epoch)


def orthogonality(face: Tensor, pose: Tensor) -> Tensor:
    """Mean squared entry of E^T P over the batch of all ranks, of which (B, F) both are this rank's: E and P are the
    centered features, each row over its length (no gradient)."""
    with full_precision(face):
        width = face.shape[1]
        both = all_gather_rows(at_least_float32(torch.cat([face, pose], dim=1)))
        e, p = (_centered(x) for x in both.split(width, dim=1))
        # |E^T P|^2 = sum of (E E^T) o (P P^T): batch x batch instead of features x features.
        return ((e @ e.t()) * (p @ p.t())).sum() / width**2


def _centered(x: Tensor) -> Tensor:
    x = x - x.mean(0, keepdim=True)
    return x / (x.detach().norm(dim=1, keepdim=True) + 1e-6)


class Mixing:
    """Draws that mix negatives in pairs, alike on every rank: of the global batch, from a generator of their own."""

    def __init__(self, alpha: float | None, *, seed: int, device: torch.device) -> None:
        """`alpha` of Beta(alpha, alpha), 1 or more, or None to mix nothing; `seed` is the same on every rank."""
        self.alpha, self.device = alpha, device
        self.generator = torch.Generator(device).manual_seed(seed)

    def order(self, count: int) -> Tensor:
        """(count,) int64: the partner of each negative, a permutation."""
        return torch.randperm(count, generator=self.generator, device=self.device)

    def weights(self, rows: int, columns: int) -> Tensor:
        """(rows, columns) float32: weight of each negative beside its partner."""
        if self.alpha is None:
            return torch.ones(rows, columns, device=self.device)
        uniform = torch.rand(rows, columns, generator=self.generator, device=self.device)
        return beta_quantile(uniform, self.alpha)


def beta_quantile(uniform: Tensor, alpha: float, cells: int = 4096) -> Tensor:
    """Quantiles of Beta(alpha, alpha), alpha >= 1, at `uniform` (any shape, 0..1), by a table of the distribution."""
    table = _beta_table(alpha, cells, uniform.device, uniform.dtype)
    above = torch.searchsorted(table, uniform.contiguous(), right=True).clamp_(1, cells)
    low, high = table[above - 1], table[above]
    return ((above - 1 + (uniform - low) / (high - low).clamp_min(1e-12)) / cells).clamp_(0, 1)


@functools.cache
def _beta_table(alpha: float, cells: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(cells + 1,) distribution function of Beta(alpha, alpha); made on the host, so that every rank has the same."""
    edges = torch.linspace(0, 1, cells + 1, dtype=torch.float64)
    middle = (edges[1:] + edges[:-1]) / 2
    table = F.pad((middle * (1 - middle)).pow(alpha - 1).cumsum(0), (1, 0))
    return (table / table[-1]).to(device, dtype)


def face_contrast(features: Tensor, mixing: Mixing, temperature: float) -> Tensor:
    """InfoNCE between two views of an image; negatives are the views of all other images, mixed in pairs.

    Query i has the negatives f_ij = s_ij f_j + (1 - s_ij) f_o(j) over the j-th of the other images' 2 (G - 1) views
    (features before the normalization) and their partners in the order o. Features are (2B, D), the first views of this
    rank's B images, then the second ones; G = B x ranks.
    """
    with full_precision(features):
        x = at_least_float32(features)
        count = len(x) // 2
        every = all_gather_rows(x.unflatten(0, (2, count)).transpose(0, 1))  # (G, 2, D)
        total = len(every)
        every = every.transpose(0, 1).flatten(0, 1)  # (2G, D), first views of all images, then the second ones
        images = rank() * count + torch.arange(count, device=x.device)
        columns = _views_of_others(images, total).repeat(2, 1)  # (2B, 2G - 2)
        partners = columns[:, mixing.order(2 * total - 2)]
        weight = mixing.weights(2 * total, 2 * total - 2)[torch.cat([images, images + total])].to(x)
        query = F.normalize(x, dim=1)
        dots = query @ every.t()  # (2B, 2G)
        gram = every @ every.t()
        # The mixtures themselves would be (2B, 2G - 2, D): their products and lengths follow from these two.
        mixed = weight * dots.gather(1, columns) + (1 - weight) * dots.gather(1, partners)
        squares = gram.diagonal()
        length = weight.square() * squares[columns] + (1 - weight).square() * squares[partners]
        length = length + 2 * weight * (1 - weight) * gram[columns, partners]
        negative = mixed / length.clamp_min(1e-12).sqrt()
        positive = (query * query.roll(count, 0)).sum(1, keepdim=True)
        return _first_wins(positive, negative, temperature)


def _views_of_others(images: Tensor, total: int) -> Tensor:
    """(B,) positions of images among `total` -> (B, 2 * total - 2) rows of all views but those of the image."""
    columns = torch.arange(2 * total - 2, device=images.device).expand(len(images), -1)
    first = images[:, None]
    columns = columns + (columns >= first)  # skips its first view, then its second
    return columns + (columns >= first + total)


def pose_contrast(features: Tensor, negatives: Tensor, mixing: Mixing, temperature: float) -> Tensor:
    """InfoNCE between two views of an image, (2B, D) as in `face_contrast`; its negatives (K, B, D) are K views of its
    mirror image, mixed in pairs."""
    with full_precision(features):
        x, negatives = at_least_float32(features), at_least_float32(negatives)
        kinds, count = negatives.shape[:2]
        order = mixing.order(kinds)
        weight = mixing.weights(count * world_size(), kinds)[rank() * count : (rank() + 1) * count]  # (B, K)
        weight = weight.t().unsqueeze(2).to(x)
        mixed = F.normalize(weight * negatives + (1 - weight) * negatives[order], dim=2)
        query = F.normalize(x, dim=1)
        negative = torch.einsum("vbd,kbd->vbk", query.unflatten(0, (2, count)), mixed).flatten(0, 1)  # (2B, K)
        positive = (query * query.roll(count, 0)).sum(1, keepdim=True)
        return _first_wins(positive, negative, temperature)


def _first_wins(positive: Tensor, negative: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of cosines (B, 1) and (B, K) over the temperature, with the first as the class."""
    return -(torch.cat([positive, negative], dim=1) / temperature).log_softmax(1)[:, 0].mean()


class LossBalance(nn.Module):
    """Dynamic weight averaging (Liu et al., "End-to-end multi-task learning with attention", CVPR 2019, Eq. 7).

    Weight k of an epoch is n softmax_k(r / T), r_k = mean of loss k over the last epoch / over the one before it;
    1 until two epochs are complete.
    """

    def __init__(self, count: int, temperature: float | None) -> None:
        """`count` is n, the number of losses; `temperature` T; None: weights stay 1."""
        super().__init__()
        self.temperature = temperature
        self.sums = nn.Buffer(torch.zeros(count + 1))  # of the steps of the epoch that runs, and their number
        self.means = nn.Buffer(torch.zeros(2, count))  # of the last epoch and of the one before; 0: none yet
        self.epoch = nn.Buffer(torch.zeros((), dtype=torch.int64))
        self._pending: list[Tensor] = []  # sum over the micro-batches, and their number

    def weights(self, epoch: int) -> Tensor:
        """(n,) weights of a step in `epoch` (epochs completed before it)."""
        last, before = self._means(epoch)
        if self.temperature is None:
            return torch.ones_like(last)
        weights = len(last) * (last / before.clamp_min(1e-12) / self.temperature).softmax(0)
        return torch.where(before > 0, weights, torch.ones_like(weights))

    @torch.no_grad()
    def add(self, losses: Tensor) -> None:
        """Keep the losses (n,) of a micro-batch for `update`."""
        self._pending = [sum(self._pending, torch.cat([losses.detach(), torch.ones_like(losses[:1])]))]

    @torch.no_grad()
    def update(self, epoch: int) -> None:
        """Add the losses of a step to the mean of `epoch`. Collective call."""
        if not self._pending:
            return
        step = all_reduce_mean(self._pending.pop())
        self.means.copy_(self._means(epoch))
        self.sums.mul_(self.epoch >= epoch).add_(step / step[-1])
        self.epoch.fill_(epoch)

    def _means(self, epoch: int) -> Tensor:
        """`means` as they are once `epoch` has begun."""
        ended = (self.epoch < epoch) & (self.sums[-1] > 0)
        return torch.where(ended, torch.stack([self.sums[:-1] / self.sums[-1], self.means[0]]), self.means)
