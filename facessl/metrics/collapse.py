"""Signs of collapse: numbers that need no labels, and the sentences of a report."""

import torch
import torch.nn.functional as F
from torch import Tensor

#: Below this embedding spread (1 = healthy, 0 = all embeddings equal) a run is called collapsed.
COLLAPSED_STD = 0.1
#: Below this number of regions in use (exp of the entropy of the mean heatmap), they are called collapsed.
COLLAPSED_USAGE = 1.5


def embedding_std(z: Tensor) -> Tensor:
    """Spread of the directions of embeddings (N, C), N >= 2: mean over channels of std(z / |z|), times sqrt(C).

    0 when all embeddings point the same way (collapse), about 1 when they fill the sphere evenly. ResNets, whose
    features follow a ReLU, have less: 0.2 with random weights.

    Source: Chen and He, "Exploring Simple Siamese Representation Learning", CVPR 2021, section 4.1.
    """
    unit = F.normalize(z.float(), dim=1)
    return unit.std(dim=0, unbiased=False).mean() * z.shape[1] ** 0.5


def effective_rank(z: Tensor) -> Tensor:
    """Number of directions, 1 to min(N, C), that embeddings (N, C) really use: exp of the entropy of singular values.

    The embeddings are not centered, as in the paper.

    Source: Garrido et al., "RankMe", ICML 2023, Eq. 1.
    """
    singular = torch.linalg.svdvals(z.float())
    return torch.special.entr(singular / singular.sum()).sum().exp()


def verdicts(values: dict[str, float]) -> list[str]:
    """Sentences about what has collapsed, by the measured values; empty if nothing has."""
    sentences = []
    spread = values.get("embedding_std")
    if spread is not None and not spread >= COLLAPSED_STD:
        sentences.append(
            f"the embeddings have collapsed: their spread is {spread:.3f} of 1 (below {COLLAPSED_STD}), "
            "so that all images look alike to the network"
        )
    usage = values.get("usage_entropy")
    if usage is not None and not usage >= COLLAPSED_USAGE:
        sentences.append(f"the regions have collapsed: {usage:.2f} of them are in use (below {COLLAPSED_USAGE})")
    return sentences
