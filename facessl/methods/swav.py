"""SwAV (arXiv:2006.09882): every view of an image predicts the balanced cluster assignment of another view."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from facessl.core.distributed import all_gather_rows, all_reduce_sum, rank, world_size
from facessl.core.errors import many
from facessl.core.precision import at_least_float32, full_precision
from facessl.core.types import Batch, Progress, Step
from facessl.core.values import FROM_0, FROM_1, POSITIVE, check_values
from facessl.models.backbone import Backbone
from facessl.models.layers.heads import MLPHead
from facessl.models.layers.losses import sinkhorn
from facessl.views.normalize import IMAGENET_MEAN, SWAV_STD
from facessl.views.spec import View

#: Views 0 and 1 are assigned to clusters; all views predict.
ASSIGNED = 2

_COLOR: dict[str, Any] = {"jitter": (0.8, 0.8, 0.8, 0.2), "jitter_p": 0.8, "grayscale": 0.2, "blur": 0.5}
_LARGE = View(scale=(0.14, 1.0), **_COLOR)
_SMALL = View(size=96 / 224, scale=(0.05, 0.14), **_COLOR)


@dataclass(frozen=True)
class SwAVArgs:
    """Hyper-parameters of SwAV; the defaults are its paper's for ResNet-50 and large batches.

    Attributes:
        hidden: width of the hidden layer of the projector.
        dim: D, width of projections and prototypes.
        prototypes: K, number of clusters.
        temperature: of the predictions.
        epsilon: smoothness of the assignments; at least 0.02, below which exp(1 / epsilon) leaves float32.
        sinkhorn_iterations: rounds of Sinkhorn-Knopp.
        freeze_prototypes_epochs: epochs at the start with frozen prototypes, at most a third of the run.
        queue_length: L, projections of past batches, over all ranks, that are assigned along with the batch; 0: none.
            The paper has 3840 for batches of 256.
        queue_epoch: completed epochs before the queue begins to fill; it is used from when it is full.
        queue_step: the same in optimizer steps, for short runs and streams; null: `queue_epoch` decides.
    """

    hidden: int = 2048
    dim: int = 128
    prototypes: int = 3000
    temperature: float = 0.1
    epsilon: float = 0.05
    sinkhorn_iterations: int = 3
    freeze_prototypes_epochs: float = 1.0
    queue_length: int = 0
    queue_epoch: int = 15
    queue_step: int | None = None

    def __post_init__(self) -> None:
        check_values(
            self,
            {
                "hidden dim prototypes sinkhorn_iterations": FROM_1,
                "freeze_prototypes_epochs queue_length queue_epoch queue_step": FROM_0,
                "epsilon": (lambda v: v >= 0.02, "0.02 or more"),
                "temperature": POSITIVE,
            },
            prefix="method.",
        )

    def queue_runs(self, step: int, epoch: int) -> bool:
        """Whether the queue fills, and once full is used, in this step of this epoch."""
        begun = epoch >= self.queue_epoch if self.queue_step is None else step >= self.queue_step
        return self.queue_length > 0 and begun


class Queue(nn.Module):
    """The last L rows of K parallel sets (SwAV: one set per view that is assigned), over all ranks.

    Every rank holds all rows, so that a run may go on with another number of ranks. `add` gathers rows during a step,
    `update` puts them in.
    """

    def __init__(self, sets: int, length: int, dim: int) -> None:
        """`sets` is K; `length` L, rows of each set over all ranks, of which the oldest leave first; `dim` D."""
        super().__init__()
        self.length = length
        self.rows = nn.Buffer(torch.zeros(sets, length, dim))
        self.position = nn.Buffer(torch.zeros((), dtype=torch.int64))
        self.filled = nn.Buffer(torch.zeros((), dtype=torch.int64))
        self._pending: Tensor | None = None

    @torch.no_grad()
    def add(self, rows: Tensor) -> None:
        """Keep (K, B, D) rows of this rank for `update`; at most L of them over any number of calls."""
        rows = at_least_float32(rows.detach())
        joined = rows if self._pending is None else torch.cat([self._pending, rows], 1)  # (K, B + ..., D)
        self._pending = joined[:, -self.length :]

    @torch.no_grad()
    def update(self) -> None:
        """Put in the added rows of all ranks, in the order of the ranks. Collective call if rows were added."""
        if self._pending is None:
            return
        fresh = all_gather_rows(self._pending.transpose(0, 1))[-self.length :].transpose(0, 1)  # (K, W * B, D)
        count = fresh.shape[1]
        positions = (self.position + torch.arange(count, device=fresh.device)) % self.length
        self.rows.index_copy_(1, positions, fresh.to(self.rows.dtype))
        self.position.copy_((self.position + count) % self.length)
        self.filled.copy_((self.filled + count).clamp_max(self.length))
        self._pending = None

    def local_rows(self) -> Tensor:
        """This rank's part of the queue, (K, about L / W, D)."""
        return self.rows[:, rank() :: world_size()]

    def is_full(self) -> Tensor:
        """1 where L rows have been put in, else 0: a scalar on the queue's device, of the type of its rows."""
        return (self.filled >= self.length).to(self.rows.dtype)


