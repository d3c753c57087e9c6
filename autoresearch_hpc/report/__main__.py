"""`python -m autoresearch_hpc.report [RUN]`: make a run's tables, progress.png and report.html again."""

import argparse
import sys
from pathlib import Path

from autoresearch_hpc import report
from autoresearch_hpc.errors import ConfigError
from autoresearch_hpc.exits import run
from autoresearch_hpc.history import History
from autoresearch_hpc.journal import stream
from autoresearch_hpc.layout import find_run


def main(arguments: list[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m autoresearch_hpc.report", description=__doc__)
    parser.add_argument("run", nargs="?", metavar="RUN", help="a tag or a run's directory; default the newest run")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="where runs are kept (default: runs)")
    options = parser.parse_args(arguments)

    def make() -> None:
        layout = find_run(options.run, options.runs_dir)
        history = History.replay(stream(layout.journal))
        try:
            report.write_all(history, layout)
        except OSError as error:
            raise ConfigError(f"cannot write {error.filename or layout.root}: {error.strerror}") from error
        report.print_summary(history, layout, history.stopped)

    return run(make)


if __name__ == "__main__":
    sys.exit(main())
