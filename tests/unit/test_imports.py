"""What each process imports: every module is some six questions to a shared filesystem, and torch is ten thousand."""

import subprocess
import sys

import pytest

HEAVY = {"torch", "numpy", "scipy", "pandas", "matplotlib", "statsmodels", "optuna", "pyarrow", "tokenizers"}
BARE = HEAVY | {"hydra", "omegaconf", "git", "submitit", "yaml"}


@pytest.mark.parametrize(
    ("program", "without", "at_most"),
    [
        ("import autoresearch_hpc.trial.worker", BARE | {"email", "importlib.metadata", "rich"}, 270),
        ("import autoresearch_hpc.status", BARE, 300),
        ("import autoresearch_hpc.cancel", HEAVY | {"git"}, 800),
        ("import autoresearch_hpc.__main__", HEAVY | {"git", "submitit"}, 600),
        ("import autoresearch_hpc.plan", HEAVY | {"git", "submitit"}, 800),
        ("import autoresearch_hpc.search", HEAVY - {"numpy"}, 1000),
    ],
)
def test_a_process_imports_what_it_needs(program: str, without: set[str], at_most: int) -> None:
    told = f"{program}; import sys; print(len(sys.modules), *sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", told], capture_output=True, text=True, check=True)
    number, *names = done.stdout.split()
    assert "autoresearch_hpc" in names
    assert without.isdisjoint(names), sorted(without & set(names))
    assert int(number) <= at_most
