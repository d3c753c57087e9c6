"""A real coding CLI, Codex, edits the real training script in a whole search on a real Slurm; its model is scripted."""

import os
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import thinking
from client import Sandbox
from llm_server import Reply, ScriptedLlm, is_result, words
from toy import Toy

ROOT = Path(__file__).parents[2]
PROGRAMS = ROOT / ".cache" / "coding-cli" / "node_modules" / ".bin"
K, ROUNDS = 2, 3
SMALL = ("decide=best", f"plan.k={K}", f"plan.max_rounds={ROUNDS}", "task.train_s=1", "cluster.cpus=1")


@pytest.fixture
def codex(monkeypatch: pytest.MonkeyPatch) -> None:
    if not (PROGRAMS / "codex").exists():
        reason = "Codex is not installed: run `make coding-cli`"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    monkeypatch.setenv("PATH", f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}")
    assert shutil.which("node")


class Model:
    """Edits a rate in the first slot of a round; in the second breaks the script, and mends it when it is told so.

    The first request of each round is refused.
    """

    def __init__(self) -> None:
        self.asked: Counter[int] = Counter()

    def __call__(self, request: dict[str, Any], number: int) -> Reply:
        told = words(request)
        round_ = int(re.findall(r"This is round (\d+)\.", told)[-1])
        self.asked[round_] += 1
        if self.asked[round_] == 1:
            return Reply.error(500)
        if is_result(request):
            return Reply.text("Done.")
        if "REPAIR: " in told:
            return self._edit(
                f"sed -i 's/MATRIX_LR2/MATRIX_LR/; s/^WEIGHT_DECAY = .*/WEIGHT_DECAY = 0.{round_}5/' train.py"
            )
        if "direction: even" in told:
            return self._edit("sed -i 's/MATRIX_LR \\*/MATRIX_LR2 */' train.py")
        return self._edit(f"sed -i 's/^MATRIX_LR = [0-9.]*/MATRIX_LR = 0.0{round_ + 4}/' train.py")

    def _edit(self, command: str) -> Reply:
        return Reply.calling("exec_command", cmd=f"{command} && printf 'By Codex\\n\\nIt may help.\\n' > IDEA.md")


def test_codex_edits_train_py(cluster: Sandbox, toy: Callable[..., Toy], codex: None) -> None:
    model = Model()
    with ScriptedLlm(model, api_key=thinking.KEY) as server:
        repository = toy(cluster="slurm")
        (repository.root / "train.py").write_bytes((ROOT / "train.py").read_bytes())
        (repository.root / "program.md").write_text("Make it better, whatever it takes.\n")
        repository.commit()
        before = repository.checkout()
        agent = ("agent=codex", "agent.model=scripted", f"agent.base_url={server.base_url}", "agent.prefetch=none")
        overrides = [*repository.overrides, *SMALL, *agent, "agent.directions=[odd,even]"]
        run = repository.start("+round=quickstart", "tag=codex", *overrides, env=thinking.ENV)
        _, err = run.finish(timeout_s=300)
    checkout = repository.checkout()
    assert {name: text for name, text in checkout["files"].items() if not name.startswith("data/")} == before["files"]
    proposed = [line["proposals"] for line in repository.journal("codex") if line["event"] == "round.proposed"]
    assert [len(round_) for round_ in proposed] == [1] + [K] * ROUNDS
    made = [proposal for round_ in proposed[1:] for proposal in round_.values()]
    assert [proposal["origin"] for proposal in made] == ["cli"] * K * ROUNDS
    assert {proposal["title"] for proposal in made} == {"By Codex"}
    results = repository.results("codex")
    assert Counter(result["status"] for result in results) == {"OK": 1 + K * ROUNDS}
    assert len({result["metric"]["value"] for result in results}) == len(results)
    told = [words(question) for question in server.questions]
    assert any("REPAIR: " in text and "| " in text and "MATRIX_LR2" in text for text in told), (
        "the check found the name"
    )
    assert all("Make it better, whatever it takes." in text for text in told)
    assert thinking.KEY not in err
