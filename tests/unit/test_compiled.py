"""autoresearch_hpc.trial.compiled: caches of real compilations, in trials that may not reach where they were made."""

import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoresearch_hpc.records import Direction, Metric, TrialSpec
from autoresearch_hpc.sandbox import Barrier, software
from autoresearch_hpc.trial import compiled
from autoresearch_hpc.trial.environment import compiler_caches
from autoresearch_hpc.trial.scratch import Scratch

COMPILE = """
import torch
from torch._dynamo.utils import counters
model = torch.compile(lambda x: torch.nn.functional.rms_norm(x.sin() * x, (64,)).softmax(-1))
model(torch.ones(8, 64))
print("HITS", counters["inductor"]["fxgraph_cache_hit"], "MISSES", counters["inductor"]["fxgraph_cache_miss"])
"""
BASELINE = TrialSpec(
    run="r", round=0, candidate="r00-c00", trial="r00-c00-t0", commit="0" * 40, seed=0, tier="default", kind="gpt",
    src="src", trial_dir="trial", device="cuda", metric=Metric(name="val_bpb", value=None, direction=Direction.min),
    train_s=1.0, startup_limit_s=1.0, grace_s=1.0, eval_limit_s=1.0,
)  # fmt: skip


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Scratch]]:
    """Makes trials' private directories, below another temporary directory each time."""
    made: list[Scratch] = []

    def make(name: str = "n") -> Scratch:
        place = tmp_path / name
        place.mkdir(exist_ok=True)
        monkeypatch.setattr(tempfile, "tempdir", str(place))
        made.append(Scratch())
        for name in ("trainer", "scoring", "witness"):
            made[-1].place(name)
        return made[-1]

    yield make
    for each in made:
        if each.root.exists():
            each.remove()


