"""What travels from the controller's environment into jobs, and from there into a trial's processes."""

import importlib.util
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autoresearch_hpc.cluster.local import LocalCluster
from autoresearch_hpc.cluster.protocol import Submission, job_environment
from autoresearch_hpc.cluster.submit import ArrayExecutor
from autoresearch_hpc.config import ClusterConfig, Config, Device, MetricConfig, PlanConfig, TaskConfig, TaskKind
from autoresearch_hpc.environment import for_job, withheld
from autoresearch_hpc.layout import ArrayPaths
from autoresearch_hpc.preflight import environment_warnings
from autoresearch_hpc.trial.environment import child_environment, compiler_caches, shut_in_compilers


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
    env = child_environment(None, {"X": "1"}, tmp_path, pass_env=())
    assert {name: env.get(name) for name in ("PATH", "LC_ALL", "HOME", "SLURM_JOB_ID", "X")} == {
        "PATH": "/bin", "LC_ALL": "C.UTF-8", "HOME": "/h", "SLURM_JOB_ID": "42", "X": "1",
    }  # fmt: skip
    assert not {"OPENAI_API_KEY", "SLURM_JWT", "MY_SETTING", "http_proxy", "OMP_NUM_THREADS"} & env.keys()
    assert env["CUDA_VISIBLE_DEVICES"] == "3", "a trial is a single-GPU program"
    assert env["TORCHINDUCTOR_CACHE_DIR"] == "/my/cache", "the user says where"
    assert env["TRITON_CACHE_DIR"] == str(tmp_path / "triton")


def test_a_private_environment(tmp_path: Path) -> None:
    env = child_environment(2, {}, tmp_path / "caches", pass_env=(), private=tmp_path)
    assert (env["HOME"], env["TMPDIR"]) == (str(tmp_path / "home"), str(tmp_path / "tmp"))
    caches = compiler_caches(tmp_path / "caches")
    assert {name: env[name] for name in caches} == caches, "or trials could meet there"
    folders = {Path(folder).parent for name, folder in caches.items() if not name.endswith("_ENABLED")}
    assert folders == {tmp_path / "caches"}, "what is elsewhere is neither kept for later trials nor removed"
    assert env["PYTHONPATH"] == os.pathsep.join(("/a", "/b")), "nothing relative: that would be the candidate's"
    assert (env["OMP_NUM_THREADS"], env["MKL_NUM_THREADS"]) == ("2", "2")


def test_what_is_named_passes_unless_it_is_a_secret(tmp_path: Path) -> None:
    named = ("MY_*", "OPENAI_API_KEY", "http_proxy")
    for env in (
        child_environment(None, {}, tmp_path, pass_env=named),
        child_environment(None, {}, tmp_path, pass_env=named, private=tmp_path),
        for_job(named),
    ):
        assert env["MY_SETTING"] == "x"
        assert not {"MY_SECRET", "OPENAI_API_KEY", "http_proxy"} & env.keys()
    assert withheld([*named, "UNSET", "UNSET_KEY", "UNSET_TOKEN*"]) == [
        "MY_SECRET", "OPENAI_API_KEY", "UNSET_KEY", "http_proxy",
    ]  # fmt: skip
    assert withheld(["PATH", "MY_SET*"]) == []


def test_private_places_win_over_what_is_named(tmp_path: Path) -> None:
    env = child_environment(None, {}, tmp_path, pass_env=["HOME", "TMPDIR"], private=tmp_path)
    assert (env["HOME"], env["TMPDIR"]) == (str(tmp_path / "home"), str(tmp_path / "tmp"))


MODULES = {
    "MODULES_CMD": "/m",
    "_ModuleTable001_": "x",
    "BASH_FUNC_module%%": "() { :; }",
    "BASH_FUNC_ml%%": "() { :; }",
}


