"""What every back end promises, on both of them; then what is Slurm's own."""

import dataclasses
import re
import shlex
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from client import Sandbox, booted
from toy import Toy

from autoresearch_hpc.cluster import Cluster, Submission
from autoresearch_hpc.cluster.local import LocalCluster
from autoresearch_hpc.cluster.slurm import SlurmCluster
from autoresearch_hpc.config import ClusterConfig
from autoresearch_hpc.errors import ClusterError, ConfigError
from autoresearch_hpc.files import read_json, write_json_atomic
from autoresearch_hpc.layout import RunLayout, TrialPaths
from autoresearch_hpc.records import CommandSpec, Direction, Metric, Status, TrialResult, TrialSpec, from_json, to_json

HOSTILE = 'it\'s a "run" 5% %x é$HOME'


class Bench:
    """A run's directory, submissions of small trials, and waits."""

    def __init__(self, root: Path, kind: type[Any]) -> None:
        self.layout = RunLayout(root / HOSTILE)
        self.kind = kind
        self._places: list[tuple[Cluster, dict[str, str]]] = []

    def place(self, **settings: Any) -> Cluster:
        """A back end; every call makes a new object, as a new controller would."""
        return self.kind(ClusterConfig(**{"queue_poll_s": 0.5, "max_parallel": 4, **settings}))

    def submission(self, job_name: str, commands: list[str]) -> Submission:
        trials = {}
        for index, command in enumerate(commands):
            trial = f"r01-c{index:02d}-t0"
            paths = self.layout.trial(trial)
            paths.root.mkdir(parents=True, exist_ok=True)
            src = paths.root / "src"
            src.mkdir(exist_ok=True)
            spec = TrialSpec(
                run=job_name,
                round=1,
                candidate=trial[:-3],
                trial=trial,
                commit="0" * 40,
                seed=index,
                tier="default",
                kind="command",
                src=str(src),
                trial_dir=str(paths.root),
                metric=Metric(name="loss", value=None, direction=Direction.min),
                device="auto",
                train_s=30,
                startup_limit_s=10,
                grace_s=5,
                eval_limit_s=5,
                command=CommandSpec(command=command, metric_regex=r"loss: (\S+)"),
            )
            write_json_atomic(paths.spec, to_json(spec))
            trials[trial] = paths.spec
        array = self.layout.array(1, job_name)
        array.root.mkdir(parents=True)
        return Submission(job_name=job_name, trials=trials, array=array, wall_limit_s=60)

    def launch(self, place: Cluster, submission: Submission) -> Mapping[str, str]:
        jobs = place.launch(submission)
        self._places.append((place, dict(jobs)))
        return jobs

    def results(self, submission: Submission) -> dict[str, TrialResult]:
        found = {}
        for trial, spec in submission.trials.items():
            path = TrialPaths(spec.parent).result
            if path.exists():
                found[trial] = from_json(TrialResult, read_json(path))
        return found

    def clear(self) -> None:
        for place, jobs in self._places:
            place.cancel(jobs)
        for place, jobs in self._places:
            wait(lambda place=place, jobs=jobs: all(s.ended for s in place.poll(jobs).values()), "the end")


def wait(condition: Callable[[], object], what: str, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} not seen within {timeout_s} s"
        time.sleep(0.1)


def words(place: Cluster, jobs: Mapping[str, str]) -> Counter[str]:
    return Counter(state.word for state in place.poll(jobs).values())


@pytest.fixture(params=[SlurmCluster, LocalCluster])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path, request.param)
    yield bench
    bench.clear()


@pytest.fixture
def on_slurm(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path, SlurmCluster)
    yield bench
    bench.clear()


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Puts a shell script before one of Slurm's commands; $REAL is the command itself. Gives a file of its calls."""

    def put(command: str, script: str) -> Path:
        real, folder = shutil.which(command), tmp_path / "broken"
        folder.mkdir(exist_ok=True)
        calls = folder / f"{command}.calls"
        (folder / command).write_text(f'#!/bin/sh\nREAL={real}\nCALLS={calls}\necho "$*" >> "$CALLS"\n{script}\n')
        (folder / command).chmod(0o755)
        monkeypatch.setenv("PATH", str(folder), prepend=":")
        return calls

    return put


# both back ends


def test_every_trial_has_a_job_and_leaves_its_result(bench: Bench) -> None:
    place = bench.place()
    place.check(60, bench.layout.root)
    submission = bench.submission("contract-results", ["echo loss: 0.5", "echo loss: 0.25", "exit 3"])
    jobs = bench.launch(place, submission)
    assert list(jobs) == list(submission.trials)
    assert len(set(jobs.values())) == 3

    wait(lambda: len(bench.results(submission)) == 3, "three results")
    results = bench.results(submission)
    assert [r.metric.value for r in results.values()] == [0.5, 0.25, None]
    assert [r.status for r in results.values()] == [Status.OK, Status.OK, Status.CRASHED]
    assert [r.seed for r in results.values()] == [0, 1, 2]
    wait(lambda: words(place, jobs) == {"COMPLETED": 3}, "the jobs' end")
    assert all(state.ended for state in place.poll(jobs).values())


