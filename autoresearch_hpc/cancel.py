"""`python -m autoresearch_hpc.cancel RUN`: end the run's jobs and nothing else; the run can be resumed.

A live controller, on whatever host and whosever, is asked by a file to stop as Ctrl-C would. Otherwise the jobs are
cancelled directly, and the journal notes it, so that a later controller trains those candidates again.
"""

import argparse
import getpass
import os
import socket
import sys
import time
from pathlib import Path

from autoresearch_hpc import cluster, entry
from autoresearch_hpc.config import ClusterConfig, ClusterKind
from autoresearch_hpc.errors import ClusterError
from autoresearch_hpc.files import write_json_atomic
from autoresearch_hpc.history import History, Trial
from autoresearch_hpc.journal import Journal
from autoresearch_hpc.layout import RunLayout, find_run
from autoresearch_hpc.lock import Lease, RunLock, holder

_ANSWER_S = 15.0
_LOOK_S = 0.2


def cancel(layout: RunLayout) -> str:
    """Cancel; what was done, in words. Raises ClusterError where Slurm does not answer."""
    layout = RunLayout(layout.root.resolve())  # as the trials were submitted
    asked = ""
    if controller := holder(layout.lock):
        asked = f"asked the controller, {controller}, to cancel and stop: "
        if answer := _ask(layout, controller):
            return f"{asked}{answer}"
        asked += "it ended before it saw that; "
    with RunLock(layout.lock), Journal(layout.journal) as journal:
        layout.cancel_request.unlink(missing_ok=True)
        history = History.replay(journal.events)
        if not history.rounds or history.stopped:
            return f"{asked}nothing is in flight"
        trials = history.rounds[-1].outstanding
        for name in {t.job_name for t in trials if t.job_name}:
            mine = [t for t in trials if t.job_name == name]
            _cancel_array(layout, history.rounds[-1].index, name, mine)
        journal.append("run.interrupted", reason="cancelled", cancelled=[t.id for t in trials])
        return f"{asked}cancelled {len(trials)} trials; resume with tag={history.tag} and the same plan"


def _cancel_array(layout: RunLayout, round_: int, job_name: str, trials: list[Trial]) -> None:
    local = any((t.job or "").startswith("local:") for t in trials)
    place = cluster.build(ClusterConfig(kind=ClusterKind.local if local else ClusterKind.auto))
    specs = {t.id: layout.trial(t.id).spec for t in trials}
    submission = cluster.Submission(
        job_name=job_name, trials=specs, array=layout.array(round_, job_name), wall_limit_s=0.0
    )
    found = place.adopt(submission)
    if found is None:
        raise ClusterError(f"Slurm does not say which jobs are named {job_name}", "try again once squeue answers")
    place.cancel({t.id: t.job for t in trials if t.job} | dict(found))


def _ask(layout: RunLayout, controller: Lease) -> str:
    """Leave the request and watch what becomes of it; nothing where the controller ended without seeing it."""
    write_json_atomic(
        layout.cancel_request, {"host": socket.gethostname(), "pid": os.getpid(), "user": getpass.getuser()}
    )
    deadline = time.monotonic() + _ANSWER_S
    while time.monotonic() < deadline:
        now = holder(layout.lock)
        if now is None or now.text != controller.text:
            return "" if layout.cancel_request.exists() else "it has stopped"
        time.sleep(_LOOK_S)
    if layout.cancel_request.exists():
        return "no answer yet; it obeys as soon as the agent or the command that it waits for is done"
    return "it is about to; see status"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m autoresearch_hpc.cancel", description="Cancel a run's jobs.")
    parser.add_argument("run", help="a tag, or a run's directory")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    options = parser.parse_args()
    print(cancel(find_run(options.run, options.runs_dir)))


if __name__ == "__main__":
    sys.exit(entry.run(main))