def test_a_jobs_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**MODULES, "APPTAINER_BIND": "/scratch", "CONDA_PREFIX": "/c", "SSH_AUTH_SOCK": "/s"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    env = job_environment([])
    assert {"PATH", "HOME", "TMPDIR", "LC_ALL", "PYTHONPATH", "CONDA_PREFIX", "APPTAINER_BIND", *MODULES} <= env.keys()
    assert not {"OPENAI_API_KEY", "SSH_AUTH_SOCK", "MY_SETTING", "http_proxy"} & env.keys()
    assert not [name for name in env if name.startswith("SLURM_")]
    assert not [name for name in job_environment(["SLURM_*"]) if name.startswith("SLURM_J")], "an enclosing job's"


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands where sbatch does, and writes down its environment, which the real one exports into the job."""
    folder = tmp_path / "it's bin"
    folder.mkdir()
    seen = folder / "seen"
    scripts = {"sbatch": f"env > {shlex.quote(str(seen))}; echo Submitted batch job 7", "srun": ":"}
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return seen


def seen_in(path: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in path.read_text().splitlines() if "=" in line)


@pytest.mark.parametrize("test_only", [False, True])
def test_sbatch_is_given_what_the_job_may_have(
    sbatch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, test_only: bool
) -> None:
    for name, value in {"SLURM_CONF": "/etc/my.conf", "SLURM_JOB_ID": "42", "SBATCH_PARTITION": "no"}.items():
        monkeypatch.setenv(name, value)
    executor = ArrayExecutor(tmp_path, ["MY_*"])
    executor.update_parameters(job_name="x", time=5)
    executor.test() if test_only else executor.submit_tasks("true", 2)
    seen = seen_in(sbatch)
    assert (seen["HOME"], seen["MY_SETTING"], seen["PATH"]) == ("/h", "x", os.environ["PATH"])
    assert seen["SLURM_CONF"] == "/etc/my.conf", "or it would not find its cluster"
    assert not {"OPENAI_API_KEY", "MY_SECRET", "http_proxy", "SLURM_JOB_ID", "SBATCH_PARTITION"} & seen.keys()


def test_a_local_worker_is_given_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    seen = tmp_path / "seen"
    config = ClusterConfig(max_parallel=1, setup=[f"env > {seen}", f"cat /proc/$PPID/environ > {seen}.parent"])
    place = LocalCluster(config, ["MY_*"])
    spec, array = tmp_path / "t" / "trial.json", ArrayPaths(tmp_path / "array")
    spec.parent.mkdir()
    array.root.mkdir()
    jobs = place.launch(Submission(job_name="x", trials={"t": spec}, array=array, wall_limit_s=60))
    try:
        deadline = time.monotonic() + 30
        while not (seen.with_name("seen.parent").exists() and "CUDA_VISIBLE_DEVICES" in seen.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        place.cancel(jobs)
        while not place.poll(jobs)["t"].ended:
            time.sleep(0.05)
    variables = seen_in(seen)
    assert (variables["HOME"], variables["MY_SETTING"], variables["CUDA_VISIBLE_DEVICES"]) == ("/h", "x", "3")
    assert not {"OPENAI_API_KEY", "MY_SECRET", "SLURM_JOB_ID", "SLURM_JWT"} & variables.keys()
    assert b"OPENAI_API_KEY" not in seen.with_name("seen.parent").read_bytes(), "nor has its parent any"


def test_a_slice_of_a_gpu_has_one_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shut_in_compilers()["TORCHINDUCTOR_WORKER_START"] == "spawn"
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "3")
    assert shut_in_compilers()["TORCHINDUCTOR_COMPILE_THREADS"] == "3", "who knows better"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-aaaa")
    assert shut_in_compilers() == {"TORCHINDUCTOR_COMPILE_THREADS": "1"}


def test_a_torch_without_bytecode_is_told_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = tmp_path / "torch" / "_inductor" / "lowering.py"
    module.parent.mkdir(parents=True)
    for path in (module, tmp_path / "torch" / "__init__.py"):
        path.touch()
    spec = importlib.util.spec_from_file_location("torch", tmp_path / "torch" / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)

    def warnings(**task: object) -> list[str]:
        return list(environment_warnings(Config(plan=PlanConfig(name="p"), task=TaskConfig(**task))))  # type: ignore[arg-type]

    (warning,) = warnings()
    assert warning.endswith(f"once: {sys.executable} -m compileall -q -j 0 {tmp_path}")
    assert warnings(device=Device.cpu) == []
    subprocess.run(warning.split("once: ")[1].split(), check=True)
    assert warnings() == []


def test_what_may_be_missed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PROJECT_DIR", "SET_HERE", "PWD"):
        monkeypatch.setenv(name, "x")

    def warnings(setup: list[str], python: str | None = None, **task: object) -> list[str]:
        given = Config(
            plan=PlanConfig(name="p"), task=TaskConfig(**task), cluster=ClusterConfig(setup=setup, python=python)
        )  # type: ignore[arg-type]
        return list(environment_warnings(given))

    lines = [
        "source ${PROJECT_DIR}/bin/activate",
        "export SET_HERE=1",
        "cd $PWD; echo $SET_HERE $SLURM_JOB_ID $HOME $NO",
    ]
    assert warnings(lines) == [
        "a job does not inherit PROJECT_DIR: name it in task.pass_env, or set it in cluster.setup"
    ]
    assert warnings([], "$PROJECT_DIR/python") == warnings(lines)
    assert warnings(lines, pass_env=["PROJECT_*", "PATH"]) == []
    assert warnings([], pass_env=["MY_*", "OPENAI_API_KEY"]) == [
        "task.pass_env: what looks like a secret does not pass: MY_SECRET, OPENAI_API_KEY"
    ]
    command = {"kind": TaskKind.command, "command": "x", "metric": MetricConfig(regex="(x)")}
    assert warnings([], pass_env=["A_TOKEN"], **command) == [
        "task.pass_env: what looks like a secret does not pass: A_TOKEN; a command may be given one in task.env"
    ]
