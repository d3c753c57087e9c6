"""The cookbook's 16 experiments, as many at once as there are GPUs, against one after another on one of them.

Everything is real: a Slurm of its own over this machine's GPUs (docs/sandbox.md), the controller, train.py, the trusted
evaluation. Searches, whose results stay in the folder:

    at-once   +round=cookbook, one trial on each GPU
    single    the same with cluster.max_parallel=1
    full      one round of the cookbook, one trial on each GPU, with the full training time
    async     only if --searches names it: as at-once with schedule=async, so that no GPU waits for a round's slowest

    python benchmarks/headline.py ~/headline                     # all of it; what was interrupted goes on
    python benchmarks/headline.py ~/headline --limit-s 570       # the same where a command may take ten minutes only
    python benchmarks/headline.py ~/headline --report-only       # the table and the pictures again
    python benchmarks/headline.py /tmp/small --small             # pretended GPUs, a tiny model on CPUs

So that both searches do the same work, compilers' caches are filled beforehand, for every model of the plan: a search
keeps its baseline's alone, and who starts four trials with empty ones compiles four times what one after another
compile once. `--cold` leaves that out. Words behind the options are overrides for all searches (`corpus=climbmix`).
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import timings
from on_sandbox import sandbox, watched

from autoresearch_hpc.history import History
from autoresearch_hpc.journal import read
from autoresearch_hpc.layout import RunLayout

SEARCHES = ("at-once", "single", "full", "async")
# What of the plan's settings makes another model to compile, and so do those of its candidates that build on a winner.
MODELS: tuple[Mapping[str, object], ...] = ({}, {"WINDOW_PATTERN": "L"}, {"DEPTH": 6}, {"DEPTH": 10})
SMALL = (
    "+plan.base={DEPTH:2,ASPECT_RATIO:2,HEAD_DIM:8,DEVICE_BATCH_SIZE:128,TOTAL_BATCH_SIZE:4096}",
    "task.device=cpu",
    "task.overrun_s=60",
    "task.eval_tokens=4096",
    "task.eval_batch_rows=16",
    "corpus.vocab_size=300",
    "corpus.seq_len=32",
    "corpus.tokenizer_mb=0.5",
    "corpus.max_train_mb=1",
    "corpus.val_mb=0.1",
)


@dataclass(kw_only=True)
class Deadline:
    """When to stop: after so many seconds, or at a SIGTERM."""

    limit_s: float
    begun: float = field(default_factory=time.monotonic)
    terminated: bool = False

    def listen(self) -> None:
        signal.signal(signal.SIGTERM, self._note)

    def _note(self, *_: object) -> None:
        self.terminated = True

    def over(self) -> bool:
        return self.terminated or time.monotonic() - self.begun > self.limit_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The GPUs that Slurm is told of: `kind` is Slurm's word for them."""

    kind: str
    num_gpus: int
    devices: str = ""

    @classmethod
    def found(cls) -> "Machine":
        """This machine's own. Raises SystemExit where there is none."""
        asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        names = _output(asked).splitlines() if shutil.which(asked[0]) else []
        if not names:
            sys.exit("headline.py: no GPU here; --small pretends some")
        model = re.search(r"[A-Z]+\d+\w*", names[0])
        return cls(kind=model[0].lower() if model else "gpu", num_gpus=len(names), devices="/dev/nvidia")

    @property
    def cpus(self) -> int:
        """Cores for each GPU."""
        return max(1, (os.cpu_count() or 1) // self.num_gpus)

    def options(self) -> list[str]:
        words = ["--nodes", f"gpu:{self.kind}:{self.num_gpus}", "--cpus", str(self.num_gpus * self.cpus)]
        return [*words, *(["--devices", self.devices] if self.devices else [])]


class Headline:
    """The searches in one folder: the repository with their runs, the compilers' caches, Slurm's state."""

    def __init__(self, folder: Path, machine: Machine, options: argparse.Namespace) -> None:
        self._folder, self._machine, self._options = folder, machine, options
        self._root, self._caches = folder / "repository", folder / "compiled"
        self._words = [*(SMALL if options.small else ()), *options.words]

    @property
    def searches(self) -> dict[str, list[str]]:
        """Tag -> what is told beside the plan."""
        machine, options = self._machine, self._options
        cluster = ["cluster=slurm", f"cluster.cpus={machine.cpus}"]
        at_once = [*cluster, f"cluster.max_parallel={machine.num_gpus}"]
        short, full = [f"task.train_s={options.train_s}"], f"task.train_s={options.full_s}"
        if options.eval_tokens:
            short.append(f"task.eval_tokens={options.eval_tokens}")
        return {
            "at-once": [*at_once, *short],
            "single": [*cluster, "cluster.max_parallel=1", *short],
            "full": [*at_once, full, "plan.max_rounds=0", f"budget.max_trials={machine.num_gpus}"],
            "async": [*at_once, *short, "schedule=async"],
        }

    def play(self, deadline: Deadline) -> bool:
        """All that is not done yet, up to the deadline. Whether all is done."""
        self._prepare()
        with sandbox(self._folder / "slurm", *self._machine.options(), keep=deadline.over) as environment:
            if not self._options.cold and self._machine.devices:
                self._fill_caches(environment, deadline)
            for tag in self._options.searches:
                if deadline.over() or not self._search(tag, self.searches[tag], environment, deadline):
                    return False
        return True

    def _prepare(self) -> None:
        """The repository and its data; nothing happens where they are there."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if not self._root.exists():
            self._module("init", str(self._root), cwd=self._folder)
        if not any(word.startswith("task=") for word in self._words):
            self._module("prepare", "--quiet", "+round=cookbook", *self._words, cwd=self._root)

    def _module(self, name: str, *words: str, cwd: Path) -> None:
        subprocess.run([sys.executable, "-m", f"autoresearch_hpc.{name}", *words], cwd=cwd, check=True)

    def _search(self, tag: str, words: Sequence[str], environment: Mapping[str, str], deadline: Deadline) -> bool:
        """Start the search, or go on with it. Whether it is complete."""
        layout = self.layout(tag)
        if _done(layout):
            return True
        if self._caches.exists():
            shutil.copytree(self._caches, layout.root / "compiled", dirs_exist_ok=True)
        print(f"{time.strftime('%H:%M:%S')} {tag} ...", flush=True)
        argv = [sys.executable, "-m", "autoresearch_hpc", "+round=cookbook", f"tag={tag}", *words, *self._words]
        log = self._folder / f"{tag}.log"
        # At a SIGTERM the controller leaves its trials in the queue, and who resumes takes their results.
        code = watched(argv, self._root, environment, log, deadline.over, signal.SIGTERM).code
        if code and not deadline.over():
            sys.exit(f"headline.py: {tag} ended with status {code}: {log.read_text(errors='replace')[-2000:]}")
        return _done(layout)

    def _fill_caches(self, environment: Mapping[str, str], deadline: Deadline) -> None:
        """Train each model for a moment, as the baseline of a search of its own, and gather what was compiled."""
        if self._caches.exists():
            return
        short = ["plan.baseline=alone", "plan.max_rounds=0", "task.train_s=2", "task.eval_tokens=131072"]

        models = MODELS[:2] if self._options.searches == ("full",) else MODELS  # its one round has no others

        def compile_one(number: int) -> bool:
            base = [f"++plan.base.{name}={value}" for name, value in models[number].items()]
            words = ["cluster=slurm", f"cluster.cpus={self._machine.cpus}", *base, *short]
            return self._search(f"warm-{number}", words, environment, deadline)

        with ThreadPoolExecutor(len(models)) as pool:
            if not all(pool.map(compile_one, range(len(models)))):
                return
        merge([self.layout(f"warm-{number}").root / "compiled" for number in range(len(models))], self._caches)

    def layout(self, tag: str) -> RunLayout:
        return layout_of(self._folder, tag)


def layout_of(folder: Path, tag: str) -> RunLayout:
    return RunLayout(folder / "repository" / "runs" / tag)


def runs_in(folder: Path) -> dict[str, timings.Run]:
    """The searches that have trials that ended, by their tags."""
    begun = [tag for tag in SEARCHES if layout_of(folder, tag).config.exists()]
    runs = {tag: timings.Run(layout_of(folder, tag)) for tag in begun}
    return {tag: run for tag, run in runs.items() if run.trials}


def merge(sources: Sequence[Path], target: Path) -> None:
    """One folder of caches from several: archives of the same name become one, made in the first one's place."""
    partial = target.with_name(f".{target.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for name in sorted({path.name for source in sources for path in source.glob("*.tar")}):
        _merge_archives([path for source in sources if (path := source / name).exists()], partial / name)
    partial.replace(target)


def _merge_archives(sources: Sequence[Path], target: Path) -> None:
    """The files of all, each name once, with the first one's root in the place of the others' (trial/compiled.py)."""
    seen: set[str] = set()
    root = b""
    with tarfile.open(target, "w") as joined:
        for source in sources:
            with tarfile.open(source) as tar:
                entry = tar.extractfile("root")
                own = entry.read() if entry else b""
                root = root or own
                if len(own) != len(root):  # names in binaries cannot be replaced: it will be compiled anew
                    continue
                for member in tar:
                    if member.name in seen:
                        continue
                    seen.add(member.name)
                    file = tar.extractfile(member) if member.isfile() else None
                    joined.addfile(member, BytesIO(file.read().replace(own, root)) if file else None)


def _play(folder: Path, options: argparse.Namespace) -> bool:
    deadline = Deadline(limit_s=options.limit_s)
    deadline.listen()
    machine = Machine(kind="fake", num_gpus=options.gpus) if options.small else Machine.found()
    return Headline(folder, machine, options).play(deadline)


def report(runs: Mapping[str, timings.Run], images: Path | None) -> None:
    """The tables of what there is, and the pictures."""
    print(f"\n{', '.join(timings.gpus_of(list(runs.values())))}\n")
    fast = [runs[tag] for tag in ("at-once", "async") if tag in runs]
    single = [runs["single"]] if "single" in runs else []
    for compared in filter(None, [[run, *single] for run in fast] or [single]):
        print(f"{timings.table(compared)}\n")
        if len(compared) == 2 and (found := timings.pace(*compared)):
            print(f"{timings.in_words(found, *compared)}\n")
    if "full" in runs:
        print(timings.table([runs["full"]]))
    if images and (shown := [*fast, *single]):
        images.mkdir(parents=True, exist_ok=True)
        timings.draw_curves(shown, images / "headline-curves.png")
        timings.draw_phases(shown, images / "headline-phases.png")


def _done(layout: RunLayout) -> bool:
    """Whether the search came to its end; one whose baseline failed did not."""
    history = History.replay(read(layout.journal)) if layout.journal.exists() else History()
    return history.stopped is not None and history.incumbent is not None


def _searches(text: str) -> tuple[str, ...]:
    if unknown := set(text.split(",")) - set(SEARCHES):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: there are {', '.join(SEARCHES)}")
    return tuple(text.split(","))


def _output(argv: Sequence[str]) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The cookbook on all GPUs of this machine against one of them.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="overrides for all searches")
    parser.add_argument(
        "--searches", type=_searches, default=SEARCHES[:3], help="which, in which order: at-once,single"
    )
    parser.add_argument("--train-s", type=float, default=20.0, help="training of a trial")
    parser.add_argument("--eval-tokens", type=int, help="evaluated after these trainings; default: as ever")
    parser.add_argument("--full-s", type=float, default=300.0, help="the same in the search `full`")
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="stop after so long; the same call goes on")
    parser.add_argument("--small", action="store_true", help="pretended GPUs and a model of some thousand parameters")
    parser.add_argument("--gpus", type=int, default=4, help="with --small: how many are pretended")
    parser.add_argument("--cold", action="store_true", help="begin each search with empty compilers' caches")
    parser.add_argument("--report-only", action="store_true", help="start nothing")
    parser.add_argument("--images", type=Path, help="a folder for headline-curves.png and headline-phases.png")
    options = parser.parse_intermixed_args(words)
    folder = options.folder.resolve()
    done = options.report_only or _play(folder, options)
    if runs := runs_in(folder):
        report(runs, options.images)
    if not done:
        print(f"\nnot complete: the same command goes on. Slurm is still up, in {folder}/slurm", flush=True)
    return 0 if done else 3


if __name__ == "__main__":
    sys.exit(main())