def compile_below(place: Path) -> str:
    """Compile a function there, shut in; what the script says of its cache."""
    variables = {**compiler_caches(place / "caches"), "TMPDIR": str(place / "tmp")}
    barrier = Barrier(readable=software([place.parent]), writable=[place], mode="auto")
    done = subprocess.run(
        [sys.executable, "-P", "-c", COMPILE],
        env={**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1", **variables},
        preexec_fn=barrier.enter,
        pass_fds=barrier.fds,
        cwd=place,
        capture_output=True,
        text=True,
        timeout=120,
    )
    barrier.close()
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def mentions(root: Path, words: Path) -> list[Path]:
    files = [path for path in root.rglob("*") if path.is_file()]
    assert files
    return [path for path in files if os.fsencode(words) in path.read_bytes()]


def test_a_later_trial_starts_with_what_the_baseline_compiled(scratch: Callable[..., Scratch], tmp_path: Path) -> None:
    archive, first = tmp_path / "key.tar", scratch()
    assert compile_below(first.root / "trainer") == "HITS 0 MISSES 1"
    (first.root / "scoring" / "caches" / "graph").write_bytes(b"x")
    assert mentions(first.root / "trainer" / "caches", first.root), "caches do remember where they were made"
    compiled.pack(archive, first.root, ["trainer", "scoring"])
    first.remove()

    second = scratch("m")
    compiled.unpack(archive, second.root, "trainer")
    assert mentions(second.root, second.root)
    assert mentions(second.root, first.root) == []
    assert compile_below(second.root / "trainer") == "HITS 1 MISSES 0"
    assert list((second.root / "scoring" / "caches").iterdir()) == [], "it is for the evaluation, and comes later"
    compiled.unpack(archive, second.root, "scoring")
    assert (second.root / "scoring" / "caches" / "graph").read_bytes() == b"x"


def test_the_witness_starts_with_what_scoring_left(scratch: Callable[..., Scratch], tmp_path: Path) -> None:
    archive, first = tmp_path / "key.tar", scratch()
    place = os.fsencode(first.root / "scoring")
    (first.root / "scoring" / "caches" / "graph").write_bytes(b"\x80\x05" + place + b"/caches/x\xff" + place)
    compiled.pack(archive, first.root, ["trainer", "scoring"])
    second = scratch("m")
    assert compiled.unpack(archive, second.root, "witness", of="scoring")
    place = os.fsencode(second.root / "witness")
    assert (second.root / "witness" / "caches" / "graph").read_bytes() == b"\x80\x05" + place + b"/caches/x\xff" + place


def test_whoever_is_at_work_there_leads_nothing_elsewhere(scratch: Callable[..., Scratch], tmp_path: Path) -> None:
    """The trainer runs while its caches are filled, and may put links and files of its own there."""
    archive, first, elsewhere = tmp_path / "key.tar", scratch(), tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("inductor", "triton", "cuda"):
        (first.root / "trainer" / "caches" / name).mkdir()
        (first.root / "trainer" / "caches" / name / "graph").write_text("parent's")
    compiled.pack(archive, first.root, ["trainer"])

    caches = scratch("m").root / "trainer" / "caches"
    (caches / "inductor").symlink_to(elsewhere)
    (caches / "triton").mkdir()
    (caches / "triton" / "own").write_text("own")
    assert compiled.unpack(archive, caches.parents[1], "trainer")
    assert (caches / "inductor").readlink() == elsewhere
    assert [path.name for path in (caches / "triton").iterdir()] == ["own"]
    assert (caches / "cuda" / "graph").read_text() == "parent's"

    caches = scratch("n").root / "trainer" / "caches"
    caches.rename(caches.with_name("away"))
    caches.symlink_to(elsewhere)
    assert not compiled.unpack(archive, caches.parents[1], "trainer")
    assert list(elsewhere.iterdir()) == []


def test_where_names_have_another_length_it_is_compiled_anew(
    scratch: Callable[..., Scratch], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    archive, first = tmp_path / "key.tar", scratch()
    (first.root / "trainer" / "caches" / "a").write_text("x")
    compiled.pack(archive, first.root, ["trainer", "scoring"])
    second = scratch("longer")
    compiled.unpack(archive, second.root, "trainer")
    assert not (second.root / "trainer" / "caches" / "a").exists()
    assert "compiling anew" in caplog.text


def test_names_are_equally_long_where_temporary_directories_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="a") as one, tempfile.TemporaryDirectory(dir="/tmp") as other:
        lengths = set()
        for place in (one, f"{other}/b"):
            Path(place).mkdir(exist_ok=True)
            monkeypatch.setattr(tempfile, "tempdir", place)
            made = Scratch()
            lengths.add(len(str(made.root)))
            made.remove()
        assert lengths == {60}


def test_only_plain_files_are_kept(scratch: Callable[..., Scratch], tmp_path: Path) -> None:
    archive, first, second = tmp_path / "key.tar", scratch(), scratch("m")
    caches = first.root / "scoring" / "caches"
    (caches / "folder").mkdir()
    (caches / "folder" / "program").write_text("x")
    (caches / "folder" / "program").chmod(0o755)
    os.mkfifo(caches / "pipe")
    (caches / "link").symlink_to(tmp_path)
    compiled.pack(archive, first.root, ["trainer", "scoring"])
    assert compiled.unpack(archive, second.root, "scoring")
    caches = second.root / "scoring" / "caches"
    assert sorted(str(path.relative_to(caches)) for path in caches.rglob("*")) == ["folder", "folder/program"]
    assert os.access(caches / "folder" / "program", os.X_OK)


def store(inbox: Path, **changes: Any) -> compiled.Store:
    found = compiled.Store.of(replace(BASELINE, inbox=str(inbox / "inbox"), **changes), "a GPU")
    assert found
    return found


def candidate(number: int, parent: str = "0" * 40) -> dict[str, Any]:
    return {"round": 1, "candidate": f"r01-c{number:02}", "commit": f"{number:040}", "parent": parent}


def holding(root: Path, text: str) -> None:
    (root / "trainer" / "caches" / "graph").write_text(text)


def held(archive: Path) -> str:
    with tarfile.open(archive) as tar:
        content = tar.extractfile("trainer/caches/graph")
        assert content
        return content.read().decode()


def test_a_trial_starts_with_what_is_nearest(scratch: Callable[..., Scratch], tmp_path: Path) -> None:
    """Its own commit's, its parent's, the baseline's."""
    root = scratch().root
    first, child, other = (store(tmp_path, **candidate(*words)) for words in ((1,), (2, f"{1:040}"), (3, f"{9:040}")))
    holding(root, "first's, which is there before a baseline")
    first.snapshot(root, 54.0)
    assert not first.best().exists()
    holding(root, "baseline's")
    store(tmp_path).keep(root, first.best())
    assert [held(trial.best()) for trial in (first, child, other)] == ["baseline's"] * 3
    other.snapshot(root, 8.0)  # what it started with was good enough
    other.keep(root, other.best())
    assert other.best() == first.baseline

    first.keep(root, first.best())
    assert [held(trial.best())[:7] for trial in (first, child, other)] == ["first's", "first's", "baselin"]
    child.keep(root, child.best())  # it compiled nothing anew: a second name of the same file is enough
    grandchild = store(tmp_path, **candidate(4, f"{2:040}"))
    assert grandchild.best().samefile(first.best())
    assert grandchild.best() != first.best()

    holding(root, "second seed's")
    again = store(tmp_path, **candidate(1))
    again.snapshot(root, 54.0)
    again.keep(root, again.best())
    assert held(first.best())[:7] == "first's", "once is enough"


def test_only_the_newest_are_left(scratch: Callable[..., Scratch], tmp_path: Path) -> None:
    root = scratch().root

    def keep(number: int) -> compiled.Store:
        trial = store(tmp_path, **candidate(number))
        trial.snapshot(root, 54.0)
        trial.keep(root, trial.best())
        os.utime(trial.best(), (number, number))
        return trial

    trials = [keep(number) for number in range(1, 18)]
    assert [trial.best().exists() for trial in trials] == [False, *[True] * 16]
    heir = store(tmp_path, **candidate(99, f"{2:040}"))
    heir.keep(root, heir.best())  # which makes the oldest one the newest
    keep(100)
    assert [trial.best().exists() for trial in trials[:4]] == [False, True, False, True]


def test_what_cannot_be_packed_costs_the_trial_nothing(
    scratch: Callable[..., Scratch], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = scratch().root
    with (root / "trainer" / "caches" / "graph").open("wb") as file:
        file.truncate((512 << 20) + 1)
    for trial in (store(tmp_path), store(tmp_path, **candidate(1))):
        trial.snapshot(root, 54.0)
        trial.keep(root, trial.best())
        assert not trial.best().exists()
    assert caplog.text.count("what was compiled is not kept: more than 512 MiB") == 2
