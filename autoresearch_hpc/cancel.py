"""`python -m autoresearch_hpc.cancel RUN`: end the run's jobs and nothing else; the run can be resumed.

A live controller on this host is asked to stop as Ctrl-C would. Otherwise the jobs are cancelled directly, and the
journal notes it, so that a later controller trains those candidates again.
"""

import argparse
import json
import os
import signal
import socket
import sys
from pathlib import Path

from autoresearch_hpc import cluster, entry
from autoresearch_hpc.config import ClusterConfig, ClusterKind
from autoresearch_hpc.errors import ConfigError
from autoresearch_hpc.history import History, Trial
from autoresearch_hpc.journal import Journal
from autoresearch_hpc.layout import RunLayout, find_run
from autoresearch_hpc.lock import RunLock, holder


def cancel(layout: RunLayout) -> str:
    """Cancel; what was done, in words. Raises ConfigError where a controller on another host has the run."""
    layout = RunLayout(layout.root.resolve())  # as the trials were submitted
    held = holder(layout.lock)
    if held:
        return _ask_controller(held)
    with RunLock(layout.lock), Journal(layout.journal) as journal:
        history = History.replay(journal.events)
        if not history.rounds or history.stopped:
            return "nothing is in flight"
        trials = [t for e in history.rounds[-1].entries.values() if (t := e.trial) and t.result is None]
        for name in {t.job_name for t in trials}:
            mine = [t for t in trials if t.job_name == name]
            _cancel_array(layout, history.rounds[-1].index, name, mine)
        journal.append("run.interrupted", reason="cancelled", cancelled=[t.id for t in trials])
        return f"cancelled {len(trials)} trials; resume with tag={history.tag} and the same plan"


def _cancel_array(layout: RunLayout, round_: int, job_name: str, trials: list[Trial]) -> None:
    local = any((t.job or "").startswith("local:") for t in trials)
    place = cluster.build(ClusterConfig(kind=ClusterKind.local if local else ClusterKind.auto))
    specs = {t.id: layout.trial(t.id).spec for t in trials}
    submission = cluster.Submission(
        job_name=job_name, trials=specs, array=layout.array(round_, job_name), wall_limit_s=0.0
    )
    place.cancel({t.id: t.job for t in trials if t.job} | dict(place.adopt(submission)))


def _ask_controller(held: str) -> str:
    try:
        owner = json.loads(held)
    except ValueError:  # locked a moment ago, its name still to be written
        raise ConfigError("the run's controller has only just started", "try again") from None
    if owner["host"] != socket.gethostname():
        raise ConfigError(f"the run's controller is pid {owner['pid']} on {owner['host']}", "run this command there")
    os.kill(int(owner["pid"]), signal.SIGINT)
    return f"asked the controller, pid {owner['pid']}, to cancel and stop"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m autoresearch_hpc.cancel", description="Cancel a run's jobs.")
    parser.add_argument("run", help="a tag, or a run's directory")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    options = parser.parse_args()
    print(cancel(find_run(options.run, options.runs_dir)))


if __name__ == "__main__":
    sys.exit(entry.run(main))
