"""What a search refuses: one line with cause and remedy, the right exit code, and nothing made."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from git_repo import fingerprint, git, make_repo, write

from autoresearch_hpc import config, entry, rundir, search
from autoresearch_hpc.dataset import MANIFEST
from autoresearch_hpc.errors import AutoresearchError, ConfigError, JournalError, RunLockedError
from autoresearch_hpc.history import History
from autoresearch_hpc.journal import Journal, read
from autoresearch_hpc.lock import RunLock
from autoresearch_hpc.repo import Repo

# The local back end's own process may outlive its trial, and so a whole search in this process, by a moment.
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")

HEAD = "# @package _global_\n"
SCRIPT = "LR = 0.1\nN = 4\nprint('loss:', LR)\n"
TASK = f"""
defaults: [override /task: command, override /agent: random]
task:
  script: fit.py
  editable: [fit.py]
  command: "'{sys.executable}' -S fit.py"
  metric: {{name: loss, regex: 'loss: (\\S+)'}}
cluster: {{kind: local}}
"""
TOY = f"""{HEAD}{TASK}
plan: {{name: toy, k: 2, max_rounds: 1}}
space: {{knobs: {{LR: {{type: float, low: 0.01, high: 0.9}}}}}}
"""
GPT = f"""{HEAD}
defaults: [override /agent: random]
plan: {{name: gpt, k: 2, max_rounds: 1}}
space: {{knobs: {{LR: {{type: float, low: 0.01, high: 0.9}}}}}}
task: {{device: cpu}}
cluster: {{kind: local}}
"""


@dataclass(frozen=True, slots=True)
class Lab:
    """A repository with a command task, +round=toy, and one of our own kind, +round=gpt."""

    root: Path

    def load(self, *overrides: str) -> config.Config:
        return entry.load(entry.compose(overrides))

    def refused(self, *overrides: str, error: type[AutoresearchError] = ConfigError) -> str:
        """The line that the search ends with; it may have made nothing."""
        before = fingerprint(self.root)
        with pytest.raises(error) as caught:
            search.run(self.load(*overrides))
        text = str(caught.value)
        assert "\n" not in text
        assert "; " in text, "a cause and a remedy"
        assert fingerprint(self.root) == before
        assert caught.value.exit_code == error.exit_code
        return text

    def commit(self, files: dict[str, str]) -> None:
        write(self.root, files)
        git(self.root, "add", "-A")
        git(self.root, "commit", "-qm", "edit")

    def plan(self, name: str, text: str) -> str:
        write(self.root, {f"conf/round/{name}.yaml": HEAD + text})
        return f"+round={name}"


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    files = {"fit.py": SCRIPT, "train.py": SCRIPT, "conf/round/toy.yaml": TOY, "conf/round/gpt.yaml": GPT}
    lab = Lab(make_repo(tmp_path / 'it\'s a "lab" ü', {**files, ".gitignore": "/runs/\n/data/\n"}))
    monkeypatch.chdir(lab.root)
    monkeypatch.setattr(search.report, "write_all", lambda history, layout: None)  # slow, and not the subject here
    return lab


def tiny(root: Path, *more: str) -> list[str]:
    """Overrides that ask for the tiny data set."""
    root.rename(root.with_name("tiny-v300-t16"))
    shape = ["corpus.name=tiny", "corpus.vocab_size=300", "corpus.seq_len=16", "corpus.prepare=false"]
    return ["+round=gpt", *shape, f"corpus.dir='{root.parent!s}'", *more]


def ran(lab: Lab, *overrides: str) -> search.Finished:
    return search.run(lab.load("+round=toy", "plan.max_rounds=0", *overrides))


# the repository


def test_no_repository(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    assert lab.refused("+round=toy", f"repo={tmp_path / 'plain'}").startswith(f"{tmp_path / 'plain'} is not in a git")


def test_a_repository_without_a_commit(lab: Lab, tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "fresh")
    assert "has no commit yet; commit the script first" in lab.refused("+round=toy", f"repo={tmp_path / 'fresh'}")


def test_a_script_that_is_not_committed(lab: Lab) -> None:
    text = lab.refused("+round=toy", "task.script=nope.py", "task.editable=[nope.py]")
    assert text.startswith("nope.py is not in commit ")


def test_a_path_to_export_that_is_not_committed(lab: Lab) -> None:
    assert lab.refused("+round=toy", "task.export=[fit.py,nope]").startswith("nope is not in commit ")


@pytest.mark.parametrize("how", ["unstaged", "staged", "removed"])
def test_uncommitted_changes(lab: Lab, how: str) -> None:
    if how == "removed":
        (lab.root / "fit.py").unlink()
    else:
        write(lab.root, {"fit.py": SCRIPT + "# more\n"})
    if how == "staged":
        git(lab.root, "add", "fit.py")
    text = lab.refused("+round=toy")
    assert text == "uncommitted changes in fit.py; commit them, or take them along with task.dirty=snapshot"


def test_changes_in_other_files_are_the_users_business(lab: Lab) -> None:
    write(lab.root, {"train.py": "# being edited\n", "new.txt": "x"})
    assert ran(lab).reason == "the plan is complete"


def test_uncommitted_changes_are_taken_along_without_touching_anything(lab: Lab) -> None:
    write(lab.root, {"fit.py": SCRIPT.replace("0.1", "0.3")})
    git(lab.root, "add", "fit.py")
    write(lab.root, {"fit.py": SCRIPT.replace("0.1", "0.4")})
    before, head = fingerprint(lab.root), git(lab.root, "rev-parse", "HEAD")
    finished = ran(lab, "task.dirty=snapshot", "tag=dirty")
    assert finished.history.incumbent
    assert finished.history.incumbent.value == 0.4
    assert git(lab.root, "rev-parse", f"{finished.history.start_commit}^") == head
    after = fingerprint(lab.root)
    mine = (
        "/runs/",
        "/.git/refs/autoresearch/",
        "/.git/refs/heads/autoresearch/",
        "/.git/logs/refs/heads/autoresearch/",
    )
    mine = tuple(f"{lab.root}{folder}" for folder in mine)
    assert {name: mark for name, mark in after.items() if not name.startswith(mine)} == before


def test_a_branch_left_by_an_earlier_run(lab: Lab) -> None:
    git(lab.root, "branch", "autoresearch/old")
    text = lab.refused("+round=toy", "tag=old")
    assert text.startswith(
        "the branch autoresearch/old is left from an earlier run; use another tag=, or git branch -D"
    )


# knobs and plans


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("N = 4\nLRS = 1\n", "fit.py has no knob LR; did you mean LRS?"),
        ("LR = 0.1\nLR = 0.2\n", "LR"),
        ("LR = 0.1\nprint(\n", "fit.py:2: does not parse"),
        ("LR = f()\n", "LR"),
    ],
)
def test_a_script_that_does_not_fit_the_space(lab: Lab, source: str, words: str) -> None:
    lab.commit({"fit.py": source})
    assert words in lab.refused("+round=toy")


def test_a_train_py_that_does_not_parse(lab: Lab) -> None:
    lab.commit({"train.py": "LR = 0.1\n\ndef f(:\n"})
    assert "train.py:3: does not parse" in lab.refused("+round=gpt")


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ("plan: {name: x, base: {LRR: 1}}", "did you mean LR?"),
        ("plan: {name: x, base: {LR: a}}", "LR holds a number"),
        ("plan: {name: x, base: {LR: .nan}}", "set a finite number"),
        ("plan: {name: x, base: {LR: {a: 1}}}", "a knob holds numbers"),
        ("plan: {name: x, rounds: [{candidates: [{knobs: {NN: 1}}]}]}", "did you mean N?"),
        (
            "plan: {name: x, rounds: [{candidates: [{title: t, parent: a, knobs: {N: 1}}]}]}",
            "builds on 'a', no earlier",
        ),
        (
            "plan: {name: x, rounds: [{candidates: [{parent: b}, {name: b}]}]}",
            "builds on 'b', no earlier candidate; the names so far are baseline",
        ),
        (
            "plan: {name: x, rounds: [{candidates: [{name: c, knobs: {N: 9}}]}]}\n"
            "space: {knobs: {LR: {type: float, low: 0.1, high: 1}}, bounds: [N < 8]}",
            "N < 8",
        ),
        (
            "plan: {name: x, base: {N: 9}}\nspace: {knobs: {LR: {choices: [1.0]}}, bounds: [N < 8]}",
            "the baseline violates",
        ),
        ("plan: {name: x}\nspace: {knobs: {LR: {choices: [1.0]}}, bounds: ['N <']}", "N <"),
        ("plan: {name: x}\nspace: {knobs: {LR: {choices: [1.0]}}, bounds: ['M < 3']}", "M"),
        ("plan: {name: x}\nspace: {knobs: {LR: {type: float, low: 2, high: 1}}}", "upside down"),
        ("plan: {name: a/b}", "plan.name='a/b' cannot name a branch"),
    ],
)
def test_a_plan_that_cannot_work(lab: Lab, plan: str, words: str) -> None:
    name = lab.plan("mine", f"{TASK}\n{plan}\n")
    assert words in lab.refused(name)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("agent.name=xyzzy", "xyzzy"),
        ("decide.rule=xyzzy", "decide.rule=xyzzy is unknown; the rules are best"),
        ("task.metric.regex='('", "is no regular expression"),
        ("tag=", "cannot name a branch"),
        ("tag=a/b", "cannot name a branch"),
        ("tag=../x", "cannot name a branch"),
    ],
)
def test_a_setting_that_cannot_work(lab: Lab, override: str, words: str) -> None:
    assert words in lab.refused("+round=toy", override)


# data


def test_no_data(lab: Lab) -> None:
    text = lab.refused("+round=gpt", "corpus.prepare=false")
    assert text.startswith("no data in data/python-v8192-t2048; prepare it: python -m autoresearch_hpc.prepare")


def test_damaged_data(lab: Lab, tiny_dataset: Path) -> None:
    (tiny_dataset / "val-00000.bin").write_bytes(b"x")
    text = lab.refused(*tiny(tiny_dataset))
    assert "val-00000.bin has 1 bytes instead of " in text
    assert "delete the folder and prepare it again" in text


def test_data_whose_bytes_were_changed_is_found_by_verify(lab: Lab, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    for number in range(40):
        (text / f"{number}.txt").write_text(f"the {number}th text says {number * 7} times nothing at all " * 40)
    words = ["corpus=files", f"corpus.files=['{text}/*.txt']", "corpus.vocab_size=300", "corpus.seq_len=16"]
    words += ["corpus.val_mb=0.01", "corpus.tokenizer_mb=1"]

    def prepare(*more: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "autoresearch_hpc.prepare", *more, *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert prepare("--quiet").returncode == 0
    [rows] = (lab.root / "data" / "files-v300-t16").glob("val-*.bin")
    content = bytearray(rows.read_bytes())
    content[7] ^= 1
    rows.write_bytes(content)
    done = prepare("--verify")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        f"autoresearch_hpc: damaged data: {rows.relative_to(lab.root)} fails its checksum; "
    )


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("vocab_size", 200, "token_bytes.bin does not hold 200 tokens"),
        ("seq_len", 33, "does not hold 50 rows of 34 tokens"),
        ("corpus", "other", "holds other with vocabulary 300 and 16 tokens a row, not tiny with 300 and 16"),
    ],
)
def test_a_manifest_of_other_data(lab: Lab, tiny_dataset: Path, key: str, value: object, words: str) -> None:
    manifest = json.loads((tiny_dataset / MANIFEST).read_text())
    (tiny_dataset / MANIFEST).write_text(json.dumps({**manifest, key: value}))
    assert words in lab.refused(*tiny(tiny_dataset))


def test_data_of_another_tokenizer_under_a_misleading_name(lab: Lab, tiny_dataset: Path) -> None:
    overrides = tiny(tiny_dataset)
    tiny_dataset.with_name("tiny-v300-t16").rename(tiny_dataset.with_name("tiny-v512-t16"))
    text = lab.refused(*overrides, "corpus.vocab_size=512")
    assert "holds tiny with vocabulary 300 and 16 tokens a row, not tiny with 512 and 16; prepare what" in text


# the run's directory


def test_a_file_in_the_way_of_the_runs(lab: Lab) -> None:
    write(lab.root, {"data/file": ""})
    text = lab.refused("+round=toy", "runs_dir=data/file/below")
    assert "cannot be written: " in text
    assert "data/file is not a directory; set runs_dir=" in text


def test_a_runs_directory_that_the_system_refuses(lab: Lab) -> None:
    assert "the run's directory /proc/nowhere/x cannot be written: " in lab.refused(
        "+round=toy", "runs_dir=/proc/nowhere", "tag=x"
    )


def test_a_file_of_the_runs_own_name(lab: Lab) -> None:
    write(lab.root, {"runs/.gitignore": "*\n", "runs/x": ""})
    assert "cannot be written: " in lab.refused("+round=toy", "tag=x")


def test_no_data_is_prepared_for_a_run_that_cannot_be(lab: Lab) -> None:
    lab.refused("+round=gpt", "corpus=python", "runs_dir=fit.py")
    assert not (lab.root / "data").exists()


def test_another_configuration_of_the_same_tag(lab: Lab) -> None:
    finished = ran(lab, "tag=t")
    events = len(read(finished.layout.journal))
    text = lab.refused("+round=toy", "plan.max_rounds=0", "tag=t", "decide.min_delta=0.5")
    assert text == "run t exists with decide.min_delta=0.0, not 0.5; use another tag=, or the old value to resume"
    assert len(read(finished.layout.journal)) == events
    assert ran(lab, "tag=t", "budget.max_trials=50", "cluster.poll_s=2").reason == "the plan is complete"


def test_a_run_whose_data_was_exchanged(lab: Lab, tiny_dataset: Path) -> None:
    overrides = tiny(tiny_dataset, "tag=t", "plan.max_rounds=0")
    lab.commit({"train.py": "LR = 0.1\nimport sys; sys.exit('no training here')\n"})
    with pytest.raises(AutoresearchError, match=r"^the baseline failed \(CRASHED: .*; see .*train\.log$"):
        search.run(lab.load(*overrides))
    root = tiny_dataset.with_name("tiny-v300-t16")
    manifest = json.loads((root / MANIFEST).read_text())
    (root / "tokenizer.json").write_text("[]")
    manifest["tokenizer"]["sha256"] = "0" * 64
    (root / MANIFEST).write_text(json.dumps(manifest))
    text = lab.refused(*overrides)
    assert text.endswith("is not the data that run t started with; bring the old data back, or use another tag=")


def test_a_run_that_another_controller_works_on(lab: Lab) -> None:
    layout = ran(lab, "tag=t").layout
    with RunLock(layout.lock):
        before = layout.journal.read_bytes()
        with pytest.raises(RunLockedError, match="another controller works on"):
            ran(lab, "tag=t")
        assert layout.journal.read_bytes() == before


def test_a_damaged_journal(lab: Lab) -> None:
    layout = ran(lab, "tag=t").layout
    lines = layout.journal.read_bytes().split(b"\n")
    layout.journal.write_bytes(b"\n".join([lines[0], b"garbage", *lines[2:]]))
    text = lab.refused("+round=toy", "plan.max_rounds=0", "tag=t", error=JournalError)
    assert f"damaged journal: {layout.journal} line 2: " in text


@pytest.mark.parametrize("left", ["nothing", "lock", "journal", "config"])
def test_a_controller_killed_before_its_first_event_left_nothing_to_resume(lab: Lab, left: str) -> None:
    root = lab.root / "runs" / "t"
    root.mkdir(parents=True)
    if left != "nothing":
        (root / "controller.lock").write_text('{"host": "gone", "pid": 1}')
    if left in ("journal", "config"):
        Journal(root / "journal.jsonl").close()
    if left == "config":
        (root / "config.yaml").write_text("torn: [")
    finished = ran(lab, "tag=t")
    assert finished.history.tag == "t"
    assert [event.event for event in read(finished.layout.journal)].count("run.started") == 1
    assert History.replay(read(finished.layout.journal)).stopped == "the plan is complete"


def test_two_runs_of_the_same_second_do_not_share_a_directory(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rundir, "choose_tag", lambda config, runs_dir: "same")  # both looked before either had made it
    first, second = ran(lab), ran(lab)
    assert (first.layout.root.name, second.layout.root.name) == ("same", "same-1")
    assert (first.history.tag, second.history.tag) == ("same", "same-1")
    assert Repo(lab.root).branch("same-1")


# the command itself


@pytest.mark.parametrize(
    ("break_it", "words", "line", "code"),
    [
        (lambda lab: None, ["+round=gpt", "corpus.prepare=false"], "no data in data/python-v8192-t2048; ", 2),
        (lambda lab: write(lab.root, {"fit.py": "x"}), ["+round=toy"], "uncommitted changes in fit.py; ", 2),
        (lambda lab: lab.commit({"fit.py": "LR = ("}), ["+round=toy"], "fit.py:1: does not parse", 2),
        (lambda lab: None, ["+round=toy", "runs_dir=/proc/x"], "the run's directory /proc/x/", 2),
        (lambda lab: None, ["+round=toy", "cluster.kind=slurm"], "sbatch is not on the PATH; ", 4),
    ],
)
def test_the_command_line(
    lab: Lab, break_it: Callable[[Lab], None], words: list[str], line: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_it(lab)
    if code == 4:
        (lab.root / "bin").mkdir()
        (lab.root / "bin" / "git").symlink_to(Path(subprocess.check_output(["which", "git"], text=True).strip()))
        monkeypatch.setenv("PATH", str(lab.root / "bin"))
    monkeypatch.setenv("HYDRA_FULL_ERROR", str(len(words) % 2))  # what a user sets must not bring tracebacks back
    before = fingerprint(lab.root)
    command = [sys.executable, "-m", "autoresearch_hpc", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr.startswith(f"autoresearch_hpc: {line}")
    assert done.stderr.count("\n") == 1
    assert (done.stdout, done.returncode) == ("", code)
    assert fingerprint(lab.root) == before
