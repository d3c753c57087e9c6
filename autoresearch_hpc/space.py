"""Search spaces: which values each knob may take, and bounds between knobs.

A Space is built once from the configuration and knows no script, no agent and no disk. Bounds are expressions such as
"TOTAL_BATCH_SIZE % (DEVICE_BATCH_SIZE * SEQ_LEN) == 0" in a small language of its own (see `Bound`), over the knobs
of the script and SEQ_LEN and VOCAB_SIZE. Floats have 4 significant digits everywhere, so what is proposed, compared
and written is the same number.
"""

import itertools
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from autoresearch_hpc.bounds import Bound
from autoresearch_hpc.config import KnobDomain, KnobType, SpaceConfig
from autoresearch_hpc.errors import ConfigError, KnobError
from autoresearch_hpc.knobs import fit, no_such_knob
from autoresearch_hpc.records import Knobs, KnobValue, Outcome, Proposal, knob_value

__all__ = ["FIXED", "Domain", "Space", "around", "from_config", "round_float"]

FIXED = ("SEQ_LEN", "VOCAB_SIZE")  # what bounds may name beside knobs


def round_float(value: float) -> float:
    """To 4 significant digits."""
    return float(f"{value:.4g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """The values that one knob may take: a range with `low` and `high` included, or `choices`."""

    type: KnobType
    low: float = 0
    high: float = 0
    log: bool = False
    choices: tuple[KnobValue, ...] = ()
    points: int = 3

    def canonical(self, value: KnobValue) -> KnobValue | None:
        """The member of the domain that value means (8.0 means 8), or None where it is not in the domain."""
        if self.type is KnobType.choice:
            return next((choice for choice in self.choices if _same(choice, value)), None)
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return None
        if self.type is KnobType.float:
            return self._float(value)
        if value != int(value) or (self.type is KnobType.pow2 and int(value) & (int(value) - 1)):
            return None
        return int(value)

    def __contains__(self, value: object) -> bool:
        if self.type is KnobType.choice:
            return any(_same(choice, value) for choice in self.choices)
        return isinstance(value, int | float) and self.canonical(value) is not None

    @property
    def size(self) -> float:
        """How many values there are; infinite for a range of floats."""
        match self.type:
            case KnobType.choice:
                return len(self.choices)
            case KnobType.float:
                return math.inf
            case KnobType.pow2:
                return math.log2(self.high) - math.log2(self.low) + 1
        return self.high - self.low + 1

    def values(self) -> Iterator[KnobValue]:
        """Every value of a finite domain, ascending."""
        if self.type is KnobType.choice:
            yield from self.choices
        elif self.type is KnobType.pow2:
            yield from (1 << e for e in range(_log2(self.low), _log2(self.high) + 1))
        else:
            yield from range(int(self.low), int(self.high) + 1)

    def grid(self) -> tuple[KnobValue, ...]:
        """All choices, or at most `points` values of a range, evenly spaced on its scale, both ends included."""
        return self.spread(self.points)

    def spread(self, num: int) -> tuple[KnobValue, ...]:
        """All choices, or at most so many values of a range, at least 2, evenly spaced, both ends included."""
        if self.type is KnobType.choice:
            return self.choices
        return tuple(dict.fromkeys(self._at(i / (num - 1)) for i in range(num)))

    def sample(self, rng: random.Random) -> KnobValue:
        """A random value, uniform on the domain's scale."""
        if self.type is KnobType.choice:
            return rng.choice(self.choices)
        if self.type is KnobType.int and not self.log:
            return rng.randint(int(self.low), int(self.high))
        if self.type is KnobType.pow2:
            return 1 << rng.randint(_log2(self.low), _log2(self.high))
        return self._at(rng.random())

    def position(self, value: KnobValue) -> float:
        """Where a value of the domain lies between its ends, 0 to 1, on the domain's scale; choices in their order."""
        if self.type is KnobType.choice:
            cell = next(i for i, choice in enumerate(self.choices) if _same(choice, value))
            return cell / max(len(self.choices) - 1, 1)
        assert isinstance(value, int | float)
        if self.high == self.low:
            return 0.0
        if self.log or self.type is KnobType.pow2:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def at(self, position: float) -> KnobValue:
        """The value nearest to a position between 0 and 1."""
        inside = min(max(position, 0.0), 1.0)
        if self.type is KnobType.choice:
            return self.choices[round(inside * (len(self.choices) - 1))]
        return self._at(inside)

    def _at(self, fraction: float) -> KnobValue:
        """The value at a fraction of the way from low to high."""
        if self.type is KnobType.pow2:
            low, high = _log2(self.low), _log2(self.high)
            return 1 << round(low + fraction * (high - low))
        if self.log:
            value = self.low * math.exp(fraction * math.log(self.high / self.low))
        else:
            value = self.low + fraction * (self.high - self.low)
        if self.type is KnobType.int:
            return min(max(round(value), int(self.low)), int(self.high))
        return self._float(value)

    def _float(self, value: float) -> float:
        return float(min(max(round_float(value), self.low), self.high))


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """Domains of knobs, in the configuration's order, and bounds between them."""

    domains: Mapping[str, Domain]
    bounds: tuple[Bound, ...] = ()
    _heard: dict[str, tuple[Knobs, Proposal, Knobs | None]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )  # candidate -> its knobs and proposal, and what `setting` made of them

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.domains)

    @property
    def size(self) -> float:
        """How many settings there are, bounds not counted."""
        return math.prod(domain.size for domain in self.domains.values())

    def contains(self, settings: Knobs) -> bool:
        """Whether settings give every knob of the space a value of its domain. Other knobs are not looked at."""
        return all(name in settings and settings[name] in domain for name, domain in self.domains.items())

    def canonical(self, settings: Knobs) -> dict[str, KnobValue] | None:
        """The space's part of settings, each value as the space would write it; None where one lies outside."""
        if not self.contains(settings):
            return None
        return {name: domain.canonical(settings[name]) for name, domain in self.domains.items()}

    def setting(self, outcome: Outcome) -> Knobs | None:
        """`canonical` of what a candidate ran with, knobs that travelled beside the script included.

        Asked for again after every round, of all candidates so far: each is looked at once.
        """
        known = self._heard.get(outcome.candidate)
        if known and known[0] is outcome.knobs and known[1] is outcome.proposal:
            return known[2]
        made = self.canonical({**outcome.knobs, **outcome.proposal.knobs})
        self._heard[outcome.candidate] = outcome.knobs, outcome.proposal, made
        return made

    def check(self, settings: Knobs, fixed: Knobs) -> list[str]:
        """The bounds that settings violate. `fixed` gives what bounds name beside settings: other knobs, SEQ_LEN...

        Raises ConfigError for a bound that names something in neither, or compares what cannot be compared.
        """
        values = {**fixed, **settings}
        return [bound.text for bound in self.bounds if not bound.holds(values)]

    def validate_knobs(self, script_knobs: Knobs) -> None:
        """Raise KnobError unless the script has every knob, with a type that fits; ConfigError for a bound's name."""
        for name, domain in self.domains.items():
            if name not in script_knobs:
                raise no_such_knob(name, script_knobs, "the space's script")
            current = script_knobs[name]
            if domain.type is KnobType.float and type(current) is int:
                raise KnobError(
                    f"space.knobs.{name} is a range of floats, the script's value {current} is a whole number",
                    f"write {float(current)} in the script, or use type: int",
                )
            for value in domain.choices or (domain.low, domain.high):
                fit(name, current, value, "space.knobs: ")
        for bound in self.bounds:
            bound.validate_names({*script_knobs, *self.domains, *FIXED})

    def grid(self) -> Iterator[dict[str, KnobValue]]:
        """Every combination of the domains' grid values; the last knob varies fastest."""
        axes = [domain.grid() for domain in self.domains.values()]
        for values in itertools.product(*axes):
            yield dict(zip(self.domains, values, strict=True))

    def all(self) -> Iterator[dict[str, KnobValue]]:
        """Every setting of a finite space."""
        axes = [tuple(domain.values()) for domain in self.domains.values()]
        for values in itertools.product(*axes):
            yield dict(zip(self.domains, values, strict=True))

    def sample(self, rng: random.Random) -> dict[str, KnobValue]:
        """A random setting, bounds not looked at."""
        return {name: domain.sample(rng) for name, domain in self.domains.items()}


