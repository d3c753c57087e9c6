"""Handing arrays to a real sbatch: what it is told, and what its refusals and its silence mean."""

import contextlib
import getpass
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bench import Bench, wait
from client import Sandbox, booted
from toy import Toy

from autoresearch_hpc.cluster.commands import warn_once
from autoresearch_hpc.errors import ClusterError, NoAnswerError, NoRoomError
from autoresearch_hpc.records import Status

Broken = Callable[[str, str], Path]


def named(cluster: Sandbox, name: str) -> list[str]:
    """The tasks that the cluster has under this job name."""
    return sorted(cluster.run("squeue", "-h", "-t", "all", "-r", f"--name={name}", "-o", "%F_%K").split())


@contextlib.contextmanager
def limited(cluster: Sandbox, *what: str) -> Iterator[None]:
    """`user NAME`, `account NAME` or `qos NAME` and the limits to set, which are taken back."""
    kind, name, *limits = what
    cluster.run("sacctmgr", "-i", "modify", kind, name, "set", *limits)
    try:
        yield
    finally:
        cluster.run("sacctmgr", "-i", "modify", kind, name, "set", *(f"{limit.split('=')[0]}=-1" for limit in limits))


def test_batch_script_says_all_that_was_configured(on_slurm: Bench, broken: Callable[[str, str], Path]) -> None:
    broken("sbatch", "echo Submitted batch job 77")
    place = on_slurm.place(
        partition="main",
        account="lab",
        qos="low",
        constraint="fast",
        gpus=None,
        gres="gpu:h100:1",
        cpus=3,
        mem_gb=1.5,
        time_min=12,
        exclude="n1",
        max_parallel=2,
        sbatch={"begin": "now+1hour", "exclusive": True, "comment": "it's ours"},
        setup=["module load cuda", "export A='b c'"],
        python="apptainer exec 'my image.sif' python",
    )
    submission = on_slurm.submission("golden", ["true"] * 3)
    assert list(place.launch(submission).values()) == ["77_0", "77_1", "77_2"]
    script = (submission.array.root / "77_submission.sh").read_text()
    logs = shlex.quote(f"{submission.array.root}/@".replace("%", "%%"))
    for name in ("%A_%a_0_log.out", "%A_%a_%t_log.out"):
        script = script.replace(logs.replace("@", name), f"LOGS/{name}")
    assert script.replace(shlex.quote(str(submission.array.manifest)), "MANIFEST") == GOLDEN

    place = on_slurm.place(use_srun=False, max_parallel=None, python="python3")
    submission = on_slurm.submission("without-srun", ["true"])
    place.launch(submission)
    lines = (submission.array.root / "77_submission.sh").read_text().splitlines()
    assert lines[-1].startswith("python3 -P -u -m autoresearch_hpc.trial.worker --array ")
    assert [line for line in lines if "gpus" in line or "array=" in line] == [
        "#SBATCH --array=0-0%1",
        "#SBATCH --gpus-per-node=1",
    ]
    assert "#SBATCH --time=4" in lines  # 60 s of trial, the warning before the end, and a margin


GOLDEN = """\
#!/bin/bash

# Parameters
#SBATCH --account=lab
#SBATCH --array=0-2%2
#SBATCH --begin=now+1hour
#SBATCH --comment='it'"'"'s ours'
#SBATCH --constraint=fast
#SBATCH --cpus-per-task=3
#SBATCH --exclude=n1
#SBATCH --exclusive
#SBATCH --gres=gpu:h100:1
#SBATCH --job-name=golden
#SBATCH --mem=1536M
#SBATCH --nodes=1
#SBATCH --open-mode=append
#SBATCH --output=LOGS/%A_%a_0_log.out
#SBATCH --partition=main
#SBATCH --qos=low
#SBATCH --signal=USR2@60
#SBATCH --time=12

# setup
module load cuda
export A='b c'

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output LOGS/%A_%a_%t_log.out apptainer exec 'my image.sif' \
python -P -u -m autoresearch_hpc.trial.worker --array MANIFEST
""".replace("\\\n", "")  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        ({"partition": "nowhere"}, "nowhere.*nvalid partition"),
        ({"account": "nobody"}, "nvalid account"),
        ({"gpus": None, "gres": "gpu:b200:1"}, "node configuration is not available|nvalid generic resource"),
        ({"sbatch": {"no_such_option": 1}}, "no-such-option"),
    ],
)
def test_what_the_cluster_would_refuse_is_known_before_anything_is_made(
    on_slurm: Bench, settings: dict[str, Any], cause: str
) -> None:
    with pytest.raises(ClusterError, match=cause) as refused:
        on_slurm.place(**settings).check(60, on_slurm.layout.root)
    assert "\n" not in str(refused.value)
    assert not on_slurm.layout.root.exists()


