"""Edits as models write them."""

import difflib
import random
from pathlib import Path

import pytest

from autoresearch_hpc.agents.drafts import Draft, attempt
from autoresearch_hpc.agents.edits import EditError, Patch, Replacement, WholeFile, apply

TEXT = """\
LR = 0.1  # rate


def step(x):
    if x:
        return x * LR

    return 0


def last(x):
    return 0
"""
FILES = {"train.py": TEXT}


def replaced(search: str, replace: str) -> str:
    return apply([Replacement(path="train.py", search=search, replace=replace)], FILES)["train.py"]


def patched(diff: str) -> str:
    return apply([Patch(diff=diff)], FILES)["train.py"]


def test_an_exact_block_is_replaced() -> None:
    assert replaced("x * LR", "x * LR * 2") == TEXT.replace("x * LR", "x * LR * 2")


def test_other_white_space_will_do_and_what_replaces_it_is_indented_alike() -> None:
    new = replaced("if x:\n  return  x * LR\n", "if x > 1:\n    x += 1\n    return x")
    assert "    if x > 1:\n        x += 1\n        return x\n\n    return 0\n" in new
    assert new.startswith("LR = 0.1  # rate\n")
    shifted = replaced(
        "            if x:\n                return x * LR\n", "            if not x:\n                return 1"
    )
    assert "    if not x:\n        return 1\n" in shifted


@pytest.mark.parametrize(
    ("search", "words"),
    [
        ("return 0", "occurs 2 times"),
        ("   return 0  ", "occurs 2 times in train.py but for white space"),
        ("return 1", "does not occur"),
        ("  \n", "is empty"),
    ],
)
def test_a_block_must_be_found_once(search: str, words: str) -> None:
    with pytest.raises(EditError, match=words):
        replaced(search, "pass")


def test_only_known_files_may_be_edited() -> None:
    edits = [
        Replacement(path="prepare.py", search="a", replace="b"),
        WholeFile(path="../x", text="x"),
        Patch(diff="--- a/other.py\n+++ b/other.py\n@@ -1 +1 @@\n-a\n+b\n"),
    ]
    for edit in edits:
        with pytest.raises(EditError, match=r"may not be edited, only train\.py"):
            apply([edit], FILES)


def test_nothing_is_applied_in_part() -> None:
    good = Replacement(path="train.py", search="0.1", replace="0.2")
    with pytest.raises(EditError):
        apply([good, Replacement(path="train.py", search="nowhere", replace="")], FILES)
    assert FILES == {"train.py": TEXT}


def test_a_whole_file() -> None:
    assert apply([WholeFile(path="train.py", text="x = 1")], FILES) == {"train.py": "x = 1\n"}
    with pytest.raises(EditError, match="empty"):
        apply([WholeFile(path="train.py", text=" \n")], FILES)


def test_a_diff_with_wrong_line_numbers_no_header_and_lost_blanks() -> None:
    diff = (
        "@@ -90,3 +90,4 @@\n     if x:\n-        return x * LR\n+        x += 1\n+        return x\n\n     return 0\n"
    )
    assert patched(diff) == TEXT.replace("        return x * LR\n", "        x += 1\n        return x\n")


def test_line_numbers_choose_among_several_places() -> None:
    diff = "@@ -12,1 +12,1 @@\n-    return 0\n+    return 1\n"
    assert patched(diff) == TEXT[: TEXT.rindex("return 0")] + "return 1\n"
    with pytest.raises(EditError, match="occurs 2 times"):
        patched("@@ -1,1 +1,1 @@\n-    return 0\n+    return 1\n")


@pytest.mark.parametrize(
    ("diff", "words"),
    [
        ("no diff at all", "no hunk"),
        ("@@ -1 +1 @@\n-LR = 0.1  # rate\n+LR = 1\nwhat", "begins neither"),
        ("--- a/train.py\n+++ /dev/null\n@@ -1 +0,0 @@\n-LR\n", "removes a file"),
        ("@@ @@\n+new line\n", "no context line"),
        ("@@ -1,2 +1,2 @@\n-LR = 0.3\n+LR = 1\n", "does not occur"),
    ],
)
def test_a_bad_diff_says_why(diff: str, words: str) -> None:
    with pytest.raises(EditError, match=words):
        patched(diff)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("seed", range(20))
def test_diffs_of_real_edits_give_the_edited_file(seed: int, newline: str) -> None:
    """Random edits of the real training script, as difflib tells them, with and without their header."""
    source = Path("train.py").read_text(encoding="utf-8").replace("\n", newline)
    rng, lines = random.Random(seed), source.splitlines(keepends=True)
    after = list(lines)
    for _ in range(rng.randint(1, 5)):
        at = rng.randrange(len(after))
        match rng.choice(["add", "remove", "change"]):
            case "add":
                after.insert(at, f"# added {rng.random()}{newline}")
            case "remove":
                del after[at]
            case "change":
                after[at] = f"# changed {rng.random()}{newline}"
    diff = "".join(difflib.unified_diff(lines, after, "a/train.py", "b/train.py"))
    assert apply([Patch(diff=diff)], {"train.py": source, "other.py": ""})["train.py"] == "".join(after)


def test_an_attempt_holds_whole_files_and_knows_what_they_mean() -> None:
    draft = Draft(
        title="t", edits=(Replacement(path="train.py", search="x * LR", replace="x * LR / 2"),), knobs={"LR": 0.2}
    )
    made = attempt(draft, FILES, "train.py", "llm", {})
    assert made.proposal.files == {"train.py": TEXT.replace("x * LR", "x * LR / 2")}
    assert made.after["train.py"] == TEXT.replace("x * LR", "x * LR / 2").replace("0.1", "0.2")
    same = Draft(title="u", edits=(WholeFile(path="train.py", text=made.after["train.py"] + "# a comment\n"),))
    assert attempt(same, FILES, "train.py", "llm", {}).fingerprint == made.fingerprint
    knobs_only = attempt(Draft(title="v", knobs={"LR": 0.2}), FILES, "train.py", "llm", {})
    assert (knobs_only.proposal.files, knobs_only.proposal.knobs) == ({}, {"LR": 0.2})
    assert knobs_only.fingerprint != made.fingerprint


def test_an_attempt_that_cannot_be_made_says_why() -> None:
    for draft, words in [
        (Draft(title="t"), "changes nothing"),
        (Draft(title="t", knobs={"LR": 0.1}), "changes nothing"),
        (Draft(title="t", knobs={"RATE": 0.1}), "RATE"),
        (Draft(title="t", knobs={"LR": "high"}), "LR"),
    ]:
        with pytest.raises(EditError, match=words):
            attempt(draft, FILES, "train.py", "llm", {})


def test_settings_that_travel_beside_a_script() -> None:
    made = attempt(Draft(title="t", knobs={"A": 2}), FILES, None, "llm", {"A": 1, "B": 1})
    again = attempt(Draft(title="t", knobs={"B": 1}), FILES, None, "llm", {"A": 2, "B": 0})
    assert made.fingerprint == again.fingerprint
    with pytest.raises(EditError, match="changes nothing"):
        attempt(Draft(title="t", knobs={"A": 1}), FILES, None, "llm", {"A": 1, "B": 1})
