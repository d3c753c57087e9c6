"""`python -m autoresearch_hpc.plan +round=NAME [overrides]`: what a run would do and cost, without touching anything.

Reads the configuration only: no git, no data, no question to the cluster. Costs are bounds: "of training" is the
training time alone of what is planned, the baseline's replicates included; "at most" is every trial at its limits, and
every further one that looks at a round's best candidates may ask for.
"""

import math
import os
import shutil
import sys
from collections.abc import Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.text import Text

from autoresearch_hpc import decide, entry, space
from autoresearch_hpc.agent_config import AgentConfig, Drafter
from autoresearch_hpc.config import Baseline, CandidateConfig, ClusterConfig, ClusterKind, Config, KnobDomain, KnobType
from autoresearch_hpc.report import formats
from autoresearch_hpc.report.columns import Columns
from autoresearch_hpc.report.tables import one_line
from autoresearch_hpc.tiers import Tiers

_MAX_ROUNDS_SHOWN = 8
_EDITING = ("llm", "cli", "hybrid")


def main(overrides: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    given = list(sys.argv[1:] if overrides is None else overrides)

    def show() -> None:
        if {"-h", "--help"} & set(given):
            print(__doc__)
            return
        Console(highlight=False).print(plan(entry.load(entry.compose(given))))

    return entry.run(show)


def plan(loaded: Config) -> RenderableType:
    """The whole plan. Raises ConfigError where the space is none."""
    parts: list[RenderableType] = [Text(f"{loaded.plan.name}: {loaded.plan.description}".rstrip(": "), style="bold")]
    parts += [Text(), _rounds(loaded)]
    if _proposed(loaded):
        parts += [Text(), *_space(loaded)]
    parts += [Text(), *(Text(line, overflow="fold") for line in figures(loaded))]
    parts += [Text(f"warning: {warning}", style="yellow", overflow="fold") for warning in warnings(loaded)]
    return Group(*parts)


def num_trials(loaded: Config) -> int:
    """Trials of the whole plan, at most: the baseline's and one of every candidate. Looks ask for further ones."""
    return sum(_sizes(loaded))


def figures(loaded: Config) -> Iterator[str]:
    """Time and cost, one line each."""
    task, cluster, trials = loaded.task, loaded.cluster, num_trials(loaded)
    tiers, controls, looks = Tiers.of(loaded), _controls(loaded), _looks(loaded)
    price, validated = tiers.price(tiers.screens[0]), sum(_validations(loaded))
    yield (
        f"trial         {formats.duration(task.train_s)} of training, "
        f"at most {formats.duration(task.wall_limit_s)} in all, {_device(loaded)}"
    )
    parallel = _parallel(loaded)
    at_once = f"{parallel} at once" if parallel else "all of a round at once"
    yield f"trials        {trials} in {formats.count(len(_sizes(loaded)), 'round')}, {at_once}"
    for tier in tiers.used if len(cluster.tiers) > 1 else ():
        yield f"tier          {_tier(tiers, tier)}"
    further = [along + sum(sizes) for along, sizes in zip(controls, looks, strict=True)]
    if most := sum(further):
        in_round = formats.count(max(further), "further trial")
        yield f"looks         with controls, at most {in_round} a round, {most} in all"
    if validated:
        yield f"validation    at most {formats.count(validated, 'trial')} of the best, the incumbent among them"
    expected, worst = trials * task.train_s / 3600, (trials + most + validated) * task.wall_limit_s / 3600
    yield f"GPU hours     {expected:.2f} of training, at most {worst:.2f}"
    if price or _worst_usd(loaded):
        usd = f"{formats.usd(expected * price)} of training, at most {formats.usd(_worst_usd(loaded))}"
        at = f" at {formats.usd(price)} per GPU hour" if len(tiers.used) == 1 else ""
        yield f"cost          {usd}{at}"
    planned, arrays = _sizes(loaded), [size for sizes in looks for size in sizes]
    arrays += [size + along for size, along in zip(planned, controls, strict=True)]
    training, longest = (
        formats.duration(max(_waves(loaded, planned), _validation_waves(loaded)) * task.train_s),
        formats.duration(_waves(loaded, arrays) * task.wall_limit_s),
    )
    yield f"wall time     {training} of training, at most {longest}"
    yield f"cluster       {_cluster(cluster)}"
    for tier in tiers.used if not _is_local(cluster) else ():
        words = " ".join(_resources(cluster.on(tier), task.wall_limit_s)) or "defaults"
        yield f"sbatch        {f'{tier}: ' if len(tiers.used) > 1 else ''}{words}"
    if _proposed(loaded) and loaded.agent.name in _EDITING:
        yield f"agent         {_agent(loaded.agent)}"
    limits = {name: value for name, value in vars(loaded.budget).items() if value is not None}
    yield f"budget        {', '.join(f'{name}={value:g}' for name, value in limits.items()) or 'no limits'}"
    alpha = f", alpha={loaded.decide.alpha:g}" if loaded.decide.rule == "significant" else ""
    if loaded.schedule == "async":
        yield "schedule      async: a slot that comes free is filled with a candidate of the next round"
    yield f"decision      {loaded.decide.rule}{alpha}, min_delta={loaded.decide.min_delta:g}"


def warnings(loaded: Config) -> Iterator[str]:
    """What works but may surprise."""
    cluster, budget = loaded.cluster, loaded.budget
    sizes = _sizes(loaded)
    parallel = _parallel(loaded)
    if parallel and max(sizes) > parallel:
        waves = math.ceil(max(sizes) / parallel)
        yield f"{max(sizes)} trials a round, {parallel} at once: a round takes {waves} waves"
    for asked in (cluster.on(tier) for tier in Tiers.of(loaded).used if not _is_local(cluster)):
        if not asked.gpus and not _asks_for_gpu(asked):
            yield "no GPU is asked for: set cluster.gpus=1 or cluster.gres"
    wall_min = loaded.task.wall_limit_s / 60
    if cluster.time_min is not None and cluster.time_min < wall_min:
        yield f"cluster.time_min={cluster.time_min} is shorter than a trial's limits, {wall_min:.0f} min"
    if budget.usd is not None and not any(Tiers.of(loaded).prices.values()):
        yield "budget.usd has no effect without cluster.price_per_gpu_hour"
    most = sum(sizes) + sum(_controls(loaded)) + sum(map(sum, _looks(loaded))) + sum(_validations(loaded))
    worst_h = most * loaded.task.wall_limit_s / 3600
    if budget.max_trials is not None and budget.max_trials < sum(sizes):
        yield f"budget.max_trials={budget.max_trials} ends the run before its {sum(sizes)} trials"
    elif budget.max_trials is not None and budget.max_trials < most:
        yield f"budget.max_trials={budget.max_trials} may end the run early: with all looks it has {most} trials"
    if budget.gpu_hours is not None and budget.gpu_hours < worst_h:
        yield f"budget.gpu_hours={budget.gpu_hours:g} may end the run early: at most {worst_h:.2f} would be used"
    worst_usd = _worst_usd(loaded)
    if budget.usd is not None and budget.usd < worst_usd:
        yield f"budget.usd={budget.usd:g} may end the run early: it may cost up to {formats.usd(worst_usd)}"
    prices = loaded.agent.usd_per_million_in + loaded.agent.usd_per_million_out + loaded.agent.cli.usd_per_call
    if budget.llm_usd is not None and not prices:
        yield "budget.llm_usd has no effect without agent.usd_per_million_in and _out"
    combinations = _grid_size(loaded)
    wanted = sum(loaded.plan.num_candidates(index) for index in _proposed(loaded))
    if loaded.agent.name == "grid" and combinations and wanted < combinations:
        yield f"the grid has {combinations:,} settings, the plan has room for {wanted}"


def _agent(agent: AgentConfig) -> str:
    """Who edits the code, and where it is asked."""
    by_cli = agent.name == "cli" or (agent.name == "hybrid" and agent.drafter is Drafter.cli)
    author = (
        (agent.cli.command or ["a coding CLI"])[0] if by_cli else f"{agent.model or 'the model'} at {agent.base_url}"
    )
    others = f", {agent.sampler} the others" if agent.name == "hybrid" else ""
    share = f" for {agent.share:.0%} of the slots" if agent.name == "hybrid" else ""
    return f"{author}{share}{others}"


def _sizes(loaded: Config) -> list[int]:
    """Trials of each round's own array, round 0 first."""
    plan, joined = loaded.plan, loaded.plan.baseline is Baseline.joined
    baseline = decide.num_replicates(loaded.decide)
    later = [plan.num_candidates(index) for index in range(plan.first_round, plan.num_rounds + 1)]
    return [baseline + later[0], *later[1:]] if joined else [baseline, *later]


def _controls(loaded: Config) -> list[int]:
    """Trials of the incumbent beside each round's array, at most: of a new one, that has had only one so far."""
    own, first = decide.num_replicates(loaded.decide) - 1, 1 + loaded.plan.first_round  # till then it is the baseline
    return [own if index >= first else 0 for index in range(len(_sizes(loaded)))]


def _looks(loaded: Config) -> list[list[int]]:
    """Trials of the looks that may follow each round's array, at most."""
    plan, rounds = loaded.plan, range(loaded.plan.first_round, loaded.plan.num_rounds + 1)
    if Tiers.of(loaded).validates:
        return [[]] * (plan.num_rounds + 1)
    return [[]] * plan.first_round + [decide.most_further(loaded.decide, plan.num_candidates(i)) for i in rounds]


def _validations(loaded: Config) -> list[int]:
    """Trials on the tier that validates, at most: of the baseline and of each round."""
    tiers, plan = Tiers.of(loaded), loaded.plan
    if not tiers.validates:
        return []
    own = decide.num_replicates(loaded.decide)
    controls = loaded.decide.controls if loaded.decide.rule == "significant" else 0
    best = [min(tiers.top, plan.num_candidates(i)) for i in range(plan.first_round, plan.num_rounds + 1)]
    return [own, *(count * tiers.seeds + controls + own for count in best)]


def _validation_waves(loaded: Config) -> int:
    """How often the tier that validates is filled, without the incumbent's trials; it works beside the other."""
    tiers = Tiers.of(loaded)
    slots = tiers.slots[tiers.validates] if tiers.validates else None
    rounds = range(loaded.plan.first_round, loaded.plan.num_rounds + 1)
    best = [min(tiers.top, loaded.plan.num_candidates(index)) * tiers.seeds for index in rounds]
    return sum(math.ceil(count / slots) for count in best) if slots else 0


def _worst_usd(loaded: Config) -> float:
    """With every trial at its limits, each at its tier's price; with tiers=any at the dearest."""
    tiers, hours = Tiers.of(loaded), loaded.task.wall_limit_s / 3600
    screening = max(map(tiers.price, tiers.screens))
    others = sum(_sizes(loaded)) + sum(_controls(loaded)) + sum(map(sum, _looks(loaded)))
    validating = tiers.price(tiers.validates) if tiers.validates else 0.0
    return hours * (others * screening + sum(_validations(loaded)) * validating)


def _tier(tiers: Tiers, tier: str) -> str:
    """What happens on a tier."""
    slots, price = tiers.slots[tier], tiers.price(tier)
    does = f"the best {tiers.top} of a round again, {formats.count(tiers.seeds, 'seed')} each"
    does = does if tier == tiers.validates else "candidates are tried"
    at_once = f", {formats.count(slots, 'GPU')} at once" if slots else ""
    return f"{tier}: {does}{at_once}{f', {formats.usd(price)} per GPU hour' if price else ''}"


def _waves(loaded: Config, sizes: Sequence[int]) -> int:
    parallel = _parallel(loaded)
    return sum(math.ceil(size / parallel) if parallel else size > 0 for size in sizes)


def _parallel(loaded: Config) -> int | None:
    """How many trials run at once; None where only the cluster knows."""
    slots = Tiers.of(loaded).num_screening
    if slots or not _is_local(loaded.cluster):
        return slots
    from autoresearch_hpc.cluster.local import visible_gpus

    return len(visible_gpus()) or max(1, len(os.sched_getaffinity(0)) // 2)


def _is_local(cluster: ClusterConfig) -> bool:
    return cluster.kind is ClusterKind.local or (cluster.kind is ClusterKind.auto and not shutil.which("sbatch"))


def _proposed(loaded: Config) -> list[int]:
    """The rounds whose candidates an agent proposes."""
    plan = loaded.plan
    return [i for i in range(plan.first_round, plan.num_rounds + 1) if plan.is_open(i)]


def _rounds(loaded: Config) -> Columns:
    rows: list[list[str]] = []
    if loaded.plan.first_round:
        rows.append(["0", "1", _baseline(loaded)])
    last = loaded.plan.num_rounds
    for index in range(loaded.plan.first_round, last + 1):
        if index - loaded.plan.first_round >= _MAX_ROUNDS_SHOWN and index < last:
            if rows[-1][0] != "...":
                rows.append(["...", "", ""])
            continue
        k, candidates = loaded.plan.num_candidates(index), loaded.plan.round(index).candidates
        if index == 0:
            rows.append(["0", str(k + 1), _baseline(loaded)])
        elif not candidates:
            rows.append([str(index), str(k), f"proposed by {loaded.agent.name}"])
        for number, candidate in enumerate(candidates):
            first = number == 0 and index > 0
            rows.append([str(index) if first else "", str(k) if first else "", _candidate(candidate)])
        if index == 0 and not candidates:
            rows.append(["", "", f"{k} proposed by {loaded.agent.name}"])
    return Columns(head=("round", "K", "candidates"), rows=[[Text(cell) for cell in row] for row in rows], right={0, 1})


def _baseline(loaded: Config) -> str:
    count = decide.num_replicates(loaded.decide)
    return f"baseline{f', {count} trials' if count > 1 else ''}{_settings(loaded.plan.base, ': ')}"


def _candidate(candidate: CandidateConfig) -> str:
    title = one_line(candidate.title) or _settings(candidate.knobs) or "replicate"
    base = candidate.parent
    return f"{title} (on {base})" if base else title


def _settings(knobs: dict[str, object], before: str = "") -> str:
    return before + ", ".join(f"{name}={value}" for name, value in knobs.items()) if knobs else ""


def _space(loaded: Config) -> Iterator[RenderableType]:
    if not loaded.space.knobs:
        yield Text("space: none; the agent proposes whatever it likes")
        return
    rows = [[Text(name), Text(_domain(domain))] for name, domain in loaded.space.knobs.items()]
    yield Columns(head=("knob", "values"), rows=rows)
    for bound in loaded.space.bounds:
        yield Text(f"bound: {bound}", overflow="fold")
    yield Text(f"grid: {_grid_size(loaded):,} settings, bounds not counted")


def _domain(domain: KnobDomain) -> str:
    if domain.type is KnobType.choice:
        return ", ".join(str(choice) for choice in domain.choices)
    scale = ", log" if domain.log else ""
    return f"{domain.low} to {domain.high} ({domain.type.value}{scale})"


def _grid_size(loaded: Config) -> int:
    built = space.from_config(loaded.space)
    return math.prod(len(domain.grid()) for domain in built.domains.values()) if built else 0


def _device(loaded: Config) -> str:
    return {"cuda": "one GPU", "cpu": "CPU", "auto": "one GPU where there is one"}[loaded.task.device.value]


def _cluster(cluster: ClusterConfig) -> str:
    kind = "this machine" if _is_local(cluster) else "Slurm"
    unsure = ", where it answers, else this machine" if cluster.kind is ClusterKind.auto and kind == "Slurm" else ""
    names = cluster.tier_names
    return f"{kind}{unsure}; {'tier' if len(names) == 1 else 'tiers'} {', '.join(names)}"


def _asks_for_gpu(cluster: ClusterConfig) -> bool:
    return "gpu" in str(cluster.gres or "") or any("gpu" in str(item) for item in cluster.sbatch.items())


def _resources(cluster: ClusterConfig, wall_limit_s: float) -> Iterator[str]:
    options = {
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "gpus-per-node": cluster.gpus or None,
        "gres": cluster.gres,
        "constraint": cluster.constraint,
        "exclude": cluster.exclude,
        "cpus-per-task": cluster.cpus,
        "mem": None if cluster.mem_gb is None else f"{cluster.mem_gb:g}G",
        "time": f"{cluster.time_min} min" if cluster.time_min else f"{math.ceil(wall_limit_s / 60)} min and a margin",
        "array": f"0-(K-1)%{cluster.max_parallel}" if cluster.max_parallel else "0-(K-1)",
        **cluster.sbatch,
    }
    for name, value in options.items():
        if value is not None:
            yield f"--{name}={value}"


if __name__ == "__main__":
    sys.exit(main())
