"""Tree-structured Parzen estimator, by Optuna: models where good settings lie and proposes there.

The study is built anew, in memory, from the outcomes told, whenever a round is asked for: nothing has to be stored,
and the same outcomes give the same proposals. Source: Bergstra et al. 2011; Watanabe 2023 (arXiv 2304.11127).
"""

import itertools
import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from autoresearch_hpc.agents.sampling import Sampler, Setting, memorable
from autoresearch_hpc.config import KnobType
from autoresearch_hpc.records import Direction, Knobs, SearchState, Status
from autoresearch_hpc.space import Domain, Space

if TYPE_CHECKING:  # imported where it is used: only a run with this agent pays for it
    import optuna

__all__ = ["TpeAgent"]

_TRIES = 20  # model proposals looked at for each one wanted, before random ones fill the round
_NO_FAULT = (Status.LOST, Status.CANCELLED)  # say nothing about the setting


class TpeAgent(Sampler):
    """Batch-aware: what is already proposed in this round counts as bad for the model, so K proposals differ."""

    origin = "tpe"

    def __init__(
        self, space: Space, seed: int, fixed: Knobs, *, allow_repeats: bool = False, startup_trials: int = 10
    ) -> None:
        super().__init__(space, seed, fixed, allow_repeats=allow_repeats)
        self._startup_trials = startup_trials

    def _settings(self, state: SearchState, k: int, taken: set[object]) -> Iterable[Setting]:
        return itertools.chain(self._modelled(state, k, taken), self._random_settings(state, k))

    def _modelled(self, state: SearchState, k: int, taken: set[object]) -> Iterator[Setting]:
        import optuna

        distributions = {name: _distribution(domain) for name, domain in self._space.domains.items()}
        study = self._study(state, distributions)
        for _ in range(_TRIES * k):
            trial = study.ask(distributions)
            setting = {name: _from_model(d, trial.params[name]) for name, d in self._space.domains.items()}
            usable = self._may(setting, state, taken)
            yield setting
            if not usable:  # else it stays a running trial, which the model takes for a bad one
                study.tell(trial, state=optuna.trial.TrialState.FAIL)

    def _study(self, state: SearchState, distributions: "dict[str, optuna.distributions.BaseDistribution]") -> Any:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                seed=self._rng(state).getrandbits(32),
                n_startup_trials=self._startup_trials,
                multivariate=True,
                constant_liar=True,
            )
        study = optuna.create_study(sampler=sampler)  # minimizes; a maximized metric is negated below
        study.add_trials(
            optuna.trial.create_trial(params=params, distributions=distributions, value=value)
            for params, value in self._history(state.direction)
        )
        study.add_trials(
            optuna.trial.create_trial(
                params=self._params(setting), distributions=distributions, state=optuna.trial.TrialState.RUNNING
            )
            for setting in self._pending(state)
        )
        return study

    def _params(self, setting: Knobs) -> dict[str, Any]:
        return {name: _to_model(domain, setting[name]) for name, domain in self._space.domains.items()}

    def _history(self, direction: Direction) -> list[tuple[dict[str, Any], float]]:
        """Past settings inside the space, as the model knows them, with values to minimize.

        A setting that failed counts as no better than the worst that was measured, so the model keeps away from it.
        """
        sign = 1.0 if direction is Direction.min else -1.0
        measured = [sign * outcome.value for outcome in self._outcomes if outcome.value is not None]
        worst = max(measured, default=0.0)
        history = []
        for outcome in self._outcomes:
            setting = self._space.setting(outcome)
            if setting is None or outcome.status in _NO_FAULT:
                continue
            history.append((setting, worst if outcome.value is None else sign * outcome.value))
        kept = memorable([value for _, value in history])
        return [(self._params(setting), value) for setting, value in (history[i] for i in kept)]


def _distribution(domain: Domain) -> "optuna.distributions.BaseDistribution":
    """Powers of two are modelled by their exponent, choices by their position (Optuna wants plain values)."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    match domain.type:
        case KnobType.choice:
            return CategoricalDistribution(tuple(range(len(domain.choices))))
        case KnobType.pow2:
            return IntDistribution(int(domain.low).bit_length() - 1, int(domain.high).bit_length() - 1)
        case KnobType.int:
            return IntDistribution(int(domain.low), int(domain.high), log=domain.log)
    return FloatDistribution(domain.low, domain.high, log=domain.log)


def _to_model(domain: Domain, value: Any) -> Any:
    match domain.type:
        case KnobType.choice:
            return domain.choices.index(value)
        case KnobType.pow2:
            return int(value).bit_length() - 1
    return value


def _from_model(domain: Domain, param: Any) -> Any:
    match domain.type:
        case KnobType.choice:
            return domain.choices[param]
        case KnobType.pow2:
            return 1 << param
    return domain.canonical(param)
