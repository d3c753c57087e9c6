"""autoresearch_hpc.harness.standalone: a script run by hand, its data and its summary."""

import shutil
from pathlib import Path

import pytest

from autoresearch_hpc.errors import ConfigError, DataError
from autoresearch_hpc.harness import standalone


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with nothing in it."""
    here = tmp_path / "my project"
    here.mkdir()
    monkeypatch.chdir(here)
    for name in ("AUTORESEARCH_DATA", "AUTORESEARCH_TRAIN_S"):
        monkeypatch.delenv(name, raising=False)
    return here


def test_no_data_names_the_command_that_prepares_it() -> None:
    with pytest.raises(DataError, match=r"no data set under ./data; prepare it: python -m autoresearch_hpc.prepare"):
        standalone.find_data()


def test_the_only_data_set_is_taken_and_two_need_a_choice(elsewhere: Path, tiny_dataset: Path) -> None:
    only = elsewhere / "data" / "one"
    shutil.copytree(tiny_dataset, only)
    (elsewhere / "data" / "half.partial").mkdir()
    assert standalone.find_data() == only
    shutil.copytree(tiny_dataset, elsewhere / "data" / "two")
    with pytest.raises(DataError, match=r"several data sets under ./data: data/one, data/two; choose one"):
        standalone.find_data()


def test_the_default_data_set_goes_first_and_the_environment_before_it(
    elsewhere: Path, tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "python-v8192-t2048"):
        shutil.copytree(tiny_dataset, elsewhere / "data" / name)
    assert standalone.find_data() == elsewhere / "data" / "python-v8192-t2048"
    monkeypatch.setenv("AUTORESEARCH_DATA", str(tiny_dataset))
    assert standalone.find_data() == tiny_dataset


@pytest.mark.parametrize("text", ["soon", "0", "-3", "nan"])
def test_impossible_training_times_are_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTORESEARCH_TRAIN_S", text)
    with pytest.raises(ConfigError, match=f"AUTORESEARCH_TRAIN_S={text}"):
        standalone.describe()


def test_without_data_no_scratch_folder_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    monkeypatch.setattr(standalone.tempfile, "tempdir", str(scratch))
    with pytest.raises(DataError):
        standalone.describe()
    assert list(scratch.iterdir()) == []


def test_the_summary_block() -> None:
    block = standalone.summary(
        val_bpb=0.9979,
        training_s=300.06,
        total_s=325.94,
        saved={
            "steps": 953,
            "tokens": 499_600_000,
            "num_params": 50_332_176,
            "peak_vram_mb": 45060.24,
            "mfu": 0.398,
        },
        figures={"depth": 8},
    )
    assert block.splitlines() == [
        "---",
        "val_bpb:          0.997900",
        "training_seconds: 300.1",
        "total_seconds:    325.9",
        "peak_vram_mb:     45060.2",
        "mfu_percent:      39.80",
        "total_tokens_M:   499.6",
        "num_steps:        953",
        "num_params_M:     50.3",
        "depth:            8",
    ]
