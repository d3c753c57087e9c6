"""Coding CLIs: what they get, what they may do, and what becomes of what they leave."""

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from test_agents_editing import SOURCE, FakeDesk, searched, state

from autoresearch_hpc import agents, sandbox
from autoresearch_hpc.agent_config import AgentConfig, CliConfig, Prefetch, Sandbox
from autoresearch_hpc.agents import Brief
from autoresearch_hpc.agents.authors import AuthorError
from autoresearch_hpc.agents.cli import CliAuthor
from autoresearch_hpc.agents.drafts import Draft, Rejected
from autoresearch_hpc.config import PlanConfig
from autoresearch_hpc.errors import ConfigError

CLI = Path(__file__).parents[1] / "e2e" / "scripted_cli.py"
KEY, OTHER = "sk-mine-0123456789", "sk-others-9876543210"


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    monkeypatch.setenv("OTHER_KEY", OTHER)
    monkeypatch.setenv("SLURM_JOB_ID", "42")


@pytest.fixture
def desk(tmp_path: Path) -> FakeDesk:
    return FakeDesk(tmp_path / "it's a run %x")


def author(desk: FakeDesk, *words: str, **settings: Any) -> CliAuthor:
    command = [sys.executable, str(CLI), *words, "--prompt-file", "{prompt_file}"]
    given = {"command": command, "keys": ["MY_KEY"], "limit_s": 20.0, "readable": [str(CLI.parent)], **settings}
    config = AgentConfig(name="cli", cli=CliConfig(**given), model="m", prefetch=Prefetch.none)
    return CliAuthor(Brief(config=config, plan=PlanConfig(name="p"), space=searched(), script="train.py", desk=desk))


def drafted(made: CliAuthor, k: int = 1) -> Draft:
    draft = made.draft(state(), k, "propose")[0]
    assert isinstance(draft, Draft), draft
    return draft


def problem(made: CliAuthor) -> str:
    rejected = made.draft(state(), 1, "propose")[0]
    assert isinstance(rejected, Rejected), rejected
    return rejected.problem


def slot(desk: FakeDesk, name: str = "") -> Path:
    return desk.folder(1) / "propose-00" / name


def test_the_edit_is_a_patch_and_its_settings_a_title(desk: FakeDesk) -> None:
    draft = drafted(author(desk, "good", "--number", "50"))
    assert draft.title == "LR 0.1 -> 0.25"
    [patch] = draft.edits
    assert "-LR = 0.1  # the rate\n+LR = 0.25  # the rate\n" in patch.diff  # type: ignore[union-attr]
    assert slot(desk, "before/train.py").read_text() == SOURCE
    assert SOURCE not in slot(desk, "work/PROMPT.md").read_text(), "it reads the file itself"
    assert "LR = 0.1  (0.01 to 0.9)" in slot(desk, "work/PROMPT.md").read_text()
    assert not slot(desk, "home").exists()


def test_its_own_words_are_its_title(desk: FakeDesk) -> None:
    edit = "sed -i s/0.1/0.3/ train.py; printf '# Bolder\\n\\nBecause the rate\\nis low.\\n' > IDEA.md"
    draft = drafted(author(desk, command=["sh", "-c", edit]))
    assert (draft.title, draft.reasoning) == ("Bolder", "Because the rate is low.")


def test_it_gets_its_own_key_and_a_home_of_its_own(desk: FakeDesk) -> None:
    drafted(author(desk, "env", env={"BASE": "{base_url}", "MODEL": "{model}"}))
    env = json.loads(slot(desk, "work/env.json").read_text())
    assert env["MY_KEY"] == KEY
    assert OTHER not in env.values()
    assert not {"SLURM_JOB_ID", "PYTHONPATH"} & set(env)
    assert env["HOME"] == str(slot(desk, "home"))
    assert (env["BASE"], env["MODEL"]) == ("https://api.openai.com/v1", "m")


def test_its_key_is_taken_out_of_what_it_prints(desk: FakeDesk) -> None:
    said = problem(author(desk, command=["sh", "-c", "echo my key is $MY_KEY; exit 2"]))
    assert said == "it ended with status 2: my key is (the key)"
    assert KEY not in slot(desk, "output.log").read_text()


