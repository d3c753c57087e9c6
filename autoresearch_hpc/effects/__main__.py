"""`python -m autoresearch_hpc.effects`: the other end of `FitProcess`.

Pickles, one after the other: the arguments of `estimate` on standard input, on standard output the model, or in words
why there is none.
"""

import contextlib
import os
import pickle
import select
import sys
import threading
from typing import BinaryIO

from autoresearch_hpc.config import KnobType
from autoresearch_hpc.effects.coding import Observation
from autoresearch_hpc.effects.model import estimate
from autoresearch_hpc.space import Domain


def _serve(requests: BinaryIO, answers: BinaryIO) -> None:
    while True:
        request = pickle.load(requests)
        try:
            answer: object = estimate(*request)
        except Exception as error:  # noqa: BLE001 - whatever it is, the run goes on without
            answer = f"{type(error).__name__}: {error}"
        pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
        answers.flush()
        del request, answer  # the next may not come for hours


def _warm_up() -> None:
    """Import what a fit imports, wherever that is."""
    domain = Domain(type=KnobType.int, low=0, high=3)
    points = [Observation(setting={"A": i % 4}, value=float(i % 3), num_trials=1, kind="") for i in range(12)]
    estimate(points, {"A": domain})


def _end_with_parent() -> None:
    """Also in the midst of a fit: the pipe has hung up."""
    hung_up = select.poll()
    hung_up.register(0, 0)
    hung_up.poll()
    os._exit(0)


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(Exception):  # the first request will say it
        _warm_up()
    with contextlib.suppress(EOFError, BrokenPipeError):
        _serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
