"""What every back end promises, on both of them; then what is the local one's own."""

import dataclasses
import re
import shlex
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench import Bench, ended, wait, words

from autoresearch_hpc.cluster import Wait
from autoresearch_hpc.cluster.local import LocalCluster
from autoresearch_hpc.cluster.slurm import SlurmCluster
from autoresearch_hpc.errors import ConfigError
from autoresearch_hpc.layout import TrialPaths
from autoresearch_hpc.records import Status


@pytest.fixture(params=[SlurmCluster, LocalCluster])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path, request.param)
    yield bench
    bench.clear()


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
    assert 60 < place.job_limit_s(60) < 600, "the trial's own limits come first"


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
    assert found is not None
    wait(lambda: words(successor, found) == {"RUNNING": 2}, "two running jobs, as the successor sees them")
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
    wait(lambda: ended(place, jobs), "the end", 15)
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


def test_jobs_inherit_what_is_allowed_or_named(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {"OPENAI_API_KEY": "sesame", "DATABASE": "postgres://me:sesame@host", "FOO": "harmless", "SITE_A": "named"}
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    job = tmp_path / "job"
    place = bench.place(pass_env=["SITE_*"], setup=[f"env > {job}", f"tr '\\0' '\\n' < /proc/$$/environ > {job}.shell"])
    submission = bench.submission("contract-inherits", ["env > seen.txt; echo loss: 1"])
    jobs = bench.launch(place, submission)
    wait(lambda: words(place, jobs) == {"COMPLETED": 1}, "the end")
    for path in (job, job.with_name("job.shell")):
        text = path.read_text()
        assert "SITE_A=named\n" in text
        assert f"HOME={Path.home()}\n" in text
        assert not re.search("sesame|FOO=", text)


def test_what_a_waiting_trial_waits_for_is_told(bench: Bench) -> None:
    place = bench.place(max_parallel=1)
    submission = bench.submission("contract-waiting", ["sleep 60"] * 2)
    jobs = bench.launch(place, submission)
    wait(lambda: words(place, jobs) == {"RUNNING": 1, "PENDING": 1}, "one running, one waiting")
    first, second = submission.trials
    wait(lambda: place.poll(jobs)[second].reason, "the reason")
    states = place.poll(jobs)
    assert "cluster.max_parallel" in states[second].reason
    assert (states[first].reason, states[first].wait, states[second].wait) == ("", Wait.turn, Wait.turn)
    assert states[first].node == ("n0" if bench.kind is SlurmCluster else socket.gethostname())
    assert states[second].node is None


def test_folder_that_jobs_cannot_write_to_is_refused(bench: Bench, tmp_path: Path) -> None:
    for name in ("back\\slash", "job%j", "two\nlines"):
        with pytest.raises(ConfigError, match=r"set runs_dir=") as refused:
            bench.place().check(60, tmp_path / name)
        assert "\n" not in str(refused.value)


def test_charges_are_told_where_there_is_accounting(bench: Bench) -> None:
    place = bench.place()
    submission = bench.submission("contract-charges", ["sleep 2; echo loss: 1", "echo loss: 1"])
    jobs = bench.launch(place, submission)
    wait(lambda: ended(place, jobs), "the end")
    if not place.accounts:
        assert bench.kind is LocalCluster
        assert place.charges(jobs) == {}
        return
    wait(lambda: len(place.charges(jobs)) == 2, "the charges")
    long, short = place.charges(jobs).values()
    assert 2 <= long <= 15
    assert 0 <= short <= 15


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
    log = shlex.quote(str(here.layout.root / "log"))
    submission = here.submission("twice", [f"echo once >> {log}; sleep 2; echo loss: 1", "echo loss: 2"])
    first, second = here.place(), here.place()
    here.launch(first, dataclasses.replace(submission, trials=dict(list(submission.trials.items())[:1])))
    assert second.adopt(submission) == {}
    jobs = here.launch(second, submission)
    one, other = submission.trials
    wait(lambda: second.poll(jobs)[one].ended, "the end of the first trial")
    assert here.results(submission)[one].status is Status.OK, "running as long as whichever worker has it"
    wait(lambda: other in here.results(submission), "the other one: the GPU is free again")
    assert (here.layout.root / "log").read_text() == "once\n"


def test_gpus_are_also_named_by_uuid(here: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "MIG-1fd28a2b-e3e4-5a0a-a6c6-0c1cd3fbd1f5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(names))
    place = here.place(max_parallel=None)
    submission = here.submission("uuids", ["sleep 1; echo $CUDA_VISIBLE_DEVICES > seen; echo loss: 1"] * 3)
    jobs = here.launch(place, submission)
    assert words(place, jobs) == {"RUNNING": 2, "PENDING": 1}
    for spec in list(submission.trials.values())[:2]:
        wait(TrialPaths(spec.parent).claim(0).exists, "the claim")
    successor = here.place(max_parallel=None)
    found = successor.adopt(submission)
    assert list(found) == list(submission.trials)[:2]
    rest = dataclasses.replace(submission, trials={t: s for t, s in submission.trials.items() if t not in found})
    here.launch(successor, rest)
    assert words(successor, jobs) == {"RUNNING": 2, "PENDING": 1}, "the adopted trials hold their GPUs"
    wait(lambda: ended(successor, jobs), "the end")
    seen = [(spec.parent / "work" / "seen").read_text().strip() for spec in submission.trials.values()]
    assert seen[:2] == names
    assert seen[2] in names


def test_trials_do_not_hold_the_controllers_output(here: Bench) -> None:
    """`controller | tee log` ends with the controller, not with its last trial."""
    submission = here.submission("tee", ["sleep 20; echo loss: 1"])
    script = f"""
import sys
from pathlib import Path
from autoresearch_hpc.cluster import Submission
from autoresearch_hpc.cluster.local import LocalCluster
from autoresearch_hpc.config import ClusterConfig
from autoresearch_hpc.layout import ArrayPaths
place = LocalCluster(ClusterConfig())
trials = {{"{next(iter(submission.trials))}": Path(sys.argv[1])}}
place.launch(Submission(job_name="tee", trials=trials, array=ArrayPaths(Path(sys.argv[2])), wall_limit_s=60))
print("started", flush=True)
"""
    (spec,) = submission.trials.values()
    begin = time.monotonic()
    words_ = [sys.executable, "-W", "ignore::ResourceWarning", "-c", script, str(spec), str(submission.array.root)]
    done = subprocess.run(words_, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("started\n", 0), done.stderr
    assert time.monotonic() - begin < 15
    wait(TrialPaths(spec.parent).claim(0).exists, "the claim: it runs on")
    place = here.place()
    jobs = place.adopt(submission)
    assert jobs
    place.cancel(jobs)
    wait(lambda: ended(place, jobs), "the end")
