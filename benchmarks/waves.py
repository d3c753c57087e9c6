"""Designed waves on a response surface whose truth is known: what they find, and what others find in as many trials.

Six knobs as in a training script: two rates with an optimum, an interaction of a rate with the batch size, a width
with a bend, two knobs that do nothing. A trial's score is the truth and luck. Every agent starts at the same baseline
and has as many candidates; the judge is simple: the incumbent is the best candidate so far, by the mean of its trials.
What counts is the *true* value of what is kept in the end.

    python benchmarks/waves.py              # the table: median over seeds of what is left to gain
    python benchmarks/waves.py --images DIR # the pictures of docs/waves.md
"""

import argparse
import math
import random
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from autoresearch_hpc import agents
from autoresearch_hpc.agents import Brief
from autoresearch_hpc.config import AgentConfig, KnobDomain, KnobType, PlanConfig, SpaceConfig
from autoresearch_hpc.gains import Noise
from autoresearch_hpc.records import Direction, Knobs, KnobValue, Outcome, Proposal, SearchState, Status, candidate_id
from autoresearch_hpc.space import Space, from_config

K, WAVES, SEEDS = 16, 4, 20
NOISE_SD = 0.002
BASELINE: Knobs = {
    "MATRIX_LR": 0.04,
    "EMBEDDING_LR": 0.6,
    "TOTAL_BATCH_SIZE": 2**18,
    "WIDTH": 512,
    "WARMUP_RATIO": 0.05,
    "WINDOW": "SSSL",
}
DOMAINS = {
    "MATRIX_LR": KnobDomain(type=KnobType.float, low=0.01, high=0.16, log=True),
    "EMBEDDING_LR": KnobDomain(type=KnobType.float, low=0.15, high=2.4, log=True),
    "TOTAL_BATCH_SIZE": KnobDomain(type=KnobType.pow2, low=2**16, high=2**20),
    "WIDTH": KnobDomain(type=KnobType.int, low=256, high=1024),
    "WARMUP_RATIO": KnobDomain(type=KnobType.float, low=0.0, high=0.1),
    "WINDOW": KnobDomain(choices=["SSSL", "L"]),
}


# Where the best is: octaves from the baseline for rates and batch, 256 units for the width.
BEST_RATE, BEST_EMBEDDING, BEST_BATCH, BEST_WIDTH = 1.4, -0.4, -1.0, 1.2


def truth(knobs: Knobs) -> float:
    """The expected score; lower is better, and 1.0 is the best there is. A larger batch wants a larger rate."""
    rate = math.log2(_number(knobs["MATRIX_LR"]) / 0.04)
    embedding = math.log2(_number(knobs["EMBEDDING_LR"]) / 0.6)
    batch = math.log2(_number(knobs["TOTAL_BATCH_SIZE"]) / 2**18)
    width = (_number(knobs["WIDTH"]) - 512) / 256
    return (
        1.0
        + 0.005 * (rate - BEST_RATE - 0.6 * (batch - BEST_BATCH)) ** 2
        + 0.002 * (embedding - BEST_EMBEDDING) ** 2
        + 0.004 * (batch - BEST_BATCH) ** 2
        + 0.008 * (width - BEST_WIDTH) ** 2
    )


def space() -> Space:
    built = from_config(SpaceConfig(knobs=DOMAINS))
    assert built is not None
    return built


def outcome(id_: str, round_: int, proposal: Proposal, values: Sequence[float]) -> Outcome:
    return Outcome(
        candidate=id_,
        round=round_,
        proposal=proposal,
        knobs={**BASELINE, **proposal.knobs},
        status=Status.OK,
        value=statistics.mean(values),
        num_trials=len(values),
    )


class OneAtATime:
    """What people do: one knob of the incumbent at a time, to one side and the other, in turn."""

    def __init__(self, searched: Space) -> None:
        self._space, self._asked = searched, 0

    def ask(self, state: SearchState, k: int) -> list[Proposal]:
        proposals = []
        while len(proposals) < k:
            name = self._space.names[self._asked // 2 % len(self._space.names)]
            side, round_ = (-1, 1)[self._asked % 2], self._asked // (2 * len(self._space.names))
            self._asked += 1
            domain, value = self._space.domains[name], state.incumbent_knobs[name]
            other = domain.at(domain.position(value) + side * 0.25 * 0.6**round_)
            proposals.append(Proposal(title=name, knobs={**state.incumbent_knobs, name: other}))
        return proposals

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        pass


def search(name: str, seed: int, *, k: int = K, waves: int = WAVES, sd: float = NOISE_SD) -> list[Outcome]:
    """One whole search, the baseline's outcome first; three trials of that, one of every candidate."""
    luck = random.Random(f"{name}/{seed}")
    config, plan = AgentConfig(name=name, startup_trials=k), PlanConfig(name="p", max_rounds=waves)
    agent = OneAtATime(space()) if name == "one at a time" else agents.build(
        Brief(config=config, plan=plan, space=space(), seed=seed)
    )  # fmt: skip

    def trial(knobs: Knobs) -> float:
        return truth({**BASELINE, **knobs}) + luck.gauss(0, sd)

    start = Proposal(title="baseline", knobs={}, origin="plan")
    outcomes = [outcome(candidate_id(0, 0), 0, start, [trial({}) for _ in range(3)])]
    agent.tell(outcomes)
    for index in range(1, waves + 1):
        proposals = agent.ask(state_of(index, outcomes, sd), k)
        told = [outcome(candidate_id(index, i), index, p, [trial(p.knobs)]) for i, p in enumerate(proposals)]
        agent.tell(told)
        outcomes += told
    return outcomes


def state_of(index: int, outcomes: Sequence[Outcome], sd: float) -> SearchState:
    best = min(outcomes, key=_value)
    return SearchState(
        index=index,
        direction=Direction.min,
        metric="val_bpb",
        incumbent=best.candidate,
        incumbent_value=best.value,
        incumbent_knobs=best.knobs,
        source={},
        outcomes=tuple(outcomes),
        noise=Noise(sd=sd, df=10.0, measured_df=2.0) if sd else None,
    )


def left(outcomes: Sequence[Outcome]) -> float:
    """What the best by its score truly lacks."""
    return truth(min(outcomes, key=_value).knobs) - 1.0


def _value(outcome: Outcome) -> float:
    assert outcome.value is not None
    return outcome.value


def _number(value: KnobValue) -> float:
    assert isinstance(value, int | float)
    return float(value)


def table(names: Sequence[str], seeds: int) -> None:
    print(f"left to gain of {truth(BASELINE) - 1:.4f}, median of {seeds} seeds (best and worst quarter)")
    for name in names:
        for waves in range(1, WAVES + 1):
            gaps = [left(search(name, seed, waves=waves)) for seed in range(seeds)]
            low, middle, high = statistics.quantiles(gaps, n=4)
            print(f"{name:>14} {waves} waves of {K}: {middle:.4f} ({low:.4f} to {high:.4f})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--images", type=Path, help="write the pictures of docs/waves.md here instead")
    options = parser.parse_args()
    table(["factorial", "tpe", "cmaes", "random", "one at a time"], options.seeds)


if __name__ == "__main__":
    sys.exit(main())