def around(script_knobs: Knobs) -> Space | None:
    """A space of a script's own floats, from half to twice each one's value; None where it has none to vary.

    Shares stay shares: what lies between 0 and 1 stays below 1.
    """
    domains = {}
    for name, value in script_knobs.items():
        if isinstance(value, float) and 0 < value:
            high = min(2 * value, (1 + value) / 2) if value < 1 else 2 * value
            if value / 2 < high:
                domains[name] = Domain(type=KnobType.float, low=value / 2, high=high, log=True)
    return Space(domains=domains) if domains else None


def from_config(config: SpaceConfig, script_knobs: Knobs | None = None) -> Space | None:
    """The configured space, or None where it has no knobs; with script_knobs it is validated against them.

    Raises ConfigError for a bound that is no expression.
    """
    if not config.knobs:
        if config.bounds:
            raise ConfigError("space.bounds without space.knobs", "choose a space, e.g. space=seed")
        return None
    domains = {name: _domain(name, domain) for name, domain in config.knobs.items()}
    space = Space(domains=domains, bounds=tuple(Bound.parse(text) for text in config.bounds))
    if script_knobs is not None:
        space.validate_knobs(script_knobs)
    return space


def _domain(name: str, config: KnobDomain) -> Domain:
    if config.type is not KnobType.choice:
        ends = (config.low, config.high) if config.type is KnobType.float else (int(config.low), int(config.high))
        return Domain(type=config.type, low=ends[0], high=ends[1], log=config.log, points=config.points)
    try:
        choices = tuple(knob_value(choice) for choice in config.choices)
    except ValueError as error:
        raise ConfigError(f"space.knobs.{name}.choices", str(error)) from error
    for i, choice in enumerate(choices):
        if any(_same(choice, other) for other in choices[:i]):
            raise ConfigError(f"space.knobs.{name}.choices lists {choice!r} twice", "remove one")
    return Domain(type=config.type, choices=choices)


def _same(a: object, b: object) -> bool:
    """Equal as knob values: 1 is 1.0, but True is not 1."""
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return isinstance(a, bool) == isinstance(b, bool) and a == b


def _log2(value: float) -> int:
    return int(value).bit_length() - 1
