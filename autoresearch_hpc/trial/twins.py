"""Whether logits depend only on what they may: the tokens of their own row up to their own position.

Inputs give away the targets (a target is the next input), so a model that looks ahead would score as it likes. It is
found out by a second server, the witness, with the same model and no way to talk to the first. Of rows chosen in
secret it gets *twins*: the same up to a secret position, the cut, and from another row behind it, in other company.
Up to and at the cut an honest model gives the same logits for both. One that looks ahead, at other rows or at earlier
batches gives others, as the witness has never seen what the first one looked at.

The witness's own prediction at the cut is an honest one by construction: nothing that it was given depends on the
token that comes next. So the mean difference there is an estimate of what is gained by looking ahead, whatever the
trick.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SHARE = 0.05  # of the rows are tested
MIN_ROWS, MAX_ROWS = 64, 1024
_PLAIN = 8  # one row of so many is left as it is: it tells other rows' influence from that of later tokens
_POOL = 1 << 18  # positions from which cuts are drawn
_TRIES = 100

Rows = npt.NDArray[np.uint16]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Differences in nats that arithmetic alone may make: at a single position, and in the mean."""

    single: float
    mean: float


EXACT = Tolerance(0.02, 1e-4)  # float32 on a CPU
COARSE = Tolerance(0.5, 1e-3)  # bfloat16, and GPUs whose sums come in another order
_OUTLIERS = 0.002  # the share of cuts that may differ by more: experts may be chosen by a hair
_SIGMAS = 4.0


@dataclass(frozen=True, slots=True)
class Twins:
    """Test rows: `row[i]` of the validation rows, the same up to and with `cut[i]`, other tokens behind."""

    row: npt.NDArray[np.int64]
    cut: npt.NDArray[np.int64]
    inputs: Rows  # (n, T)

    def __add__(self, other: "Twins") -> "Twins":
        return Twins(
            np.concatenate((self.row, other.row)),
            np.concatenate((self.cut, other.cut)),
            np.concatenate((self.inputs, other.inputs)),
        )


@dataclass(frozen=True, slots=True)
class Finding:
    """A model that is not what it must be."""

    type: str
    message: str


def num_tested(num_rows: int, batch_rows: int) -> int:
    """How many rows are tested, in whole batches."""
    wanted = min(max(MIN_ROWS, round(SHARE * num_rows)), MAX_ROWS)
    return math.ceil(wanted / batch_rows) * batch_rows


def draw(
    random: np.random.Generator, rows: Rows, num_bytes: npt.NDArray[np.int32], count: int, nats: Floats | None = None
) -> Twins:
    """`count` twins of rows `(R, T + 1)`.

    With `nats`, what the first server scored `(R, T)`, half of the cuts are drawn from where it did much better than
    the tokens' frequencies: a trick that pays is where the gain is.
    """
    num_rows, seq_len = len(rows), rows.shape[1] - 1
    size = min(_POOL, num_rows * seq_len)
    pool = random.integers(0, num_rows * (seq_len - 1), size=size)
    row, cut = pool // (seq_len - 1), pool % (seq_len - 1)
    weight = (num_bytes[row, cut] > 0).astype(np.float64)
    if not weight.any():
        weight[:] = 1.0
    chosen = random.choice(size, size=count, p=weight / weight.sum())
    if nats is not None:
        counts = np.bincount(rows[:, 1:].ravel())
        surprise = np.log(rows[:, 1:].size / np.maximum(counts, 1))
        gain = np.maximum(surprise[rows[row, cut + 1]] - nats[row, cut], 0.0) * weight
        if gain.sum() > 0:
            half = count // 2
            chosen[:half] = random.choice(size, size=half, p=gain / gain.sum())
    row, cut = row[chosen], cut[chosen]
    cut[::_PLAIN] = seq_len - 1
    donor = random.integers(0, num_rows, size=count)
    inputs = rows[row, :seq_len].copy()
    for i in range(count):
        behind = int(cut[i]) + 1
        if behind < seq_len:
            inputs[i, behind:] = rows[donor[i], behind:seq_len]
            for _ in range(_TRIES):  # the next token itself must be another one
                if inputs[i, behind] != rows[row[i], behind]:
                    break
                inputs[i, behind] = rows[random.integers(num_rows), random.integers(1, seq_len + 1)]
    order = random.permutation(count)
    return Twins(row[order], cut[order], inputs[order])


def judge(
    twins: Twins, own: Floats, witnessed: Floats, num_bytes: npt.NDArray[np.int32], tolerance: Tolerance
) -> Finding | None:
    """Compare the scores `(n, T)` of the twins' rows: the first server's and the witness's, for the same targets."""
    position = np.arange(own.shape[1])
    counted = num_bytes[twins.row] > 0
    plain = twins.cut == own.shape[1] - 1
    gain = np.nan_to_num((witnessed - own).astype(np.float64), nan=1e9, posinf=1e9, neginf=-1e9)

    shared = (position <= twins.cut[:, None]) & counted
    at_cut = (position == twins.cut[:, None]) & counted & ~plain[:, None]
    apart = _differ(gain[plain[:, None] & shared], tolerance)
    if apart:
        return Finding("NotRowwise", f"a row's logits depend on other rows, on earlier batches or on chance: {apart}")
    ahead = _differ(gain[at_cut], tolerance) or _differ(gain[shared & ~plain[:, None]], tolerance)
    if ahead:
        return Finding("NotCausal", f"logits depend on later tokens: {ahead}")
    return None


def _differ(gain: npt.NDArray[np.float64], tolerance: Tolerance) -> str | None:
    """How the differences are more than arithmetic's, in words."""
    if not len(gain):
        return None
    apart = int((np.abs(gain) > tolerance.single).sum())
    if apart > _OUTLIERS * len(gain):
        return f"{apart} of {len(gain)} positions differ by more than {tolerance.single:g} nats"
    mean = float(gain.mean())
    error = float(gain.std() / math.sqrt(len(gain)))
    if abs(mean) > tolerance.mean + _SIGMAS * error:
        return f"in the mean of {len(gain)} positions by {mean:.4f} nats"
    return None
