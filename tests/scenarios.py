"""Whole searches that are killed, interrupted, doubled; the same on every back end. Each checks how it came out."""

import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

from toy import Command, Toy

_DRIVER = Path(__file__).with_name("killed_at.py")

# Every event of a run of one round, in order; each controller of the ladder gets as far as its own.
EVENTS = (
    "run.started",
    "run.resumed",
    "round.proposed",
    "round.committed",
    "trials.wanted",
    "submit.intent",
    "submit.done",
    "trial.done",
    "round.judged",
    "round.closed",
    "run.stopped",
)
# What these announce is done in part when they are written: commits, an array, a branch that moved.
EFFECTS = ("round.committed", "submit.intent", "submit.done", "round.closed")

_LOSES_ITS_WORKER = """\
import json
if LR == 0.1 and os.getcwd().endswith("/t0/work"):  # the baseline's first trial
    time.sleep(2)
    os.kill(json.load(open("../claim-0.json"))["pid"], 9)
    time.sleep(9)
x = 5.0
"""


def killed_around_every_event(toy: Toy, tag: str) -> None:
    """SIGKILL around every event of a round, each time in a controller that resumes the last one's run."""
    for event in EVENTS:
        for moment in ("before", "after") if event in EFFECTS else ("after",):
            killed_at(toy, tag, moment, event).finish(-signal.SIGKILL, timeout_s=60)
    toy.search(tag).finish()
    complete(toy, tag)


def killed_between_looks(toy: Toy, tag: str) -> None:
    """SIGKILL around what a round of `decide=significant` asks for: replicates in its array, then fresh seeds."""
    for event in ("trials.wanted", "submit.intent", "trials.wanted", "submit.intent", "submit.done"):
        killed_at(toy, tag, "after", event).finish(-signal.SIGKILL, timeout_s=60)
    toy.search(tag).finish()
    complete(toy, tag)
    journal = toy.journal(tag)
    wanted = [line for line in journal if line["event"] == "trials.wanted"]
    assert [line["stage"] for line in wanted][:2] == ["array", "look 1"]
    assert len({line["stage"] for line in wanted}) == len(wanted), "nothing is asked for twice"
    assert wanted[0]["trials"] == {"r00-c00": 2}, "the baseline, three times with its own"
    (judged,) = [line for line in journal if line["event"] == "round.judged"]
    assert judged["noise"]["measured_df"] >= 2
    assert judged["findings"]["r00-c01"]["gain"]["margin"] > 0
    seeds = [result["seed"] for result in toy.results(tag)]
    assert len(set(seeds)) == len(seeds), "every trial has a seed of its own"
    assert (toy.run_dir(tag) / "candidates.csv").read_text().count("\n") == 1 + 4


def killed_at(toy: Toy, tag: str, moment: str, event: str, *words: str) -> Command:
    """Start or resume the search under a controller that will be killed before or after its first such event."""
    return toy.start(str(_DRIVER), moment, event, "1", "--", *toy.words(tag, *words), module="")


def killed_while_training(toy: Toy, tag: str) -> None:
    """Killed from outside while a round's trials run: they are adopted, not submitted again."""
    first = toy.search(tag)
    until_training(toy, tag, first)
    first.kill()
    toy.search(tag).finish()
    complete(toy, tag)
    assert _events(toy, tag)["submit.intent"] == _events(toy, tag)["round.proposed"]


def killed_before_a_lost_trial_is_dropped(toy: Toy, tag: str) -> None:
    """A round's last trial loses its worker, and the controller dies with nothing but that result in its journal."""
    toy.write("fit.py", (toy.root / "fit.py").read_text("utf-8").replace("x = 5.0\n", _LOSES_ITS_WORKER))
    toy.commit()
    killed_at(toy, tag, "before", "trial.dropped").finish(-signal.SIGKILL, timeout_s=60)
    last = toy.journal(tag)[-1]
    assert (last["event"], last["result"]["candidate"], last["result"]["status"]) == ("trial.done", "r00-c00", "LOST")
    assert _events(toy, tag)["trial.done"] == 2, "the round is complete"
    toy.search(tag).finish()
    journal = toy.journal(tag)
    told = [line["result"] for line in journal if line["event"] == "trial.done"]
    assert [r["status"] for r in told if r["candidate"] == "r00-c00"] == ["LOST", "OK"]
    assert journal[-1]["event"] == "run.stopped"


