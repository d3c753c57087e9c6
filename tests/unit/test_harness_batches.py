"""autoresearch_hpc.harness.batches: the order of rows and their way to the device."""

from itertools import islice

import numpy as np
import pytest
import torch

from autoresearch_hpc.harness import batches as module
from autoresearch_hpc.harness.batches import CpuFeed, GpuFeed, Rows, batches, split_targets


def files(*sizes: int, width: int = 5) -> list[Rows]:
    """Rows whose first token is their number in the corpus, over several files."""
    numbers = np.arange(sum(sizes))
    rows = np.repeat(numbers[:, None], width, axis=1).astype(np.uint16)
    return np.split(rows, np.cumsum(sizes)[:-1])


def numbers(source: list[Rows], num_rows: int, count: int, seed: int = 0) -> list[int]:
    return [int(row[0]) for batch in islice(batches(source, num_rows, seed), count) for row in batch]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", 40)  # four rows of five tokens
    monkeypatch.setattr(module, "BLOCKS_AT_ONCE", 3)


def test_every_row_comes_once_an_epoch_and_the_next_epoch_is_shuffled_anew() -> None:
    source = files(23, 1, 16)
    seen = numbers(source, 10, 8)
    first, second = seen[:40], seen[40:]
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second
    assert first != sorted(first)


def test_the_seed_decides_the_order() -> None:
    source = files(40)
    assert numbers(source, 8, 10) == numbers(source, 8, 10)
    assert numbers(source, 8, 5, seed=1) != numbers(source, 8, 5, seed=2)


def test_the_batch_size_cuts_the_same_stream() -> None:
    source = files(17, 6)
    assert numbers(source, 3, 20) == numbers(source, 20, 3)


def test_a_batch_larger_than_the_data_spans_epochs() -> None:
    rows = numbers(files(3), 8, 1)
    assert len(rows) == 8
    assert sorted(rows[:3]) == sorted(rows[3:6]) == [0, 1, 2]


def test_reads_are_blocks_of_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCKS_AT_ONCE", 1)
    seen = numbers(files(40), 4, 10)
    for start in range(0, 40, 4):
        block = sorted(seen[start : start + 4])
        assert block == list(range(block[0], block[0] + 4))


def test_neighbours_are_mixed_with_other_blocks() -> None:
    first = numbers(files(400), 4, 3)
    assert max(first) - min(first) >= 8  # three blocks of four, of which each batch gets some


def test_targets_are_the_next_tokens() -> None:
    x, y = split_targets(torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.int32))
    assert x.tolist() == [[1, 2], [4, 5]]
    assert y.tolist() == [[2, 3], [5, 6]]
    assert x.dtype == y.dtype == torch.int64
    assert x.is_contiguous()
    assert y.is_contiguous()


def test_tokens_above_int16_survive() -> None:
    rows = np.array([[65535, 40000, 1]], dtype=np.uint16)
    x, y = next(CpuFeed(iter([rows])))
    assert x.tolist() == [[65535, 40000]]
    assert y.tolist() == [[40000, 1]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_a_gpu_gets_the_same_batches_as_the_cpu() -> None:
    source = files(60)
    feed = GpuFeed(batches(source, 7, 0), 7, 5, torch.device("cuda"))
    try:
        for (x, y), (cpu_x, cpu_y) in islice(zip(feed, CpuFeed(batches(source, 7, 0)), strict=False), 30):
            assert torch.equal(x.cpu(), cpu_x)
            assert torch.equal(y.cpu(), cpu_y)
    finally:
        feed.close()
