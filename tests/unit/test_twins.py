"""autoresearch_hpc.trial.twins: what is told from arithmetic, and what is not."""

import numpy as np
import pytest

from autoresearch_hpc.trial import twins
from autoresearch_hpc.trial.twins import COARSE, EXACT, Tolerance

ROWS, SEQ_LEN = 200, 64


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(3)


@pytest.fixture
def rows(random: np.random.Generator) -> twins.Rows:
    return random.integers(0, 50, size=(ROWS, SEQ_LEN + 1)).astype(np.uint16)


BYTES = np.full((ROWS, SEQ_LEN), 2, dtype=np.int32)


def test_twins_are_the_same_up_to_the_cut_and_differ_behind_it(random: np.random.Generator, rows: twins.Rows) -> None:
    drawn = twins.draw(random, rows, BYTES, 80)
    plain = 0
    for row, cut, inputs in zip(drawn.row, drawn.cut, drawn.inputs, strict=True):
        original = rows[row, :SEQ_LEN]
        assert (inputs[: cut + 1] == original[: cut + 1]).all()
        if cut == SEQ_LEN - 1:
            plain += 1
        else:
            assert inputs[cut + 1] != original[cut + 1]
    assert plain >= 10


def test_cuts_are_drawn_where_a_gain_was(random: np.random.Generator, rows: twins.Rows) -> None:
    nats = np.full((ROWS, SEQ_LEN), 99.0, dtype=np.float32)
    nats[7, 20] = 0.0
    drawn = twins.draw(random, rows, BYTES, 400, nats)
    assert ((drawn.row == 7) & (drawn.cut == 20)).sum() > 30


def scores(
    random: np.random.Generator, rows: twins.Rows, gain: float, share: float, noise: float, count: int = 256
) -> tuple[twins.Twins, twins.Floats, twins.Floats]:
    """A first server that gains so much by the next token at a share of the positions, and an honest witness."""
    drawn = twins.draw(random, rows, BYTES, count)
    witnessed = random.normal(2.0, 1.0, size=(count, SEQ_LEN)).astype(np.float32)
    own = witnessed + random.normal(0.0, noise, size=witnessed.shape).astype(np.float32)
    at_cut = np.arange(SEQ_LEN) == drawn.cut[:, None]
    behind = np.arange(SEQ_LEN) > drawn.cut[:, None]
    own -= np.where(at_cut & (random.random(size=own.shape) < share), gain, 0.0).astype(np.float32)
    own[behind] -= 7.0  # of no importance: the tokens are others
    return drawn, own, witnessed


@pytest.mark.parametrize(("noise", "tolerance"), [(0.0, EXACT), (1e-3, EXACT), (0.02, COARSE), (0.1, COARSE)])
def test_an_honest_model_passes(
    random: np.random.Generator, rows: twins.Rows, noise: float, tolerance: Tolerance
) -> None:
    for _ in range(50):
        assert twins.judge(*scores(random, rows, 0.0, 0.0, noise), BYTES, tolerance) is None


@pytest.mark.parametrize(
    ("gain", "share", "noise", "tolerance"),
    [(2.0, 0.1, 0.02, COARSE), (0.05, 1.0, 0.02, COARSE), (0.01, 1.0, 1e-3, EXACT), (5.0, 0.05, 0.0, EXACT)],
)
def test_one_that_looks_ahead_does_not(
    random: np.random.Generator, rows: twins.Rows, gain: float, share: float, noise: float, tolerance: Tolerance
) -> None:
    finding = twins.judge(*scores(random, rows, gain, share, noise), BYTES, tolerance)
    assert finding
    assert finding.type == "NotCausal"


def test_rows_that_depend_on_their_company(random: np.random.Generator, rows: twins.Rows) -> None:
    drawn, own, witnessed = scores(random, rows, 0.0, 0.0, 0.0)
    finding = twins.judge(drawn, own - 0.1, witnessed, BYTES, EXACT)
    assert finding
    assert finding.type == "NotRowwise"


def test_a_witness_without_numbers(random: np.random.Generator, rows: twins.Rows) -> None:
    drawn, own, witnessed = scores(random, rows, 0.0, 0.0, 0.0)
    assert twins.judge(drawn, own, witnessed * np.nan, BYTES, COARSE)


def test_how_many() -> None:
    assert twins.num_tested(768, 32) == 64
    assert twins.num_tested(10_240, 64) == 512
    assert twins.num_tested(12, 5) == 65
    assert twins.num_tested(10**6, 64) == 1024
