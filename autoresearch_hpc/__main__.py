"""`python -m autoresearch_hpc +round=NAME [overrides]`: start a run, or resume the one that `tag=` names.

With Hydra's -m every job is a run of its own; one that fails does not stop the others.
"""

import os
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from autoresearch_hpc import complaints, entry
from autoresearch_hpc.errors import InterruptedRun
from autoresearch_hpc.stopping import outliving_the_terminal

_begun: list[bool] = []
_exit_codes: list[int] = []


def _task(composed: DictConfig) -> int:
    """One run; its exit code."""
    _begun.append(True)
    if InterruptedRun.exit_code in _exit_codes:  # who stops one run of a multirun means all that would follow
        return InterruptedRun.exit_code
    entry.setup_logging()
    code = entry.run(lambda: _search(composed))
    _exit_codes.append(code)
    return code


def _search(composed: DictConfig) -> int:
    from autoresearch_hpc import report, search

    loaded = entry.load(composed)
    job = HydraConfig.get()
    several = job.mode is RunMode.MULTIRUN
    if several:  # every job its own run
        loaded.tag = f"{loaded.tag}-{job.job.num}" if loaded.tag else None
    finished = search.run(loaded)
    report.print_summary(finished.history, finished.layout, finished.reason)
    return InterruptedRun.exit_code if several and finished.asked_to_stop else 0


def main() -> int:
    """The command line. Returns the exit code; of several runs the highest."""
    entry.register()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing: entry tells it in one line
    program = hydra.main(config_path=str(entry.conf_dir()), config_name="config", version_base="1.3")(_task)

    def run() -> None:
        if sys.argv[1:] in (["--help"], ["-h"]):
            print(entry.usage())
            return
        try:
            program()
        except (*entry.COMPLAINTS, ValueError) as error:
            if _begun and not isinstance(error, entry.COMPLAINTS):
                raise  # not about the configuration: a defect of ours
            raise complaints.config_error(error) from error

    with outliving_the_terminal():
        code = entry.run(run)
    return max([code, *_exit_codes])


if __name__ == "__main__":
    sys.exit(main())
