"""Where trials run: the tiers of a configuration, how a round spreads over them, what is refused."""

from dataclasses import replace
from typing import Any

import pytest

from autoresearch_hpc.config import ClusterConfig, Config, PlanConfig, TierConfig, ValidateConfig
from autoresearch_hpc.entry import compose, load
from autoresearch_hpc.errors import ConfigError
from autoresearch_hpc.tiers import Tiers

H100 = TierConfig(gres="gpu:h100:1", max_parallel=13, price_per_gpu_hour=2.0)
H200 = TierConfig(gres="gpu:h200:1", max_parallel=3, price_per_gpu_hour=3.0)
B200 = TierConfig(gres="gpu:b200:1")
TWO = {"h100": H100, "h200": H200}
THREE = {**TWO, "b200": B200}


def cluster(**tiers: TierConfig) -> ClusterConfig:
    return ClusterConfig(gpus=None, tiers=tiers)


def config(tiers: dict[str, TierConfig] = TWO, spread: str = "plan", **plan: Any) -> Config:
    return Config(plan=PlanConfig(name="p", **plan), cluster=cluster(**tiers), tiers=spread)


def test_a_plain_cluster_is_one_tier() -> None:
    one = Tiers.of(Config(plan=PlanConfig(name="p"), cluster=ClusterConfig(tier="a100", max_parallel=4)))
    assert one == Tiers(slots={"a100": 4}, prices={"a100": 0.0}, screens=("a100",), seeds=2)
    assert (one.used, one.num_slots, one.num_screening, one.validates) == (("a100",), 4, 4, None)
    unbounded = Tiers.of(Config(plan=PlanConfig(name="p")))
    assert (unbounded.used, unbounded.num_slots, unbounded.num_screening) == (("default",), None, None)


def test_of_listed_tiers_the_first_is_used() -> None:
    tiers = Tiers.of(config())
    assert tiers.slots == {"h100": 13, "h200": 3}
    assert tiers.prices == {"h100": 2.0, "h200": 3.0}
    assert (tiers.screens, tiers.used, tiers.validates) == (("h100",), ("h100",), None)
    assert (tiers.num_slots, tiers.num_screening) == (13, 13)


def test_the_plan_says_which_tier_screens() -> None:
    tiers = Tiers.of(config(screen="h200"))
    assert (tiers.screens, tiers.used, tiers.num_slots) == (("h200",), ("h200",), 3)


def test_a_validation_is_on_the_last_tier_by_default() -> None:
    tiers = Tiers.of(config(THREE, validate=ValidateConfig(top=3, seeds=4)))
    assert (tiers.screens, tiers.validates, tiers.top, tiers.seeds) == (("h100",), "b200", 3, 4)
    assert tiers.used == ("h100", "b200")
    assert (tiers.num_slots, tiers.num_screening) == (None, 13), "b200 has no limit of its own"
    chosen = Tiers.of(config(THREE, screen="b200", validate=ValidateConfig(top=1, tier="h200")))
    assert (chosen.screens, chosen.validates, chosen.used) == (("b200",), "h200", ("b200", "h200"))
    assert (chosen.num_slots, chosen.num_screening) == (None, None)


def test_any_tier_may_screen() -> None:
    tiers = Tiers.of(config(spread="any"))
    assert (tiers.screens, tiers.used, tiers.validates) == (("h100", "h200"), ("h100", "h200"), None)
    assert (tiers.num_slots, tiers.num_screening) == (16, 16)


def test_an_unknown_tier_costs_as_much_as_the_dearest() -> None:
    tiers = Tiers.of(config())
    assert [tiers.price(name) for name in ("h100", "h200", "", "gone")] == [2.0, 3.0, 3.0, 3.0]


def ids(count: int) -> list[str]:
    return [f"r01-c{i:02d}" for i in range(count)]


def test_a_round_spreads_by_the_slots() -> None:
    tiers = Tiers.of(config(spread="any"))
    places = tiers.spread(ids(16), {})
    assert list(places) == ids(16)
    assert list(places.values()).count("h100") == 13
    assert list(tiers.spread(ids(5), {}).values()) == ["h100"] * 4 + ["h200"], "from the first on, not all at the end"
    assert list(tiers.spread(ids(32), {}).values()).count("h200") == 6


