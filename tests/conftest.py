"""What tests/slurm and tests/e2e share: the sandbox cluster, toy repositories, markers by folder."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

_HERE = Path(__file__).parent
sys.path.insert(0, str(_HERE / "sandbox"))

from client import Sandbox, booted, is_slurm_variable  # noqa: E402
from packages import missing  # noqa: E402
from toy import Toy  # noqa: E402

# They measure seconds, or start more than the others: `make test` runs them one at a time, on an idle machine.
_ALONE = (
    "test_quickstart.py",
    "test_manners.py",
    "test_chaos.py",
    "test_faults_",
    "test_four_at_once",
    "test_second_cluster",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name.startswith(_ALONE) or item.name.startswith(_ALONE):
            item.add_marker("alone")
        for folder in ("slurm", "e2e"):
            if _HERE / folder in item.path.parents:
                item.add_marker(folder)


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


@pytest.fixture
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a cluster's nor an enclosing job's variables."""
    for name in filter(is_slurm_variable, list(os.environ)):
        monkeypatch.delenv(name)


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Callable[..., Toy]]:
    """Makes toy repositories in a folder with a hostile name; whatever they started is gone after the test."""
    made: list[Toy] = []

    def make(name: str = 'it\'s a toy 5% %x "é"', **settings: Any) -> Toy:
        made.append(Toy(tmp_path / name, **settings))
        return made[-1]

    yield make
    for one in made:
        one.stop()
