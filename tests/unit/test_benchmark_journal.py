"""benchmarks/journal.py on a short run: it is put together of the package's own parts, and measures each of them."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_short_run_is_made_and_measured() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "journal.py"), "--trials", "32", "--one"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "trials 32.00" in next(line for line in done.stdout.splitlines() if line.startswith("replay"))
    table = dict(line.rsplit(maxsplit=1) for line in done.stdout.partition("\nms ")[2].splitlines()[1:])
    assert {"poll: budget.room", "round: state for the agent", "round: combine", "ask: factorial"} <= set(table)
    assert min(map(float, table.values())) > 0