def test_refusal_for_good_is_one_line(on_slurm: Bench) -> None:
    for k, (settings, cause) in enumerate(
        [
            ({"partition": "nowhere"}, "nvalid partition"),
            ({"account": "nobody"}, "nvalid account"),
            ({"qos": "nothing"}, "nvalid qos"),
            ({"sbatch": {"nodelist": "n99"}}, "nvalid node name"),
        ]
    ):
        with pytest.raises(ClusterError, match=cause) as refused:
            on_slurm.place(**settings).launch(on_slurm.submission(f"for-good-{k}", ["true"]))
        assert type(refused.value) is ClusterError
        assert "\n" not in str(refused.value)


def test_nodes_that_are_missing_in_mid_run_may_come_back(on_slurm: Bench) -> None:
    """`check` refuses such a request at the start; later it is a node that is drained or just restarts."""
    place, submission = on_slurm.place(gpus=99), on_slurm.submission("no-node", ["true"])
    with pytest.raises(NoAnswerError, match=r"no node takes the trials now: .*node configuration is not available"):
        place.launch(submission)
    assert place.adopt(submission) == {}, "a record that Slurm keeps of a refused array is no array"


@pytest.mark.parametrize(
    ("what", "settings", "cause"),
    [
        ((), {"qos": "capped"}, "QOSMaxSubmitJobPerUserLimit"),
        (("user", getpass.getuser(), "MaxSubmitJobs=4"), {}, "AssocMaxSubmitJobLimit"),
        (("account", "lab", "GrpSubmitJobs=4"), {}, "AssocGrpSubmitJobsLimit"),
        (("qos", "low", "GrpSubmitJobs=4"), {"qos": "low"}, "QOSGrpSubmitJobsLimit"),
        (("qos", "low", "MaxSubmitJobsPerAccount=4"), {"qos": "low"}, "MaxSubmitJobsPerAccount"),
    ],
    ids=["qos-user", "association", "account", "qos", "qos-account"],
)
def test_limit_on_jobs_is_no_room(
    on_slurm: Bench, cluster: Sandbox, broken: Broken, what: tuple[str, ...], settings: dict[str, Any], cause: str
) -> None:
    calls = broken("sbatch", '"$REAL" "$@"')
    place = on_slurm.place(**settings)
    with limited(cluster, *what) if what else contextlib.nullcontext():
        with pytest.raises(NoRoomError, match=cause) as refused:
            place.launch(on_slurm.submission(f"full-{cause}", ["sleep 60"] * 6))
        assert "\n" not in str(refused.value)
        assert named(cluster, f"full-{cause}") == []
        assert len(calls.read_text().splitlines()) == 1
        assert len(on_slurm.launch(place, on_slurm.submission(f"fits-{cause}", ["sleep 60"] * 4))) == 4
        with pytest.raises(NoRoomError, match=cause):
            place.launch(on_slurm.submission(f"full-now-{cause}", ["sleep 60"] * 2))


