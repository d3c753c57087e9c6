"""Several kinds of GPU in one machine: whose slots and GPUs a trial gets, and what Slurm is asked for on each."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoresearch_hpc.cluster import Submission
from autoresearch_hpc.cluster.local import LocalCluster
from autoresearch_hpc.cluster.slurm import SlurmCluster
from autoresearch_hpc.config import ClusterConfig, TierConfig
from autoresearch_hpc.errors import ConfigError
from autoresearch_hpc.files import write_json_atomic
from autoresearch_hpc.layout import ArrayPaths, TrialPaths

FIRST, SECOND, THIRD = "GPU-1a", "GPU-2b", "GPU-3c"
LISTED = [("NVIDIA H100 80GB HBM3", FIRST), ("NVIDIA H200", SECOND), ("NVIDIA H100 80GB HBM3", THIRD)]
TWO = {"h200": TierConfig(gres="gpu:h200:1"), "h100": TierConfig(gres="gpu:H100:1")}


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two H100 and, between them, an H200."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    lines = "".join(f"GPU {i}: {name} (UUID: {uuid})\n" for i, (name, uuid) in enumerate(LISTED))
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{lines}END\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


class Bench:
    """Trials on this machine that go on until the test ends."""

    def __init__(self, root: Path, tiers: dict[str, TierConfig], **cluster: object) -> None:
        config = ClusterConfig(gpus=None, tiers=tiers, setup=["exec sleep 60"], **cluster)  # type: ignore[arg-type]
        self.root, self.place, self.jobs = root, LocalCluster(config), dict[str, str]()

    def submission(self, tier: str, *trials: str) -> Submission:
        specs = {trial: self.root / trial / "trial.json" for trial in trials}
        for spec in specs.values():
            spec.parent.mkdir(exist_ok=True)
        array = ArrayPaths(self.root / f"array-{trials[0]}")
        array.root.mkdir(exist_ok=True)
        return Submission(job_name=f"job-{trials[0]}", trials=specs, array=array, tier=tier, wall_limit_s=60)

    def launch(self, tier: str, *trials: str) -> None:
        self.jobs |= self.place.launch(self.submission(tier, *trials))

    def running(self) -> dict[str, str]:
        """Running trial -> its CUDA_VISIBLE_DEVICES."""
        states = self.place.poll(self.jobs)
        return {trial: self._visible(trial) for trial, state in states.items() if state.word == "RUNNING"}

    def _visible(self, trial: str) -> str:
        environ = Path(f"/proc/{self.place._running[trial].pid}/environ")
        deadline = time.monotonic() + 10
        while True:  # until the child has become the program that it runs
            variables = dict(line.split("=", 1) for line in environ.read_text().split("\0") if "=" in line)
            if "SUBMITIT_EXECUTOR" in variables or time.monotonic() > deadline:
                return variables["CUDA_VISIBLE_DEVICES"]

    def end(self, *trials: str) -> None:
        jobs = {trial: self.jobs[trial] for trial in trials}
        self.place.cancel(jobs)
        deadline = time.monotonic() + 20
        while not all(state.ended for state in self.place.poll(jobs).values()):
            assert time.monotonic() < deadline
            time.sleep(0.02)


@contextlib.contextmanager
def bench(root: Path, tiers: dict[str, TierConfig], **cluster: object) -> Iterator[Bench]:
    made = Bench(root, tiers, **cluster)
    try:
        yield made
    finally:
        made.end(*made.jobs)


@pytest.mark.usefixtures("no_gpus")
def test_each_tier_has_slots_of_its_own(tmp_path: Path) -> None:
    with bench(tmp_path, {"a": TierConfig(max_parallel=1), "b": TierConfig(max_parallel=2)}, max_parallel=9) as here:
        here.launch("a", "a1", "a2")
        here.launch("b", "b1", "b2", "b3")
        assert here.running() == dict.fromkeys(("a1", "b1", "b2"), "")
        here.end("a1")
        assert set(here.running()) == {"a2", "b1", "b2"}, "what waited for the other tier does not get this slot"
        here.end("b2")
        assert set(here.running()) == {"a2", "b1", "b3"}


@pytest.mark.usefixtures("gpus")
def test_a_tiers_gpus_are_those_of_its_name(tmp_path: Path) -> None:
    with bench(tmp_path, TWO) as here:
        here.launch("h100", "a", "b", "c")
        here.launch("h200", "d", "e")
        assert here.running() == {"a": "0", "b": "2", "d": "1"}
        here.end("b")
        assert here.running() == {"a": "0", "c": "2", "d": "1"}, "the GPU that came free, not the other tier's"


@pytest.mark.usefixtures("gpus")
def test_gpus_that_this_process_may_not_use_are_no_tiers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"{SECOND},{THIRD}")
    with bench(tmp_path, TWO) as here:
        here.launch("h100", "a", "b")
        here.launch("h200", "d")
        assert here.running() == {"a": THIRD, "d": SECOND}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2")
    with pytest.raises(
        ConfigError, match=r"^no GPU of this machine is left for the tier h200; correct cluster\.tiers$"
    ):
        Bench(tmp_path, TWO)


@pytest.mark.usefixtures("gpus")
def test_tiers_of_the_same_kind_share_its_gpus_out(tmp_path: Path) -> None:
    one = TierConfig(gres="gpu:h100:1", max_parallel=1)
    with bench(tmp_path, {"first": one, "second": one, "rest": TierConfig()}) as here:
        for tier in ("second", "first", "rest"):
            here.launch(tier, tier)
        assert here.running() == {"first": "0", "second": "2", "rest": "1"}
    with pytest.raises(ConfigError, match="no GPU of this machine is left for the tier third"):
        Bench(tmp_path, dict.fromkeys(("first", "second", "third"), one))


@pytest.mark.usefixtures("gpus")
def test_without_tiers_a_gpu_is_a_gpu(tmp_path: Path) -> None:
    with bench(tmp_path, {}, max_parallel=2) as here:
        here.launch("default", "a", "b", "c")
        assert here.running() == {"a": "0", "b": "1"}


@pytest.mark.usefixtures("gpus")
def test_a_worker_that_is_found_again_keeps_its_gpu_and_its_tiers_slot(tmp_path: Path) -> None:
    with bench(tmp_path, TWO) as here:
        submission = here.submission("h100", "old")
        [spec] = submission.trials.values()
        words = ["autoresearch_hpc.trial.worker", str(spec)]
        with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", *words]) as worker:
            try:
                claim = {"pid": worker.pid, "host": socket.gethostname(), "visible": "0"}
                write_json_atomic(TrialPaths(spec.parent).claim(0), claim)
                assert here.place.adopt(submission) == {"old": "local:old"}
                assert here.place.adopt(submission) == {"old": "local:old"}, "once more does no harm"
                here.launch("h100", "a", "b")
                here.launch("h200", "d")
                assert here.running() == {"a": "2", "d": "1"}
            finally:
                worker.kill()
        assert here.running() == {"a": "2", "b": "0", "d": "1"}


@pytest.mark.usefixtures("no_gpus")
def test_threads_are_shared_by_the_slots_of_all_tiers() -> None:
    cores = len(os.sched_getaffinity(0))
    tiers = {"a": TierConfig(max_parallel=1), "b": TierConfig(max_parallel=max(1, cores - 1))}
    assert LocalCluster(ClusterConfig(gpus=None, tiers=tiers)).num_threads == max(1, cores // max(2, cores))
    assert LocalCluster(ClusterConfig(gpus=None, tiers=tiers, cpus=3)).num_threads == 3


# Slurm, as far as it can be told without one


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SlurmCluster:
    """Of a Slurm that answers one question; tests/slurm asks a real one everything else."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, text in {"sbatch": ":", "scontrol": "echo 'MaxArraySize = 1001'"}.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    tiers = {
        "h100": TierConfig(gres="gpu:h100:1", max_parallel=13, partition="big", exclude="n1", sbatch={"nice": 5}),
        "h200": TierConfig(gpus=1, max_parallel=3, account="them", cpus=16, mem_gb=1.5, sbatch={"time": "2:00:00"}),
    }
    return SlurmCluster(
        ClusterConfig(
            gpus=None, gres="gpu:1", partition="gpu", account="us", cpus=8, sbatch={"reservation": "r"}, tiers=tiers
        )
    )


def test_each_tiers_array_asks_for_its_own(slurm: SlurmCluster) -> None:
    h100 = slurm._parameters("job", 40, 600.0, "h100", ("n7",))
    assert (h100["gres"], h100["partition"], h100["account"], h100["exclude"]) == ("gpu:h100:1", "big", "us", "n1,n7")
    assert (h100["array_parallelism"], h100["cpus_per_task"]) == (13, 8)
    assert h100["additional_parameters"] == {"reservation": "r", "nice": 5}
    assert "gpus_per_node" not in h100
    h200 = slurm._parameters("job", 40, 600.0, "h200")
    assert (h200["gpus_per_node"], h200["partition"], h200["account"]) == (1, "gpu", "them")
    assert (h200["array_parallelism"], h200["cpus_per_task"], h200["mem"]) == (3, 16, "1536M")
    assert h200["additional_parameters"] == {"reservation": "r", "time": "2:00:00"}
    assert not {"gres", "exclude"} & h200.keys()


def test_a_job_may_take_as_long_as_the_longest_tier_allows(slurm: SlurmCluster) -> None:
    assert slurm.job_limit_s(600.0) == 7200.0
    assert slurm.job_limit_s(9000.0) == 60 * 153, "of h100, which has no limit of its own"
