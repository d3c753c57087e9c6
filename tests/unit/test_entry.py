"""Command lines that cannot work: one line each, with a cause and a remedy."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from autoresearch_hpc import entry
from autoresearch_hpc.agent_config import ENTRY_POINTS
from autoresearch_hpc.errors import ConfigError

HEAD = "# @package _global_\n"
PLANS = {
    "good": f"{HEAD}plan: {{name: good}}\n",
    "badyaml": f"{HEAD}plan: {{name: x, k: [1\n",
    "tabs": f"{HEAD}plan:\n\tname: x\n",
    "badkey": f"{HEAD}plan: {{name: x, max_round: 3}}\n",
    "toplevel": f"{HEAD}plan: {{name: x}}\ntsak: 3\n",
    "badtype": f"{HEAD}plan: {{name: x, k: many}}\n",
    "badlist": f"{HEAD}plan: {{name: x, rounds: 3}}\n",
    "badword": f"{HEAD}plan: {{name: x, baseline: never}}\n",
    "badgroup": f"{HEAD}defaults:\n  - override /space: sed\nplan: {{name: x}}\n",
    "badcandidate": f"{HEAD}plan: {{name: x, rounds: [{{candidates: [{{titel: x}}]}}]}}\n",
    "upside": f"{HEAD}plan: {{name: x}}\nspace: {{knobs: {{LR: {{type: float, low: 2, high: 1}}}}}}\n",
    "infinite": f"{HEAD}plan: {{name: x}}\nspace: {{knobs: {{LR: {{type: int, low: 2, high: .inf}}}}}}\n",
    "dangling": f'{HEAD}plan: {{name: "${{nope}}"}}\n',
    "nopackage": "plan: {name: x}\n",
    "empty": "",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with plans of its own, some of them wrong."""
    root = tmp_path / 'it\'s "my" ü'
    (root / "conf" / "round").mkdir(parents=True)
    for name, text in PLANS.items():
        (root / "conf" / "round" / f"{name}.yaml").write_text(text)
    (root / "conf" / "round" / "latin.yaml").write_bytes(b"plan: {name: \xff}\n")
    monkeypatch.chdir(root)
    return root


def refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        entry.load(entry.compose(overrides))
    text = str(caught.value)
    assert "\n" not in text
    assert "; " in text, "a cause and a remedy"
    return text


GOOD = "+round=good"


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ([], "no round plan; add +round=NAME, for a start +round=quickstart"),
        (["round=good"], "round is not chosen yet; add it with a plus: +round=NAME"),
        (["+round=goood"], "no round named 'goood'; did you mean +round=good?"),
        (["+round"], "'+round' sets nothing; write KEY=VALUE, or +round=NAME for a plan"),
        (["good"], "'good' sets nothing; write KEY=VALUE, or +round=NAME for a plan"),
        ([GOOD, "cluster=slrum"], "no cluster named 'slrum'; did you mean cluster=slurm?"),
        (
            [GOOD, "agent=xyzzy"],
            "no agent named 'xyzzy'; there are: aider, claude_code, cli, cmaes, codex, factorial, gp, grid, hybrid, "
            "llm, openhands, plan, random, tpe",
        ),
        ([GOOD, "clustr=slurm"], "unknown key clustr; did you mean cluster?"),
        ([GOOD, "task.trian_s=1"], "unknown key task.trian_s; did you mean task.train_s?"),
        ([GOOD, "+task.trian_s=1"], "unknown key task.trian_s; did you mean task.train_s?"),
        ([GOOD, "+foo=1"], "unknown key foo; docs/configuration.md lists all keys"),
        ([GOOD, "foo=1"], "unknown key foo; docs/configuration.md lists all keys"),
        ([GOOD, "task.train_s=abc"], "task.train_s=abc is not of type float; correct it"),
        ([GOOD, "plan.k=1.5"], "plan.k=1.5 is not of type integer; correct it"),
        ([GOOD, "plan.k=0"], "plan.k=0; a round needs at least one candidate"),
        ([GOOD, "task.device=gpu"], "task.device=gpu; expected one of [auto, cuda, cpu]"),
        ([GOOD, "task.env.A=b"], "task.env.A is not set yet; add it with a plus: +task.env.A=..."),
        ([GOOD, "~task.train_s"], "task.train_s cannot be deleted; set it to null or to another value"),
        ([GOOD, "+round=good"], "round is chosen twice; give it once, and without a plus where it has a default"),
        ([GOOD, "+space=seed"], "space is chosen twice; give it once, and without a plus where it has a default"),
        (["+round=badgroup"], "no space named 'sed'; did you mean space=seed?"),
        (["+round=badkey"], "unknown key plan.max_round; did you mean plan.max_rounds?"),
        (["+round=toplevel"], "unknown key tsak; did you mean task?"),
        (["+round=badtype"], "plan.k=many is not of type integer; correct it"),
        (["+round=badword"], "plan.baseline=never; expected one of [alone, joined]"),
        (["+round=badcandidate"], "unknown key titel; did you mean title?"),
        (["+round=upside"], "a range upside down: low 2 is not below high 1; swap them"),
        (["+round=infinite"], "a range of 2 to inf; give numbers for low and high"),
        (["+round=dangling"], "Interpolation key 'nope' not found; see docs/configuration.md"),
        (
            ["+round=nopackage"],
            "conf/round/nopackage.yaml is read as a part of 'round'; begin it with the line: # @package _global_",
        ),
        (
            ["+round=empty"],
            "conf/round/empty.yaml is read as a part of 'round'; begin it with the line: # @package _global_",
        ),
    ],
)  # fmt: skip
def test_one_line_says_what_is_wrong_and_what_to_do(folder: Path, overrides: list[str], line: str) -> None:
    assert refused(*overrides) == line


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["+round=badlist"], ["plan.rounds", "is not a ListConfig"]),
        (["+round=badyaml"], ["conf/round/badyaml.yaml:3: ", "expected"]),
        (["+round=tabs"], ["conf/round/tabs.yaml:3: ", "cannot start any token"]),
        (["+round=latin"], ["UTF-8"]),
        (["+round="], ["+round= names nothing; there are: ", "good"]),
        ([GOOD, "plan.k=[1"], ["input '[1'"]),
        ([GOOD, "+space.knobs.LR={low: 1}"], ["cannot come from the command line", "conf/space"]),
        ([GOOD, "space.knobs.LR.low=1"], ["cannot come from the command line", "conf/space"]),
        ([GOOD, "task=null"], ["Config group override"]),
        ([GOOD, "space.knobs=null"], ["space.knobs", "not Optional"]),
    ],
)
def test_the_line_names_the_place(folder: Path, overrides: list[str], words: list[str]) -> None:
    text = refused(*overrides)
    assert [word for word in words if word not in text] == []


