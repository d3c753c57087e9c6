"""Near misses are combined: with real commits and merges, from a history as rounds leave it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from git_repo import make_repo

from autoresearch_hpc.agents.protocol import Brief
from autoresearch_hpc.candidates import CandidateMaker
from autoresearch_hpc.combine import Combiner, Edit, Version, combinations
from autoresearch_hpc.config import (
    CandidateConfig,
    KnobDomain,
    KnobsBy,
    KnobType,
    MetricConfig,
    PlanConfig,
    RoundConfig,
    SpaceConfig,
    TaskConfig,
    TaskKind,
)
from autoresearch_hpc.gains import Comparison, Gain
from autoresearch_hpc.history import History
from autoresearch_hpc.journal import Event
from autoresearch_hpc.layout import RunLayout
from autoresearch_hpc.records import Candidate, Proposal, candidate_id, from_json, to_json
from autoresearch_hpc.repo import Repo
from autoresearch_hpc.space import Space, from_config

SCRIPT = """\
LR = 0.1  # the rate
DEPTH = 4
WIDTH = 2**6
BETAS = (0.9, 0.95)


def model(x):
    return x * WIDTH


def loss(x):
    return x * x


def step(x):
    return x - LR * x
"""
SPACE = SpaceConfig(
    knobs={
        "LR": KnobDomain(type=KnobType.float, low=0.01, high=0.9),
        "DEPTH": KnobDomain(type=KnobType.int, low=1, high=16),
        "WIDTH": KnobDomain(type=KnobType.pow2, low=16, high=256),
    },
    bounds=["DEPTH * WIDTH <= 1024"],
)
START = {"LR": 0.1, "DEPTH": 4, "WIDTH": 64}
ENV: Mapping[str, Any] = {
    "kind": TaskKind.command,
    "command": "sh x",
    "metric": MetricConfig(regex="(.)"),
    "knobs_by": KnobsBy.env,
}


class FakeDesk:
    """A desk that finds what the test says, and keeps what it was asked."""

    def __init__(self, found: str = "") -> None:
        self.found, self.stops = found, 0
        self.asked: list[tuple[Mapping[str, str], Mapping[str, str]]] = []

    def problem(self, before: Mapping[str, str], after: Mapping[str, str], *, quick: bool = False) -> str:
        self.asked.append((before, after))
        return self.found

    def check_stop(self) -> None:
        self.stops += 1


class Search:
    """Rounds of real commits, judged as the test says."""

    def __init__(
        self,
        root: Path,
        *,
        script: str = SCRIPT,
        space: Space | None = None,
        plan: PlanConfig | None = None,
        desk: FakeDesk | None = None,
        **task: Any,
    ) -> None:
        self.repo = Repo(make_repo(root / "it's a repo", {"train.py": script, "other.py": "x = 1\n"}))
        self.events: list[Event] = []
        self.history = History()
        settings = TaskConfig(**task)
        self.maker = CandidateMaker(self.repo, RunLayout(root / "run"), settings, "tag")
        self.brief = Brief(
            config=None,  # type: ignore[arg-type]
            plan=plan or PlanConfig(name="p", k=4, max_rounds=99),
            space=space,
            script="train.py" if self.maker.rewrites else None,
            desk=desk,  # type: ignore[arg-type]
        )
        run = {"tag": "tag", "uid": "u", "start_commit": self.repo.head, "config_sha256": "", "metric": "m"}
        self.event("run.started", **run, direction="min")
        base = Proposal(title="baseline", knobs={} if self.maker.rewrites else START)
        self.round([base], keep=0)

    def event(self, name: str, **data: object) -> None:
        self.events.append(Event(seq=len(self.events), at="2026-01-31T12:00:00+00:00", event=name, data=data))
        self.history.apply(self.events[-1])

    def round(
        self,
        proposals: Sequence[Proposal],
        near: Sequence[int] = (),
        keep: int | None = None,
        base: str | None = None,
        gain: float = 0.5,
    ) -> None:
        """A judged round on the incumbent, or on `base`; near misses are given best first, the best has `gain`."""
        index = len(self.history.rounds)
        standing = self.history.incumbent
        ids = [candidate_id(index, i) for i in range(len(proposals))]
        named = dict(zip(ids, proposals, strict=True))
        base_id = base or (standing.candidate if standing else None)
        commit = self.candidate(base_id).commit if base_id else self.repo.head
        told = {id_: to_json(proposal) for id_, proposal in named.items()}
        self.event("round.proposed", round=index, base=commit, proposals=told)
        made = []
        for id_, proposal in named.items():
            parent = self.candidate(proposal.on or base_id) if proposal.on or base_id else None
            commit, knobs = (parent.commit, parent.knobs) if parent else (self.repo.head, {})
            made.append(self.maker.make(id_, index, proposal, commit, knobs))
        self.event("round.committed", round=index, candidates=[to_json(candidate) for candidate in made])
        verdicts = {id_: "keep" if i == keep else "discard" for i, id_ in enumerate(ids)}
        pool = [ids[i] for i in near]
        found = {
            id_: to_json(Comparison(call="near miss", gain=Gain(value=gain - i / 10))) for i, id_ in enumerate(pool)
        }
        kept = made[keep] if keep is not None else None
        incumbent = {"candidate": kept.id, "commit": kept.commit, "value": 1.0} if kept else None
        if incumbent is None and standing:
            incumbent = {"candidate": standing.candidate, "commit": standing.commit, "value": 1.0}
        self.event("round.judged", round=index, verdicts=verdicts, findings=found, pool=pool, incumbent=incumbent)

    def candidate(self, id_: str) -> Candidate:
        found = self.history.entry(id_).candidate
        assert found
        return found

    def propose(self, index: int | None = None, k: int = 4) -> list[Proposal]:
        index = len(self.history.rounds) if index is None else index
        return Combiner(self.brief, self.maker, self.repo.merge).propose(self.history, index, k)

    def script_of(self, proposal: Proposal) -> str:
        """train.py as the proposal makes it, on the incumbent."""
        assert self.history.incumbent
        commit, round_ = self.history.incumbent.commit, len(self.history.rounds)
        made = self.maker.make(candidate_id(round_, 0), round_, proposal, commit, {})
        return self.repo.read(made.commit, "train.py")


def knobs(**settings: Any) -> Proposal:
    return Proposal(title=str(settings), knobs=settings)


def code(title: str, *replaced: tuple[str, str], script: str = SCRIPT, **settings: Any) -> Proposal:
    for old, new in replaced:
        assert script.count(old) == 1
        script = script.replace(old, new)
    return Proposal(title=title, files={"train.py": script}, knobs=settings)


LOSS = ("return x * x\n", "return abs(x)\n")
MODEL = ("return x * WIDTH\n", "return x * WIDTH + 1\n")


def test_settings_of_neighbouring_lines_are_combined(tmp_path: Path) -> None:
    search = Search(tmp_path)
    search.round([knobs(**START | {"LR": 0.2}), knobs(**START | {"DEPTH": 8}), knobs(LR=0.5)], near=[1, 0])
    (proposal,) = search.propose()
    assert proposal.title == "r01-c01 + r01-c00: LR=0.2, DEPTH=8"
    assert proposal.parts == ("r01-c01", "r01-c00"), "the better one first"
    assert (proposal.origin, proposal.on, proposal.files) == ("combine", None, {})
    assert dict(proposal.knobs) == {"LR": 0.2, "DEPTH": 8}
    assert proposal.reasoning == "Near misses, together on r00-c00: each alone was too small to tell from luck."
    assert from_json(Proposal, to_json(proposal)) == proposal
    assert search.script_of(proposal) == SCRIPT.replace("0.1", "0.2").replace("= 4", "= 8")


def test_settings_of_one_knob_go_together_only_where_they_are_equal(tmp_path: Path) -> None:
    search = Search(tmp_path / "a")
    search.round([knobs(LR=0.2, DEPTH=8), knobs(LR=0.3, WIDTH=32)], near=[0, 1])
    assert search.propose() == []
    search = Search(tmp_path / "b")
    search.round([knobs(LR=0.2, DEPTH=8), knobs(LR=0.2, WIDTH=32)], near=[0, 1])
    assert dict(search.propose()[0].knobs) == {"LR": 0.2, "DEPTH": 8, "WIDTH": 32}


def test_code_is_merged_and_settings_on_top(tmp_path: Path) -> None:
    search = Search(tmp_path)
    changed_rate = code("absolute loss", LOSS, ("LR = 0.1  # the rate", "LR = 0.2  # the rate"))
    search.round([changed_rate, code("a bias", MODEL, DEPTH=8), knobs(WIDTH=32)], near=[0, 1, 2])
    (proposal,) = search.propose()
    wanted = SCRIPT
    for old, new in (LOSS, MODEL, ("0.1", "0.2"), ("= 4", "= 8"), ("2**6", "2**5")):
        wanted = wanted.replace(old, new)
    assert proposal.title == "r01-c00 + r01-c01 + r01-c02: absolute loss; a bias; LR=0.2, DEPTH=8, WIDTH=32"
    assert proposal.files == {"train.py": wanted}
    assert dict(proposal.knobs) == {"LR": 0.2, "DEPTH": 8, "WIDTH": 32}
    assert search.script_of(proposal) == wanted


def test_code_that_changes_the_same_line_is_no_combination(tmp_path: Path) -> None:
    search = Search(tmp_path)
    search.round(
        [code("absolute", LOSS), code("cubic", ("x * x\n", "x * x * x\n")), code("bias", MODEL)], near=[0, 1, 2]
    )
    assert search.propose()[0].parts == ("r01-c00", "r01-c02")
    assert [p.parts for p in search.propose(k=99)] == [("r01-c00", "r01-c02")], "plan.combine is 1"
    search.brief.plan.combine = 9
    assert [p.parts for p in search.propose(k=99)] == [("r01-c00", "r01-c02"), ("r01-c01", "r01-c02")]


def test_one_that_lost_against_the_incumbent_of_its_own_round_is_put_onto_it(tmp_path: Path) -> None:
    search = Search(tmp_path)
    search.round([knobs(**START | {"LR": 0.2}), code("absolute loss", LOSS)], near=[1], keep=0)
    (proposal,) = search.propose()
    assert proposal.title == "r01-c01 on r01-c00: absolute loss"
    assert proposal.reasoning == "A near miss that was tried on an earlier incumbent than r01-c00."
    assert dict(proposal.knobs) == {}
    assert search.script_of(proposal) == SCRIPT.replace("0.1", "0.2").replace(*LOSS)


def test_an_edit_is_what_differs_from_the_incumbent_of_its_time_not_from_the_baseline(tmp_path: Path) -> None:
    search = Search(tmp_path)
    search.round([knobs(LR=0.2)], keep=0)
    search.round([knobs(LR=0.4), knobs(DEPTH=8)], near=[1], keep=0)
    (proposal,) = search.propose()
    assert (proposal.parts, dict(proposal.knobs)) == (("r02-c01",), {"DEPTH": 8})


def test_edits_of_different_incumbents_are_combined(tmp_path: Path) -> None:
    """r02 was proposed before r01 was judged, and r03 after."""
    search = Search(tmp_path)
    search.round([knobs(**START | {"LR": 0.2}), knobs(LR=0.9)], keep=0)
    search.round([code("absolute loss", LOSS), knobs(LR=0.4)], near=[0, 1], base="r00-c00")
    search.round([knobs(LR=0.2, DEPTH=8, WIDTH=64)], near=[0])
    (proposal,) = search.propose()
    assert proposal.parts == ("r02-c00", "r03-c00"), "r02-c01 changes the incumbent's own knob"
    assert search.script_of(proposal) == SCRIPT.replace("0.1", "0.2").replace("= 4", "= 8").replace(*LOSS)


def test_a_near_miss_of_the_incumbent_itself_is_not_proposed_again(tmp_path: Path) -> None:
    search = Search(tmp_path)
    search.round([knobs(LR=0.2), code("absolute", LOSS), knobs(LR=0.3)], near=[0])
    assert search.propose() == []


def test_a_combination_that_was_run_in_another_way_is_not_proposed(tmp_path: Path) -> None:
    search = Search(tmp_path)
    search.round([knobs(LR=0.2), knobs(WIDTH=128)], near=[0, 1])
    assert len(search.propose()) == 1
    search.round([code("both", ("LR = 0.1  # the rate", "LR = 2e-1"), ("2**6", "128"))])
    assert search.propose() == []


def test_a_set_is_proposed_once_and_smaller_ones_follow(tmp_path: Path) -> None:
    search = Search(tmp_path)
    search.round([knobs(LR=0.2), knobs(DEPTH=8), code("absolute loss", LOSS)], near=[0, 1, 2])
    seen = []
    while proposals := search.propose():
        assert History.replay(search.events).pool == search.history.pool
        replayed = History.replay(search.events)
        again = Combiner(search.brief, search.maker, search.repo.merge).propose(replayed, len(replayed.rounds), 4)
        assert again == proposals, "who resumes proposes the same"
        seen += [proposal.parts for proposal in proposals]
        search.round(proposals)
    a, b, c = "r01-c00", "r01-c01", "r01-c02"
    assert seen == [(a, b, c), (a, b), (a, c), (b, c)]


def test_a_near_miss_that_is_a_combination_is_not_taken_apart_and_put_together_again(tmp_path: Path) -> None:
    search = Search(tmp_path)
    search.round([knobs(LR=0.2), knobs(DEPTH=8)], near=[0, 1])
    search.round(search.propose(), near=[0], gain=0.9)
    assert search.propose() == []
    search.round([knobs(WIDTH=32)], near=[0])
    assert search.propose()[0].parts == ("r02-c00", "r03-c00")


def test_a_bound_of_the_space_is_kept(tmp_path: Path) -> None:
    search = Search(tmp_path, space=from_config(SPACE))
    search.round([knobs(DEPTH=8), knobs(WIDTH=256), knobs(LR=0.2)], near=[0, 1, 2])
    search.brief.plan.combine = 9
    assert [p.parts for p in search.propose(k=99)] == [("r01-c00", "r01-c02"), ("r01-c01", "r01-c02")]


@pytest.mark.parametrize("keep", [0, 1])
def test_a_knob_that_one_side_removes_and_the_other_sets(tmp_path: Path, keep: int) -> None:
    search = Search(tmp_path)
    gone = code("no width", ("WIDTH = 2**6\n", ""), ("x * WIDTH", "x * 64"))
    search.round([gone, knobs(WIDTH=32), knobs(LR=0.2)], near=[1 - keep, 2], keep=keep)
    assert [p.parts for p in search.propose()] == [("r01-c02",)]


def test_a_bound_that_names_a_removed_knob_does_not_hold(tmp_path: Path) -> None:
    search = Search(tmp_path, space=from_config(SPACE))
    gone = code("no width", ("WIDTH = 2**6\n", ""), ("x * WIDTH", "x * 64"))
    search.round([gone, knobs(LR=0.2)], near=[0, 1])
    assert search.propose() == []


def test_code_beside_a_setting_that_another_has_changed(tmp_path: Path) -> None:
    search = Search(tmp_path)
    above = code("imports", ("LR = 0.1  # the rate\n", "import math\nLR = 0.1  # the rate\n"), ("* WIDTH", "* math.pi"))
    below = code("absolute", LOSS, ("LR = 0.1  # the rate", "LR = 0.2  # the rate"))
    search.round([knobs(LR=0.2, WIDTH=32), above, below], near=[0, 1, 2])
    (proposal,) = search.propose()
    assert proposal.parts == ("r01-c00", "r01-c01", "r01-c02")
    wanted = "import math\n" + SCRIPT.replace("* WIDTH", "* math.pi").replace(*LOSS)
    assert search.script_of(proposal) == wanted.replace("0.1", "0.2").replace("2**6", "2**5")


def test_a_constant_of_another_type_and_one_moved_twice(tmp_path: Path) -> None:
    search = Search(tmp_path / "a")
    search.round([knobs(LR=0.2), code("words", ("DEPTH = 4", "DEPTH = 'deep'")), knobs(WIDTH=32)], near=[0, 1, 2])
    assert search.propose()[0].parts == ("r01-c00", "r01-c02")
    search = Search(tmp_path / "b")
    moved = [code(at, ("WIDTH = 2**6\n", ""), (at, f"WIDTH = 2**6\n\n\n{at}")) for at in ("def loss", "def step")]
    search.round([*moved, knobs(LR=0.2)], near=[0, 1, 2])
    assert search.propose()[0].parts == ("r01-c00", "r01-c02")


def test_a_result_is_proposed_once_whatever_it_is_made_of(tmp_path: Path) -> None:
    search = Search(tmp_path)
    search.round([knobs(LR=0.2, DEPTH=8), knobs(DEPTH=8, WIDTH=32), knobs(LR=0.2, WIDTH=32)], near=[0, 1, 2])
    search.brief.plan.combine = 9
    assert [p.parts for p in search.propose(k=99)] == [("r01-c00", "r01-c01")]


def test_sets_that_were_tried_on_another_incumbent_are_not_tried_again() -> None:
    def version(**settings: float) -> Version:
        return Version(files={}, knobs={"a": 0.0, "b": 0.0, "c": 0.0, **settings})

    def made(*tried: Sequence[str]) -> list[tuple[str, ...]]:
        edits = [Edit.of(name, name, version(), version(**{name: 1.0})) for name in "abc"]
        sets = combinations(version(), edits, lambda *texts: None, lambda made: True, frozenset(map(frozenset, tried)))
        return [tuple(edit.id for edit in parts) for parts, _ in sets]

    assert made() == [tuple("abc"), tuple("ab"), tuple("ac"), tuple("bc"), ("a",), ("b",), ("c",)]
    assert made("cba", "ca", "b") == [tuple("ab"), tuple("bc"), ("a",), ("c",)]


@pytest.mark.parametrize(("where", "together"), [("BETAS = (0.9, 0.95)\n", True), ("def step", False)])
def test_a_constant_that_both_have_added(tmp_path: Path, where: str, together: bool) -> None:
    """In one place it is the same change; in two it is assigned twice."""
    search = Search(tmp_path)
    top = "BETAS = (0.9, 0.95)\n"
    one = code("one", (top, f"{top}SCALE = 1.0\n"), ("x * WIDTH", "x * WIDTH * SCALE"))
    added = f"{top}SCALE = 1.0\n" if together else f"SCALE = 1.0\n\n\n{where}"
    other = code("other", (where, added), ("x - LR", "x - SCALE * LR"))
    search.round([one, other], near=[0, 1])
    assert [dict(p.knobs) for p in search.propose()] == ([{}] if together else [])


def test_a_mended_candidate_brings_along_what_it_mended(tmp_path: Path) -> None:
    search = Search(tmp_path)
    broken = ("return x * x\n", "return abs(y)\n")
    search.round([code("absolute", broken), knobs(LR=0.2)])
    mended = Proposal(title="mended", files={"train.py": SCRIPT.replace(*LOSS)}, on="r01-c00")
    search.round([mended, knobs(DEPTH=8)], near=[0, 1])
    (proposal,) = search.propose()
    assert search.script_of(proposal) == SCRIPT.replace(*LOSS).replace("= 4", "= 8")


def test_settings_that_travel_beside_the_script(tmp_path: Path) -> None:
    search = Search(tmp_path, **ENV)
    search.round([knobs(**START | {"LR": 0.2}), knobs(**START | {"DEPTH": 8}), code("absolute", LOSS)], near=[0, 1, 2])
    (proposal,) = search.propose()
    assert dict(proposal.knobs) == {"LR": 0.2, "DEPTH": 8}
    assert proposal.files == {"train.py": SCRIPT.replace(*LOSS)}
    search.round([knobs(**START | {"LR": 0.2, "DEPTH": 8})])
    search.round([proposal])
    assert [p.parts for p in search.propose()] == [("r01-c00", "r01-c02")], "the pair of settings has been run"


def test_a_setting_beside_the_script_that_the_incumbent_does_not_have(tmp_path: Path) -> None:
    search = Search(tmp_path, **ENV)
    search.round([knobs(NEW=1), knobs(NEW=2), knobs(LR=0.2)], near=[0, 1, 2])
    (proposal,) = search.propose()
    assert (proposal.parts, dict(proposal.knobs)) == (("r01-c00", "r01-c02"), {"NEW": 1, "LR": 0.2})


def test_a_change_of_comments_alone_is_no_code(tmp_path: Path) -> None:
    search = Search(tmp_path)
    search.round([code("slower", ("LR = 0.1  # the rate", "LR = 5e-2  # found by hand")), knobs(DEPTH=8)], near=[0, 1])
    (proposal,) = search.propose()
    assert (dict(proposal.knobs), proposal.files) == ({"LR": 0.05, "DEPTH": 8}, {})


def test_code_is_checked_before_it_costs_a_gpu(tmp_path: Path) -> None:
    desk = FakeDesk()
    search = Search(tmp_path / "a", desk=desk)
    search.round([knobs(LR=0.2), knobs(DEPTH=8)], near=[0, 1])
    assert search.propose()
    assert desk.asked == [], "settings alone are not"
    search = Search(tmp_path / "b", desk=desk)
    search.round([knobs(LR=0.2), code("absolute", LOSS), code("bias", MODEL)], near=[0, 1, 2])
    assert search.propose()
    [(before, after)] = desk.asked
    assert before == {"train.py": SCRIPT}
    assert after == {"train.py": SCRIPT.replace(*LOSS).replace(*MODEL).replace("0.1", "0.2")}
    desk.found = "undefined name 'y'\nand more"
    desk.asked.clear()
    assert search.propose() == []
    assert len(desk.asked) == 4, "all three, and each pair"
    assert desk.stops == 5, "each takes seconds"


def test_where_there_are_no_combinations(tmp_path: Path) -> None:
    explicit = RoundConfig(candidates=[CandidateConfig(knobs={"LR": 0.3})])
    plan = PlanConfig(name="p", k=4, rounds=[RoundConfig(), RoundConfig(), explicit, RoundConfig()], max_rounds=9)
    search = Search(tmp_path, plan=plan)
    search.round([knobs(LR=0.2), knobs(DEPTH=8), knobs(WIDTH=32)], near=[0, 1, 2])
    assert len(search.propose(2)) == 1
    assert search.propose(1) == [], "the first round has only the baseline before it"
    assert search.propose(3) == [], "the plan names its candidates"
    assert len(search.propose(4)) == 1
    plan.combine = 9
    assert [len(search.propose(2, k)) for k in (1, 2, 3, 4, 5, 99)] == [0, 1, 1, 2, 2, 4], "half of K at most"
    plan.combine = 0
    assert search.propose(2) == []


def test_a_round_that_has_begun_gets_no_more_than_its_share(tmp_path: Path) -> None:
    search = Search(tmp_path)
    search.round([knobs(LR=0.2), knobs(DEPTH=8), knobs(WIDTH=32)], near=[0, 1, 2])
    search.round([knobs(LR=0.7), knobs(LR=0.6), knobs(LR=0.5)])
    search.brief.plan.combine = 2
    assert [len(search.propose(2, k)) for k in (0, 1, 2)] == [0, 1, 2], (
        "half of what the round will have, as room comes"
    )
    search.brief.plan.combine = 1
    search.round([*search.propose(), knobs(LR=0.8)])
    assert search.propose(3, k=6) == [], "it has its one"
    search.brief.plan.combine = 2
    assert [len(search.propose(3, k)) for k in (0, 1, 2, 6)] == [0, 0, 1, 1]