def terminated(toy: Toy, tag: str) -> None:
    """SIGTERM: the controller leaves, its trials go on, the next controller takes them up.

    Also where it has done nothing yet but take the run; where nothing is left to do, it ends as if it had not come.
    """
    first = toy.search(tag)
    until_training(toy, tag, first)
    first.process.terminate()
    _, err = first.finish(3)
    assert f"stopped by SIGTERM; resume with tag={tag}" in err
    _, err = killed_at(toy, tag, "warned", "run.resumed").finish(3)
    assert f"stopped by SIGTERM; resume with tag={tag}" in err
    killed_at(toy, tag, "warned", "run.stopped").finish()
    complete(toy, tag)
    events = _events(toy, tag)
    assert events["run.interrupted"] == events["run.resumed"] == 2
    assert (toy.run_dir(tag) / "report.html").exists()
    assert _events(toy, tag)["submit.intent"] == _events(toy, tag)["round.proposed"]


def interrupted(toy: Toy, tag: str, in_flight: Callable[[], int]) -> None:
    """Ctrl-C: one line that says how to resume, nothing left in flight; a kill right then changes nothing."""
    first = toy.search(tag)
    until_training(toy, tag, first)
    assert in_flight() > 0
    begun = time.monotonic()
    first.interrupt()
    _, err = first.finish(3)
    assert time.monotonic() - begun < 15
    last = err.splitlines()[-1]
    assert last == f"autoresearch_hpc: stopped by SIGINT; resume with tag={tag} and the same plan"
    assert in_flight() == 0
    assert toy.journal(tag)[-1]["event"] == "run.interrupted"

    second = killed_at(toy, tag, "after", "run.interrupted")
    begun_before = sum(toy.trained().values())
    wait(lambda: sum(toy.trained().values()) > begun_before, second)
    second.interrupt()
    second.finish(-signal.SIGKILL, timeout_s=30)
    wait(lambda: in_flight() == 0, None)
    toy.search(tag).finish()
    complete(toy, tag, interruptions=2)


def cancelled(toy: Toy, tag: str, in_flight: Callable[[], int]) -> None:
    """`.cancel` with a live controller, then without one."""
    first = toy.search(tag)
    until_training(toy, tag, first)
    out, _ = toy.start(tag, module="autoresearch_hpc.cancel").finish()
    assert f"asked the controller, pid {first.pid}" in out
    first.finish(3)
    assert in_flight() == 0

    second = toy.search(tag)
    begun_before = sum(toy.trained().values())
    wait(lambda: sum(toy.trained().values()) > begun_before, second)
    second.kill()
    assert in_flight() > 0
    out, _ = toy.start(tag, module="autoresearch_hpc.cancel").finish()
    assert "resume with" in out
    wait(lambda: in_flight() == 0, None)
    out, _ = toy.start(tag, module="autoresearch_hpc.cancel").finish()
    toy.search(tag).finish()
    complete(toy, tag, interruptions=2)


def two_at_once(toy: Toy) -> None:
    """Two runs in one repository, and a second controller on one of them, which is refused."""
    before = toy.checkout()
    one, other = toy.search("one", "seed=1"), toy.search("other", "seed=2")
    until_training(toy, "one", one)
    _, err = toy.search("one", "seed=1").finish(2)
    assert len(err.splitlines()) == 1
    assert "another controller works on" in err
    assert socket.gethostname() in err
    assert str(one.pid) in err
    one.finish()
    other.finish()
    assert toy.checkout() == before
    for tag in ("one", "other"):
        complete(toy, tag, runs=2)


