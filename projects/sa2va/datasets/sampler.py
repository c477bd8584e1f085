"""Which sample comes when: endless epochs for training, every frame exactly once for testing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sized

import numpy as np
from mmengine.dist import get_dist_info, sync_random_seed
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import Sampler

# Keeps this stream of random numbers apart from the ones of augmentation with the same seed.
_STREAM = 0x5A3B


@DATA_SAMPLERS.register_module()
class EpochSampler(Sampler[int]):
    """Endless stream of virtual indices ``epoch * len(dataset) + index``, split over the ranks.

    All ranks walk one global stream (epoch 0 in its order, then epoch 1, ...) and rank r takes
    positions r, r + world, r + 2 world, ... So every index comes exactly once an epoch over all
    ranks, nothing is padded, and what comes at a position depends on nothing but (seed, position):
    a resumed run calls :meth:`skip` and goes on where it stopped, without loading what it has seen.

    It has no end: use it with an iteration-based loop. ``len()`` is the samples of one rank in an
    epoch, so that ``len(dataloader)`` is the iterations of an epoch.

    Args:
        dataset: what is sampled.
        shuffle: a new order every epoch, from (seed, epoch); else ascending.
        seed: None draws one and shares it with all ranks.
        start_batch: batches of ``batch_size`` that this rank has already seen (as :meth:`skip`).
        batch_size: batch size of one rank, only needed with ``start_batch``.
    """

    def __init__(
        self,
        dataset: Sized,
        shuffle: bool = True,
        seed: int | None = None,
        start_batch: int = 0,
        batch_size: int = 1,
    ) -> None:
        self.rank, self.world_size = get_dist_info()
        self.size = len(dataset)
        if self.size == 0:
            raise ValueError("cannot sample from an empty data set")
        self.shuffle = shuffle
        self.seed = int(sync_random_seed() if seed is None else seed)
        self.position = 0
        self.skip(start_batch * batch_size)

    def skip(self, n_samples: int) -> None:
        """Sets the position: the next iteration starts after ``n_samples`` samples of this rank.

        Absolute, not added to an earlier call. A run of ``n`` iterations has seen
        ``n * batch_size * accumulation`` samples a rank.
        """
        if n_samples < 0:
            raise ValueError(f"cannot skip {n_samples} samples")
        self.position = int(n_samples)

    def order(self, epoch: int) -> np.ndarray:
        """Returns the order of ``epoch``: int64 [len(dataset)], a permutation."""
        if not self.shuffle:
            return np.arange(self.size)
        return np.random.default_rng([_STREAM, self.seed, epoch]).permutation(self.size)

    def __iter__(self) -> Iterator[int]:
        """Yields from the position that :meth:`skip` set, without end."""
        epoch, order = -1, None
        for at in itertools.count(self.rank + self.position * self.world_size, self.world_size):
            if at // self.size != epoch:
                epoch = at // self.size
                order = self.order(epoch)
            yield epoch * self.size + int(order[at % self.size])

    def __len__(self) -> int:
        return -(-self.size // self.world_size)


@DATA_SAMPLERS.register_module()
class ExactSampler(Sampler[int]):
    """Every index exactly once over all ranks: rank r takes r, r + world, ...; nothing is padded.

    Ranks may hold different counts, also none: the loop that uses this must not expect a
    collective operation in every step.

    Args:
        dataset: what is sampled.
        seed: accepted because mmengine passes it; the order is fixed.
    """

    def __init__(self, dataset: Sized, seed: int | None = None) -> None:
        rank, world_size = get_dist_info()
        self.indices = range(rank, len(dataset), world_size)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)
