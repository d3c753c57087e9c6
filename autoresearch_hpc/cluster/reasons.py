"""What Slurm's words mean: states of jobs, and why one waits.

A job may wait for its turn, which comes; for something that somebody has to do; or for nothing any more. Limits on what
a user, an account or a QOS may hold at once free up when jobs end: as long as jobs of our own run, they are a turn.
"""

import re

from autoresearch_hpc.cluster.protocol import JobState, Wait
from autoresearch_hpc.records import Status

_LIVE = frozenset(
    "PENDING RUNNING CONFIGURING COMPLETING SUSPENDED REQUEUED REQUEUE_HOLD REQUEUE_FED RESIZING SIGNALING SPECIAL_EXIT"
    " STAGE_OUT STOPPED RESV_DEL_HOLD".split()
)
_WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"})
_MEANING = {
    "CANCELLED": Status.CANCELLED,
    "TIMEOUT": Status.TIMEOUT,
    "DEADLINE": Status.TIMEOUT,
    "OUT_OF_MEMORY": Status.OOM,
}
_HELD_STATES = {"REQUEUE_HOLD": Wait.failed, "SPECIAL_EXIT": Wait.failed, "RESV_DEL_HOLD": Wait.stuck}

_SHARED = "shared"  # a turn while jobs of our own run
# The first that matches. Reasons are written with spaces, or with underscores in their place.
_REASONS: tuple[tuple[str, Wait | str, str], ...] = (
    (r"launch failed requeued held|JobHoldMaxRequeue|JobLaunchFailure", Wait.failed, "held after its launch failed"),
    (r"RequeueExitHold|.*special exit", Wait.failed, "held by the site after its exit status"),
    (r"JobHeldUser", Wait.stuck, "held by its user; scontrol release lets it go"),
    (r"JobHeldAdmin|job requeued in held state", Wait.stuck, "held by an administrator"),
    (r"DependencyNeverSatisfied", Wait.stuck, "what it depends on can never come"),
    (r"ReqNodeNotAvail", Wait.stuck, "the nodes that it needs are down, drained or reserved"),
    (r"NodeDown|FrontEndDown", Wait.stuck, "a node that it needs is down"),
    (r"PartitionDown|PartitionInactive", Wait.stuck, "the partition starts no jobs now"),
    (r"PartitionTimeLimit", Wait.stuck, "its time limit is longer than the partition allows"),
    (r"PartitionNodeLimit|PartitionConfig", Wait.stuck, "the partition does not allow its number of nodes"),
    (r"BadConstraints", Wait.stuck, "no node has what it asks for"),
    (r"InvalidAccount|AccountNotAllowed", Wait.stuck, "the account may not run here"),
    (r"InvalidQOS|QOSNotAllowed|QOSUsageThreshold", Wait.stuck, "the QOS may not run here"),
    (r"AccountingPolicy", Wait.stuck, "a limit of the site's accounting forbids it"),
    (r"ReservationDeleted|Reservation .*deleted", Wait.stuck, "its reservation is gone"),
    (r"RequiresReservation", Wait.stuck, "the partition takes jobs of a reservation only"),
    (r"DeadLine|Deadline", Wait.stuck, "its deadline cannot be met"),
    (r"MaxMemPerLimit|MemPerLimit", Wait.stuck, "it asks for more memory than is allowed"),
    (r"QOSMin\w*", Wait.stuck, "it asks for less than the QOS wants"),
    (r"BurstBufferOperation|SystemFailure|OutOfMemory", Wait.stuck, "Slurm could not prepare it"),
    (r"(Assoc|QOS)\w*Minutes\w*|AssocGrp\w*Wall\w*|QOSGrp\w*Wall\w*", Wait.stuck, "the time granted is used up"),
    (r"(AssocMax|QOSMax)\w*Per(Job|Node)\w*", Wait.stuck, "it asks for more than one job may have"),
    (r"AssocGrp\w*|Association\w*Limit", _SHARED, "the account's limit is reached"),
    (r"QOSGrp\w*|QOS(Job|Resource|Time)Limit", _SHARED, "the QOS's limit for all of its jobs is reached"),
    (
        r"AssocMax\w*|QOSMax\w*PerUser\w*|QOSMaxJobs\w*",
        _SHARED,
        "the limit of what one user may have at once is reached",
    ),
    (r"Max\w*PerAccount", _SHARED, "the limit of what one account may have at once is reached"),
    (r"Assoc\w*|QOS\w*", Wait.stuck, "a limit of the account or the QOS forbids it"),
    (r"JobArrayTaskLimit", Wait.turn, "as many trials as cluster.max_parallel allows are running"),
    (r"Priority", Wait.turn, "others go first"),
    (r"Resources", Wait.turn, "no node is free"),
    (r"Nodes required .*", Wait.turn, "no node is free: they are down, drained or kept for others"),
    (r"BeginTime", Wait.turn, "its time to begin has not come"),
    (r"Dependency", Wait.turn, "what it depends on has not ended"),
    (r"Licenses", Wait.turn, "no licence is free"),
    (r"Reservation", Wait.turn, "its reservation has not begun"),
)
_COMPILED = tuple((re.compile(pattern), wait, words) for pattern, wait, words in _REASONS)


def state(word: str, *, node: str = "", reason: str = "", own_running: bool = False) -> JobState:
    """A job's state from Slurm's words; `own_running` tells whether other jobs of ours are running."""
    word = word.split(" ")[0].rstrip("+") or "UNKNOWN"  # "CANCELLED by 1000"
    place = node if node not in ("", "(null)", "None", "None assigned", "n/a") else None
    if word not in _LIVE:
        return JobState(word, ended=True, status=_MEANING.get(word, Status.LOST), node=place)
    if word not in _WAITING:
        return JobState(word, ended=False, node=place)
    wait, words = explain(reason, own_running=own_running)
    if word in _HELD_STATES and wait is not Wait.failed:
        wait = _HELD_STATES[word]
        words = f"{word}: held by Slurm" + (f" ({words})" if words else "")
    return JobState(word, ended=False, node=place, wait=wait, reason=words)


def explain(reason: str, *, own_running: bool = False) -> tuple[Wait, str]:
    """What a job waits for, in a word for the program and a line for people."""
    reason = reason.strip().strip("()")
    if reason in ("", "None", "Unassigned"):
        return Wait.turn, ""
    plain = reason.replace("_", " ")
    for pattern, wait, words in _COMPILED:
        if pattern.match(plain):
            if isinstance(wait, str):
                wait = Wait.turn if own_running else Wait.stuck
            return wait, f"{plain}: {words}"
    return Wait.turn, plain
