"""The controller and the preparation as jobs: warned before their time limit, they come back and go on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import scenarios
from client import Sandbox
from toy import Toy
from witness import Witness

SBATCH = Path(__file__).parents[2] / "sbatch"


pytestmark = pytest.mark.usefixtures("empty_queue")


@pytest.fixture
def slurm(toy: Callable[..., Toy]) -> Callable[..., Toy]:
    """A plan of one round, the baseline and a candidate. sbatch's own log file does not bear a % in the path."""

    def make(*, sleep_s: float, **settings: Any) -> Toy:
        plan = {"k": 1, "rounds": 0, "baseline": "joined", "name": "a folder's é", **settings}
        return toy(cluster="slurm", sleep_s=sleep_s, **plan)

    return make


def submit(cluster: Sandbox, toy: Toy, *options: str, words: tuple[str, ...] = ()) -> str:
    """The controller as a job, submitted as a user would; its id."""
    return _submit(cluster, toy, [*options, str(SBATCH / "controller.sbatch"), "+round=toy", *toy.overrides, *words])


def _submit(cluster: Sandbox, toy: Toy, words: list[str]) -> str:
    environment = cluster.env | {"AUTORESEARCH_PYTHON": sys.executable, "TRAINED": str(toy.trained_log)}
    argv = ["sbatch", "--parsable", *words]
    return subprocess.run(
        argv, cwd=toy.root, env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()


def warn(cluster: Sandbox, job: str) -> None:
    """What sbatch's --signal=B:USR1@120 does two minutes before the limit."""
    cluster.scancel("--signal=USR1", "--batch", job)


def job_details(cluster: Sandbox, job: str) -> dict[str, str]:
    words = cluster.run("scontrol", "--oneliner", "show", "job", job).split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def successor(cluster: Sandbox, job: str) -> str:
    """The job that was submitted to follow the other."""
    found: list[str] = []

    def there() -> bool:
        jobs = cluster.squeue()
        found[:] = [j for j in jobs if "_" not in j and int(j) > int(job) and _is_controller(cluster, j)]
        return bool(found)

    cluster.wait_until(there, 30, "a successor")
    assert len(found) == 1, found
    return found[0]


def _is_controller(cluster: Sandbox, job: str) -> bool:
    return job_details(cluster, job)["JobName"].startswith("autoresearch")


def log(toy: Toy, job: str) -> str:
    return (toy.root / f"autoresearch-{job}.log").read_text(encoding="utf-8")


def test_it_comes_back_after_a_requeue(cluster: Sandbox, slurm: Callable[..., Toy]) -> None:
    """The array runs on meanwhile and is not submitted again."""
    toy = slurm(sleep_s=8)
    job = submit(cluster, toy)
    tag = f"job-{job}"
    cluster.wait_until(lambda: len(toy.trained()) == 2, 30, "both trials at work")
    warn(cluster, job)
    cluster.wait_state(job, "COMPLETED", timeout_s=60)
    scenarios.complete(toy, tag)
    assert f"stopped by SIGTERM; resume with tag={tag}" in log(toy, job)
    assert "branch" in log(toy, job)
    events = [line["event"] for line in toy.journal(tag)]
    assert events.count("run.resumed") == events.count("run.interrupted") == events.count("submit.intent") == 1
    assert Witness(cluster, toy, tag).arrays(ended=2) == {"r00-a0": ["COMPLETED"] * 2}
    assert {r["attempt"] for r in toy.results(tag)} == {0}, "the controller's requeue is not the trials'"
    assert toy.journal(tag)[0]["host"]


def test_where_requeue_is_forbidden_another_job_follows(cluster: Sandbox, slurm: Callable[..., Toy]) -> None:
    """With the same partition, account, limits and arguments; and that one, warned as well, has a successor again."""
    toy = slurm(sleep_s=12)
    options = ["--no-requeue", "--partition=high", "--account=lab", "--qos=high", "--time=17"]
    jobs = [submit(cluster, toy, *options, "--cpus-per-task=2", "--mem=1G", words=("plan.description='two words'",))]
    tag = f"job-{jobs[0]}"
    same = ("Partition", "Account", "QOS", "TimeLimit", "MinMemoryNode", "CPUs/Task", "WorkDir", "JobName")
    before = job_details(cluster, jobs[0])
    assert (before["Partition"], before["QOS"], before["TimeLimit"]) == ("high", "high", "00:17:00")
    assert (before["MinMemoryNode"], before["CPUs/Task"]) == ("1G", "2")
    cluster.wait_until(lambda: len(toy.trained()) == 2, 30, "both trials at work")
    for _ in range(2):
        resumed = len(jobs) - 1
        cluster.wait_until(lambda n=resumed: _count(toy, tag, "run.resumed") == n, 30, "a controller at work")  # type: ignore[misc]
        warn(cluster, jobs[-1])
        jobs.append(successor(cluster, jobs[-1]))
        after = job_details(cluster, jobs[-1])
        assert {key: after[key] for key in same} == {key: before[key] for key in same}
        assert after["Requeue"] == "0"
    cluster.wait_state(jobs[-1], "COMPLETED", timeout_s=60)
    scenarios.complete(toy, tag)
    assert "Requested operation is presently disabled" in log(toy, jobs[0])
    assert all(log(toy, job) for job in jobs)
    assert _count(toy, tag, "run.resumed") == _count(toy, tag, "run.interrupted") == 2
    assert _count(toy, tag, "submit.intent") == 1
    assert Witness(cluster, toy, tag).arrays(ended=2) == {"r00-a0": ["COMPLETED"] * 2}
    assert "two words" in (toy.run_dir(tag) / "config.yaml").read_text()
    assert set(cluster.squeue(*jobs).values()) == {"COMPLETED"}


def test_who_cancels_the_run_ends_its_controller_for_good(cluster: Sandbox, slurm: Callable[..., Toy]) -> None:
    """`.cancel` from elsewhere: what it asks goes by a file, not by a signal. The job does not come back."""
    toy = slurm(sleep_s=9)
    job = submit(cluster, toy)
    bystander = cluster.sbatch("sleep 60", "--job-name=bystander")
    cluster.wait_until(lambda: len(toy.trained()) == 2, 30, "both trials at work")
    out, _ = toy.start(f"job-{job}", module="autoresearch_hpc.cancel").finish()
    pid = toy.journal(f"job-{job}")[0]["pid"]
    assert out.startswith(f"asked the controller, pid {pid} on ")
    assert out.endswith(f", Slurm job {job}, to cancel and stop: it has stopped\n")
    cluster.wait_state(job, "FAILED", timeout_s=15)
    details = job_details(cluster, job)
    assert (details["ExitCode"], details["Restarts"]) == ("3:0", "0")
    assert "stopped by a cancel request from" in log(toy, job)
    assert toy.journal(f"job-{job}")[-1]["reason"].startswith("a cancel request from ")
    left = [task for task, state in cluster.squeue().items() if state in ("PENDING", "RUNNING", "COMPLETING")]
    assert left == [bystander]
    toy.search(f"job-{job}").finish()
    scenarios.complete(toy, f"job-{job}", interruptions=1)


def test_cancel_concludes_nothing_from_a_silent_slurm(
    slurm: Callable[..., Toy], broken: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its controller was killed between intent and submission: nobody but Slurm knows whether there are jobs."""
    toy = slurm(sleep_s=1, overrides=("cluster.kind=auto",))
    scenarios.killed_at(toy, "silent", "after", "submit.intent").finish(-signal.SIGKILL)
    before = toy.journal("silent")
    for command in ("squeue", "sacct"):
        broken(command, "echo 'Unable to contact slurm controller (connect failure)' >&2; exit 1")
    _, err = toy.start("silent", module="autoresearch_hpc.cancel").finish(4)
    assert err.splitlines()[-1].startswith("autoresearch_hpc: Slurm does not say which jobs are named silent-")
    assert toy.journal("silent") == before
    monkeypatch.undo()
    out, _ = toy.start("silent", module="autoresearch_hpc.cancel").finish()
    assert out.startswith("cancelled 2 trials; resume with tag=silent")


def test_scancel_of_the_controller_leaves_its_arrays(cluster: Sandbox, slurm: Callable[..., Toy]) -> None:
    toy = slurm(sleep_s=8)
    job = submit(cluster, toy)
    tag = f"job-{job}"
    cluster.wait_until(lambda: len(toy.trained()) == 2, 30, "both trials at work")
    cluster.scancel(job)
    cluster.wait_state(job, "CANCELLED", timeout_s=20)
    last = toy.journal(tag)[-1]
    assert (last["event"], last["reason"], last["cancelled"]) == ("run.interrupted", "SIGTERM", [])
    assert list(cluster.squeue().values()).count("RUNNING") == 2
    toy.search(tag).finish()
    scenarios.complete(toy, tag)
    assert Witness(cluster, toy, tag).arrays(ended=2) == {"r00-a0": ["COMPLETED"] * 2}


def test_slurm_itself_warns_and_one_that_hangs_is_killed(cluster: Sandbox, slurm: Callable[..., Toy]) -> None:
    """A controller under a time limit of a minute; beside it one that cannot react to a warning."""
    limited = slurm(sleep_s=9, rounds=4, baseline="alone", name="limited")
    hanging = slurm(sleep_s=8, name="hanging")
    first = submit(cluster, limited, "--time=1", "--signal=B:USR1@50")
    second = submit(cluster, hanging)
    cluster.wait_until(lambda: len(hanging.trained()) == 2, 30, "both trials at work")
    os.kill(hanging.journal(f"job-{second}")[0]["pid"], signal.SIGSTOP)
    warn(cluster, second)

    cluster.wait_state(first, "COMPLETED", timeout_s=150)
    scenarios.complete(limited, f"job-{first}")
    resumed = _count(limited, f"job-{first}", "run.resumed")
    assert _count(limited, f"job-{first}", "run.interrupted") == resumed >= 1
    assert int(job_details(cluster, first)["Restarts"]) >= resumed, "one may be warned before it has taken the run"

    cluster.wait_state(second, "COMPLETED", timeout_s=90)
    scenarios.complete(hanging, f"job-{second}")
    assert _count(hanging, f"job-{second}", "run.interrupted") == 0
    assert _count(hanging, f"job-{second}", "run.resumed") == 1
    assert Witness(cluster, hanging, f"job-{second}").arrays(ended=2) == {"r00-a0": ["COMPLETED"] * 2}


@pytest.mark.parametrize("how", ["--requeue", "--no-requeue"])
def test_a_preparation_comes_back_and_goes_on_where_it_stopped(
    cluster: Sandbox, slurm: Callable[..., Toy], how: str
) -> None:
    toy = slurm(sleep_s=0, name="a folder")
    settings = ["corpus=python", "corpus.vocab_size=1000", "corpus.tokenizer_mb=2", "corpus.max_train_mb=60"]
    job = _submit(cluster, toy, [how, "--cpus-per-task=2", str(SBATCH / "prepare.sbatch"), *settings])
    output = toy.root / f"autoresearch-prepare-{job}.out"
    work = toy.root / "data" / "python-v1000-t2048.partial"
    cluster.wait_until((work / "tokenizer.json").is_file, 60, "a tokenizer")
    warn(cluster, job)
    if how == "--no-requeue":
        job = successor(cluster, job)
        assert job_details(cluster, job)["JobName"] == "autoresearch-prepare"
        output = output.with_name(f"autoresearch-prepare-{job}.out")
    cluster.wait_state(job, "COMPLETED", timeout_s=120)
    said = output.read_text(encoding="utf-8")
    assert "resuming from data/python-v1000-t2048.partial" in said
    assert "is complete: " in said
    assert not work.exists()
    assert json.loads((toy.root / "data" / "python-v1000-t2048" / "manifest.json").read_text())["vocab_size"] == 1000


def test_a_controller_on_a_login_node_is_small_and_nice(cluster: Sandbox, slurm: Callable[..., Toy]) -> None:
    """Its peak memory with an agent that brings libraries of its own; trials do not inherit its niceness."""
    toy = slurm(sleep_s=1, rounds=2, baseline="alone", k=2)
    fit = (toy.root / "fit.py").read_text()
    toy.write("fit.py", fit + 'with open(os.environ["TRAINED"] + ".nice", "a") as f: print(os.nice(0), file=f)\n')
    toy.commit()
    run = toy.search("nice", "agent=tpe")
    peak_mb, niceness = 0.0, set()
    while run.running:
        try:
            status = Path(f"/proc/{run.pid}/status").read_text()
            stat = Path(f"/proc/{run.pid}/stat").read_text().rpartition(")")[2].split()
            held = (toy.run_dir("nice") / "controller.lock").exists()
        except OSError:
            continue
        if "VmHWM" in status:
            peak_mb = max(peak_mb, int(status.split("VmHWM:")[1].split()[0]) / 1024)
        if held:
            niceness.add(stat[16])
        time.sleep(0.02)
    run.finish()
    print(f"a controller's peak memory: {peak_mb:.0f} MB")
    assert 50 < peak_mb < 300
    assert niceness == {"10"}
    assert set(Path(f"{toy.trained_log}.nice").read_text().split()) == {"0"}


def _count(toy: Toy, tag: str, event: str) -> int:
    return sum(line["event"] == event for line in toy.journal(tag))
