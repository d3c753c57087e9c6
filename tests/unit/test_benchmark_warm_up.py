"""benchmarks/warm_up.py with a small model on a CPU: each phase of each process in the table."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SMALL = {"DEPTH": "1", "ASPECT_RATIO": "16", "HEAD_DIM": "16", "DEVICE_BATCH_SIZE": "1", "TOTAL_BATCH_SIZE": "2048"}


def test_phases_of_each_process(tmp_path: Path) -> None:
    source = (ROOT / "train.py").read_text(encoding="utf-8")
    for name, value in SMALL.items():
        source, changed = re.subn(rf"^{name} = \S+", f"{name} = {value}", source, flags=re.MULTILINE)
        assert changed == 1
    (tmp_path / "small.py").write_text(source, encoding="utf-8")
    command = [sys.executable, str(ROOT / "benchmarks" / "warm_up.py"), "small.py", "--turns", "2", "--profile"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if line[:1] == "|"]
    assert [row[:2] for row in rows[2:]] == [["small.py", "empty"], ["small.py", "full"]]
    for row in rows[2:]:
        *phases, together = map(float, row[2:])
        assert len(phases) == 6
        assert phases[0] > 0.1, "imports torch"
        assert abs(sum(phases) - together) < 0.05
    assert done.stderr.count("cumulative time") == 1
