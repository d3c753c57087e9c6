"""The real Slurm of tests/slurm: one private cluster for the whole session, its variables set for these tests only."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
sys.path.insert(0, str(_HERE.parent / "sandbox"))

from client import Sandbox, booted, is_slurm_variable  # noqa: E402
from packages import missing  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.slurm)


@pytest.fixture(scope="session")
def slurm_programs() -> None:
    """Skip where Slurm is not installed; in CI that is a failure."""
    if programs := missing():
        reason = f"Slurm is not installed (no {', '.join(programs)}): run `make slurm-packages`"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def cluster(slurm_programs: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """13 "h100" and 3 "h200" GPUs on the nodes n0 to n3. A cluster that does not start is a failure, not a skip."""
    with booted(tmp_path_factory.mktemp("slurm")) as sandbox:
        yield sandbox


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
