"""The agent that docs/agents.md shows is one."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from test_agents import outcome, state

from autoresearch_hpc import agents, entry
from autoresearch_hpc.agents import Brief

PAGE = Path(__file__).parents[2] / "docs" / "agents.md"


def test_the_example_proposes_and_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"```python\n# my_package/agents\.py\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert code
    lines = code[1].strip().splitlines()
    body = [line for line in lines if line.strip() and not line.startswith(("from ", "import "))]
    assert len(body) <= 20
    module = ModuleType("my_package.agents")
    exec(code[1], module.__dict__)
    monkeypatch.setitem(sys.modules, "my_package", ModuleType("my_package"))
    monkeypatch.setitem(sys.modules, "my_package.agents", module)
    loaded = entry.load(
        entry.compose(["+round=linear", "agent.name=my_package.agents:Halving", "+agent.options.knob=LR"])
    )
    agent = agents.build(Brief(config=loaded.agent, plan=loaded.plan, space=None))
    assert [p.knobs["LR"] for p in agent.ask(state(), 3)] == [0.08, 0.02, 0.16]
    agent.tell([outcome(0, {"LR": 0.02}, None)])
    assert [p.knobs["LR"] for p in agent.ask(state(), 3)] == [0.08, 0.16, 0.01]