def test_what_is_busy_is_left_alone() -> None:
    tiers = Tiers.of(config(spread="any"))
    assert list(tiers.spread(ids(3), {"h100": 13}).values()) == ["h200"] * 3
    assert list(tiers.spread(ids(3), {"h100": 10, "h200": 3}).values()) == ["h100"] * 3
    busy = {"h100": 1}
    tiers.spread(ids(3), busy)
    assert busy == {"h100": 1}, "the caller's count stays as it is"


def test_tiers_without_limits_take_turns() -> None:
    tiers = Tiers.of(config({"a": TierConfig(), "b": TierConfig()}, spread="any"))
    assert list(tiers.spread(ids(4), {}).values()) == ["a", "b", "a", "b"]


def test_one_screening_tier_takes_all() -> None:
    tiers = Tiers.of(config(validate=ValidateConfig(top=1)))
    assert set(tiers.spread(ids(40), {"h100": 99}).values()) == {"h100"}


def test_a_wave_may_be_as_large_as_there_are_gpus_to_try_candidates_on() -> None:
    assert config(k=None).plan.k == 13
    assert config(k=None, screen="h200").plan.num_candidates(1) == 3
    assert config(k=None, validate=ValidateConfig(top=1)).plan.k == 13
    assert config(k=None, spread="any").plan.k == 16
    assert Config(plan=PlanConfig(name="p", k=None), cluster=ClusterConfig(max_parallel=5)).plan.k == 5


# what a trial asks for on a tier


def test_a_tier_changes_what_it_says_and_keeps_the_rest() -> None:
    base = ClusterConfig(
        **{
            "gpus": 2,
            "cpus": 8,
            "mem_gb": 64.0,
            "time_min": 30,
            "max_parallel": 5,
            "partition": "gpu",
            "account": "me",
        },
        price_per_gpu_hour=1.5,
        setup=["module load cuda"],
        sbatch={"reservation": "r", "nice": 1},
        tiers={
            "all": TierConfig(
                **{"partition": "big", "constraint": "nvlink", "account": "them", "qos": "high", "exclude": "n1"},
                **{"cpus": 16, "mem_gb": 128.0, "max_parallel": 2, "price_per_gpu_hour": 4.0},
                sbatch={"nice": 9, "licenses": "x"},
            ),
            "none": TierConfig(),
        },
    )
    own = base.on("all")
    assert (own.partition, own.constraint, own.account, own.qos, own.exclude) == ("big", "nvlink", "them", "high", "n1")
    assert (own.cpus, own.mem_gb, own.max_parallel, own.price_per_gpu_hour) == (16, 128.0, 2, 4.0)
    assert own.sbatch == {"reservation": "r", "nice": 9, "licenses": "x"}
    assert (own.gpus, own.gres, own.time_min, own.setup) == (2, None, 30, ["module load cuda"])
    assert (own.tier, own.tiers, own.tier_names) == ("all", {}, ("all",))
    assert base.on("none") == replace(base, tier="none", tiers={})
    assert base.sbatch == {"reservation": "r", "nice": 1}
    assert base.tier_names == ("all", "none")


def test_a_tiers_gres_replaces_the_clusters_gpus_and_the_other_way_round() -> None:
    by_number = ClusterConfig(gpus=1, tiers={"a": TierConfig(gres="gpu:h100:1"), "b": TierConfig(gpus=2)})
    assert [(own.gpus, own.gres) for own in map(by_number.on, "ab")] == [(None, "gpu:h100:1"), (2, None)]
    by_gres = ClusterConfig(
        gpus=None, gres="gpu:1", tiers={"a": TierConfig(gres="gpu:h100:1"), "b": TierConfig(gpus=2)}
    )
    assert [(own.gpus, own.gres) for own in map(by_gres.on, "ab")] == [(None, "gpu:h100:1"), (2, None)]


def test_a_tier_that_is_not_listed_is_the_cluster_itself() -> None:
    plain = ClusterConfig(tier="a100")
    assert plain.on("a100") is plain
    assert plain.on("") is plain
    assert plain.tier_names == ("a100",)


# what is refused


