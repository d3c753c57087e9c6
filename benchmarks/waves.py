"""Designed waves on a response surface whose truth is known: what they find, and what others find in as many trials.

Six knobs as in a training script: two rates with an optimum, an interaction of a rate with the batch size, a width
with a bend, two knobs that do nothing. A trial's score is the truth and luck. Every agent starts at the same baseline
and has as many candidates; the judge is simple: the incumbent is the best candidate so far, by the mean of its trials.
What counts is the *true* value of what is kept in the end.

    python benchmarks/waves.py              # the table: median over seeds of what is left to gain
    python benchmarks/waves.py --images docs/images
"""

import argparse
import logging
import math
import random
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autoresearch_hpc import agents, effects
from autoresearch_hpc.agents import Brief
from autoresearch_hpc.config import AgentConfig, KnobDomain, KnobType, PlanConfig, SpaceConfig
from autoresearch_hpc.gains import Noise
from autoresearch_hpc.records import Direction, Knobs, KnobValue, Outcome, Proposal, SearchState, Status, candidate_id
from autoresearch_hpc.report.effect_plots import write_effects_png
from autoresearch_hpc.space import Space, from_config

K, WAVES, SEEDS = 16, 4, 20
NOISE_SD = 0.002
AGENTS = ("factorial", "tpe", "cmaes", "random", "one at a time")
_COLOURS = ("#1f5fa8", "#c26a1b", "#0b6e4f", "#9aa0a6", "#b23a48")
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Surface:
    """Where the best is: octaves from the baseline for rates and batch, 256 units for the width."""

    rate: float = 1.4
    embedding: float = -0.4
    batch: float = -1.0
    width: float = 1.2

    def __call__(self, knobs: Knobs) -> float:
        """The expected score; lower is better, and 1.0 is the best there is. A larger batch wants a larger rate."""
        rate = math.log2(_number(knobs["MATRIX_LR"]) / 0.04)
        embedding = math.log2(_number(knobs["EMBEDDING_LR"]) / 0.6)
        batch = math.log2(_number(knobs["TOTAL_BATCH_SIZE"]) / 2**18)
        width = (_number(knobs["WIDTH"]) - 512) / 256
        return (
            1.0
            + 0.005 * (rate - self.rate - 0.6 * (batch - self.batch)) ** 2
            + 0.002 * (embedding - self.embedding) ** 2
            + 0.004 * (batch - self.batch) ** 2
            + 0.008 * (width - self.width) ** 2
        )


FIXED = Surface()


def drawn(seed: int) -> Surface:
    """With its best somewhere else for every seed."""
    luck = random.Random(seed)
    return Surface(
        rate=luck.uniform(-1.6, 1.6),
        embedding=luck.uniform(-1.5, 1.5),
        batch=luck.choice([-2.0, -1.0, 0.0, 1.0, 2.0]),
        width=luck.uniform(-0.8, 1.8),
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
    """What people do: one knob of the incumbent at a time, to one side and the other, far and near, in turn."""

    def __init__(self, searched: Space) -> None:
        self._space, self._asked = searched, 0

    def ask(self, state: SearchState, k: int) -> list[Proposal]:
        proposals = []
        while len(proposals) < k:
            name = self._space.names[self._asked // 2 % len(self._space.names)]
            side, round_ = (-1, 1)[self._asked % 2], self._asked // (2 * len(self._space.names))
            self._asked += 1
            domain, value = self._space.domains[name], state.incumbent_knobs[name]
            other = domain.at(domain.position(value) + side * (0.25, 0.125)[round_ % 2])
            proposals.append(Proposal(title=name, knobs={**state.incumbent_knobs, name: other}))
        return proposals

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        pass


def search(
    name: str, seed: int, truth: Surface = FIXED, *, k: int = K, waves: int = WAVES, sd: float = NOISE_SD
) -> list[Outcome]:
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


def noise(sd: float) -> Noise | None:
    return Noise(sd=sd, df=10.0, measured_df=2.0) if sd else None


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
        noise=noise(sd),
    )


def left(outcomes: Sequence[Outcome], truth: Surface = FIXED) -> float:
    """What the best by its score truly lacks."""
    return truth(min(outcomes, key=_value).knobs) - 1.0


def _value(outcome: Outcome) -> float:
    assert outcome.value is not None
    return outcome.value


def _number(value: KnobValue) -> float:
    assert isinstance(value, int | float)
    return float(value)


def gaps(name: str, seeds: int, surface: Callable[[int], Surface]) -> list[list[float]]:
    """What is left to gain after each wave, by seed: [wave][seed]."""
    runs = [(search(name, seed, surface(seed)), surface(seed)) for seed in range(seeds)]
    return [[left([o for o in run if o.round <= wave], truth) for run, truth in runs] for wave in range(1, WAVES + 1)]


def table(title: str, found: Mapping[str, list[list[float]]], seeds: int) -> None:
    print(f"{title}: left to gain, median of {seeds} seeds (quartiles); {K} candidates a wave")
    print(f"{'agent':<15}" + "".join(f"wave {wave:<19}" for wave in range(1, WAVES + 1)))
    for name, by_wave in found.items():
        cells = [statistics.quantiles(values, n=4) for values in by_wave]
        print(f"{name:<15}" + "".join(f"{m:.4f} ({a:.4f}-{b:.4f})".ljust(24) for a, m, b in cells))


def write_images(found: Mapping[str, list[list[float]]], folder: Path) -> None:
    """waves.png: what is left, by agent and wave; effects-1.png and effects-4.png: effects of one search."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.2), dpi=140, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    trials = [K * wave for wave in range(WAVES + 1)]
    for (name, by_wave), colour in zip(found.items(), _COLOURS, strict=False):
        medians = [FIXED(BASELINE) - 1, *(statistics.median(values) for values in by_wave)]
        wide = 2.4 if name == "factorial" else 1.4
        axes.plot(trials, medians, marker="o", markersize=4, linewidth=wide, color=colour, label=name)
    axes.set_yscale("log")
    axes.set_xticks(trials)
    axes.set_xlabel(f"candidates, {K} a wave")
    axes.set_ylabel("left to gain (median)")
    axes.grid(axis="y", color="#e3e5e8", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(folder / "waves.png", metadata={"Software": None})
    run = search("factorial", 1)
    for wave in (1, WAVES):
        told = effects.worth_telling([o for o in run if o.round <= wave], space(), noise(NOISE_SD))
        assert told is not None
        write_effects_png(told, "val_bpb", Direction.min, folder / f"effects-{wave}.png", dpi=120)
        print(f"after wave {wave}: {told.words}")
        for effect in told.by_size:
            print(f"  {effect.name:<28} {effect.words} {' '.join(effect.aliases)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--images", type=Path, metavar="DIR", help="write the pictures of docs/waves.md there, too")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    found = {name: gaps(name, options.seeds, lambda _: FIXED) for name in AGENTS}
    table(f"one surface, {FIXED(BASELINE) - 1:.4f} at the baseline", found, options.seeds)
    others = {name: gaps(name, options.seeds, drawn) for name in AGENTS}
    start = statistics.median(drawn(seed)(BASELINE) - 1 for seed in range(options.seeds))
    table(f"another best for each seed, {start:.4f} at the baseline", others, options.seeds)
    if options.images:
        write_images(found, options.images)


if __name__ == "__main__":
    sys.exit(main())
