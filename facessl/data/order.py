"""In which order a source is visited, and which generator belongs to an image, by seed, epoch and position."""

from __future__ import annotations

from collections.abc import Callable, Iterator

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
        self.weights = weights
        self.n, self.batch_size, self.seed, self.start_step = n, batch_size, seed, start_step
        local = batch_size // world_size
        self.part = slice(rank * local, (rank + 1) * local)

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
    words = (seed, epoch, index)
    # The same seeding; but an array of words need not be taken apart.
    entropy = np.array(words, np.uint32) if max(words) < 2**32 else words
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))


def uniforms(seed: int, epoch: int, indices: np.ndarray, count: int) -> np.ndarray:
    """The first random numbers of many images: row i is `view_rng(seed, epoch, indices[i]).random(count)`, to the bit.

    A generator for each image costs 7 us; here the same arithmetic runs on all images at once, 2 us each for 256.
    NumPy keeps the streams of `SeedSequence` and `PCG64` as they are (NEP 19); a test compares.

    Args:
        seed, epoch: 0 or more.
        indices: (n,) int64 positions of images.
        count: numbers of each.

    Returns:
        (n, count) float64 in 0..1.
    """
    # Numbers of 2^32 and more are other words of entropy; few images are not worth the fixed cost.
    if len(indices) < _FEW or max(seed, epoch, int(indices.max(initial=0))) >= 2**32:
        return np.array([view_rng(seed, epoch, index).random(count) for index in indices.tolist()]).reshape(-1, count)
    words = np.zeros((4, len(indices)), np.uint32)  # an entropy of three words is padded with zero
    words[0], words[1], words[2] = seed, epoch, indices
    seeds, out = _seeds(words), np.empty((len(indices), count))
    for start in range(0, len(indices), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        out[part] = _pcg64(seeds[:, part], count)
    return out


def _seeds(pool: np.ndarray) -> np.ndarray:
    """(4, n) uint32 words of entropy -> (4, n) uint64 that n generators start from, as `SeedSequence` mixes them.

    The hash is that of O'Neill, "Developing a seed_seq alternative" (2015).
    """
    hashed = _hasher(0x43B0D7E5, 0x931E8875)
    pool = np.array([hashed(word) for word in pool])
    for source in range(4):
        for target in range(4):
            if source != target:
                mixed = pool[target] * np.uint32(0xCA01F9DD) - hashed(pool[source]) * np.uint32(0x4973F715)
                pool[target] = mixed ^ mixed >> np.uint32(16)
    hashed = _hasher(0x8B51F9DD, 0x58F38DED)
    halves = [hashed(pool[word % 4]).astype(np.uint64) for word in range(8)]
    return np.stack([halves[i] | halves[i + 1] << np.uint64(32) for i in range(0, 8, 2)])


def _hasher(state: int, multiplier: int) -> Callable[[np.ndarray], np.ndarray]:
    """A hash of uint32 words that is another one at each call."""

    def hashed(word: np.ndarray) -> np.ndarray:
        nonlocal state
        word = word ^ np.uint32(state)
        state = state * multiplier % 2**32
        word = word * np.uint32(state)
        return word ^ word >> np.uint32(16)

    return hashed


#: Below so many images a generator for each is as fast.
_FEW = 48
#: Generators whose numbers stay in the cores' caches.
_AT_ONCE = 256
#: Multiplier of PCG64's step.
_STEP = 0x2360ED051FC65DA44385DF649FCCF645
_32, _MASK = np.uint64(32), np.uint64(0xFFFFFFFF)
#: 128-bit numbers: their upper and lower 64 bits.
_Wide = tuple[np.ndarray, np.ndarray]


def _pcg64(seeds: np.ndarray, count: int) -> np.ndarray:
    """(4, n) uint64 -> (n, count) float64 in 0..1: the first numbers of n generators PCG64 (XSL RR 128/64).

    O'Neill, "PCG: A Family of Simple Fast Space-Efficient Statistically Good Algorithms" (2014).
    """
    one = np.uint64(1)
    # The increment is the odd number 2 seed + 1; the first state is a step from the seed plus the increment.
    increment = seeds[2] << one | seeds[3] >> np.uint64(63), seeds[3] << one | one
    start = _sum(_times(_sum((seeds[0], seeds[1]), increment), _STEP), increment)
    high, low = np.empty((2, count + 1, seeds.shape[1]), np.uint64)
    high[0], low[0] = start
    known, power, total = 1, _STEP, 1  # `known` steps multiply by `power` and add `total` increments
    while known <= count:
        more = min(known, count + 1 - known)
        new = _sum(_times((high[:more], low[:more]), power), _times(increment, total))
        high[known : known + more], low[known : known + more] = new
        known, power, total = 2 * known, power * power % 2**128, total * (1 + power) % 2**128
    turn = high[1:] >> np.uint64(58)
    value: np.ndarray = high[1:] ^ low[1:]
    value = value >> turn | value << (-turn & np.uint64(63))
    return (value.T >> np.uint64(11)) * 2.0**-53


def _sum(a: _Wide, b: _Wide) -> _Wide:
    """a + b modulo 2^128."""
    low = a[1] + b[1]
    return a[0] + b[0] + (low < a[1]).view(np.uint8), low


def _times(a: _Wide, factor: int) -> _Wide:
    """a times a number, modulo 2^128."""
    high, low = a
    times_high, times_low = np.uint64(factor >> 64), np.uint64(factor % 2**64)
    times_1, times_0 = times_low >> _32, times_low & _MASK
    low_1, low_0 = low >> _32, low & _MASK
    middle = low_1 * times_0 + (low_0 * times_0 >> _32)
    other = low_0 * times_1 + (middle & _MASK)
    carried = low_1 * times_1 + (middle >> _32) + (other >> _32)  # upper 64 bits of the product of the lower ones
    return carried + high * times_low + low * times_high, low * times_low