@pytest.mark.parametrize(
    ("make", "settings", "words"),
    [
        (TierConfig, {"max_parallel": 0}, "cluster.tiers: max_parallel=0; give at least 1"),
        (TierConfig, {"price_per_gpu_hour": -1.0}, "cluster.tiers: price_per_gpu_hour=-1.0; give 0 or more"),
        (cluster, {"a b": TierConfig()}, "cluster.tiers: 'a b' is no name; use letters, digits, . + - _"),
        (cluster, {"": TierConfig()}, "cluster.tiers: '' is no name; use letters, digits, . + - _"),
        (cluster, {"-a": TierConfig()}, "cluster.tiers: '-a' is no name; use letters, digits, . + - _"),
        (
            cluster,
            {"a": TierConfig(gpus=1, gres="gpu:1")},
            "cluster.tiers.a: gpus and gres both ask for GPUs; set one",
        ),
        (ClusterConfig, {"backlog": -1}, "cluster.backlog=-1; give 0 or more"),
        (ValidateConfig, {"top": -1}, "plan.validate.top=-1; give 0 or more"),
        (ValidateConfig, {"seeds": 0}, "plan.validate.seeds=0; give at least 1"),
        (Config, {"schedule": "asnyc"}, "schedule=asnyc is unknown; give rounds or async"),
        (Config, {"tiers": "all"}, "tiers=all is unknown; give plan or any"),
        (
            Config,
            {"tiers": "any"},
            "tiers=any with one kind of GPU; list several in cluster.tiers, or leave it out",
        ),
        (
            config,
            {"spread": "any", "screen": "h100"},
            "tiers=any and a plan that says which tier screens; "
            "leave tiers out, or set plan.screen=null plan.validate.top=0",
        ),
        (
            config,
            {"spread": "any", "validate": ValidateConfig(top=1)},
            "tiers=any and a plan that says which tier screens; "
            "leave tiers out, or set plan.screen=null plan.validate.top=0",
        ),
        (
            config,
            {"tiers": {"h100": H100}, "validate": ValidateConfig(top=1)},
            "plan p validates on a second kind of GPU, and the cluster has one; "
            "list two or more in cluster.tiers, or set plan.validate.top=0",
        ),
        (
            config,
            {"screen": "h200", "validate": ValidateConfig(top=1)},
            "plan p screens and validates on h200; "
            "choose two tiers, or set plan.validate.top=0 and let decide.looks run the best again",
        ),
        (
            config,
            {"validate": ValidateConfig(top=1, tier="h100")},
            "plan p screens and validates on h100; "
            "choose two tiers, or set plan.validate.top=0 and let decide.looks run the best again",
        ),
        (
            config,
            {"tiers": {"b200": B200}, "k": None},
            "plan.k=null, and it is not known how many GPUs there are; set cluster.max_parallel",
        ),
        (config, {"screen": "h10"}, "the plan's tier h10 is none of the cluster's; it has ['h100', 'h200']"),
        (
            config,
            {"validate": ValidateConfig(top=1, tier="b200")},
            "the plan's tier b200 is none of the cluster's; it has ['h100', 'h200']",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_is_told_in_one_line(make: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make(**settings)
    assert str(caught.value) == words


def test_a_plan_without_a_validation_needs_no_second_tier() -> None:
    assert Tiers.of(config({"h100": H100}, validate=ValidateConfig(top=0))).validates is None


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["+round=tiers"], "plan tiers validates on a second kind of GPU, and the cluster has one"),
        (["+round=quickstart", "tiers=any"], "tiers=any with one kind of GPU"),
        (["+round=tiers", "cluster=two_tiers", "plan.screen=a100"], "the plan's tier a100 is none of the cluster's"),
        (["+round=tiers", "cluster=two_tiers", "cluster.tiers.h100.max_paralell=3"], "max_paralell"),
        (["+round=tiers", "cluster=two_tiers", "plan.validate.tier=h100"], "plan tiers screens and validates on h100"),
    ],
)
def test_what_loading_refuses(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(compose(overrides))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_packages_plan_and_cluster_go_together() -> None:
    tiers = Tiers.of(load(compose(["+round=tiers", "cluster=two_tiers"])))
    assert (tiers.screens, tiers.validates, tiers.top, tiers.seeds) == (("h100",), "h200", 3, 2)
    assert tiers.slots == {"h100": 13, "h200": 3}
    fewer = "cluster.tiers.h200.max_parallel=2"
    spread = load(compose(["+round=knobs", "cluster=two_tiers", fewer, "tiers=any", "schedule=async"]))
    assert Tiers.of(spread).num_screening == 15
    assert spread.cluster.on("h200").gres == "gpu:h200:1"
