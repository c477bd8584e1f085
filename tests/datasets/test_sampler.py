from __future__ import annotations

from itertools import chain, islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import DataLoader

from projects.sa2va.datasets import sampler as module
from projects.sa2va.datasets.sampler import EpochSampler, ExactSampler

SIZES = st.integers(1, 40)
WORLDS = st.integers(1, 7)


def on_rank(rank, world, build):
    """Builds a sampler as rank ``rank`` of ``world`` would."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "get_dist_info", lambda: (rank, world))
        return build()


def epoch_samplers(n, world, **kwargs):
    return [
        on_rank(r, world, lambda: EpochSampler(range(n), seed=3, **kwargs)) for r in range(world)
    ]


@given(n=SIZES, world=WORLDS, epochs=st.integers(1, 4), shuffle=st.booleans())
def test_every_index_once_an_epoch_over_all_ranks(n, world, epochs, shuffle):
    samplers = epoch_samplers(n, world, shuffle=shuffle)
    total = n * epochs
    shares = [len(range(r, total, world)) for r in range(world)]
    drawn = [list(islice(s, k)) for s, k in zip(samplers, shares, strict=True)]
    assert sorted(chain.from_iterable(drawn)) == list(range(total))


@settings(max_examples=40)
@given(n=SIZES, world=WORLDS, rank=st.integers(0, 6), skip=st.integers(0, 200))
def test_skipping_equals_the_uninterrupted_order(n, world, rank, skip):
    rank %= world
    whole = list(islice(epoch_samplers(n, world)[rank], skip + 30))
    resumed = epoch_samplers(n, world)[rank]
    resumed.skip(skip)
    assert list(islice(resumed, 30)) == whole[skip:]
    by_batches = epoch_samplers(n, world, start_batch=skip // 4, batch_size=4)[rank]
    assert list(islice(by_batches, 10)) == whole[skip // 4 * 4 :][:10]


@given(n=st.integers(0, 40), world=WORLDS)
def test_exact_sampler_takes_every_index_once_and_pads_nothing(n, world):
    samplers = [on_rank(r, world, lambda: ExactSampler(range(n))) for r in range(world)]
    assert sorted(i for s in samplers for i in s) == list(range(n))
    assert sum(map(len, samplers)) == n
    assert all(list(s) == list(range(r, n, world)) for r, s in enumerate(samplers))


def test_orders_change_with_epoch_and_seed():
    sampler = EpochSampler(range(50), seed=0)
    orders = [tuple(sampler.order(e)) for e in range(4)]
    orders += [tuple(EpochSampler(range(50), seed=1).order(e)) for e in range(4)]
    assert len(set(orders)) == 8
    assert list(islice(EpochSampler(range(3), shuffle=False, seed=0), 7)) == [0, 1, 2, 3, 4, 5, 6]


def test_iterating_again_starts_at_the_position_again():
    sampler = EpochSampler(range(5), seed=0)
    sampler.skip(3)
    assert list(islice(sampler, 6)) == list(islice(sampler, 6))
    sampler.skip(0)
    assert sorted(islice(sampler, 5)) == [0, 1, 2, 3, 4]


def test_length_is_one_ranks_epoch():
    assert [len(s) for s in epoch_samplers(10, 4)] == [3, 3, 3, 3]
    loader = DataLoader(range(10), batch_size=2, sampler=epoch_samplers(10, 4)[0])
    assert len(loader) == 2


def test_built_as_mmengine_builds_them(load_coco):
    dataset = load_coco(augment={"rotate": (-15, 15)})
    kwargs = {"default_args": {"dataset": dataset, "seed": 7}}
    sampler = DATA_SAMPLERS.build({"type": "EpochSampler", "shuffle": True}, **kwargs)
    assert sorted(islice(sampler, 6)) == [0, 1, 2, 3, 4, 5]
    assert list(DATA_SAMPLERS.build({"type": "ExactSampler"}, **kwargs)) == [0, 1, 2]
    assert isinstance(EpochSampler(dataset, seed=None).seed, int)


def test_bad_arguments():
    with pytest.raises(ValueError, match="empty data set"):
        EpochSampler([], seed=0)
    with pytest.raises(ValueError, match="cannot skip -1"):
        EpochSampler(range(3), seed=0).skip(-1)