def complete(toy: Toy, tag: str, *, interruptions: int = 0, runs: int = 1) -> None:
    """The run came to its end, every trial that was wanted was run once, and the journal tells one story.

    A trial that was cancelled by an interruption is run again; only then.
    """
    journal = toy.journal(tag)
    wanted = Counter(c for line in journal if line["event"] == "round.proposed" for c in line["proposals"])
    for line in journal:
        wanted.update(line["trials"] if line["event"] == "trials.wanted" else {})
    assert wanted
    trained = toy.trained()
    assert set(trained) == set(wanted)
    dropped = Counter(line["trial"].rpartition("-")[0] for line in journal if line["event"] == "trial.dropped")
    assert max(dropped.values(), default=0) <= interruptions
    for candidate, times in wanted.items():
        assert runs * times <= trained[candidate] <= runs * times + dropped[candidate], (trained, wanted, dropped)
    results = {line["trial"]: line["result"] for line in journal if line["event"] == "trial.done"}
    assert len(results) == _events(toy, tag)["trial.done"], "no result is told twice"
    good = [r for r in results.values() if r["status"] == "OK"]
    assert Counter(r["candidate"] for r in good) == wanted
    for event in ("round.proposed", "round.committed", "round.judged", "round.closed"):
        told = [line["round"] for line in journal if line["event"] == event]
        assert told == sorted(set(told)), event
    assert (journal[-1]["event"], journal[-1]["reason"]) == ("run.stopped", "the plan is complete")
    incumbent = [line for line in journal if line["event"] == "round.judged"][-1]["incumbent"]
    values = {c: [r["metric"]["value"] for r in good if r["candidate"] == c] for c in wanted}
    assert incumbent["value"] == mean(values[incumbent["candidate"]])
    if max(wanted.values()) == 1:  # decide=best
        assert incumbent["value"] == min(*values.values())[0]
    assert toy.git("rev-parse", f"autoresearch/{tag}").strip() == incumbent["commit"]


# Two kinds of GPU, one trial at a time on the second.
TWO_TIERS = "+cluster.tiers={screen:{max_parallel:2},validate:{max_parallel:1}}"
VALIDATED = ("plan.validate.top=2", "plan.validate.seeds=2")


def overlapping_killed(toy: Toy, tag: str, *words: str) -> None:
    """SIGKILL around events of rounds that overlap, each time in a controller that resumes the last one's run."""
    ladder = [event for event in EVENTS if event not in ("run.started", "run.stopped", "run.resumed")]
    for event in [*ladder, *ladder]:
        killed_at(toy, tag, "after", event, *words).finish(-signal.SIGKILL, timeout_s=60)
    toy.search(tag, *words).finish()
    each_once(toy, tag)


def each_once(toy: Toy, tag: str) -> None:
    """Rounds that may overlap came to their end: what was wanted was run once, on the tier where it was wanted."""
    journal = toy.journal(tag)
    wanted: Counter[tuple[str, str]] = Counter()
    for line in journal:
        if line["event"] == "round.committed":
            wanted.update(line["tiers"].items())
        if line["event"] == "trials.wanted":
            wanted.update({(id_, line["tier"]): count for id_, count in line["trials"].items()})
    told = [line["result"] for line in journal if line["event"] == "trial.done"]
    assert Counter((result["candidate"], result["tier"]) for result in told) == wanted
    assert len({result["trial"] for result in told}) == len(told), "no result is told twice"
    assert {result["status"] for result in told} == {"OK"}
    trained: Counter[str] = Counter()
    for (candidate, _), count in wanted.items():
        trained[candidate] += count
    assert toy.trained() == trained, "nothing is trained twice"
    proposed = [id_ for line in journal if line["event"] == "round.proposed" for id_ in line["proposals"]]
    assert len(set(proposed)) == len(proposed)
    for event in ("round.judged", "round.closed"):
        assert sorted(line["round"] for line in journal if line["event"] == event) == list(range(_rounds(journal)))
    assert (journal[-1]["event"], journal[-1]["reason"]) == ("run.stopped", "the plan is complete")
    incumbent = [line for line in journal if line["event"] == "round.judged"][-1]["incumbent"]
    assert toy.git("rev-parse", f"autoresearch/{tag}").strip() == incumbent["commit"]


