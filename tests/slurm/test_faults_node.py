"""Nodes that die, are cut off, are taken away or start nothing. Each search has two nodes of a GPU kind of its own.

A trial on the node that is hit is lost or comes back; those on the other node go on.
"""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest
from client import Sandbox, booted
from faults import Faulty, Stage

KINDS = ("dies", "revived", "returns", "cutoff", "gone", "preempted", "evicted", "prolog", "spool", "hole")
ROUND = ("hit", "long 9", "long 10")  # with the baseline: four trials on two nodes with two GPUs each
CUT = ("cut", "long 9", "long 10")


def nodes_of(kind: str) -> tuple[str, str]:
    first = 2 * KINDS.index(kind)
    return f"n{first}", f"n{first + 1}"


@pytest.fixture(scope="module")
def stage(slurm_programs: None, cluster_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    root = tmp_path_factory.mktemp("nodes")
    with _cluster(root) as cluster:
        stage = Stage(root / "searches", cluster)
        try:
            stage.put_on("dies", crash, ROUND, **on("dies", "+cluster.sbatch.no-requeue=true"))
            stage.put_on("revived", crash, ROUND, **on("revived"))
            alone = f"cluster.exclude={nodes_of('returns')[1]}"
            stage.put_on("returns", reboot, ("hit",), **on("returns", alone))
            stage.put_on("cutoff", cut_off, CUT, **on("cutoff"))
            stage.put_on("gone", cut_off, CUT, **on("gone", "+cluster.sbatch.no-requeue=true"))
            stage.put_on("preempted", take_away, ROUND, **on("preempted"))
            stage.put_on("evicted", take_away, ROUND, **on("evicted", "cluster.partition=cheap"))
            setup = f"'test ! -e {root}/bad-$SLURMD_NODENAME || kill -9 $$'"
            bad = {"prolog": (), "spool": (), "hole": (f"cluster.setup=[{setup}]",)}
            for kind, further in bad.items():
                stage.put_on(kind, finish, ("fine a", "fine b", "fine c"), ("fine d", "fine e"), **on(kind, *further))
            yield stage
        finally:
            stage.close()


@contextmanager
def _cluster(root: Path) -> Iterator[Sandbox]:
    """One whose second node of some kinds is broken from the start."""
    (root / "searches").mkdir()
    prolog = root / "prolog"
    prolog.write_text(f'#!/bin/sh\ntest "$SLURMD_NODENAME" != {nodes_of("prolog")[1]}\n')
    prolog.chmod(0o755)
    (root / f"bad-{nodes_of('hole')[1]}").touch()
    nodes = ",".join(f"gpu:{kind}:2" for kind in KINDS for _ in range(2))
    cheap = "PartitionName=cheap Nodes=ALL DefaultTime=60 PriorityTier=1 PreemptMode=CANCEL"
    # A late answer of a node that was just killed does not revive it.
    settings = [
        word for line in (f"Prolog={prolog}", cheap, "ReturnToService=1", "SlurmdTimeout=5") for word in ("--set", line)
    ]
    with booted(root / "slurm", "--nodes", nodes, *settings) as cluster:
        spool = cluster.state / "spool" / nodes_of("spool")[1]
        spool.rename(spool.with_name("lost"))
        yield cluster


def on(kind: str, *overrides: str) -> dict[str, Sequence[str]]:
    return {"overrides": ("cluster.gpus=null", f"cluster.gres=gpu:{kind}:1", *overrides)}


# what is done


def finish(run: Faulty) -> None:
    run.command.finish(timeout_s=150)


def hit_node(run: Faulty, mode: str) -> str:
    """The node of the trial that is to be hit, once all of its round are in their scripts."""
    for other in run.candidates:
        run.training(other)
    return run.cluster.run("squeue", "-h", "-j", run.job(mode), "-o", "%N").strip()


def crash(run: Faulty) -> None:
    run.node = hit_node(run, "hit")
    run.cluster.kill_node(run.node)
    finish(run)


def reboot(run: Faulty) -> None:
    """The only node dies and comes back after a while: Slurm may still owe it the end of the job's first life."""
    run.node = hit_node(run, "hit")
    run.cluster.kill_node(run.node)
    time.sleep(8)
    back = Thread(target=run.cluster.start_slurmd, args=[run.node])
    back.start()
    time.sleep(1)
    run.cluster.run("scontrol", "update", f"nodename={run.node}", "state=resume")
    back.join()
    finish(run)


def cut_off(run: Faulty) -> None:
    """The daemon dies, its trials go on; Slurm takes them for dead and may start them again elsewhere."""
    run.node = hit_node(run, "cut")
    run.cluster.kill_slurmd(run.node)
    finish(run)
    time.sleep(3)  # the first life of the trial ends about now, if it has not yet


def take_away(run: Faulty) -> None:
    run.node = hit_node(run, "hit")
    words = ["--partition=high", f"--gres=gpu:{run.tag}:2", f"--nodelist={run.node}"]
    run.cluster.sbatch("sleep 3", *words)
    finish(run)


# what comes of it


def hit(run: Faulty) -> set[str]:
    """The modes whose first life was on the node that was hit, and was not over by then."""
    attempts = run.first_nodes()
    return {mode for mode in run.candidates if attempts[mode] == run.node}


def lost_and_retried(stage: Stage, run: Faulty, fault: str, *, same_node: bool = False) -> None:
    run.accepted_once()
    for mode, statuses in run.statuses().items():
        if mode in hit(run):
            assert statuses == ["LOST", "OK"], (mode, statuses)
            first, second = run.nodes(mode)
            assert first == run.node
            assert same_node or second != first
            run.tell(fault, mode, stage.clock)
        else:
            assert statuses == ["OK"], (mode, statuses)
            assert run.trials(mode)[0]["attempt"] == 0


def came_back(run: Faulty, fault: str) -> None:
    """One trial, one accepted result, of the second attempt."""
    run.accepted_once()
    assert not run.events("trial.dropped")
    for mode in run.candidates:
        (result,) = run.trials(mode)
        assert (result["status"], result["attempt"]) == ("OK", 1 if mode in hit(run) else 0), mode
        if mode in hit(run):
            run.told_by_worker(fault, mode)


def test_node_dies_under_a_job_that_is_not_requeued(stage: Stage) -> None:
    lost_and_retried(stage, stage.played("dies"), "node lost under it, --no-requeue (NODE_FAIL)")


def test_node_dies_and_the_job_is_requeued(stage: Stage) -> None:
    came_back(stage.played("revived"), "node lost under it, requeued")


def test_node_dies_and_comes_back(stage: Stage) -> None:
    """However Slurm treats the second life of the job, the candidate gets its result."""
    run = stage.played("returns")
    run.accepted_once()
    assert run.statuses()["hit"] in (["OK"], ["LOST", "OK"])
    if run.statuses()["hit"] == ["OK"]:
        run.told_by_worker("the only node reboots, requeued", "hit")
    else:
        run.tell("the only node reboots, the requeued job is killed at once", "hit", stage.clock)


def test_node_is_cut_off_and_the_job_is_requeued(stage: Stage) -> None:
    """The trial lives twice for a while; what its first life brings is not accepted."""
    run = stage.played("cutoff")
    (result,) = run.trials("cut")
    assert (result["status"], result["attempt"]) == ("OK", 1)
    assert run.toy.trained()[run.candidates["cut"]] == 2
    assert not run.events("trial.dropped")
    assert run.statuses() == {mode: ["OK"] for mode in CUT}
    run.told_by_worker("node cut off (slurmd dead, job alive), requeued", "cut")


def test_node_is_cut_off_and_the_job_given_up_by_slurm(stage: Stage) -> None:
    run = stage.played("gone")
    run.accepted_once()
    assert run.statuses() == {"cut": ["LOST", "OK"], "long 9": ["OK"], "long 10": ["OK"]}, run.log()
    first, second = run.nodes("cut")
    assert first == run.node != second
    run.tell("node cut off (slurmd dead, job alive), NODE_FAIL", "cut", stage.clock)


def test_preempted_and_requeued(stage: Stage) -> None:
    came_back(stage.played("preempted"), "preempted and requeued")


def test_preempted_and_cancelled(stage: Stage) -> None:
    run = stage.played("evicted")
    lost_and_retried(stage, run, "preempted, PreemptMode=CANCEL (PREEMPTED)", same_node=True)
    assert not excluded(run, 0), "a node that was taken away is not a bad one"


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("prolog", "launch failed requeued held (Prolog fails)"),
        ("spool", "launch failed requeued held (slurmd cannot start jobs)"),
        ("hole", "a node that kills every job"),
    ],
)
def test_bad_node_is_left_and_then_left_out(stage: Stage, kind: str, fault: str) -> None:
    run = stage.played(kind)
    good, bad = nodes_of(kind)
    run.accepted_once()
    retried = {mode for mode, statuses in run.statuses().items() if statuses == ["LOST", "OK"]}
    fine = {mode for mode, statuses in run.statuses().items() if statuses == ["OK"]}
    baseline = [r["status"] for r in run.results("r00-c00")]
    assert retried | fine == set(run.candidates)
    assert len(retried) + (baseline == ["LOST", "OK"]) == 2, "two trials went to the bad node"
    for mode in retried:
        assert run.nodes(mode) == [bad, good]
        assert run.trials(mode)[0]["error"]["type"] == ("NoResult" if kind == "hole" else "LaunchFailed")
        words = ("PENDING launch failed requeued held",) if kind != "hole" else ()
        run.tell(fault, mode, stage.clock, *words)
    if kind != "hole":
        assert len(run.warnings("launch failed requeued held: held after its launch failed")) == 1
    assert excluded(run, 0) == {bad}, "tried again on another node"
    assert excluded(run, 1) == {bad}, "not used any more"


def excluded(run: Faulty, round_: int) -> set[str]:
    """Nodes that arrays of the round were told not to use."""
    scripts = (run.toy.run_dir(run.tag) / "rounds" / f"{round_:02d}" / "arrays").glob("*/*.sh")
    found = [re.search(r"^#SBATCH --exclude=(\S+)", path.read_text("utf-8"), re.MULTILINE) for path in scripts]
    return {node for match in found if match for node in match[1].split(",")}
