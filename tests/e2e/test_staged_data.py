"""Real training from data that is staged on the node, and where it cannot be."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from toy import Command

pytestmark = pytest.mark.usefixtures("no_slurm")

SMALL = (
    "+round=quickstart", "cluster.max_parallel=2", "plan.k=2", "plan.max_rounds=1", "plan.combine=0",
    "decide=best", "task.train_s=1", "corpus.vocab_size=512", "corpus.max_train_mb=2", "corpus.tokenizer_mb=1",
    "corpus.val_mb=0.2",
)  # fmt: skip


def search(repository: Path, tag: str, *words: str) -> tuple[list[dict[str, Any]], list[str]]:
    """A run's results, and what its workers said of staging."""
    command = [sys.executable, "-m", "autoresearch_hpc", *SMALL, f"tag={tag}", *words]
    Command(command, repository, os.environ, repository.parent / tag).finish(timeout_s=240)
    run = repository / "runs" / tag
    results = [json.loads(path.read_text()) for path in sorted(run.glob("rounds/*/*/trials/*/result.json"))]
    outputs = [path.read_text() for path in run.glob("rounds/*/arrays/*/*") if path.is_file()]
    return results, [line for text in outputs for line in text.splitlines() if "training data is" in line]


def test_trials_train_from_the_nodes_copy_and_without_it_where_there_is_none(tmp_path: Path) -> None:
    repository, disk = tmp_path / "research", tmp_path / "node's disk"
    disk.mkdir()
    subprocess.run([sys.executable, "-m", "autoresearch_hpc.init", str(repository)], check=True, capture_output=True)

    site = {"defaults": ["local", "_self_"], "setup": [f'export NODE_DISK="{disk}"']}  # on the node alone
    (repository / "conf" / "cluster" / "mysite.yaml").write_text(json.dumps(site))
    results, said = search(repository, "staged", "task.stage=$NODE_DISK", "cluster=mysite")
    assert [result["status"] for result in results] == ["OK"] * 3, results
    (copy,) = disk.glob("autoresearch_hpc-*/data-*")
    assert sorted(path.name for path in copy.iterdir()) == ["copy.json", "train-00000.bin"]
    assert len(said) == 3, said
    assert all(f"training data is staged: {copy} " in line for line in said)
    assert sum(bool(re.search(r" made, \d", line)) for line in said) == 1
    for phases in (result["phases"] for result in results):
        parts = [phases[name] or 0.0 for name in ("startup_s", "compile_s", "train_s", "eval_s")]
        assert abs(sum(parts) - phases["total_s"]) < 1.0, phases

    results, said = search(repository, "shared", "task.stage=$NODE_DISK", "cluster=local")
    assert [result["status"] for result in results] == ["OK"] * 3, results
    assert len(said) == 3, said
    assert all("not staged: task.stage=$NODE_DISK is no absolute path on this node" in line for line in said)
