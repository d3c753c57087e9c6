"""The cluster itself: what the other tests of this folder take for granted about a real Slurm."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from client import Sandbox, booted

_TOOL = Path(__file__).parents[1] / "sandbox" / "cluster.py"


@pytest.fixture(autouse=True)
def empty_queue(cluster: Sandbox):
    yield
    cluster.cancel_all()


def test_array_on_both_kinds_gives_each_task_its_own_gpu(cluster: Sandbox, tmp_path: Path) -> None:
    report = 'echo "$SLURMD_NODENAME $CUDA_VISIBLE_DEVICES" > "$SLURM_ARRAY_TASK_ID.txt"; sleep 1'
    job = cluster.sbatch(report, "--array=0-15", "--gres=gpu:1", cwd=tmp_path)
    cluster.wait_state(job, "COMPLETED")

    seen = [path.read_text().strip() for path in tmp_path.iterdir()]
    assert len(set(seen)) == 16, seen  # no GPU was given twice
    assert Counter(line.split()[0] for line in seen) == {"n0": 4, "n1": 4, "n2": 5, "n3": 3}
    assert sorted(line.split()[1] for line in seen if line.startswith("n2")) == ["0", "1", "2", "3", "4"]


def test_sacct_shows_every_task(cluster: Sandbox) -> None:
    job = cluster.sbatch("exit $SLURM_ARRAY_TASK_ID", "--array=0-1", "--gres=gpu:h200:1")
    cluster.wait_state(job, "COMPLETED", "FAILED")

    def rows() -> list[dict[str, str]]:
        return cluster.sacct(job, fields="JobID,State,NodeList,ExitCode,AllocTRES")

    cluster.wait_until(lambda: {row["State"] for row in rows()} == {"COMPLETED", "FAILED"}, 10, "sacct's end states")
    first, second = sorted(rows(), key=lambda row: row["JobID"])
    assert (first["JobID"], first["State"], first["NodeList"]) == (f"{job}_0", "COMPLETED", "n3")
    assert (second["State"], second["ExitCode"]) == ("FAILED", "1:0")
    assert "gres/gpu:h200=1" in first["AllocTRES"]


def test_job_runs_on_this_machine_with_this_python(cluster: Sandbox, tmp_path: Path) -> None:
    script = f"{sys.executable} -c 'import submitit, pathlib; print(submitit.__file__)' > found.txt"
    job = cluster.sbatch(script, cwd=tmp_path)
    cluster.wait_state(job, "COMPLETED")
    assert Path((tmp_path / "found.txt").read_text().strip()).is_file()


def test_requeued_job_restarts_soon(cluster: Sandbox, tmp_path: Path) -> None:
    job = cluster.sbatch("echo $SLURM_RESTART_COUNT >> starts.txt; sleep 60", "--requeue", "--gres=gpu:1", cwd=tmp_path)
    starts = tmp_path / "starts.txt"
    cluster.wait_until(starts.exists, 10, "the first start")
    cluster.run("scontrol", "requeue", job)
    cluster.wait_until(lambda: len(starts.read_text().splitlines()) == 2, 12, "the second start")
    assert starts.read_text().splitlines()[1] == "1"


def test_crashed_node_fails_its_jobs_and_comes_back(cluster: Sandbox, tmp_path: Path) -> None:
    # The child drops its environment and its session, as a job's own supervisor may do.
    script = "env -i setsid sleep 987654 & echo $! > child.txt; wait"
    job = cluster.sbatch(script, "--no-requeue", "--nodelist=n1", "--gres=gpu:1", cwd=tmp_path)
    child = tmp_path / "child.txt"
    cluster.wait_until(lambda: child.exists() and bool(child.read_text().strip()), 10, "the job's child")
    pid = int(child.read_text())
    assert _is_running(pid)

    cluster.kill_node("n1")
    assert cluster.wait_state(job, "NODE_FAIL", timeout_s=5) < 5
    assert not _is_running(pid)

    cluster.start_slurmd("n1")
    again = cluster.sbatch("true", "--nodelist=n1")
    cluster.wait_state(again, "COMPLETED")


def test_dead_daemon_leaves_its_jobs_running(cluster: Sandbox, tmp_path: Path) -> None:
    job = cluster.sbatch("echo $$ > pid.txt; sleep 60", "--nodelist=n0", cwd=tmp_path)
    cluster.wait_until(lambda: (tmp_path / "pid.txt").exists(), 10, "the job's start")
    cluster.kill_slurmd("n0")
    time.sleep(1)
    assert cluster.squeue(job) == {job: "RUNNING"}
    assert _is_running(int((tmp_path / "pid.txt").read_text()))
    cluster.start_slurmd("n0")


def test_limits_of_the_capped_qos_hold(cluster: Sandbox) -> None:
    job = cluster.sbatch("sleep 30", "--qos=capped", "--array=0-4")
    with pytest.raises(AssertionError, match="QOSMaxSubmitJobPerUserLimit"):
        cluster.sbatch("true", "--qos=capped")
    cluster.wait_until(lambda: Counter(cluster.squeue(job).values())["RUNNING"] == 2, 10, "two running tasks")
    time.sleep(1)
    assert Counter(cluster.squeue(job).values()) == {"RUNNING": 2, "PENDING": 3}


def test_second_cluster_with_other_settings_beside_the_first(cluster: Sandbox, tmp_path: Path) -> None:
    options = ("--nodes", "gpu:a100:2", "--accounting", "none", "--max-array-size", "5", "--set", "MaxJobCount=50")
    with booted(tmp_path / "other", *options) as other:
        assert other.run("sinfo", "-hN", "-p", "main", "-o", "%N %t %G") == "n0 idle gpu:a100:2\n"
        assert "MaxJobCount             = 50\n" in other.run("scontrol", "show", "config")
        with pytest.raises(AssertionError, match="Invalid job array specification"):
            other.sbatch("true", "--array=0-5")
        job = other.sbatch("sleep 30", "--gres=gpu:a100:1")
        other.wait_state(job, "RUNNING")
        assert job not in cluster.squeue()
        assert "idle" in cluster.run("sinfo", "-h", "-n", "n0", "-o", "%t")
        with pytest.raises(AssertionError, match="accounting storage is disabled"):
            other.sacct(job)
    assert not _processes_of(tmp_path / "other")
    assert "idle" in cluster.run("sinfo", "-h", "-n", "n0", "-o", "%t")


def test_second_cluster_on_devices_of_this_machine(slurm_programs: None, tmp_path: Path) -> None:
    for number, device in enumerate(("/dev/zero", "/dev/full")):
        (tmp_path / f"real{number}").symlink_to(device)
    options = ("--nodes", "gpu:h200:2", "--devices", str(tmp_path / "real"), "--accounting", "none")
    with booted(tmp_path / "own", *options) as own:
        report = f'echo "$CUDA_VISIBLE_DEVICES" > "{tmp_path}/$SLURM_ARRAY_TASK_ID.txt"; sleep 1'
        own.wait_state(own.sbatch(report, "--array=0-1", "--gres=gpu:h200:1"), "COMPLETED")
        assert sorted(path.read_text() for path in tmp_path.glob("*.txt")) == ["0\n", "1\n"]
        links = sorted((tmp_path / "own/dev").iterdir())
        assert [link.resolve() for link in links] == [Path("/dev/zero"), Path("/dev/full")]
    with pytest.raises(AssertionError, match="real2 is no device"):
        own.tool("up", "--nodes", "gpu:h200:3", "--devices", str(tmp_path / "real"))


def test_up_again_changes_nothing_and_other_settings_are_refused(cluster: Sandbox) -> None:
    before = cluster.tool("status")
    cluster.tool("up")
    assert cluster.tool("status") == before
    with pytest.raises(AssertionError, match="up with another max_array_size: run `down` first"):
        cluster.tool("up", "--max-array-size", "7")


def test_cluster_ends_with_the_process_that_wanted_it(cluster: Sandbox, tmp_path: Path) -> None:
    wanted = subprocess.Popen(["sleep", "60"])
    state = tmp_path / "guarded"
    command = [sys.executable, str(_TOOL), "--state", str(state), "up", "--accounting", "none", "--auth", "none"]
    subprocess.run([*command, "--guard", str(wanted.pid)], check=True, stdout=subprocess.DEVNULL)
    assert _processes_of(state)
    wanted.send_signal(signal.SIGKILL)
    wanted.wait()
    cluster.wait_until(lambda: not _processes_of(state), 15, "the end of the guarded cluster")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["up", "--nodes", "h100:4"], "a node is gpu:TYPE:COUNT"),
        (["up", "--root", "/nowhere"], "no unpacked Slurm in /nowhere"),
        (["status"], "there is no cluster in"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, words: list[str], message: str) -> None:
    command = [sys.executable, str(_TOOL), "--state", str(tmp_path / "x"), *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_state_folder_that_slurm_cannot_use_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, str(_TOOL), "--state", str(tmp_path / "with space"), "up"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "only letters, digits" in done.stderr


@pytest.mark.parametrize(("ci", "outcome"), [("", "1 skipped"), ("true", "1 error")])
def test_missing_slurm_is_skipped_by_people_and_fails_in_ci(ci: str, outcome: str) -> None:
    one_test = f"{__file__}::test_sacct_shows_every_task"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rsE", "-p", "no:cacheprovider", one_test],
        env={**os.environ, "CI": ci, "SLURM_SANDBOX_ROOT": "/nowhere"},
        capture_output=True,
        text=True,
    )
    assert outcome in done.stdout
    assert "make slurm-packages" in done.stdout
    assert (done.returncode == 0) == (ci == "")


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def _processes_of(state: Path) -> list[str]:
    """Command lines of all processes that have a file of this cluster open."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                if any(str(file.readlink()).startswith(f"{state}/") for file in (process / "fd").iterdir()):
                    found.append((process / "cmdline").read_text())
            except OSError:
                continue
    return found