def test_parallel_trials_are_bounded_and_states_are_told(bench: Bench) -> None:
    place = bench.place(max_parallel=2)
    submission = bench.submission("contract-bounds", ["sleep 1.5; echo loss: 1"] * 4)
    jobs = bench.launch(place, submission)
    seen: list[Counter[str]] = []

    def all_ended() -> bool:
        seen.append(words(place, jobs))
        return seen[-1] == {"COMPLETED": 4}

    wait(all_ended, "four ended jobs")
    assert {"PENDING": 2, "RUNNING": 2} in seen
    assert max(counts["RUNNING"] for counts in seen) == 2
    spans = sorted((r.started_at, r.ended_at) for r in bench.results(submission).values())
    assert len(spans) == 4
    assert spans[2][0] > spans[0][1], "the third started only after the first had ended"


def test_submission_is_found_again_by_its_name_alone(bench: Bench) -> None:
    place = bench.place()
    submission = bench.submission("contract-adopt", ["sleep 3; echo loss: 1", "sleep 3; echo loss: 2"])
    jobs = bench.launch(place, submission)
    wait(lambda: words(place, jobs) == {"RUNNING": 2}, "two running jobs")
    for spec in submission.trials.values():
        wait(TrialPaths(spec.parent).claim(0).exists, "the claim")

    successor = bench.place()
    found = successor.adopt(submission)
    assert found == jobs
    assert words(successor, found) == {"RUNNING": 2}
    some = dataclasses.replace(submission, trials=dict(list(submission.trials.items())[1:]))
    assert bench.place().adopt(some) == {t: j for t, j in jobs.items() if t in some.trials}
    wait(lambda: words(successor, found) == {"COMPLETED": 2}, "the end, as the successor sees it")
    assert [r.metric.value for r in bench.results(submission).values()] == [1.0, 2.0]
    assert bench.place().adopt(submission) == jobs, "a submission that has ended is found too"


def test_unknown_name_is_not_found(bench: Bench) -> None:
    submission = bench.submission("contract-never-submitted", ["true"])
    assert bench.place().adopt(submission) == {}


def test_cancel_ends_running_and_waiting_trials_and_no_others(bench: Bench) -> None:
    place = bench.place(max_parallel=2)
    submission = bench.submission("contract-cancel", ["sleep 2; echo loss: 1", "sleep 60", "sleep 60"])
    jobs = bench.launch(place, submission)
    wait(lambda: words(place, jobs) == {"RUNNING": 2, "PENDING": 1}, "two running, one waiting")
    first, *others = submission.trials
    wait(TrialPaths(submission.trials[others[0]].parent).claim(0).exists, "the claim")
    place.cancel({trial: jobs[trial] for trial in others})
    wait(lambda: all(s.ended for s in place.poll(jobs).values()), "the end", 15)
    wait(lambda: len(bench.results(submission)) == 2, "the results of those that had begun")
    results = bench.results(submission)
    assert results[first].status is Status.OK
    assert results[others[0]].status is Status.CANCELLED
    place.cancel(jobs)  # of what has ended: nothing to do, and no error


def test_variables_of_an_enclosing_job_reach_neither_submission_nor_trial(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    enclosing = {
        "SLURM_JOB_ID": "424242",
        "SLURM_JOBID": "424242",
        "SLURM_ARRAY_TASK_ID": "7",
        "SLURM_RESTART_COUNT": "5",
        "SLURM_CPUS_PER_TASK": "63",
        "SLURM_NTASKS": "9",
        "SLURM_ENCLOSING": "yes",
        "SBATCH_PARTITION": "nowhere",
        "SBATCH_TIMELIMIT": "1",
        "SQUEUE_FORMAT": "%A",
        "SQUEUE_STATES": "FAILED",
        "SACCT_FORMAT": "Account",
    }
    for name, value in enclosing.items():
        monkeypatch.setenv(name, value)
    place = bench.place()
    place.check(60, bench.layout.root)
    submission = bench.submission("contract-environment", ["env > seen.txt; echo loss: 1"])
    jobs = bench.launch(place, submission)
    wait(lambda: words(place, jobs) == {"COMPLETED": 1}, "the end")
    (result,) = bench.results(submission).values()
    assert (result.status, result.attempt) == (Status.OK, 0)
    assert (result.slurm is not None) == (bench.kind is SlurmCluster)
    assert result.slurm is None or result.slurm.job_id != "424242"
    trial_dir = next(iter(submission.trials.values())).parent
    seen = dict(
        line.split("=", 1) for line in (trial_dir / "work" / "seen.txt").read_text().splitlines() if "=" in line
    )
    assert [name for name, value in enclosing.items() if seen.get(name) == value] == []


# the local one's own


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path, LocalCluster)
    yield bench
    bench.clear()


