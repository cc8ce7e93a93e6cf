"""Every process sees its own part of the same stream, from any step on."""

from itertools import chain, islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from efficient_mae.data import ResumableBatchSampler, sample_rng
from efficient_mae.errors import InputError


def take(count, *args, **options):
    return list(islice(ResumableBatchSampler(*args, **options), count))


def joined(batches):
    return list(chain.from_iterable(batches))


def test_an_epoch_is_a_permutation_cut_into_batches():
    batches = take(20, 103, 10, 7)  # two epochs of ten steps
    for epoch in (0, 1):
        pairs = joined(batches[epoch * 10 : epoch * 10 + 10])
        assert {e for e, _ in pairs} == {epoch}
        assert len({i for _, i in pairs}) == 100 and all(0 <= i < 103 for _, i in pairs)
    assert [i for _, i in joined(batches[:10])] != [i for _, i in joined(batches[10:])]
    assert ResumableBatchSampler(103, 10, 7).steps_per_epoch == 10


def test_order_depends_on_the_seed_alone():
    assert take(5, 100, 10, 1) == take(5, 100, 10, 1)
    assert take(5, 100, 10, 1) != take(5, 100, 10, 2)


@given(
    accum_iter=st.integers(1, 4),
    world_size=st.integers(1, 4),
    part=st.integers(1, 3),
    spare=st.integers(0, 11),
    start=st.integers(0, 40),
)
def test_ranks_and_accumulation_share_one_batch(accum_iter, world_size, part, spare, start):
    size = part * accum_iter * world_size
    whole = take(3, 2 * size + spare, size, 5, start=start)
    ranks = [
        take(3 * accum_iter, 2 * size + spare, size, 5, accum_iter=accum_iter, rank=rank, world_size=world_size,
             start=start * accum_iter)
        for rank in range(world_size)
    ]  # fmt: skip
    for step, batch in enumerate(whole):
        micros = [ranks[r][step * accum_iter + a] for a in range(accum_iter) for r in range(world_size)]
        assert all(len(micro) == part for micro in micros)
        assert joined(micros) == batch


@given(start=st.integers(0, 60), accum_iter=st.sampled_from([1, 2, 3]), rank=st.sampled_from([0, 1]))
def test_any_start_continues_the_stream(start, accum_iter, rank):
    options = {"accum_iter": accum_iter, "rank": rank, "world_size": 2}
    through = take(start + 12, 40, 12, 3, **options)
    assert take(12, 40, 12, 3, start=start, **options) == through[start:]


def test_batches_that_cannot_be():
    with pytest.raises(InputError, match="global batch of 101 images must be at least 1 and at most the 100"):
        ResumableBatchSampler(100, 101, 0)
    with pytest.raises(InputError, match="global batch of 0 images"):
        ResumableBatchSampler(100, 0, 0)
    with pytest.raises(InputError, match="10 images cannot be divided evenly among accum_iter=2 x 3 processes"):
        ResumableBatchSampler(100, 10, 0, accum_iter=2, world_size=3)
    for repeats in (0, 2, 4):
        with pytest.raises(InputError, match=f"repeats={repeats}: must be at least 1 and divide the 3 images of a"):
            ResumableBatchSampler(100, 12, 0, repeats=repeats, accum_iter=2, world_size=2)


def test_repeats_put_an_images_samples_side_by_side():
    batches = take(12, 31, 12, 7, repeats=3)  # two steps an epoch, six a pass
    for number in (0, 1):
        samples = joined(batches[number * 6 : number * 6 + 6])
        assert len({index for _, index in samples}) == 24 and len(set(samples)) == 72
        for first in range(0, 72, 3):
            epochs, indices = zip(*samples[first : first + 3])
            assert epochs == (number * 3, number * 3 + 1, number * 3 + 2) and len(set(indices)) == 1


def test_repeats_give_the_samples_that_there_would_be_without():
    """12 divides 36: nothing is left over, so that both see every image."""
    plain, repeated = take(9, 36, 12, 7), take(9, 36, 12, 7, repeats=3)
    assert sorted(joined(plain)) == sorted(joined(repeated))
    assert take(9, 36, 12, 7, repeats=1) == plain


@given(
    accum_iter=st.integers(1, 3),
    world_size=st.integers(1, 3),
    part=st.integers(1, 2),
    repeats=st.integers(1, 4),
    spare=st.integers(0, 11),
    start=st.integers(0, 40),
)
def test_ranks_accumulation_and_start_share_the_stream_of_repeats(
    accum_iter, world_size, part, repeats, spare, start
):
    size = part * repeats * accum_iter * world_size
    whole = take(start + 3, 2 * size + spare, size, 5, repeats=repeats)[start:]
    ranks = [
        take(3 * accum_iter, 2 * size + spare, size, 5, repeats=repeats, accum_iter=accum_iter, rank=rank,
             world_size=world_size, start=start * accum_iter)
        for rank in range(world_size)
    ]  # fmt: skip
    for step, batch in enumerate(whole):
        assert joined(ranks[r][step * accum_iter + a] for a in range(accum_iter) for r in range(world_size)) == batch


def test_sample_rng_is_a_function_of_its_arguments():
    base = (1, 23, 3, "crop")
    draw = sample_rng(*base).random(8)
    assert np.array_equal(draw, sample_rng(*base).random(8))
    for other in [
        (2, 23, 3, "crop"),
        (1, 3, 3, "crop"),
        (1, 23, 4, "crop"),
        (1, 23, 3, "mask"),
        (12, 3, 3, "crop"),
    ]:
        assert not np.isin(sample_rng(*other).random(8), draw).any()


def test_sample_rngs_are_uniform_and_unrelated():
    firsts = np.array([sample_rng(0, 0, index, "mask").random(2) for index in range(4000)])
    assert kstest(firsts[:, 0], "uniform").pvalue > 1e-3
    neighbours = np.corrcoef(firsts[:-1, 0], firsts[1:, 0])[0, 1]
    assert abs(neighbours) < 0.06 and abs(np.corrcoef(firsts.T)[0, 1]) < 0.06


@pytest.mark.parametrize("seed", [-1, 0, 2**64, 10**30])
def test_any_integer_is_a_seed(seed):
    assert 0 <= sample_rng(seed, 0, 0, "crop").random() < 1


@pytest.mark.parametrize("start", [0, 2, 3, 5, 7])
def test_batches_that_are_passed_over(start: int):
    """Step by step, wherever it starts: a step sees the batch that lies as many further as are left out before it."""
    settings = dict(num_samples=30, global_batch_size=6, seed=0, accum_iter=3)
    passed_over = [(3, 2), (3, 1), (6, 4)]
    plain = list(islice(ResumableBatchSampler(**settings), 3 * 30))
    found = ResumableBatchSampler(**settings, start=3 * start, passed_over=passed_over)
    for step, batch in zip(range(start, 12), zip(*[iter(found)] * 3)):
        moved = step + sum(batches for cut, batches in passed_over if step >= cut)
        assert list(batch) == plain[3 * moved : 3 * moved + 3]
