"""What Slurm's words mean, and how its notations are read."""

import pytest

from autoresearch_hpc.cluster.commands import Answer, compressed, expanded
from autoresearch_hpc.cluster.protocol import Wait
from autoresearch_hpc.cluster.reasons import explain, state
from autoresearch_hpc.cluster.submit import job_id, limit_s, refusal
from autoresearch_hpc.errors import ClusterError, NoAnswerError, NoRoomError
from autoresearch_hpc.records import Status

POLICY = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"


@pytest.mark.parametrize(
    ("word", "ended", "status"),
    [
        ("COMPLETED", True, Status.LOST),
        ("FAILED", True, Status.LOST),
        ("NODE_FAIL", True, Status.LOST),
        ("PREEMPTED", True, Status.LOST),
        ("BOOT_FAIL", True, Status.LOST),
        ("CANCELLED by 1000", True, Status.CANCELLED),
        ("CANCELLED+", True, Status.CANCELLED),
        ("TIMEOUT", True, Status.TIMEOUT),
        ("DEADLINE", True, Status.TIMEOUT),
        ("OUT_OF_MEMORY", True, Status.OOM),
        *((word, False, Status.LOST) for word in "RUNNING COMPLETING REQUEUED REQUEUE_HOLD SPECIAL_EXIT".split()),
    ],
)
def test_states(word: str, ended: bool, status: Status) -> None:
    found = state(word, node="n1", reason="NonZeroExitCode")
    assert (found.ended, found.status, found.node) == (ended, status, "n1")
    assert " " not in found.word
    assert found.reason == "" or not ended


@pytest.mark.parametrize("node", ["", "(null)", "None assigned"])
def test_no_node_is_none(node: str) -> None:
    assert state("PENDING", node=node).node is None


TURN = (
    "None Priority Resources BeginTime Dependency Licenses Reservation JobArrayTaskLimit Prolog Cleaning"
    " PrologSlurmctld FedJobLock SomethingNew"
).split()
STUCK = (
    "JobHeldUser JobHeldAdmin DependencyNeverSatisfied PartitionDown PartitionInactive PartitionTimeLimit"
    " PartitionNodeLimit BadConstraints InvalidAccount InvalidQOS NodeDown ReservationDeleted QOSNotAllowed"
    " AccountNotAllowed QOSMinGRES AssocMaxWallDurationPerJobLimit QOSMaxGRESPerJob QOSMaxGRESPerNode"
    " AssocGrpGRESMinutes QOSGrpCPURunMinutesLimit AssocMaxCpuMinutesPerJobLimit AssocGrpWallLimit"
).split()
SHARED = (
    "AssocGrpGRES AssocGrpJobsLimit AssocGrpCpuLimit QOSGrpGRES QOSGrpJobsLimit QOSMaxJobsPerUserLimit"
    " QOSMaxGRESPerUser QOSMaxCpuPerUserLimit AssocMaxJobsLimit MaxGRESPerAccount MaxJobsPerAccount QOSJobLimit"
).split()


@pytest.mark.parametrize("own_running", [False, True])
def test_reasons(own_running: bool) -> None:
    meaning = {reason: explain(reason, own_running=own_running)[0] for reason in (*TURN, *STUCK, *SHARED)}
    assert {r for r in TURN if meaning[r] is not Wait.turn} == set()
    assert {r for r in STUCK if meaning[r] is not Wait.stuck} == set()
    shared = Wait.turn if own_running else Wait.stuck
    assert {r for r in SHARED if meaning[r] is not shared} == set()


@pytest.mark.parametrize(
    "reason",
    [
        "launch failed requeued held",
        "launch_failed_requeued_held",
        "(launch failed requeued held)",
        "JobHoldMaxRequeue",
    ],
)
def test_failed_launch(reason: str) -> None:
    wait, words = explain(reason)
    assert wait is Wait.failed
    assert "held after its launch failed" in words