def test_each_trial_has_one_of_the_gpus_to_itself(here: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    place = here.place(max_parallel=None)
    submission = here.submission("gpus", ["sleep 1; echo loss: $CUDA_VISIBLE_DEVICES"] * 4)
    jobs = here.launch(place, submission)
    assert words(place, jobs) == {"RUNNING": 2, "PENDING": 2}
    wait(lambda: words(place, jobs) == {"COMPLETED": 4}, "the end")
    results = list(here.results(submission).values())
    assert Counter(r.metric.value for r in results) == {2.0: 2, 5.0: 2}
    for gpu in ("2", "5"):
        first, second = sorted((r.started_at, r.ended_at) for r in results if r.gpu.visible == gpu)
        assert first[1] < second[0]


def test_trial_that_was_started_twice_runs_once(here: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A controller died between start and claim, and the next one starts the trial again."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    submission = here.submission("twice", ["echo once >> $LOG; sleep 2; echo loss: 1", "echo loss: 2"])
    monkeypatch.setenv("LOG", str(here.layout.root / "log"))
    first, second = here.place(), here.place()
    here.launch(first, dataclasses.replace(submission, trials=dict(list(submission.trials.items())[:1])))
    assert second.adopt(submission) == {}
    jobs = here.launch(second, submission)
    one, other = submission.trials
    wait(lambda: second.poll(jobs)[one].ended, "the end of the first trial")
    assert here.results(submission)[one].status is Status.OK, "running as long as whichever worker has it"
    wait(lambda: other in here.results(submission), "the other one: the GPU is free again")
    assert (here.layout.root / "log").read_text() == "once\n"


# Slurm's own


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


@pytest.mark.parametrize("name", ["back\\slash", "job%j", "two\nlines"], ids=["backslash", "pattern", "lines"])
def test_folder_that_slurm_cannot_write_to_is_refused(bench: Bench, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"set runs_dir=") as refused:
        bench.place().check(60, tmp_path / name)
    assert "\n" not in str(refused.value)


def test_job_cancelled_by_hand(on_slurm: Bench, cluster: Sandbox) -> None:
    place = on_slurm.place(max_parallel=1)
    submission = on_slurm.submission("by-hand", ["sleep 60", "sleep 60"])
    jobs = on_slurm.launch(place, submission)
    running, _ = submission.trials
    wait(TrialPaths(submission.trials[running].parent).claim(0).exists, "the claim")
    cluster.scancel(*jobs.values())
    wait(lambda: words(place, jobs) == {"CANCELLED": 2}, "the end")
    states = place.poll(jobs)
    assert all(state.ended and state.status is Status.CANCELLED for state in states.values())
    wait(lambda: on_slurm.results(submission), "the result of the one that ran")
    assert {t: r.status for t, r in on_slurm.results(submission).items()} == {running: Status.CANCELLED}


@pytest.mark.parametrize(
    ("script", "num_calls"),
    [
        ('"$REAL" "$@" >&2; echo "sbatch: error: Batch job submission failed: Socket timed out" >&2; exit 1', 1),
        (
            '[ $(wc -l < "$CALLS") -gt 1 ] || { echo "Unable to contact slurm controller" >&2; exit 1; }; "$REAL" "$@"',
            2,
        ),
    ],
    ids=["went-through", "did-not"],
)
def test_submission_without_an_answer_is_made_once(
    on_slurm: Bench, cluster: Sandbox, broken: Callable[[str, str], Path], script: str, num_calls: int
) -> None:
    calls = broken("sbatch", script)
    submission = on_slurm.submission(f"no-answer-{num_calls}", ["sleep 1; echo loss: 1"] * 2)
    jobs = on_slurm.launch(on_slurm.place(), submission)
    assert len(calls.read_text().splitlines()) == num_calls
    found = cluster.run("squeue", "-h", "-t", "all", "-r", f"--name={submission.job_name}", "-o", "%F_%K").split()
    assert sorted(found) == sorted(jobs.values())


def test_silent_queue_is_no_news(
    on_slurm: Bench, broken: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    submission = on_slurm.submission("silent", ["sleep 5; echo loss: 1"])
    jobs = on_slurm.launch(on_slurm.place(), submission)
    with monkeypatch.context() as patch:
        patch.setattr("autoresearch_hpc.cluster.slurm._FORGOTTEN_S", 0.2)
        broken("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
        broken("sacct", "exit 1")
        place = on_slurm.place(queue_poll_s=0.1)
        for _ in range(5):
            assert place.poll(jobs) == {}
            time.sleep(0.1)
        with pytest.raises(ClusterError, match="unknown whether silent was submitted"):
            place.adopt(submission)
            # A queue that answers and does not know the job is: the job is gone.
        broken("squeue", "exit 0")
        assert place.poll(jobs) == {}
        time.sleep(0.3)
        assert [state.ended for state in place.poll(jobs).values()] == [True]


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
