"""The part of the configuration that says where trials run and what they ask for (conf/cluster/)."""

import re
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from autoresearch_hpc.errors import require


class ClusterKind(Enum):
    auto = "auto"
    local = "local"
    slurm = "slurm"


@dataclass
class TierConfig:
    """One kind of GPU: what is different there; the rest is as in `cluster`."""

    max_parallel: int | None = None  # GPUs at most at once
    price_per_gpu_hour: float | None = None  # of one GPU here
    partition: str | None = None  # Slurm's partition
    gres: str | None = None  # --gres, e.g. gpu:h100:1; local: the kind of GPU, by its name
    gpus: int | None = None  # GPUs a trial (--gpus-per-node); default cluster.gpus where there is no gres
    constraint: str | None = None  # features that a node must have
    account: str | None = None  # the account that is charged
    qos: str | None = None  # the quality of service
    exclude: str | None = None  # nodes not to use
    cpus: int | None = None  # CPUs a trial
    mem_gb: float | None = None  # host memory a trial
    sbatch: dict[str, Any] = field(default_factory=dict)  # further sbatch options, beside those of cluster.sbatch

    def __post_init__(self) -> None:
        require(
            self.max_parallel is None or self.max_parallel >= 1,
            f"cluster.tiers: max_parallel={self.max_parallel}",
            "give at least 1",
        )
        price = self.price_per_gpu_hour
        require(price is None or price >= 0, f"cluster.tiers: price_per_gpu_hour={price}", "give 0 or more")


@dataclass
class ClusterConfig:
    """Where trials run and what a trial asks for."""

    kind: ClusterKind = ClusterKind.auto  # auto: Slurm where it answers, else local
    tier: str = "default"  # the name of this kind of GPU in results
    tiers: dict[str, TierConfig] = field(default_factory=dict)  # several kinds of GPU, by name; replaces `tier`
    max_parallel: int | None = None  # trials at once: the array's throttle; local default: GPUs, else cores / 2
    backlog: int = 0  # trials that wait in the queue beyond max_parallel, where rounds overlap: no GPU waits for us
    gpus: int | None = 1  # GPUs a trial (--gpus-per-node); null where gres asks for them
    gres: str | None = None  # --gres, e.g. gpu:h100:1
    cpus: int | None = None  # CPUs a trial; local: also the threads of a trial
    mem_gb: float | None = None  # host memory a trial
    time_min: int | None = None  # Slurm's time limit; default from the task's limits
    partition: str | None = None  # Slurm's partition: a name, or several with commas
    account: str | None = None  # the account that is charged
    qos: str | None = None  # the quality of service
    constraint: str | None = None  # features that a node must have, e.g. a100|h100
    exclude: str | None = None  # nodes not to use
    sbatch: dict[str, Any] = field(default_factory=dict)  # any further sbatch option: {reservation: name}
    setup: list[str] = field(default_factory=list)  # shell lines before the trial: module load, source activate
    python: str | None = None  # the Python or container command on the node; default this interpreter
    use_srun: bool = True  # start the trial as a job step
    price_per_gpu_hour: float = 0.0  # for the cost column and budget.usd
    poll_s: float = 0.5  # seconds between looks for results
    queue_poll_s: float = 11.0  # seconds between questions to the queue, while nothing changes
    max_retries: int = 2  # further trials of a candidate whose trial was lost to the infrastructure
    max_node_faults: int = 2  # after so many lost trials a node is not used any more, where there are others
    result_grace_s: float = 1.5  # how long a result may stay invisible after its job has failed
    late_result_s: float = 60.0  # the same after a job that ended well, so has left a result
    stuck_limit_min: float = 60.0  # how long a trial may wait for what does not come by itself (held, a group's limit)
    patience_min: float = 60.0  # how long a submission is tried again while Slurm does not answer or refuses for now

    def __post_init__(self) -> None:
        require(
            self.max_parallel is None or self.max_parallel >= 1,
            f"cluster.max_parallel={self.max_parallel}",
            "give at least 1",
        )
        require(
            not (self.gpus and self.gres),
            "cluster.gpus and cluster.gres both ask for GPUs",
            "set cluster.gpus=null",
        )
        for name in ("poll_s", "queue_poll_s", "mem_gb", "time_min", "cpus"):
            value = getattr(self, name)
            require(value is None or value > 0, f"cluster.{name}={value}", "give a number above 0")
        for name in (
            *("gpus", "max_retries", "max_node_faults", "price_per_gpu_hour", "backlog"),
            *("result_grace_s", "late_result_s", "stuck_limit_min", "patience_min"),
        ):
            value = getattr(self, name)
            require(value is None or value >= 0, f"cluster.{name}={value}", "give 0 or more")
        for name, tier in self.tiers.items():
            require(
                re.fullmatch(r"\w[\w.+-]*", name) is not None,
                f"cluster.tiers: {name!r} is no name",
                "use letters, digits, . + - _",
            )
            require(not (tier.gpus and tier.gres), f"cluster.tiers.{name}: gpus and gres both ask for GPUs", "set one")

    def on(self, name: str) -> "ClusterConfig":
        """What a trial asks for on a tier; on one that is not listed, what the cluster says by itself."""
        tier = self.tiers.get(name)
        if tier is None:
            return self
        own = {key: value for key, value in vars(tier).items() if value is not None}
        own |= {"sbatch": {**self.sbatch, **tier.sbatch}, "tier": name, "tiers": {}}
        if tier.gres or tier.gpus:
            own |= {"gres": tier.gres, "gpus": tier.gpus}
        return replace(self, **own)

    @property
    def tier_names(self) -> tuple[str, ...]:
        """All tiers, in order; one without a list."""
        return tuple(self.tiers) or (self.tier,)