@pytest.mark.parametrize(
    ("word", "wait"), [("REQUEUE_HOLD", Wait.failed), ("SPECIAL_EXIT", Wait.failed), ("RESV_DEL_HOLD", Wait.stuck)]
)
def test_states_that_hold(word: str, wait: Wait) -> None:
    found = state(word, reason="JobHeldUser")
    assert found.wait is wait
    assert word in found.reason


def test_reason_keeps_the_nodes() -> None:
    wait, words = explain("ReqNodeNotAvail, UnavailableNodes:n[1-3]")
    assert wait is Wait.stuck
    assert "n[1-3]" in words


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (
            f"sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: {POLICY}",
            NoRoomError,
        ),
        (f"sbatch: error: AssocGrpSubmitJobsLimit\nsbatch: error: Batch job submission failed: {POLICY}", NoRoomError),
        (f"sbatch: error: MaxSubmitJobsPerAccount\nsbatch: error: Batch job submission failed: {POLICY}", NoRoomError),
        (f"sbatch: error: Batch job submission failed: {POLICY}", NoRoomError),
        ("sbatch: error: Batch job submission failed: Resource temporarily unavailable", NoRoomError),
        (
            f"sbatch: error: QOSMaxWallDurationPerJobLimit\nsbatch: error: Batch job submission failed: {POLICY}",
            ClusterError,
        ),
        (f"sbatch: error: QOSMaxNodePerJobLimit\nsbatch: error: Batch job submission failed: {POLICY}", ClusterError),
        ("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation", NoAnswerError),
        (
            "sbatch: error: Batch job submission failed: Unable to contact slurm controller",
            NoAnswerError,
        ),
        ("sbatch: error: Batch job submission failed: Zero Bytes were transmitted or received", NoAnswerError),
        ("sbatch: error: Batch job submission failed: Invalid qos specification", ClusterError),
        (
            "sbatch: error: Batch job submission failed: Requested time limit is invalid",
            ClusterError,
        ),
        ("", NoAnswerError),
    ],
)
def test_refusals(said: str, kind: type[ClusterError]) -> None:
    error = refusal(Answer(code=1, out="", err=said))
    assert type(error) is kind
    assert "\n" not in str(error)
    assert "sbatch:" not in str(error)


def test_time_limit_on_sbatch_leaves_a_doubt_whatever_it_had_said() -> None:
    answer = Answer(
        code=124, out="", err="sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying"
    )
    assert type(refusal(answer)) is NoAnswerError
    assert type(refusal(Answer(code=124, out="", err=answer.err, stopped_early=True))) is NoRoomError


@pytest.mark.parametrize(
    ("out", "id_"),
    [
        ("Submitted batch job 12\n", "12"),
        ("job 9\nSubmitted batch job 12 on cluster north\nyour job 8 was fine\n", "12"),
        ("Submitted batch job 11\nSubmitted batch job 12\r\n", "12"),
        ("Submitted batch job 12\nSubmitted batch job 5 minutes ago\n", "12"),
    ],
)
def test_job_id(out: str, id_: str) -> None:
    assert job_id(Answer(code=0, out=out, err="")) == id_


def test_no_job_id() -> None:
    with pytest.raises(NoAnswerError):
        job_id(Answer(code=0, out="thank you for job 12\n", err=""))


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        (90, 5400),
        ("90", 5400),
        ("90:30", 5430),
        ("1:30:00", 5400),
        ("2-3", 183600),
        ("2-3:30", 185400),
        ("1-00:00:05", 86405),
        ("UNLIMITED", None),
    ],
)
def test_time_limits(time: object, seconds: float | None) -> None:
    assert limit_s(time) == seconds


def test_indices() -> None:
    assert expanded("[0-2,5,8-12:2%4]") == [0, 1, 2, 5, 8, 10, 12]
    assert expanded("7") == [7]
    assert expanded("N/A") == []
    assert compressed([5, 0, 2, 1, 2]) == "0-2,5"
    assert expanded(compressed(range(0, 4000, 3))) == list(range(0, 4000, 3))
