"""What the attacks share: their data, an honest trial to compare with, and the two ways to run a script."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from fake_trial import FakeTrial
from scripts import TRAIN_S, write_data

from autoresearch_hpc.records import Direction, Metric, TrialResult


@dataclass(frozen=True)
class Outcome:
    """What came of a script: on the stand-in only value and log."""

    value: float | None
    log: str
    root: Path
    result: TrialResult | None = None

    @property
    def error(self) -> str:
        assert self.result
        assert self.result.error, self.log
        return f"{self.result.error.type}: {self.result.error.message}"

    @property
    def trained_s(self) -> float:
        return float(self.log.split("TRAINED ")[1].split()[0])


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("attacks") / "the data")


Run = Callable[..., Outcome]


@pytest.fixture
def real(tmp_path: Path, data: Path) -> Run:
    """Runs a script as a search would."""

    def run(text: str, env: Mapping[str, str] | None = None, where: str = "real", **settings: Any) -> Outcome:
        root = tmp_path / where
        given: dict[str, Any] = {
            "data_dir": str(data), "train_s": TRAIN_S, "startup_limit_s": 60.0, "grace_s": 20.0, "eval_limit_s": 60.0,
            "eval_tokens": 10**6, "eval_batch_rows": 32, "num_threads": 1,
            "metric": Metric(name="val_bpb", value=None, direction=Direction.min), **settings,
        }  # fmt: skip
        program = given.pop("program", None)
        trial = FakeTrial(root, {"train.py": text}, kind="gpt", **given)
        (root / "inbox").mkdir()
        trial.spec = replace(trial.spec, inbox=str(root / "inbox"))
        with trial.worker(**({"program": program} if program else {}), **(env or {})) as process:
            output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
        assert trial.left() == []
        result = trial.result()
        log = trial.paths.log.read_text(errors="replace") + _text(trial.paths.evaluate_log)
        return Outcome(result.metric.value, log, root, result)

    return run


@pytest.fixture
def weak(tmp_path: Path, data: Path) -> Run:
    """Runs a script on the stand-in; the data is a copy that may be spoilt."""

    def run(text: str, env: Mapping[str, str] | None = None, where: str = "weak") -> Outcome:
        root = tmp_path / where
        src, trial = root / "src", root / "trial"
        src.mkdir(parents=True)
        trial.mkdir()
        (src / "train.py").write_text(text.replace(str(data), str(root / "data")), encoding="utf-8")
        subprocess.run(["cp", "-r", data, root / "data"], check=True)
        command = [sys.executable, str(Path(__file__).parent / "weak.py"), src, root / "data", trial]
        home = root / "home"  # attacks leave things there
        home.mkdir()
        paths = {"PYTHONPATH": f"{src}:{Path(__file__).parents[2]}", "HOME": str(home), "TMPDIR": str(home)}
        done = subprocess.run(
            command,
            env={**os.environ, **paths, **(env or {})},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        log = _text(trial / "train.log")
        assert done.returncode == 0, done.stdout + done.stderr + log
        return Outcome(json.loads(done.stdout.strip().splitlines()[-1])["value"], log, root)

    return run


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""
