"""What is said of a candidate's score: how far single trials spread, what it gained, how it compares.

Values that travel, like those of `records`, whose `to_json` and `from_json` are theirs too.
"""

import math
from dataclasses import dataclass

NEAR_MISS = "near miss"  # the call of a candidate that looked better, but could not be told from luck


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """The noise of a single trial. Without degrees of freedom nothing is known: `df` is 0 and `sd` is infinite.

    `kind` names the trials that it is of: GPU model, tier, data. An unknown noise never enters a JSON.
    """

    sd: float
    df: float
    kind: str = ""
    measured_df: float = 0.0

    @property
    def known(self) -> bool:
        return self.df > 0

    def standard_error(self, num_trials: int) -> float | None:
        """Of the mean of so many trials; None where nothing is known, or nothing was run."""
        return self.sd / math.sqrt(num_trials) if self.known and num_trials else None

    @property
    def words(self) -> str:
        if not self.known:
            return "noise unknown: no candidate was run twice and none is configured"
        if not self.measured_df:
            return f"noise sd={self.sd:.6f}, as configured: no candidate was run twice yet"
        given = self.df - self.measured_df
        source = f"{self.measured_df:g} measured" + (f" and {given:g} configured" if given else "")
        return f"noise sd={self.sd:.6f} of df={self.df:g} ({source})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """By how much one mean of trials is better than another, whatever the metric's direction; negative where worse.

    `expected` is what is left of it once it is taken into account that it was picked out for being large (the winner's
    curse). Margins are half the width of a 95 % interval. What needs the noise is None where nothing is known of it.
    """

    value: float
    margin: float | None = None
    expected: float | None = None
    expected_margin: float | None = None

    @property
    def words(self) -> str:
        """`+0.000412 ± 0.000300`, or `+0.000412, noise unknown`."""
        return f"{self.value:+.6f}, noise unknown" if self.margin is None else f"{self.value:+.6f} ± {self.margin:.6f}"

    @property
    def expected_words(self) -> str:
        """`expected +0.000350 (+0.000050 to +0.000650)`, or nothing."""
        if self.expected is None or self.expected_margin is None:
            return ""
        low, high = self.expected - self.expected_margin, self.expected + self.expected_margin
        return f"expected {self.expected:+.6f} ({low:+.6f} to {high:+.6f})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What was found of a candidate when its round was judged: it against the incumbent of that time.

    `call` is what came of it: promote, near miss, discard, no score, over the memory cap, not compared. `p` is the
    chance of so large a gain, or a larger one, for any of the round's `k` candidates, if none were better. A candidate
    that was not compared has no gain; `note` says why.
    """

    call: str
    gain: Gain | None = None
    p: float | None = None
    k: int = 0
    num_trials: int = 0  # whose mean was compared
    num_incumbent_trials: int = 0  # with the mean of these
    note: str = ""

    @property
    def words(self) -> str:
        """`promote: +0.010000 ± 0.001200, p=0.003 of K=4, expected +0.009800 (+0.008000 to +0.011600)`."""
        if self.gain is None:
            return self.note or self.call
        expected = self.gain.expected_words
        return f"{self.call}: {self.odds}{f', {expected}' if expected else ''}"

    @property
    def odds(self) -> str:
        """`+0.000412 ± 0.000300, p=0.003 of K=16`; nothing without a gain."""
        if self.gain is None:
            return ""
        p = self.p
        if p is None:
            return f"{self.gain.words}, K={self.k}"
        shown = "p<0.0001" if p < 0.0001 else f"p={p:.4f}" if p < 0.001 else f"p={p:.3f}"
        return f"{self.gain.words}, {shown} of K={self.k}"
