"""`python -m autoresearch_hpc.cancel RUN`: end the run's jobs and nothing else; the run can be resumed.

A live controller, on whatever host and whosever, is asked by a file to stop as Ctrl-C would. Otherwise the jobs are
cancelled directly, and the journal notes it, so that a later controller trains those candidates again.
"""

import argparse
import getpass
import os
import shutil
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from omegaconf import OmegaConf

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
        trials = history.outstanding
        place = cluster.build(ClusterConfig(kind=_kind(layout, history)))
        for name in {t.job_name for t in trials if t.job_name}:
            mine = [t for t in trials if t.job_name == name]
            place.cancel(_jobs(place, layout, mine[0].round, name, mine))
        journal.append("run.interrupted", reason="cancelled", cancelled=[t.id for t in trials])
        return f"{asked}cancelled {len(trials)} trials; resume with tag={history.tag} and the same plan"


def _kind(layout: RunLayout, history: History) -> ClusterKind:
    """Where the run's trials are. Not what answers now: a Slurm that is silent has them all the same."""
    trials = [t for r in history.rounds for entry in r.entries.values() for t in entry.trials]
    if job := next((t.job for t in trials if t.job), None):
        return ClusterKind.local if job.startswith("local:") else ClusterKind.slurm
    kind = ClusterKind[str(OmegaConf.load(layout.config).cluster.kind)]
    if kind is ClusterKind.auto:
        kind = ClusterKind.slurm if shutil.which("sbatch") else ClusterKind.local
    return kind


def _jobs(
    place: cluster.Cluster, layout: RunLayout, round_: int, job_name: str, trials: list[Trial]
) -> Mapping[str, str]:
    """The jobs of one submission: those in the journal, and those that bear its name."""
    specs = {t.id: layout.trial(t.id).spec for t in trials}
    submission = cluster.Submission(
        job_name=job_name, trials=specs, array=layout.array(round_, job_name), wall_limit_s=0.0
    )
    known = {t.id: t.job for t in trials if t.job}
    found = place.adopt(submission)
    if found is None and len(known) < len(trials):
        raise ClusterError(f"Slurm does not say which jobs are named {job_name}", "try again once squeue answers")
    return known | dict(found or {})


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
