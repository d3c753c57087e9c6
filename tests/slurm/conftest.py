"""Points the tests of this folder to the sandbox cluster."""

import os
from collections.abc import Iterator

import pytest
from client import Sandbox, is_slurm_variable


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
