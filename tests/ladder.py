"""A search that is killed again and again, once around every kind of journal event, and must come out right."""

import signal
from collections import Counter
from pathlib import Path

from toy import Toy, finish

_DRIVER = Path(__file__).with_name("killed_at.py")

# Every event of a plain run, in the order of one round; each controller of the ladder gets as far as its own.
EVENTS = (
    "run.started",
    "round.proposed",
    "round.committed",
    "submit.intent",
    "submit.done",
    "trial.done",
    "round.judged",
    "round.closed",
)


def climb(toy: Toy, tag: str) -> None:
    """Run the toy's plan (a baseline, then rounds of K) to its end through SIGKILLs, and check what is left."""
    rungs = [("before", event) for event in EVENTS[1:]] + [("after", event) for event in EVENTS]
    for moment, event in sorted(rungs, key=lambda rung: EVENTS.index(rung[1])):
        process = toy.start(str(_DRIVER), moment, event, "1", "--", *toy.words(tag), module="")
        _, err = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, f"{moment} {event}: {process.returncode}\n{err}"
    finish(toy.search(tag))
    check(toy, tag)


def check(toy: Toy, tag: str) -> None:
    """The run is complete, every candidate was trained once, and the journal tells one story."""
    journal = toy.journal(tag)
    candidates = [c for line in journal if line["event"] == "round.proposed" for c in line["proposals"]]
    assert candidates
    assert toy.trained() == dict.fromkeys(candidates, 1)
    once = [line["trial"] for line in journal if line["event"] == "trial.done"]
    assert Counter(once) == {f"{candidate}-t0": 1 for candidate in candidates}
    assert {line["result"]["status"] for line in journal if line["event"] == "trial.done"} == {"OK"}
    for event in ("round.proposed", "round.committed", "round.judged", "round.closed"):
        told = [line["round"] for line in journal if line["event"] == event]
        assert told == sorted(set(told)), event
    assert journal[-1]["event"] == "run.stopped"
    assert journal[-1]["reason"] == "the plan is complete"
    incumbent = [line for line in journal if line["event"] == "round.judged"][-1]["incumbent"]
    best = min((r for r in toy.results(tag)), key=lambda r: r["metric"]["value"])
    assert incumbent["candidate"] == best["candidate"]
    assert toy.git("rev-parse", f"autoresearch/{tag}").strip() == incumbent["commit"]
