"""The order in which a source is visited, and the generator of an image, by seed, epoch and position."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class Order(Sampler[tuple[int, np.ndarray]]):
    """(epoch, (b,) indices) of each step of one rank, from `start_step` on, without end."""

    def __init__(
        self,
        n: int,
        batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        start_step: int,
        weights: np.ndarray | None = None,
    ) -> None:
        self.n, self.batch_size, self.seed, self.start_step, self.weights = n, batch_size, seed, start_step, weights
        rank_size = batch_size // world_size
        self.part = slice(rank * rank_size, (rank + 1) * rank_size)

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        epoch, step = divmod(self.start_step, self.n // self.batch_size)
        while True:
            order = permutation(self.n, self.seed, epoch, self.weights)
            for start in range(step * self.batch_size, self.n - self.batch_size + 1, self.batch_size):
                yield epoch, order[start : start + self.batch_size][self.part].astype(np.int64)
            epoch, step = epoch + 1, 0


def permutation(n: int, seed: int, epoch: int, weights: np.ndarray | None = None) -> np.ndarray:
    """(n,) order in which one epoch visits the source; with (n,) weights, as many draws by them."""
    # The spawn key keeps this stream apart from the views': zeros at the end of an entropy tuple do not count.
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, epoch), spawn_key=(0,))))
    if weights is not None:
        return rng.choice(n, n, p=weights)
    return rng.permutation(np.arange(n, dtype=np.int32 if n < 2**31 else np.int64))


def view_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of one image's views: it belongs to (seed, epoch, index), not to a worker or rank."""
    return np.random.default_rng((seed, epoch, index))