def test_a_conf_folder_where_one_stands_is_searched_beside_the_packages(folder: Path) -> None:
    assert entry.load(entry.compose([GOOD])).plan.name == "good"
    assert entry.load(entry.compose(["+round=cookbook"])).plan.name == "cookbook"


def command(folder: Path, *words: str, module: str = "autoresearch_hpc") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", module, *words], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "words",
    [
        ["+round=goood"],
        ["+round=badyaml"],
        ["+round=latin"],
        ["+round=dangling"],
        [GOOD, "task=null"],
        [GOOD, "+task.foo=1"],
        ["+round=good,cookbook"],
        ["--config-dir", "nowhere", GOOD],
    ],
)
def test_the_command_itself_prints_that_line_and_nothing_else(folder: Path, words: list[str]) -> None:
    before = sorted(folder.rglob("*"))
    done = command(folder, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("autoresearch_hpc: ")
    assert done.stderr.count("\n") == 1
    assert "; " in done.stderr
    assert sorted(folder.rglob("*")) == before, "nothing is made"


def test_a_sweep_with_a_wrong_value(folder: Path) -> None:
    done = command(folder, "-m", GOOD, "plan.k=x,y")
    assert done.returncode == 2
    assert done.stderr == "autoresearch_hpc: plan.k=x is not of type integer; correct it\n"


def test_a_further_folder_comes_with_config_dir(folder: Path, tmp_path: Path) -> None:
    more = tmp_path / "more conf"
    (more / "round").mkdir(parents=True)
    (more / "round" / "further.yaml").write_text(f"{HEAD}plan: {{name: further, k: 7}}\n")
    done = command(folder, "--config-dir", str(more), "+round=further", "--cfg", "job", "--package", "plan")
    assert (done.returncode, done.stderr) == (0, "")
    assert "name: further" in done.stdout
    assert "k: 7" in done.stdout


@pytest.mark.parametrize("module", ["autoresearch_hpc.prepare", "autoresearch_hpc.plan"])
def test_the_other_commands_speak_alike(folder: Path, module: str) -> None:
    done = command(folder, "+round=goood", module=module)
    assert done.returncode == 2
    assert done.stderr == "autoresearch_hpc: no round named 'goood'; did you mean +round=good?\n"


def test_what_is_not_about_the_configuration_is_left_as_it_is() -> None:
    error = ConfigError("a cause", "a remedy")
    wrapped = RuntimeError("outer")
    wrapped.__cause__ = error
    assert entry.config_error(wrapped) is error
    assert "\n" not in str(entry.config_error(RuntimeError("one\ntwo\nthree")))


def test_another_package_s_agent_is_a_choice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point = importlib.metadata.EntryPoint("halving", "my_package.agents:Halving", ENTRY_POINTS)
    found = importlib.metadata.EntryPoints([point])
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: found.select(group=group))
    entry.register.cache_clear()
    assert entry.load(entry.compose([GOOD, "agent=halving", "+agent.options.knob=LR"])).agent.name == "halving"


def test_help_is_hydras_without_hydra(tmp_path: Path) -> None:
    """Which is asked where there is anything else on the line. A repository's own plans are in both."""
    (tmp_path / "conf" / "round").mkdir(parents=True)
    (tmp_path / "conf" / "round" / "mine.yaml").write_text("x: 1\n")
    told = []
    for words in (["--help"], ["-h"], ["+round=knobs", "--help"]):
        done = subprocess.run([sys.executable, "-m", "autoresearch_hpc", *words], cwd=tmp_path, capture_output=True)
        assert (done.returncode, done.stderr) == (0, b"")
        told.append(done.stdout.decode())
    assert told[0] == told[1] == told[2]
    assert "knobs, linear, mine, quickstart" in told[0]
