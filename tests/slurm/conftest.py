"""Points the tests of this folder to the sandbox cluster, and breaks its commands where a test wants that."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bench import Bench
from client import Sandbox, is_slurm_variable

from autoresearch_hpc.cluster.slurm import SlurmCluster


@pytest.fixture(scope="module", autouse=True)
def cluster_environment(cluster: Sandbox) -> Iterator[None]:
    """Point this process to the cluster: what submitit and the package's own calls of sbatch and squeue rely on.

    A module at a time, so that the unit tests that run later in the session see no Slurm.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in filter(is_slurm_variable, list(os.environ)):
            patch.delenv(name)
        for name, value in cluster.settings_environment.items():
            patch.setenv(name, value)
        yield


@pytest.fixture
def empty_queue(cluster: Sandbox) -> Iterator[None]:
    """Nothing of the test is in the queue after it."""
    yield
    cluster.cancel_all()


@pytest.fixture
def on_slurm(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path, SlurmCluster)
    yield bench
    bench.clear()


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Puts a shell script before one of Slurm's commands; $REAL is the command itself. Gives a file of its calls."""

    folder, real_path = tmp_path / "broken", os.environ["PATH"]

    def put(command: str, script: str) -> Path:
        real = shutil.which(command, path=real_path)
        folder.mkdir(exist_ok=True)
        calls = folder / f"{command}.calls"
        new = folder / f".{command}"  # the one before may be running: it is replaced, not written to
        new.write_text(f'#!/bin/sh\nREAL={real}\nCALLS={calls}\necho "$*" >> "$CALLS"\n{script}\n')
        new.chmod(0o755)
        new.replace(folder / command)
        monkeypatch.setenv("PATH", f"{folder}:{real_path}")
        return calls

    return put
