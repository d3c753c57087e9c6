"""Answers of language models, good and bad."""

import json

import pytest

from autoresearch_hpc.agents.answers import parse
from autoresearch_hpc.agents.drafts import Draft, Rejected
from autoresearch_hpc.agents.edits import Patch, Replacement, WholeFile

GOOD = {
    "title": "a higher rate",
    "reasoning": "it is low",
    "knobs": {"LR": 0.2, "BETAS": [0.8, 0.9]},
    "edits": [{"search": "a", "replace": "b"}, {"path": "other.py", "text": "x"}],
    "diff": "@@ -1 +1 @@\n-a\n+b\n",
    "files": {"other.py": "whole"},
    "fix": "r01-c01",
}
TEXT = json.dumps({"proposals": [GOOD, {"title": "second", "knobs": {"LR": 1}}]})


def good(text: str) -> list[Draft]:
    found = parse(text, "train.py")
    assert all(isinstance(item, Draft) for item in found), found
    return [item for item in found if isinstance(item, Draft)]


def problem(text: str) -> str:
    *_, last = parse(text, "train.py")
    assert isinstance(last, Rejected)
    return last.problem


def test_every_form_of_an_edit() -> None:
    draft = good(TEXT)[0]
    assert (draft.title, draft.reasoning, draft.fixes) == ("a higher rate", "it is low", "r01-c01")
    assert draft.knobs == {"LR": 0.2, "BETAS": (0.8, 0.9)}
    assert draft.edits == (
        Replacement(path="train.py", search="a", replace="b"),
        WholeFile(path="other.py", text="x"),
        Patch(diff="@@ -1 +1 @@\n-a\n+b\n"),
        WholeFile(path="other.py", text="whole"),
    )


@pytest.mark.parametrize(
    "text",
    [
        f"Here is what I think {{so far}} of [it].\n```json\n{TEXT}\n```\nGood luck!",
        json.dumps({"proposals": [GOOD, {"title": "second"}]}, indent=2),
        json.dumps([GOOD, {"title": "second"}]),
        TEXT.replace("\\n", "\n"),
        f"\ufeff<think>\nIf {{x}} then [y]\n</think>{TEXT}",
    ],
    ids=["prose", "indented", "list", "raw line ends", "thoughts"],
)
def test_what_may_be_around_the_json(text: str) -> None:
    assert [draft.title for draft in good(text)] == ["a higher rate", "second"]


def test_a_single_proposal() -> None:
    assert good(json.dumps(GOOD))[0].title == "a higher rate"


@pytest.mark.parametrize("cut", range(len(TEXT) - len('"second", "knobs": {"LR": 1}}]}'), len(TEXT) - 2))
def test_of_a_cut_answer_the_whole_proposals_count(cut: int) -> None:
    found = parse(TEXT[:cut], "train.py")
    assert isinstance(found[0], Draft)
    assert found[0].title == "a higher rate"
    assert isinstance(found[-1], Rejected)
    assert "cut off after 1" in found[-1].problem


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("  \n", "empty"),
        ("I'm sorry, I can't help with that.", "no JSON object"),
        ("{}", "no JSON object"),
        ('{"proposals": []}', "empty"),
        ('{"proposals": "none"}', "no JSON object"),
        ('{"proposals": ["deeper"]}', "no JSON object but 'deeper'"),
        ('{"proposals": [{"knobs": {"LR": 1}}]}', "no title"),
        ('{"proposals": [{"title": "t", "knobs": [1]}]}', "knobs is no object"),
        ('{"proposals": [{"title": "t", "knobs": {"LR": {"a": 1}}}]}', "a knob holds"),
        ('{"proposals": [{"title": "t", "knobs": {"LR": NaN}}]}', "finite"),
        ('{"proposals": [{"title": "t", "edits": ["x"]}]}', "no object with path"),
        ('{"proposals": [{"title": "t", "edits": [{"path": "a"}]}]}', "neither search"),
        ('{"proposals": [{"title": "t", "edits": [{"search": 1}]}]}', "search is no text"),
        ('{"proposals": [{"title": "t", "files": {"a": 1}}]}', "a is no text"),
        ('{"proposals": [{"title": "t", "fix": 3}]}', "fix is no"),
        ("[" * 100_000, "no JSON object"),
        ('{"proposals": ' * 5000, "no JSON object"),
    ],
)
def test_what_is_no_proposal_says_why(text: str, words: str) -> None:
    assert words in problem(text)


def test_good_ones_beside_a_bad_one_count() -> None:
    found = parse(json.dumps({"proposals": [{"no": "title"}, GOOD]}), "train.py")
    assert [type(item) for item in found] == [Rejected, Draft]


def test_a_draft_is_kept_by_its_number() -> None:
    drafts = [Draft(title="one"), Draft(title="two")]
    found = parse(
        '{"proposals": [{"draft": 2}, {"title": "new", "knobs": {"A": 1}}, {"draft": 3}]}', "train.py", drafts
    )
    assert found[0] is drafts[1]
    assert isinstance(found[1], Draft)
    assert isinstance(found[2], Rejected)