def test_limit_on_size_comes_with_the_same_words_and_is_for_good(on_slurm: Bench, cluster: Sandbox) -> None:
    with limited(cluster, "qos", "low", "MaxWall=1"):
        cluster.run("sacctmgr", "-i", "modify", "qos", "low", "set", "Flags=DenyOnLimit")
        try:
            with pytest.raises(ClusterError, match=r"QOSMaxWallDurationPerJobLimit.*accounting/QOS") as refused:
                on_slurm.place(qos="low").launch(on_slurm.submission("too-long", ["true"]))
        finally:
            cluster.run("sacctmgr", "-i", "modify", "qos", "low", "set", "Flags-=DenyOnLimit")
    assert type(refused.value) is ClusterError


def test_full_controller_is_no_room_and_nothing_comes_later(
    on_slurm: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sbatch itself would try again for two minutes."""
    options = ("--nodes", "gpu:h100:2", "--accounting", "none", "--set", "MaxJobCount=5")
    options += ("--set", "SchedulerParameters=batch_sched_delay=0,max_array_tasks=4,sched_interval=1")
    with booted(tmp_path / "full", *options) as full, monkeypatch.context() as patch:
        for name, value in full.settings_environment.items():
            patch.setenv(name, value)
        place = on_slurm.place(max_parallel=1)
        assert place.max_array == 4, "a site may bound the number of tasks as well as their index"
        with pytest.raises(ClusterError, match="nvalid job array"):
            place.launch(on_slurm.submission("five", ["sleep 60"] * 5))
        jobs = place.launch(on_slurm.submission("four", ["sleep 60"] * 4))
        begin = time.monotonic()
        with pytest.raises(NoRoomError, match="temporarily unable to accept"):
            place.launch(on_slurm.submission("three", ["sleep 60"] * 3))
        assert time.monotonic() - begin < 3
        full.scancel(next(iter(jobs.values())).split("_")[0])
        time.sleep(3)
        assert named(full, "three") == [], "the sbatch that was refused is gone"


@pytest.mark.parametrize(
    ("script", "went_in"),
    [
        (
            '"$REAL" "$@" >/dev/null; echo "sbatch: error: Batch job submission failed: Socket timed out" >&2; exit 1',
            True,
        ),
        ('echo "sbatch: error: Unable to contact slurm controller (connect failure)" >&2; exit 1', False),
        (
            'echo "sbatch: error: Batch job submission failed: Zero Bytes were transmitted or received" >&2; exit 1',
            False,
        ),
        ('"$REAL" "$@" >/dev/null; echo "Thank you for job 4711"', True),
        ('"$REAL" "$@" >/dev/null; sleep 60', True),
        ("kill -9 $$", False),
    ],
    ids=["went-through", "no-contact", "zero-bytes", "no-id", "slow", "killed"],
)
def test_submission_without_an_answer_is_in_doubt(
    on_slurm: Bench,
    cluster: Sandbox,
    broken: Broken,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    went_in: bool,
) -> None:
    monkeypatch.setattr("autoresearch_hpc.cluster.submit.LIMIT_S", 2.0)
    calls = broken("sbatch", script)
    submission = on_slurm.submission(f"in-doubt-{request.node.callspec.id}", ["echo loss: 1"] * 2)
    place = on_slurm.place()
    begin = time.monotonic()
    with pytest.raises(NoAnswerError) as doubt:
        place.launch(submission)
    assert time.monotonic() - begin < 6
    assert "\n" not in str(doubt.value)
    assert len(calls.read_text().splitlines()) == 1
    found = place.adopt(submission)
    assert found is not None
    assert len(found) == (2 if went_in else 0)
    assert sorted(found.values()) == named(cluster, submission.job_name)


def test_sbatch_does_not_outlive_its_controller(on_slurm: Bench, broken: Broken, tmp_path: Path) -> None:
    """It would hand in, minutes later, what the next controller has handed in again."""
    started = tmp_path / "started"
    broken("sbatch", f"echo $$ > {started}; exec sleep 60")
    submission = on_slurm.submission("orphan", ["true"])
    (spec,) = submission.trials.values()
    script = """
import sys
from pathlib import Path
from autoresearch_hpc.cluster import Submission
from autoresearch_hpc.cluster.slurm import SlurmCluster
from autoresearch_hpc.config import ClusterConfig
from autoresearch_hpc.layout import ArrayPaths
trials = {"t": Path(sys.argv[1])}
SlurmCluster(ClusterConfig()).launch(
    Submission(job_name="orphan", trials=trials, array=ArrayPaths(Path(sys.argv[2])), wall_limit_s=60)
)
"""
    controller = subprocess.Popen([sys.executable, "-c", script, str(spec), str(submission.array.root)])
    try:
        wait(lambda: started.exists() and started.read_text().strip(), "sbatch")
        sbatch = Path("/proc") / started.read_text().strip()
        assert b"sleep" in (sbatch / "cmdline").read_bytes()
    finally:
        controller.kill()
        controller.wait()
    wait(lambda: not sbatch.exists() or not (sbatch / "cmdline").read_bytes(), "its end", 5)


def test_stopped_daemon_leaves_a_submission_in_doubt(on_slurm: Bench, cluster: Sandbox) -> None:
    submission, place = on_slurm.submission("stopped", ["echo loss: 1"]), on_slurm.place()
    daemon = int((cluster.state / "run/slurmctld.pid").read_text())
    with _stopped(daemon):
        with pytest.raises(NoAnswerError, match="imed out"):
            place.launch(submission)
        assert place.adopt(submission) is None
    wait(lambda: place.adopt(submission) is not None, "an answer")


@contextlib.contextmanager
def _stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_lines_of_a_sites_wrapper_are_no_job_ids(on_slurm: Bench, cluster: Sandbox, broken: Broken) -> None:
    broken(
        "sbatch",
        'echo "sbatch: Checking job 99 of your 3 jobs"; echo "Submitted batch job 5 minutes ago: 17"; echo "job 1"\n'
        '"$REAL" "$@"; echo; echo "Project lab: 1234 hours left, job 77 was your last, see job 42"',
    )
    submission = on_slurm.submission("chatty", ["echo loss: 1"] * 2)
    jobs = on_slurm.launch(on_slurm.place(), submission)
    assert sorted(jobs.values()) == named(cluster, "chatty")
    broken("sbatch", "echo Submitted batch job 12; echo 'Submitted batch job 77 on cluster X'; echo job 9; exit 3")
    assert list(on_slurm.place().launch(on_slurm.submission("elsewhere", ["true"])).values()) == ["77_0"]


def test_nodes_are_avoided_while_there_are_others(
    on_slurm: Bench, cluster: Sandbox, broken: Broken, caplog: pytest.LogCaptureFixture
) -> None:
    warn_once.cache_clear()
    calls = broken("sbatch", '"$REAL" "$@"')
    place = on_slurm.place(exclude="n0", sbatch={"requeue": True})
    jobs = on_slurm.launch(place, on_slurm.submission("avoiding", ["echo loss: 1"] * 3, avoid=("n2", "n0", "n1")))
    script = next(on_slurm.layout.array(1, "avoiding").root.glob("*_submission.sh")).read_text()
    assert "#SBATCH --exclude=n0,n2,n1\n" in script
    wait(lambda: all(state.node for state in place.poll(jobs).values()) and len(place.poll(jobs)) == 3, "their nodes")
    assert {state.node for state in place.poll(jobs).values()} == {"n3"}
    assert len(calls.read_text().splitlines()) == 1

    for k, avoid in enumerate([("n1", "n2", "n3"), ("n1", "gone-for-good")]):
        with caplog.at_level(logging.WARNING):
            on_slurm.launch(place, on_slurm.submission(f"no-others-{k}", ["echo loss: 1"], avoid=avoid))
        assert len(calls.read_text().splitlines()) == 3 + 2 * k
        script = next(on_slurm.layout.array(1, f"no-others-{k}").root.glob("*_submission.sh")).read_text()
        assert "#SBATCH --exclude=n0\n" in script
    assert sum("n1, n2, n3" in record.message for record in caplog.records) == 1
    with pytest.raises(ClusterError, match="nvalid partition"):
        on_slurm.place(partition="nowhere").launch(on_slurm.submission("wrong", ["true"], avoid=("n1",)))
    assert len(calls.read_text().splitlines()) == 6, "another refusal is not tried again"


def test_check_does_not_take_silence_or_a_full_queue_for_a_refusal(
    on_slurm: Bench, broken: Broken, caplog: pytest.LogCaptureFixture
) -> None:
    place = on_slurm.place()
    for said in ("Unable to contact slurm controller (connect failure)", "QOSMaxSubmitJobPerUserLimit"):
        broken("sbatch", f'echo "sbatch: error: {said}" >&2; exit 1')
        with caplog.at_level(logging.WARNING):
            place.check(60, on_slurm.layout.root)
        assert said in caplog.records[-1].message


def test_time_limit_is_told_as_slurm_gets_it(on_slurm: Bench) -> None:
    assert on_slurm.place().job_limit_s(60) == 240
    assert on_slurm.place(time_min=7).job_limit_s(60) == 420
    assert on_slurm.place(sbatch={"time": "1-02:00:30"}).job_limit_s(60) == 26 * 3600 + 30


def test_sixteen_trials_at_once_have_a_gpu_each_on_both_kinds(on_slurm: Bench) -> None:
    place = on_slurm.place(gpus=None, gres="gpu:1", max_parallel=None)
    submission = on_slurm.submission("sixteen", ["sleep 6; echo loss: $CUDA_VISIBLE_DEVICES"] * 16)
    jobs = on_slurm.launch(place, submission)
    wait(lambda: len(on_slurm.results(submission)) == 16, "sixteen results", 60)
    results = list(on_slurm.results(submission).values())
    assert Counter(r.status for r in results) == {Status.OK: 16}
    assert max(r.started_at for r in results) < min(r.ended_at for r in results), "all at once"
    slurm = [r.slurm for r in results if r.slurm]
    assert [f"{s.array_job_id}_{s.array_task_id}" for s in slurm] == list(jobs.values())
    assert Counter(s.nodelist for s in slurm) == {"n0": 4, "n1": 4, "n2": 5, "n3": 3}  # n3 has the h200s
    assert {s.partition for s in slurm} == {"main"}
    devices = {(s.nodelist, r.gpu.visible) for s, r in zip(slurm, results, strict=True)}
    assert len(devices) == 16, devices
    assert {r.gpu.visible for r in results} == {"0", "1", "2", "3", "4"}
    assert all(s.gres == r.gpu.visible for s, r in zip(slurm, results, strict=True))


def test_small_arrays_without_accounting(
    on_slurm: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy: Callable[..., Toy]
) -> None:
    options = ("--nodes", "gpu:h100:4,gpu:h100:4", "--accounting", "none", "--max-array-size", "5")
    with booted(tmp_path / "small", *options) as small, monkeypatch.context() as patch:
        for name, value in small.settings_environment.items():
            patch.setenv(name, value)
        place = on_slurm.place()
        assert place.max_array == 5  # indices 0 to 4
        with pytest.raises(ClusterError, match="nvalid job array"):
            place.launch(on_slurm.submission("six", ["echo loss: 1"] * 6))

        repository = toy(cluster="slurm", k=6, rounds=0, baseline="joined")
        repository.search("chunks").finish()
        arrays = [line["trials"] for line in repository.journal("chunks") if line["event"] == "submit.intent"]
        assert [len(trials) for trials in arrays] == [5, 2]
        assert repository.trained() == {f"r00-c{i:02d}": 1 for i in range(7)}
        found = small.run("squeue", "-h", "-r", "-t", "all", "-o", "%j %K %T").split("\n")[:-1]
        by_name = Counter(re.sub(r"chunks-\w+-", "", line) for line in found)
        assert by_name == {f"r00-a{a} {i} COMPLETED": 1 for a, size in enumerate((5, 2)) for i in range(size)}
