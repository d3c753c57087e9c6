"""Proposals become commits and files, in a real repository."""

from pathlib import Path

import pytest
from git_repo import fingerprint, git, make_repo

from autoresearch_hpc.candidates import CandidateMaker
from autoresearch_hpc.config import KnobsBy, MetricConfig, TaskConfig, TaskKind
from autoresearch_hpc.errors import ConfigError, KnobError, RepoError
from autoresearch_hpc.files import read_json
from autoresearch_hpc.layout import RunLayout
from autoresearch_hpc.records import Candidate, Proposal, from_json
from autoresearch_hpc.repo import Repo

SCRIPT = "LR = 0.1  # the rate\nBETAS = (0.9, 0.95)\nN = 2**4\nprint(LR)\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_repo(tmp_path / 'it\'s a "repo" ü', {"train.py": SCRIPT, "helper.py": "x = 1\n", "data/a b.txt": "d"})


def maker(root: Path, **task: object) -> CandidateMaker:
    return CandidateMaker(Repo(root), RunLayout(root.parent / "runs" / "tag"), TaskConfig(**task), "tag")  # type: ignore[arg-type]


def command(**task: object) -> dict[str, object]:
    return {"kind": TaskKind.command, "command": "sh x", "metric": MetricConfig(regex="(.)"), "export": ["."], **task}


def test_a_candidate_is_a_commit_a_patch_and_an_export(root: Path) -> None:
    before = fingerprint(root)
    repo = Repo(root)
    proposal = Proposal(title="faster 'LR'", knobs={"LR": 0.2, "BETAS": (0.8, 0.95), "N": 8})
    candidate = maker(root).make("r01-c00", 1, proposal, repo.head, {})
    assert git(root, "show", f"{candidate.commit}:train.py") == SCRIPT.strip().replace("0.1", "0.2").replace(
        "0.9,", "0.8,"
    ).replace("2**4", "2**3")
    assert candidate.parent == repo.head
    assert git(root, "rev-parse", f"{candidate.commit}^") == repo.head
    assert git(root, "log", "-1", "--format=%s", candidate.commit) == "r01-c00: faster 'LR'"
    assert repo.kept("tag", "r01-c00") == candidate.commit
    assert dict(candidate.knobs) == {"LR": 0.2, "BETAS": (0.8, 0.95), "N": 8}
    assert candidate.diff_lines == 6
    layout = RunLayout(root.parent / "runs" / "tag")
    assert [p.name for p in layout.src("r01-c00").rglob("*")] == ["train.py"]
    assert (layout.src("r01-c00") / "train.py").read_text() == git(root, "show", f"{candidate.commit}:train.py") + "\n"
    assert "+LR = 0.2  # the rate" in layout.diff("r01-c00").read_text()
    assert from_json(Candidate, read_json(layout.proposal("r01-c00"))) == candidate
    after = fingerprint(root)
    added = set(after) - set(before)
    assert {name for name in before if after.get(name) != before[name]} == set()
    assert all("/.git/refs/autoresearch/tag/r01-c00" in name for name in added)


def test_knobs_build_on_the_parents(root: Path) -> None:
    repo, make = Repo(root), maker(root)
    first = make.make("r01-c00", 1, Proposal(title="a", knobs={"LR": 0.2}), repo.head, {})
    second = make.make("r02-c00", 2, Proposal(title="b", knobs={"N": 8}), first.commit, first.knobs)
    assert dict(second.knobs) == {"LR": 0.2, "BETAS": (0.9, 0.95), "N": 8}
    assert second.diff_lines == 2
    assert git(root, "rev-parse", f"{second.commit}^") == first.commit


def test_a_replicate_is_an_empty_edit(root: Path) -> None:
    repo = Repo(root)
    candidate = maker(root).make("r01-c00", 1, Proposal(title="again"), repo.head, {})
    assert candidate.commit != repo.head
    assert git(root, "diff", repo.head, candidate.commit) == ""
    assert candidate.diff_lines == 0
    assert dict(candidate.knobs) == {"LR": 0.1, "BETAS": (0.9, 0.95), "N": 16}


def test_whole_files_with_knobs_on_top(root: Path) -> None:
    repo = Repo(root)
    proposal = Proposal(title="rewrite", files={"train.py": "LR = 1.0\nNEW = 3\n"}, knobs={"NEW": 4})
    candidate = maker(root).make("r01-c00", 1, proposal, repo.head, {})
    assert git(root, "show", f"{candidate.commit}:train.py") == "LR = 1.0\nNEW = 4"
    assert dict(candidate.knobs) == {"LR": 1.0, "NEW": 4}, "knobs that the new text lacks are gone"


@pytest.mark.parametrize(
    ("proposal", "error", "words"),
    [
        (Proposal(title="x", files={"helper.py": ""}), ConfigError, "changes helper.py; only train.py may be edited"),
        (Proposal(title="x", files={"../x": ""}), ConfigError, "only train.py may be edited"),
        (Proposal(title="x", knobs={"LRR": 1}), KnobError, "did you mean LR?"),
        (Proposal(title="x", knobs={"LR": "a"}), KnobError, "LR holds a number"),
        (Proposal(title="x", files={"train.py": "LR = ("}, knobs={"LR": 1}), KnobError, "train.py:1: does not parse"),
    ],
)
def test_edits_that_cannot_be_made(root: Path, proposal: Proposal, error: type[ConfigError], words: str) -> None:
    repo = Repo(root)
    with pytest.raises(error) as caught:
        maker(root).make("r01-c00", 1, proposal, repo.head, {})
    assert words in str(caught.value)
    assert repo.kept("tag", "r01-c00") is None
    assert not (root.parent / "runs").exists()


@pytest.mark.parametrize("by", [KnobsBy.env, KnobsBy.template])
def test_knobs_that_travel_otherwise_change_no_file(root: Path, by: KnobsBy) -> None:
    repo = Repo(root)
    make = maker(root, **command(knobs_by=by))
    candidate = make.make("r01-c00", 1, Proposal(title="x", knobs={"LR": 0.5}), repo.head, {"LR": 0.1, "K": 2})
    assert git(root, "diff", repo.head, candidate.commit) == ""
    assert dict(candidate.knobs) == {"LR": 0.5, "K": 2}
    src = RunLayout(root.parent / "runs" / "tag").src("r01-c00")
    assert {str(p.relative_to(src)) for p in src.rglob("*") if p.is_file()} == {
        "train.py",
        "helper.py",
        "data/a b.txt",
    }


def test_making_it_again_after_a_crash_does_no_harm(root: Path) -> None:
    repo, make, proposal = Repo(root), maker(root), Proposal(title="a", knobs={"LR": 0.2})
    make.make("r01-c00", 1, proposal, repo.head, {})
    src = RunLayout(root.parent / "runs" / "tag").src("r01-c00")
    src.rename(src.with_name(".src.partial"))  # killed while exporting
    again = make.make("r01-c00", 1, proposal, repo.head, {})
    assert (src / "train.py").read_text() == SCRIPT.replace("0.1", "0.2")
    assert repo.kept("tag", "r01-c00") == again.commit
    assert not src.with_name(".src.partial").exists()


def test_a_path_to_export_that_is_not_there(root: Path) -> None:
    with pytest.raises(RepoError, match=r"^nope is not in commit \w{7} of .*; commit it, or correct task\.export$"):
        maker(root, export=["train.py", "nope"]).make("r01-c00", 1, Proposal(title="x"), Repo(root).head, {})
