"""The plan of passes: complete, bounded in number, evenly spread; and batches within their cost."""

from __future__ import annotations

import random

import numpy as np
import pytest

from contactlm.maps.windows import Pass, WindowOptions, batch_by_cost, plan_passes
from contactlm.types import ContactLMError


def coverage(plan: list[Pass], length: int) -> np.ndarray:
    """How many passes contribute to each pair."""
    count = np.zeros((length, length), dtype=int)
    for piece in plan:
        rows, columns = piece.block
        count[slice(*rows), slice(*columns)] += 1
    return count


@pytest.mark.parametrize("window", range(2, 14))
def test_every_pair_is_covered_at_every_length_and_overlap(window: int) -> None:
    upper = np.triu(np.ones((80, 80), dtype=bool))
    for overlap in [None, *range(window)]:
        options = WindowOptions(window=window, overlap=overlap)
        for length in [*range(1, 4 * window + 4), 79, 80]:
            plan = plan_passes(length, options)
            covered = coverage(plan, length) > 0
            assert covered[upper[:length, :length]].all(), (overlap, length)
            assert len(set(plan)) == len(plan), (overlap, length)


def test_every_pair_is_covered_near_multiples_of_the_stride_of_real_windows() -> None:
    for window, overlap in [(1022, None), (1021, None), (512, None), (1022, 0), (1022, 700), (255, 100)]:
        options = WindowOptions(window=window, overlap=overlap)
        stride = window - options.least_overlap
        for length in [window + k * stride + off for k in (0, 1, 2) for off in (-1, 0, 1)]:
            covered = coverage(plan_passes(length, options), length) > 0
            assert covered[np.triu_indices(length)].all(), (window, overlap, length)


def test_passes_lie_in_the_chain_and_have_full_length() -> None:
    draw = random.Random(0)
    for _ in range(300):
        window = draw.randint(2, 40)
        overlap = draw.choice([None, draw.randrange(window)])
        length = draw.randint(1, 200)
        for piece in plan_passes(length, WindowOptions(window=window, overlap=overlap)):
            assert piece.residues == min(window, length)
            flat = [end for segment in piece.segments for end in segment]
            # Strictly ascending: no empty segment, and two segments never touch.
            assert flat == sorted(set(flat))
            assert flat[0] >= 0
            assert flat[-1] <= length


@pytest.mark.parametrize("window", [2, 3, 6, 7, 20, 21])
def test_no_more_passes_than_pairs_of_half_windows(window: int) -> None:
    for length in range(window + 1, 12 * window):
        segments = -(-length // (window // 2))
        assert len(plan_passes(length, WindowOptions(window=window))) <= segments * (segments - 1) // 2


def test_a_chain_of_3000_residues_takes_fifteen_passes() -> None:
    plan = plan_passes(3000, WindowOptions(window=1022))
    assert [len(piece.segments) for piece in plan] == [1] * 5 + [2] * 10


def test_neighbouring_windows_share_the_overlap_and_start_evenly() -> None:
    draw = random.Random(1)
    for _ in range(60):
        window = draw.randint(2, 60)
        overlap = draw.choice([None, draw.randrange(window)])
        length = draw.randint(window + 1, 400)
        options = WindowOptions(window=window, overlap=overlap)
        least = options.least_overlap
        assert least == (overlap if overlap is not None else -(-window // 2))
        plan = plan_passes(length, options)
        # The plan opens with its windows, from the first residue to the last.
        ends = [piece.segments[0][1] for piece in plan]
        starts = [piece.segments[0][0] for piece in plan[: ends.index(length) + 1]]
        strides = np.diff(starts)
        assert starts[0] == 0
        assert strides.max() - strides.min() <= 1
        assert window - strides.max() >= least


def test_a_chain_that_fits_takes_one_pass() -> None:
    for length, window in [(1, 2), (2, 2), (7, 7), (1022, 1022), (5000, None), (1, None)]:
        assert plan_passes(length, WindowOptions(window=window)) == [Pass(((0, length),))]


def test_one_residue_more_than_the_window_keeps_full_windows() -> None:
    assert plan_passes(11, WindowOptions(window=10)) == [
        Pass(((0, 10),)),
        Pass(((1, 11),)),
        Pass(((0, 5), (6, 11))),
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"window": 1}, "window=1 .* at least 2.*None"),
        ({"window": 0}, "window=0"),
        ({"window": 100.0}, "window=100.0 is not a whole number"),
        ({"window": True}, "window=True"),
        ({"overlap": -1}, "overlap=-1 .* at least 0"),
        ({"overlap": 0.5}, "overlap=0.5 is not a whole number"),
        ({"window": 10, "overlap": 10}, "overlap=10 with window=10.*from 0 to 9"),
        ({"window": None, "overlap": 10}, "window=None"),
        ({"max_cost": 0}, "max_cost=0 .* at least 1"),
    ],
)
def test_nonsense_options_say_what_to_give(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        WindowOptions(**values)
    assert isinstance(caught.value, ContactLMError)


def test_an_empty_chain_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one residue"):
        plan_passes(0, WindowOptions())


def test_batches_hold_each_sequence_once_within_the_cost_with_padding() -> None:
    draw = random.Random(2)
    for _ in range(100):
        tokens = [draw.randint(3, 120) for _ in range(draw.randint(0, 40))]
        bound = draw.randint(1, 40_000)
        batches = batch_by_cost(tokens, bound)
        assert sorted(k for batch in batches for k in batch) == list(range(len(tokens)))
        for batch in batches:
            longest = max(tokens[k] for k in batch)
            assert len(batch) * longest**2 <= bound or len(batch) == 1
            # At most a third of the work goes to padding.
            assert len(batch) * longest**2 <= 4 / 3 * sum(tokens[k] ** 2 for k in batch)


def test_batches_are_filled_when_all_sequences_are_alike() -> None:
    assert batch_by_cost([10] * 5, max_cost=299) == [[0, 1], [2, 3], [4]]
    assert batch_by_cost([10] * 5, max_cost=300) == [[0, 1, 2], [3, 4]]
    assert batch_by_cost([10] * 5, max_cost=99) == [[0], [1], [2], [3], [4]]
