"""C1-C6: counters on the worked examples of methods section 4.5, and streaming against a plain definition."""

import random

import pytest
import torch

from oscillations.engine.counters import TOTALS, DenseCounter, SparseCounter
from oscillations.engine.counters import counter as counter_for

A = [0, 0, 1, 0, 1, 1, 0, 0, 1, 2, 2, 1, 1]
B = [i % 2 for i in range(13)]
C = [0, 1, 1, 1, 1, 0]
D = [0, 1, 2, 3]
E = [0, 1, 0, 0, 0, 0, 0, 1, 0]
TOY = [0, 0, 0, 0, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 0, 1]


def stream(sequences, **options):
    """A counter after ticking through several sequences of equal length, one weight each."""
    codes = torch.tensor(sequences, dtype=torch.int8).T.contiguous()
    counter = counter_for(codes[0], [len(sequences)], **options)
    for row in codes[1:]:
        counter.tick(row)
    return counter


def totals(sequence, **options):
    return dict(zip(TOTALS, stream([sequence], **options).totals[:, 0].tolist()))


def by_definition(sequence, timeout=None):
    """The counters from the list of changes, cut into maximal alternating runs."""
    changes = [(t, b - a) for t, (a, b) in enumerate(zip(sequence, sequence[1:]), 1) if a != b]
    runs, last = [], None
    for t, change in changes:
        joined = last and (change > 0) != (last[1] > 0) and (timeout is None or t - last[0] <= timeout)
        if joined:
            runs[-1] += 1
        else:
            runs.append(1)
        last = t, change
    return {
        "crossings": len(changes),
        "levels": sum(abs(change) for _, change in changes),
        "nagel": sum(length - 1 for length in runs),
        "corrected": sum(length for length in runs if length >= 2),
        "trips": sum(length // 2 for length in runs),
    }


@pytest.mark.parametrize(
    ("sequence", "expected"),
    [
        pytest.param(A, (7, 7, 5, 7, 3), id="C1-A"),
        pytest.param(B, (12, 12, 11, 12, 6), id="C2-B"),
        pytest.param(C, (2, 2, 1, 2, 1), id="C3-C"),
        pytest.param(D, (3, 3, 0, 0, 0), id="C4-D"),
        pytest.param(E, (4, 4, 3, 4, 2), id="C5-E"),
        pytest.param(TOY, (9, 9, 8, 9, 4), id="figure1"),
        pytest.param(A[::2], (5, 5, 3, 5, 2), id="A-every-2nd"),
        pytest.param(A[::3], (2, 3, 1, 2, 1), id="A-every-3rd"),
        pytest.param(B[::3], (4, 4, 3, 4, 2), id="B-every-3rd"),
    ],
)
def test_worked_examples(sequence, expected):
    assert tuple(totals(sequence).values()) == expected


@pytest.mark.parametrize("stride", [2, 4, 6])
def test_c6_a_two_cycle_is_invisible_at_even_sampling(stride):
    assert not any(totals(B[::stride]).values())


def test_timeout_ends_a_run():
    assert totals(C, timeout=2)["nagel"] == 0
    assert totals(C, timeout=2)["corrected"] == 0
    assert totals(C, timeout=4)["nagel"] == 1


def test_frequency_of_sequence_a():
    expected = [0, 0, 0.1, 0.19, 0.171, 0.2539, 0.2285, 0.3057, 0.2751, 0.2476, 0.3228, 0.2905]
    counter = counter_for(torch.zeros(1, dtype=torch.int8), [1], momentum=0.1)
    for code, frequency in zip(A[1:], expected):
        counter.tick(torch.tensor([code], dtype=torch.int8))
        assert counter.frequency().item() == pytest.approx(frequency, abs=5e-5)


def test_frequency_survives_rebasing():
    """1000 ticks, beyond several rescalings, against the recursion."""
    rng = random.Random(0)
    sequence = [rng.randint(0, 2) for _ in range(1000)]
    counter = stream([sequence], dtype=torch.float64)
    frequency, direction = 0.0, 0
    for before, after in zip(sequence, sequence[1:]):
        change = (after > before) - (after < before)
        oscillates = change != 0 and change == -direction
        frequency = 0.01 * oscillates + 0.99 * frequency
        direction = change or direction
    assert counter.frequency().item() == pytest.approx(frequency, rel=1e-12)


@pytest.mark.parametrize("timeout", [None, 3])
def test_streaming_equals_definition(timeout):
    rng = random.Random(1)
    sequences = [[rng.randint(-3, 3) for _ in range(40)] for _ in range(200)]
    counter = stream(sequences, timeout=timeout)
    reference = [by_definition(sequence, timeout) for sequence in sequences]
    for kind, total in zip(TOTALS, counter.totals[:, 0].tolist()):
        assert total == sum(counts[kind] for counts in reference), kind


def test_totals_are_kept_per_tensor():
    codes = [torch.tensor(row, dtype=torch.int8) for row in ([0, 0, 0], [1, 0, 0], [0, 0, 5])]
    counter = counter_for(codes[0], [1, 2])
    for row in codes[1:]:
        counter.tick(row)
    assert dict(zip(TOTALS, counter.totals.tolist())) == {
        "crossings": [2, 1], "levels": [2, 5], "nagel": [1, 0], "corrected": [2, 0], "trips": [1, 0],
    }  # fmt: skip


def test_state_round_trip():
    rng = random.Random(2)
    sequences = [[rng.randint(0, 1) for _ in range(300)] for _ in range(50)]
    whole = stream(sequences)
    first = stream([sequence[:260] for sequence in sequences])
    resumed = counter_for(torch.zeros(50, dtype=torch.int8), [50])
    resumed.load_state(first.state())
    for t in range(260, 300):
        resumed.tick(torch.tensor([sequence[t] for sequence in sequences], dtype=torch.int8))
    for key, value in whole.state().items():
        assert torch.equal(value, resumed.state()[key]), key


@pytest.mark.parametrize("timeout", [None, 3])
def test_the_dense_form_counts_the_same(timeout):
    """What runs on a device, where no value may be read, against the form that touches changed weights only."""
    generator = torch.Generator().manual_seed(0)
    sizes = [5, 1, 130, 64]  # no multiple of the eight codes that are compared at once
    codes = torch.randint(-127, 128, (300, sum(sizes)), dtype=torch.int8, generator=generator)
    codes[:, 10:] = codes[0, 10:] + torch.randint(0, 2, (300, 190), dtype=torch.int8, generator=generator)
    sparse, dense = (form(codes[0], sizes, timeout=timeout) for form in (SparseCounter, DenseCounter))
    for row in codes[1:]:
        sparse.tick(row)
        dense.tick(row)
    for key, value in sparse.state().items():
        if key == "frequency":
            torch.testing.assert_close(dense.state()[key], value, rtol=1e-5, atol=1e-9)
        else:
            assert torch.equal(dense.state()[key], value), key
    assert sparse.totals[:, 0].tolist()[1] > 5 * 299  # jumps of more than one level, up to 254


def test_the_state_is_six_bytes_a_weight():
    counter = counter_for(torch.zeros(1000, dtype=torch.int8), [1000])
    state = [value for value in counter.state().values() if len(value) == 1000]
    assert sum(value.element_size() for value in state) == 6