def validated_beside_the_next_round(toy: Toy, tag: str, tiers: str = TWO_TIERS) -> None:
    """The best of each round are run again on the other tier while the next round is screened; only they are kept."""
    toy.search(tag, tiers, *VALIDATED).finish()
    each_once(toy, tag)
    journal = toy.journal(tag)
    results = {line["trial"]: line["result"] for line in journal if line["event"] == "trial.done"}
    stages = [line for line in journal if line["event"] == "trials.wanted" and line["stage"] == "validation"]
    assert [line["tier"] for line in stages] == ["validate"] * len(stages)
    screened = {r["candidate"]: r["metric"]["value"] for r in results.values() if r["trial"].endswith("-t0")}
    for line in stages:
        mine = sorted(
            (id_ for id_ in screened if id_.startswith(f"r{line['round']:02d}")), key=lambda id_: screened[id_]
        )
        chosen = {id_: count for id_, count in line["trials"].items() if id_ in mine}
        assert chosen == dict.fromkeys(mine[:2], 2), "two seeds each of the two best"
    assert any(_order(journal, "submit.intent", line["round"] + 1) < _order(journal, "round.judged", line["round"])
               for line in stages[:-1]), "the next round is under way before this one is judged"  # fmt: skip
    judged = [line for line in journal if line["event"] == "round.judged"]
    for line in judged[1:]:
        values = [r for r in results.values() if r["candidate"] == line["incumbent"]["candidate"]]
        assert {r["tier"] for r in values} == {"screen", "validate"}, "the incumbent has a baseline on each"
        beaten = [id_ for id_, finding in line["findings"].items() if finding["call"] == "screened out"]
        assert len(beaten) == len(line["findings"]) - 2
    known = [
        r["metric"]["value"]
        for r in results.values()
        if r["candidate"] == judged[-1]["incumbent"]["candidate"] and r["tier"] == "validate"
    ]
    assert abs(judged[-1]["incumbent"]["value"] - mean(known)) < 0.1


def slots_are_refilled(toy: Toy, tag: str, k: int) -> None:
    """`schedule=async`: a slot that comes free has its next candidate before the round's others have ended."""
    toy.search(tag, "schedule=async").finish()
    each_once(toy, tag)
    journal = toy.journal(tag)
    parts = Counter(line["round"] for line in journal if line["event"] == "round.proposed")
    assert max(parts.values()) > 1, "a round is proposed in parts, as slots come free"
    proposed = Counter(
        id_.split("-")[0] for line in journal if line["event"] == "round.proposed" for id_ in line["proposals"]
    )
    assert {count for name, count in proposed.items() if name != "r00"} == {k}
    running, most, seen = 0, 0, 0
    for line in journal:
        running += len(line["trials"]) if line["event"] == "submit.intent" else 0
        running -= line["event"] == "trial.done"
        most = max(most, running)
        seen += line["event"] == "round.proposed" and running > 0
    assert most == 2, "never more than cluster.max_parallel"
    assert seen >= 3, "candidates are proposed while others run"


def spread_over_tiers(toy: Toy, tag: str) -> None:
    """`tiers=any`: a round runs on both kinds of GPU, each candidate compared with the incumbent on its own."""
    toy.search(tag, TWO_TIERS, "tiers=any").finish()
    each_once(toy, tag)
    journal = toy.journal(tag)
    places = [set(line["tiers"].values()) for line in journal if line["event"] == "round.committed"]
    assert places[1:] == [{"screen", "validate"}] * len(places[1:])
    (first, *_) = [line for line in journal if line["event"] == "round.judged" and line["round"] == 1]
    assert all("not compared" not in finding["call"] for finding in first["findings"].values())
    baseline = [
        line["result"]["tier"]
        for line in journal
        if line["event"] == "trial.done" and line["result"]["candidate"] == "r00-c00"
    ]
    assert set(baseline) == {"screen", "validate"}


def _rounds(journal: list[dict[str, Any]]) -> int:
    return 1 + max(line["round"] for line in journal if line["event"] == "round.proposed")


def _order(journal: list[dict[str, Any]], event: str, round_: int) -> int:
    return next(line["seq"] for line in journal if line["event"] == event and line["round"] == round_)


def _events(toy: Toy, tag: str) -> Counter[str]:
    return Counter(line["event"] for line in toy.journal(tag))


def until_training(toy: Toy, tag: str, controller: Command) -> None:
    """Until trials of the newest round are in their scripts."""
    wait(lambda: _events(toy, tag)["submit.done"] > 0 and toy.trained(), controller)


def wait(condition: Callable[[], object], controller: Command | None, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert controller is None or controller.running, controller.said()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def local_workers(toy: Toy) -> int:
    """Workers of the repository's trials that are running on this machine."""
    found = 0
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                words = (process / "cmdline").read_bytes()
            except OSError:
                continue
            found += b"\0autoresearch_hpc.trial.worker\0" in words and os.fsencode(toy.root) in words
    return found
