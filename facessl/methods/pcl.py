"""PCL: face-aware and pose features that reconstruct a face and its mirror image, each with a contrast of its own."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from facessl.core.errors import ConfigError
from facessl.core.precision import at_least_float32
from facessl.core.types import Batch, Progress, Step
from facessl.methods._pcl_args import PCLArgs
from facessl.methods._pcl_parts import (
    GRID,
    Branch,
    Decoder,
    LossBalance,
    Mixing,
    face_contrast,
    orthogonality,
    pose_contrast,
    projection_head,
)
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


class PCL(nn.Module):
    """Pose-disentangled contrastive learning (Liu et al., CVPR 2023) on any backbone with a feature map.

    Two branches on the backbone's map give a face-aware and a pose feature of the image and of its mirror image.
    A decoder turns the direction of their sum into an image: own face-aware feature with own and with the mirror's
    pose, four L1 terms; both features are made orthogonal. The face-aware feature has an InfoNCE between patches of an
    image against other images, the pose feature one between views of an image against views of its mirror image, both
    with negatives mixed in pairs, weighed against each other by dynamic weight averaging:
    L = reconstruction + orthogonality + w_f face_contrast + w_p pose_contrast.

    `batch.views` are the image, two patches, two whole images, and from the sixth on the pose negatives, as many as
    the list of views has. The released 64-pixel network is the backbone `pcl_facecycle`; `backbone` alone, without
    the branches, is what is exported, as in the released evaluation (which flattens the map, where ours averages it).
    Of a ViT only the patch tokens are trained to that end; its class token learns through attention alone.

    Differences:
        Written from the released code; the paper's text was not available. There, each iteration makes three optimiser
        steps, one for reconstruction and orthogonality, one for each contrast, on three batches (256, 256 and 10
        images, the last with 100 negatives each); here one step takes the sum on one batch. Two negatives per image
        cost as much as there; more views in the list are more negatives. There, the order in which negatives are
        concatenated gives a query negatives of all ten images of its batch; here they are of its own image.
        The patches of the release have side 0.4 of the image and are centred in two different quarters of it; here
        they lie anywhere. Its edge filter (Sobel-like, probability 0.6) does not exist, and blur is a whole Gaussian
        (there cut at 3 pixels). Features are flattened from a 4 x 4 map, which 64 pixels give in the release; other
        maps are averaged to it. Mixing weights depend on the step alone, so that ranks and resumed runs draw alike.
        The release's optimiser is Adam with its weight decay in the gradient, on biases and norms too; the recipes have
        AdamW, without those. A stream has no epochs: there the weights w_f and w_p stay 1.
    """

    Args: ClassVar[type[PCLArgs]] = PCLArgs
    needs: ClassVar[frozenset[str]] = frozenset()
    views: ClassVar[tuple[View, ...]] = PCL_VIEWS
    mean: ClassVar[tuple[float, float, float]] = (0.0, 0.0, 0.0)
    std: ClassVar[tuple[float, float, float]] = (1.0, 1.0, 1.0)
    batch_wide: ClassVar[str] = "the negatives"
    paper: ClassVar[str] = (
        "Liu et al., Pose-disentangled contrastive learning for self-supervised facial representation, CVPR 2023, "
        "arXiv:2211.13490"
    )

    def __init__(self, backbone: Backbone, **values: Any) -> None:
        """
        Args:
            backbone: gives the map that both branches read.
            values: fields of `PCLArgs` by keyword.

        Raises:
            ConfigError: a value outside its range.
        """
        super().__init__()
        self.args = args = PCLArgs(**values)
        features = GRID**2 * args.width
        self.backbone = backbone
        self.face_branch, self.pose_branch = (Branch(backbone.num_features, args.width) for _ in range(2))
        self.face_head, self.pose_head = (projection_head(features, args.hidden, args.dim) for _ in range(2))
        self.decoder = Decoder(features, width=args.decoder_width, size=args.decoder_size)
        self.balance = LossBalance(2, args.balance)

    def step(self, batch: Batch, progress: Progress) -> Step:
        """Loss of six or more views (B, 3, S, S).

        Logs `reconstruction` (sum of the four L1 terms), `orthogonality` (sum over image and mirror image),
        `face_contrast`, `pose_contrast`, unweighted, and the weights of the last two, `face_weight` and `pose_weight`.

        Raises:
            ConfigError: fewer than six views.
        """
        if len(batch.views) < 6:
            raise ConfigError(f"PCL has {len(batch.views)} views: give the image, two patches, two whole, one mirrored")
        image, *contrast = batch.views
        terms = self._reconstruction(image)
        mixing = Mixing(self.args.mix_alpha, seed=progress.step, device=image.device)
        face = self._face(torch.cat(contrast[:2]))
        terms["face_contrast"] = face_contrast(face, mixing, self.args.temperature)
        pose = self._pose(torch.cat(contrast[2:4]))
        negatives = self._pose(torch.cat(contrast[4:])).unflatten(0, (len(contrast) - 4, len(image)))  # (K, B, D)
        terms["pose_contrast"] = pose_contrast(pose, negatives, mixing, self.args.temperature)
        balanced = torch.stack([terms["face_contrast"], terms["pose_contrast"]])
        weights = self.balance.weights(progress.epoch)
        if self.training and torch.is_grad_enabled():
            self.balance.note(balanced)
        loss = terms["reconstruction"] + terms["orthogonality"] + (weights * balanced).sum()
        logs = {name: value.detach() for name, value in terms.items()}
        return Step(loss, logs | {"face_weight": weights[0], "pose_weight": weights[1]})

    def _face(self, x: Tensor) -> Tensor:
        out: Tensor = self.face_head(self.face_branch(self.backbone.forward_features(x)))
        return out

    def _pose(self, x: Tensor) -> Tensor:
        out: Tensor = self.pose_head(self.pose_branch(self.backbone.forward_features(x)))
        return out

    def _reconstruction(self, image: Tensor) -> dict[str, Tensor]:
        """The first two terms, of the image (B, 3, S, S) and its mirror image."""
        sides = (image, image.flip(-1))
        faces, poses, targets = [], [], []
        for side in sides:
            noisy = side + self.args.noise * torch.randn_like(side) if self.training and self.args.noise else side
            features = self.backbone.forward_features(noisy)
            faces.append(self.face_branch(features))
            poses.append(self.pose_branch(features))
            targets.append(F.adaptive_avg_pool2d(at_least_float32(side), self.args.decoder_size))
        losses = []
        for pose, target in zip(poses, targets, strict=True):  # the image follows the pose, whoever gives the face
            for face in faces:
                made = self.decoder(F.normalize(at_least_float32(face) + at_least_float32(pose), dim=1))
                losses.append((at_least_float32(made) - target).abs().mean())
        orthogonal = [orthogonality(f, p) for f, p in zip(faces, poses, strict=True)]
        return {"reconstruction": torch.stack(losses).sum(), "orthogonality": orthogonal[0] + orthogonal[1]}

    def after_step(self, progress: Progress) -> None:
        """Adds the contrastive losses to the means that their weights come from."""
        self.balance.move(progress.epoch)
