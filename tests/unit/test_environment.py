"""autoresearch_hpc.trial.environment: what a trial's processes are told."""

import os
from pathlib import Path

import pytest

from autoresearch_hpc.trial.environment import child_environment


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "PATH": "/bin", "LC_ALL": "C.UTF-8", "CUDA_VISIBLE_DEVICES": "3,5", "HOME": "/h", "TMPDIR": "/t",
        "OPENAI_API_KEY": "1", "SLURM_JWT": "1", "SLURM_JOB_ID": "42", "MY_SETTING": "x", "MY_SECRET": "x",
        "http_proxy": "http://user:pass@proxy", "PYTHONPATH": "/a::rel:/b", "TORCHINDUCTOR_CACHE_DIR": "/my/cache",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def test_a_commands_environment(tmp_path: Path) -> None:
    env = child_environment(None, {"X": "1"}, tmp_path)
    assert {name: env.get(name) for name in ("PATH", "LC_ALL", "HOME", "SLURM_JOB_ID", "X")} == {
        "PATH": "/bin", "LC_ALL": "C.UTF-8", "HOME": "/h", "SLURM_JOB_ID": "42", "X": "1",
    }  # fmt: skip
    assert not {"OPENAI_API_KEY", "SLURM_JWT", "MY_SETTING", "http_proxy", "OMP_NUM_THREADS"} & env.keys()
    assert env["CUDA_VISIBLE_DEVICES"] == "3", "a trial is a single-GPU program"
    assert env["TORCHINDUCTOR_CACHE_DIR"] == "/my/cache", "the user says where"
    assert env["TRITON_CACHE_DIR"] == str(tmp_path / "triton")


def test_a_private_environment(tmp_path: Path) -> None:
    env = child_environment(2, {}, tmp_path / "caches", private=tmp_path)
    assert (env["HOME"], env["TMPDIR"]) == (str(tmp_path / "home"), str(tmp_path / "tmp"))
    assert env["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "caches" / "inductor"), "or trials could meet there"
    assert env["PYTHONPATH"] == os.pathsep.join(("/a", "/b")), "nothing relative: that would be the candidate's"
    assert (env["OMP_NUM_THREADS"], env["MKL_NUM_THREADS"]) == ("2", "2")


def test_what_a_site_names_passes_unless_it_is_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTORESEARCH_PASS_ENV", "MY_*, OPENAI_API_KEY")
    env = child_environment(None, {}, tmp_path)
    assert env["MY_SETTING"] == "x"
    assert not {"MY_SECRET", "OPENAI_API_KEY"} & env.keys()
