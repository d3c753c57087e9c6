"""Every path of a run."""

import os
from pathlib import Path

import pytest

from autoresearch_hpc.errors import ConfigError
from autoresearch_hpc.layout import RunLayout, all_runs, find_run


def test_the_paths_are_the_documented_ones() -> None:
    root = Path("/a b/runs/tag")
    layout = RunLayout(root)
    files = ("config", "journal", "results_tsv", "candidates_csv", "trials_csv")
    own = {p: str(getattr(layout, p).relative_to(root)) for p in files}
    assert own == {
        "config": "config.yaml",
        "journal": "journal.jsonl",
        "results_tsv": "results.tsv",
        "candidates_csv": "candidates.csv",
        "trials_csv": "trials.csv",
    }
    assert layout.src("r03-c02") == root / "rounds/03/r03-c02/src"
    assert layout.proposal("r03-c02") == root / "rounds/03/r03-c02/proposal.json"
    assert layout.diff("r123-c02") == root / "rounds/123/r123-c02/diff.patch"
    assert layout.trial("r03-c02-t1").result == root / "rounds/03/r03-c02/trials/t1/result.json"
    assert layout.trial("r03-c02-t1").claim(2) == root / "rounds/03/r03-c02/trials/t1/claim-2.json"
    assert layout.array(3, "name").manifest == root / "rounds/03/arrays/name/array.json"


def test_no_two_files_share_a_path() -> None:
    layout, trial = RunLayout(Path("/r")), RunLayout(Path("/r")).trial("r00-c00-t0")
    names = ("config", "journal", "lock", "log", "results_tsv", "candidates_csv", "trials_csv")
    names += ("progress_png", "report_html")
    paths = [getattr(layout, name) for name in names]
    paths += [getattr(trial, n) for n in ("spec", "result", "phases", "log", "evaluate_log", "checkpoint", "session")]
    assert len(set(paths)) == len(paths)


def make_run(runs: Path, tag: str, at: float) -> None:
    (runs / tag).mkdir(parents=True)
    (runs / tag / "journal.jsonl").touch()
    os.utime(runs / tag / "journal.jsonl", (at, at))


def test_runs_are_found_by_tag_by_path_and_by_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = tmp_path / "my runs"
    make_run(runs, "old", 1000)
    make_run(runs, "new", 2000)
    (runs / "no run").mkdir()
    assert [run.root.name for run in all_runs(runs)] == ["new", "old"]
    assert find_run(None, runs).root == runs / "new"
    assert find_run("old", runs).root == runs / "old"
    assert find_run(str(runs / "old"), tmp_path / "elsewhere").root == runs / "old"
    monkeypatch.chdir(runs)
    assert find_run("old", Path("nowhere")).root.resolve() == runs / "old"


def test_a_run_that_is_not_there_is_one_line_naming_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^no run in \S+; none was started yet$"):
        find_run(None, tmp_path)
    make_run(tmp_path, "b", 1)
    make_run(tmp_path, "a", 2)
    with pytest.raises(ConfigError, match=r"^no run 'c' in \S+; there are: a, b$"):
        find_run("c", tmp_path)