def test_the_prompt_comes_on_standard_input_too(desk: FakeDesk) -> None:
    command = [sys.executable, str(CLI), "good", "--stdin"]
    drafted(author(desk, command=command, stdin=True))
    copy = ["sh", "-c", "cat > IDEA.md; sed -i s/0.1/0.2/ train.py"]
    draft = drafted(author(FakeDesk(desk.root / "x"), command=copy, stdin=True))
    assert draft.title.startswith("You improve a training script.")


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ("nothing", r"none of train\.py was changed"),
        ("fail", r"it ended with status 3: error: the model is overloaded"),
    ],
)
def test_what_is_no_edit_says_why(desk: FakeDesk, behaviour: str, words: str) -> None:
    assert words.replace("\\", "") == problem(author(desk, behaviour))


def test_a_program_that_is_not_there(desk: FakeDesk) -> None:
    assert "no-such-program cannot be started: No such file or directory" in problem(
        author(desk, command=["no-such-program"])
    )


def test_one_that_hangs_is_ended_at_its_limit(desk: FakeDesk) -> None:
    begun = time.monotonic()
    assert problem(author(desk, "hang", limit_s=1.0)) == "it was ended at its limit of agent.cli.limit_s=1"
    assert time.monotonic() - begun < 8
    assert not Path("/proc", slot(desk, "work/hang.json").read_text()).exists()


def test_a_run_that_stops_ends_its_clis(desk: FakeDesk) -> None:
    made = author(desk, "hang", limit_s=60.0)
    threading.Timer(1.0, made.close).start()
    begun = time.monotonic()
    with pytest.raises(AuthorError, match="the run stops"):
        made.draft(state(), 1, "propose")
    assert time.monotonic() - begun < 10
    assert not slot(desk, "answer.json").exists(), "it is run again by who resumes"


def test_a_file_that_is_gone_a_link_or_no_text(desk: FakeDesk) -> None:
    for number, edit in enumerate(("rm train.py", "ln -sf /etc/passwd train.py", "printf '\\377' > train.py")):
        own = FakeDesk(desk.root / str(number))
        assert problem(author(own, command=["sh", "-c", edit])).startswith("train.py is gone, or no text")


def test_what_was_done_is_not_done_again(desk: FakeDesk) -> None:
    first = drafted(author(desk, "good", usd_per_call=0.25))
    again = drafted(author(desk, "syntax", usd_per_call=0.25))
    assert again == first
    assert desk.calls == [("r01/propose-00", 0.25)]
    assert desk.costs == {"r01/propose-00": 0.25}
    desk.budget = 0.3
    [refused] = author(desk, "good", usd_per_call=0.25).draft(state(2), 1, "propose")
    assert isinstance(refused, Rejected)
    assert refused.problem == "no money for r02/propose-00"


def test_a_repair_goes_on_in_the_same_copy(desk: FakeDesk) -> None:
    made = author(desk, "syntax")
    broken = drafted(made)
    [mended] = made.repair(state(), [Rejected(problem="line 9: invalid syntax", draft=broken)], "propose-repair-1")
    assert isinstance(mended, Draft)
    assert mended.edits != broken.edits
    prompt = slot(desk, "work/PROMPT.md").read_text()
    assert prompt.startswith("REPAIR: ")
    assert "\n| line 9: invalid syntax\n" in prompt


@pytest.mark.skipif(not sandbox.landlock_abi(), reason="this kernel has no Landlock")
def test_it_can_write_to_its_own_directory_alone(desk: FakeDesk, tmp_path: Path) -> None:
    drafted(author(desk, "probe", "--repository", str(tmp_path)))
    written = json.loads(slot(desk, "work/probe.json").read_text())
    assert {place for place, word in written.items() if word == "written"} == {"home", "cwd"}


def test_without_landlock_it_may_be_refused(desk: FakeDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    free = author(desk, "probe", "--repository", str(desk.root), sandbox=Sandbox.none)
    drafted(free)
    assert json.loads(slot(desk, "work/probe.json").read_text())["repository"] == "written"


def test_what_it_needs_is_asked_for_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(model: str | None = "m", **cli: Any) -> str:
        config = AgentConfig(name="cli", model=model, cli=CliConfig(**cli))
        with pytest.raises(ConfigError) as caught:
            agents.build(Brief(config=config, plan=PlanConfig(name="p"), space=None))
        return str(caught.value)

    assert "no-such-program is not on PATH" in missing(command=["no-such-program"])
    assert "the environment has no ABSENT_KEY" in missing(command=["sh"], keys=["ABSENT_KEY"])
    assert "no agent.model" in missing(model=None, command=["sh", "{model}"])
    monkeypatch.setattr(sandbox, "landlock_abi", lambda: 0)
    assert "this kernel has no Landlock; set agent.cli.sandbox=none, and" in missing(
        command=["sh"], sandbox=Sandbox.require
    )
