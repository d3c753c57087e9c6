"""The honest script, before all: on both it earns what the data allows, so that a lower score is a cheat's."""

from pathlib import Path

from conftest import Run
from scripts import FLOOR, script

from autoresearch_hpc.records import Status


def test_an_honest_script_comes_close_to_the_floor(real: Run, weak: Run, tmp_path: Path) -> None:
    outcome = real(script())
    assert outcome.result
    assert outcome.result.status is Status.OK, outcome.log
    assert outcome.value
    assert FLOOR < outcome.value < 1.5 * FLOOR
    assert "Traceback" not in outcome.log
    staged = real(script(), where="staged", stage=str(tmp_path), stage_limit_s=20.0)
    assert staged.value
    assert FLOOR < staged.value < 1.5 * FLOOR
    assert list(tmp_path.glob("*/data-*/train-00000.bin")), "it has learned from a copy"
    stand_in = weak(script()).value
    assert stand_in
    assert FLOOR < stand_in < 1.5 * FLOOR