class SwAV(nn.Module):
    """Swapping assignments between views (Caron et al., NeurIPS 2020), Eq. 1-6 with multi-crop.

    Bulat et al. (ECCV 2022) trained this method on faces; recipes/swav/bulat-* have their settings.

    Differences:
        The projector is `MLPHead`, without bias. The queue holds the last L rows, the same on every rank (there one per
        rank, of whole batches). Prototypes are frozen for at most a third of the run, by a zero gradient instead of
        being kept from the optimizer. With gradient accumulation the assignments are balanced over a micro-batch. All:
        docs/methods/swav.md.
    """

    Args: ClassVar[type[SwAVArgs]] = SwAVArgs
    needs: ClassVar[frozenset[str]] = frozenset()
    defaults: ClassVar[Mapping[str, Any]] = {
        # of the release for batches of 256
        "optim": {"name": "lars", "lr": 0.6, "reference_batch": 256, "warmup_epochs": 0, "final_lr": 0.001}
    }
    views: ClassVar[tuple[View, ...]] = (_LARGE,) * 2 + (_SMALL,) * 6
    view_count: ClassVar[tuple[int, int | None]] = (ASSIGNED, None)
    mean: ClassVar[tuple[float, float, float]] = IMAGENET_MEAN
    std: ClassVar[tuple[float, float, float]] = SWAV_STD
    batch_wide: ClassVar[str] = "Sinkhorn's balance"

    def __init__(self, backbone: Backbone, **values: Any) -> None:
        """`backbone` takes views of several sizes from now on, if it can; `values` are fields of `SwAVArgs`."""
        super().__init__()
        self.args = args = SwAVArgs(**values)
        self.backbone = backbone
        self.backbone.take_any_size()
        self.projector = MLPHead(backbone.num_features, hidden=args.hidden, out_features=args.dim)
        self.prototypes = nn.Parameter(F.normalize(torch.randn(args.prototypes, args.dim), dim=1))  # (K, D), rows of 1
        self.queue = Queue(ASSIGNED, args.queue_length, args.dim) if args.queue_length else None

    def step(self, batch: Batch, progress: Progress) -> Step:
        """Loss of V >= 2 views (B, 3, S_v, S_v); logs `swapped_prediction` and `prototypes_used`, the fraction of the K
        prototypes that are some image's first choice on any rank."""
        z = self._project(batch.views)  # (V, B, D)
        weight: Tensor = self.prototypes
        if progress.step < progress.first_steps(self.args.freeze_prototypes_epochs):
            weight = weight.detach() + 0 * weight  # a zero gradient: DDP waits for one of every parameter
        with full_precision(z):
            scores = z @ weight.t()  # (V, B, K)
            loss, used = self._swapped(scores, self._queued_scores(progress))
        if (
            self.training
            and torch.is_grad_enabled()
            and self.queue is not None
            and self.args.queue_runs(progress.step, progress.epoch)
        ):
            self.queue.add(z[:ASSIGNED])
        return Step(loss, {"swapped_prediction": loss.detach(), "prototypes_used": used})

    def _project(self, views: list[Tensor]) -> Tensor:
        """V views (B, 3, S_v, S_v) -> (V, B, D) float32 of length 1."""
        pooled = self.backbone.forward_views(views).flatten(0, 1)  # (VB, C), view by view
        z = at_least_float32(self.projector(pooled)).unflatten(0, (len(views), -1))  # (VB, D) -> (V, B, D)
        return F.normalize(z, dim=-1)

    @torch.no_grad()
    def _queued_scores(self, progress: Progress) -> Tensor | None:
        """Scores of this rank's part of the queue, (2, l, K); None if the queue does not run."""
        if self.queue is None or not self.args.queue_runs(progress.step, progress.epoch):
            return None
        return self.queue.local_rows() @ self.prototypes.t()

    def _swapped(self, scores: Tensor, queued: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean of Eq. 2 over assigned views s and other views t, and the fraction of prototypes in use, from cosines of
        views and prototypes (V, B, K) and those of the queue (2, l, K), if any."""
        terms, winners = [], []
        for s in range(ASSIGNED):
            q = self._assign(scores[s].detach(), None if queued is None else queued[s])  # (B, K)
            winners.append(q.argmax(1))
            terms += [F.cross_entropy(scores[t] / self.args.temperature, q) for t in range(len(scores)) if t != s]
        in_use = torch.zeros(scores.shape[-1], dtype=scores.dtype, device=scores.device)
        in_use.index_fill_(0, torch.cat(winners), 1)  # indexing with `= 1` would wait for a GPU
        return torch.stack(terms).mean(), all_reduce_sum(in_use).clamp_max(1).mean()

    @torch.no_grad()
    def _assign(self, scores: Tensor, queued: Tensor | None) -> Tensor:
        """Assignments (B, K) of Eq. 3-5, balanced over the batch and the queue (l, K) of all ranks."""
        mass = torch.exp(scores / self.args.epsilon)
        if queued is not None and self.queue is not None:
            # Rows without mass take part in nothing, so that a queue that is not yet full leaves no trace.
            mass = torch.cat([torch.exp(queued / self.args.epsilon) * self.queue.is_full(), mass])
        return sinkhorn(mass, self.args.sinkhorn_iterations)[-len(scores) :]

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        """Brings the prototypes back to length 1 and moves the queue."""
        self.prototypes.copy_(F.normalize(self.prototypes, dim=1))
        if self.queue is not None:
            self.queue.update()

    def schedule(self, progress: Progress) -> str:
        """The freezing of the prototypes, in steps of this run."""
        frozen = many(progress.first_steps(self.args.freeze_prototypes_epochs), "step")
        return f"prototypes frozen for {frozen} (at most a third of the run)"
