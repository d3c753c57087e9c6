"""Near misses are combined in a whole search on this machine, killed and resumed on the way."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy import Toy

pytestmark = pytest.mark.usefixtures("no_slurm")

_DRIVER = Path(__file__).parents[1] / "killed_at.py"

# Each of two settings gains a little more than one standard deviation of the noise that is configured.
SCRIPT = """\
import os, random
WARMUP = 0
DECAY = 0
IDLE = 0.5
luck = random.Random(int(os.environ["AUTORESEARCH_SEED"])).gauss(0, 0.0001)
print("loss:", 1 - 0.0118 * WARMUP - 0.0118 * DECAY + luck)
"""

PLAN = """\
# @package _global_
defaults:
  - override /task: command
  - override /agent: random
  - override /decide: significant
plan:
  name: combined
  k: 2
  max_rounds: 2
  rounds:
    - candidates: [{{knobs: {{WARMUP: 1}}}}, {{knobs: {{DECAY: 1}}}}]
    - {{}}
decide: {{noise_sd: 0.01, noise_df: 1000}}
space:
  knobs:
    IDLE: {{type: float, low: 0.1, high: 0.9}}
task:
  script: fit.py
  editable: [fit.py]
  command: {python} -S fit.py
  train_s: 20
  grace_s: 10
  startup_limit_s: 10
  metric: {{name: loss, regex: 'loss: (\\S+)'}}
"""


@pytest.fixture
def repository(toy: Callable[..., Toy]) -> Toy:
    made = toy(cluster="local", overrides=("cluster.max_parallel=2",))
    made.write("fit.py", SCRIPT)
    made.write("conf/round/toy.yaml", PLAN.format(python=sys.executable))
    made.commit()
    return made


def judged(repository: Toy, tag: str) -> list[dict[str, Any]]:
    return [event for event in repository.journal(tag) if event["event"] == "round.judged"]


def last_proposals(repository: Toy, tag: str) -> dict[str, Any]:
    proposed = [event for event in repository.journal(tag) if event["event"] == "round.proposed"]
    assert len(proposed) == 3
    return dict(proposed[-1]["proposals"])


def test_what_two_near_misses_are_too_small_for_they_are_kept_for_together(repository: Toy) -> None:
    repository.search("both").finish()
    first, second = judged(repository, "both")[1:]
    assert sorted(first["pool"]) == ["r01-c00", "r01-c01"]
    assert first["incumbent"]["candidate"] == "r00-c00"
    proposals = last_proposals(repository, "both")
    combined, sampled = proposals["r02-c00"], proposals["r02-c01"]
    assert len(proposals) == 2
    assert combined["knobs"] == {"WARMUP": 1, "DECAY": 1}
    assert sorted(combined["parts"]) == ["r01-c00", "r01-c01"]
    assert combined["title"] == f"{' + '.join(first['pool'])}: WARMUP=1, DECAY=1"
    assert (combined["origin"], sampled["origin"]) == ("combine", "random")
    assert (second["verdicts"]["r02-c00"], second["incumbent"]["candidate"]) == ("keep", "r02-c00")
    best = repository.git("show", "autoresearch/both:fit.py")
    assert best == SCRIPT.replace("WARMUP = 0", "WARMUP = 1").replace("DECAY = 0", "DECAY = 1")

    repository.search("alone", "plan.combine=0").finish()
    assert judged(repository, "alone")[-1]["incumbent"]["candidate"] == "r00-c00"
    assert {p["origin"] for p in last_proposals(repository, "alone").values()} == {"random"}


def test_who_resumes_proposes_the_same_combination(repository: Toy) -> None:
    repository.search("whole").finish()
    words = [str(_DRIVER), "before", "round.proposed", "3", "--", *repository.words("killed")]
    repository.start(*words, module="").finish(-signal.SIGKILL)
    assert len(judged(repository, "killed")) == 2
    repository.search("killed").finish()
    assert last_proposals(repository, "killed") == last_proposals(repository, "whole")
    assert judged(repository, "killed")[-1]["incumbent"]["candidate"] == "r02-c00"
