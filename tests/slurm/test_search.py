"""Whole searches on a real Slurm, from the command line. sacct is the witness of what was submitted."""

import importlib.util
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import scenarios
from client import Sandbox
from toy import Toy
from witness import Witness

from autoresearch_hpc.cluster import Submission
from autoresearch_hpc.cluster.slurm import SlurmCluster
from autoresearch_hpc.config import ClusterConfig, ClusterKind
from autoresearch_hpc.layout import RunLayout

ROOT = Path(__file__).parents[2]


pytestmark = pytest.mark.usefixtures("empty_queue")


@pytest.fixture
def slurm(toy: Callable[..., Toy]) -> Callable[..., Toy]:
    """A toy whose plan is one round, the baseline and k candidates, on the sandbox."""

    def make(*, k: int = 3, sleep_s: float = 0.5, **settings: Any) -> Toy:
        return toy(cluster="slurm", k=k, sleep_s=sleep_s, **{"rounds": 0, "baseline": "joined", **settings})

    return make


def in_queue(cluster: Sandbox) -> int:
    return len(cluster.run("squeue", "-h", "-r").splitlines())


def test_rounds_are_arrays_and_the_winner_is_on_the_branch(cluster: Sandbox, slurm: Callable[..., Toy]) -> None:
    toy = slurm(k=4, rounds=2, baseline="alone", sleep_s=0)
    toy.write("notes.txt", "not yet committed\n")
    before = toy.checkout()
    out, err = toy.search("main").finish()
    assert toy.checkout() == before
    scenarios.complete(toy, "main")

    arrays = Witness(cluster, toy, "main").arrays(ended=9)
    assert arrays == {"r00-a0": ["COMPLETED"], "r01-a0": ["COMPLETED"] * 4, "r02-a0": ["COMPLETED"] * 4}
    results = toy.results("main")
    jobs = {t: j for line in toy.journal("main") if line["event"] == "submit.done" for t, j in line["jobs"].items()}
    assert {r["trial"]: f"{r['slurm']['array_job_id']}_{r['slurm']['array_task_id']}" for r in results} == jobs
    assert all(r["gpu"]["visible"] for r in results)

    best = min(results, key=lambda r: r["metric"]["value"])
    rows = [line.split("\t") for line in (toy.run_dir("main") / "results.tsv").read_text().splitlines()]
    assert rows[0] == ["commit", "loss", "memory_gb", "status", "description"]
    assert len(rows) == 10
    kept = [row for row in rows if row[3] == "keep"]
    assert kept[-1][:2] == [best["commit"][:7], f"{best['metric']['value']:.6f}"]
    trials = (toy.run_dir("main") / "trials.csv").read_text().splitlines()
    assert len(trials) == 10
    assert sorted(line.split(",")[3] for line in trials[1:]) == sorted(jobs)
    winner = toy.git("show", "autoresearch/main:fit.py")
    knob = next(line for line in winner.splitlines() if line.startswith("LR"))
    assert knob.endswith("# the learning rate")
    assert "autoresearch/main" in out
    assert "Traceback" not in err


def test_a_jobs_environment_is_what_the_configuration_lets_through(slurm: Callable[..., Toy], tmp_path: Path) -> None:
    toy, keys = slurm(k=1, sleep_s=0), {"OPENAI_API_KEY": "sesame", "FOO": "harmless"}
    for tag, passed in (("closed", "[TRAINED]"), ("open", "[TRAINED,FOO,OPENAI_API_KEY]")):
        setup = f"cluster.setup=['env > {tmp_path / tag}']"
        _, err = toy.search(tag, setup, f"task.pass_env={passed}", env=keys).finish()
        assert all(result["status"] == "OK" for result in toy.results(tag))
        seen = (tmp_path / tag).read_text()
        assert "TRAINED=" in seen
        assert "sesame" not in seen
        assert ("FOO=harmless\n" in seen) is (tag == "open")
        told = [line for line in err.splitlines() if "looks like a secret does not pass: OPENAI_API_KEY" in line]
        assert len(told) == (tag == "open")


def test_nodes_may_have_the_environment_on_their_own_disk(slurm: Callable[..., Toy], tmp_path: Path) -> None:
    """sbatch/local_env.sh, by the two lines that docs/cluster.md says."""
    shared, node, script = tmp_path / "venv", tmp_path / "node", ROOT / "sbatch" / "local_env.sh"
    node.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(shared)], check=True)
    (site,) = shared.glob("lib/python*/site-packages")
    (site / "rest.pth").write_text("".join(f"{entry}\n" for entry in (*sys.path, ROOT) if Path(entry).is_dir()))
    subprocess.run(["bash", str(script), "pack", str(shared), str(tmp_path / "env.tar")], check=True)
    (site / "sitecustomize.py").write_text("raise SystemExit('not from here')")  # after it was packed
    setup = f"cluster.setup=['export AUTORESEARCH_LOCAL={node}', 'source {script} use {tmp_path / 'env.tar'}']"
    toy = slurm(k=3, sleep_s=0)
    toy.search("own", setup, """cluster.python='"$AUTORESEARCH_ENV/bin/python"'""").finish()
    scenarios.complete(toy, "own")
    assert [result["status"] for result in toy.results("own")] == ["OK"] * 4
    (unpacked,) = node.glob("*/*/env")
    assert list(unpacked.glob("lib/python*/site-packages/rest.pth"))


def test_killed_around_every_event(cluster: Sandbox, slurm: Callable[..., Toy]) -> None:
    toy = slurm()
    scenarios.killed_around_every_event(toy, "ladder")
    assert Witness(cluster, toy, "ladder").arrays(ended=4) in (
        {"r00-a0": ["COMPLETED"] * 4},
        {"r00-a1": ["COMPLETED"] * 4},  # the first name was on disk, but its sbatch never begun
    )


def test_luck_is_told_from_gains_whatever_is_killed(cluster: Sandbox, slurm: Callable[..., Toy]) -> None:
    toy = slurm(decide="significant", noise=1.0)
    scenarios.killed_between_looks(toy, "looks")
    wanted = [line["trials"] for line in toy.journal("looks") if line["event"] == "trials.wanted"]
    arrays = Witness(cluster, toy, "looks").arrays(ended=4 + sum(sum(trials.values()) for trials in wanted))
    assert [len(tasks) for tasks in arrays.values()] == [4 + 2, *(sum(trials.values()) for trials in wanted[1:])]


def test_killed_while_training(cluster: Sandbox, slurm: Callable[..., Toy]) -> None:
    toy = slurm(k=1, sleep_s=4)
    scenarios.killed_while_training(toy, "outlived")
    assert Witness(cluster, toy, "outlived").arrays(ended=2) == {"r00-a0": ["COMPLETED"] * 2}


def test_an_sbatch_that_comes_late_keeps_its_trials(slurm: Callable[..., Toy], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its controller is dead and nobody finds its array by name; the next controller's own array finds all claimed."""
    toy = slurm(k=1, sleep_s=10)
    scenarios.killed_at(toy, "late", "after", "submit.intent").finish(-signal.SIGKILL)
    layout = RunLayout(toy.run_dir("late"))
    trials = {id_: layout.trial(id_).spec for id_ in toy.journal("late")[-1]["trials"]}
    monkeypatch.setenv("TRAINED", str(toy.trained_log))
    late = Submission(job_name="late-array", trials=trials, array=layout.array(0, "late-array"), wall_limit_s=60)
    jobs = SlurmCluster(ClusterConfig(kind=ClusterKind.slurm), ["TRAINED"]).launch(late)
    scenarios.wait(lambda: toy.trained().total() == len(trials), None)
    toy.search("late").finish()
    scenarios.complete(toy, "late")
    told = [line["jobs"] for line in toy.journal("late") if line["event"] == "submit.done"]
    assert {id_: job for some in told for id_, job in some.items()} == jobs


def test_interrupted(cluster: Sandbox, slurm: Callable[..., Toy]) -> None:
    toy = slurm(k=2, sleep_s=2)
    scenarios.interrupted(toy, "ctrl-c", lambda: in_queue(cluster))
    arrays = Witness(cluster, toy, "ctrl-c").arrays(ended=9)
    assert list(arrays) == ["r00-a0", "r00-a1", "r00-a2"]
    assert arrays["r00-a2"] == ["COMPLETED"] * 3


def test_cancelled(cluster: Sandbox, slurm: Callable[..., Toy]) -> None:
    scenarios.cancelled(slurm(k=1, sleep_s=4), "cancel", lambda: in_queue(cluster))


def test_two_at_once(slurm: Callable[..., Toy]) -> None:
    scenarios.two_at_once(slurm(k=2, sleep_s=1))


def test_refused_by_the_cluster_leaves_nothing(slurm: Callable[..., Toy]) -> None:
    toy = slurm()
    before = sorted(toy.root.iterdir())
    _, err = toy.search("refused", "cluster.partition=nowhere").finish(4)
    assert err.splitlines()[-1].startswith("autoresearch_hpc: sbatch refused: invalid partition specified: nowhere")
    assert len(err.splitlines()) == 1
    assert sorted(toy.root.iterdir()) == before
    assert "autoresearch" not in toy.git("for-each-ref")


def test_four_at_once_take_a_quarter_of_the_time(slurm: Callable[..., Toy]) -> None:
    """The same plan of two rounds of four, with four trials at once and with one."""
    toy = slurm(k=4, rounds=1, sleep_s=3, first_k=3)  # beside the baseline
    runs = {"four": toy.search("four"), "one": toy.search("one", "cluster.max_parallel=1")}
    for run in runs.values():
        run.finish()
    seconds = {}
    for tag in runs:
        closed = [line["at"] for line in toy.journal(tag) if line["event"] == "round.closed"]
        started = toy.journal(tag)[0]["at"]
        seconds[tag] = (datetime.fromisoformat(closed[-1]) - datetime.fromisoformat(started)).total_seconds()
        assert len(toy.results(tag)) == 8
    print(f"8 trials of 3 s: {seconds['four']:.1f} s with four at once, {seconds['one']:.1f} s one after another")
    assert seconds["four"] / seconds["one"] < 0.35, seconds


CLASSIFIER = """\
import json, os, re, sys
import torch

RATE = 0.0005  # step size
HIDDEN = 16
torch.manual_seed(int(os.environ["AUTORESEARCH_SEED"]))
assert torch.get_num_threads() == 1
rate = float(sys.argv[1] if len(sys.argv) > 1 else os.environ.get("KNOB_RATE", RATE))

x = torch.randn(512, 2)
y = ((x[:, 0] * x[:, 1]) > 0).long()  # no straight line separates these
model = torch.nn.Sequential(torch.nn.Linear(2, HIDDEN), torch.nn.Tanh(), torch.nn.Linear(HIDDEN, 2))
optimizer = torch.optim.Adam(model.parameters(), lr=rate)
for _ in range(150):
    loss = torch.nn.functional.cross_entropy(model(x[:400]), y[:400])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
with torch.no_grad():
    logits = model(x[400:])
accuracy = (logits.argmax(1) == y[400:]).float().mean().item()
loss = torch.nn.functional.cross_entropy(logits, y[400:]).item()
print(f"epoch 1 accuracy=0.0001\\nepoch 150 accuracy={accuracy:.4f}")
with open("scores.json", "w") as file:
    json.dump({"test": {"loss": loss, "accuracy": accuracy}}, file)
"""

# How knobs travel, the script's words, the metric, and what makes it better and worse than the baseline.
WAYS = {
    "rewrite": (
        {"task.command": "PYTHON classify.py", "task.metric": "{name: loss, json: scores.json, key: test.loss}"},
        "base: {}",
        ["{name: fast, knobs: {RATE: 0.05, HIDDEN: 32}}", "{name: still, knobs: {RATE: 1.0e-9}}"],
    ),
    "env": (
        {
            "task.command": "PYTHON classify.py",
            "task.metric": "{name: accuracy, direction: max, regex: 'accuracy=(\\S+)'}",
        },
        "base: {KNOB_RATE: 0.0005}",
        ["{name: fast, knobs: {KNOB_RATE: 0.05}}"],
    ),
    "template": (
        {
            "task.command": "'PYTHON classify.py {STEP}'",
            "task.metric": "{name: accuracy, direction: max, json: scores.json, key: test.accuracy}",
        },
        "base: {STEP: 0.0005}",
        ["{name: fast, knobs: {STEP: 0.05}}"],
    ),
}
CLASSIFIER_PLAN = """\
# @package _global_
defaults:
  - override /task: command
  - override /agent: plan
plan:
  name: classify
  baseline: joined
  {base}
  rounds: [{{candidates: [{candidates}]}}]
task:
  script: classify.py
  editable: [classify.py]
  knobs_by: {way}
  train_s: 60
  command: {command}
  metric: {metric}
"""


def test_pytorch_script_of_another_kind(slurm: Callable[..., Toy]) -> None:
    """A classifier that knows nothing of us: three ways for knobs in, two for the score out, both directions."""
    toy = slurm()
    toy.write("classify.py", CLASSIFIER)
    for way, (task, base, candidates) in WAYS.items():
        plan = CLASSIFIER_PLAN.format(
            way=way,
            base=base,
            candidates=", ".join(candidates),
            command=task["task.command"].replace("PYTHON", sys.executable),
            metric=task["task.metric"],
        )
        toy.write(f"conf/round/{way}.yaml", plan)
    toy.commit()
    runs = {
        way: toy.start(f"+round={way}", f"tag={way}", *toy.overrides, "cluster.cpus=1", env={"OMP_NUM_THREADS": "1"})
        for way in WAYS
    }
    for way, run in runs.items():
        out, _ = run.finish()
        journal = toy.journal(way)
        judged = next(line for line in journal if line["event"] == "round.judged")
        assert judged["incumbent"]["candidate"] == "r00-c01", (way, out)
        values = {r["candidate"]: r["metric"]["value"] for r in toy.results(way)}
        assert len(values) == 1 + len(WAYS[way][2])
        gain = values["r00-c01"] - values["r00-c00"]
        assert gain < -0.1 if way == "rewrite" else gain > 0.1, (way, values)
        assert {r["evaluator"] for r in toy.results(way)} == {"self-reported"}
    assert judged["verdicts"]["r00-c01"] == "keep"
    assert "RATE = 0.05  # step size\nHIDDEN = 32\n" in toy.git("show", "autoresearch/rewrite:classify.py")
    assert toy.git("diff", "HEAD", "autoresearch/env") == ""


@pytest.mark.skipif(
    not importlib.util.find_spec("hydra_plugins.hydra_submitit_launcher"), reason="the extra [launcher]"
)
def test_launcher_sends_whole_controllers_out(cluster: Sandbox, slurm: Callable[..., Toy]) -> None:
    toy = slurm(k=1, sleep_s=0, name="a plain folder")  # the launcher does not bear a % in the path
    launcher = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=main", "hydra.launcher.timeout_min=5"]
    toy.start("-m", *toy.words("sweep", "seed=1,2"), *launcher).finish()
    for tag in ("sweep-0", "sweep-1"):
        scenarios.complete(toy, tag, runs=2)
        assert Witness(cluster, toy, tag).arrays(ended=2) == {"r00-a0": ["COMPLETED"] * 2}
        started = toy.journal(tag)[0]
        assert started["pid"]


# A model of a few thousand parameters: one step of the cookbook's 2**18 tokens takes seconds on a CPU.
CPU_SIZED = (
    "+plan.base={DEPTH:2,ASPECT_RATIO:2,HEAD_DIM:8,DEVICE_BATCH_SIZE:128,TOTAL_BATCH_SIZE:4096}",
    "task.device=cpu",
    "task.train_s=1",
    "task.overrun_s=60",
    "task.eval_tokens=4096",
    "task.eval_batch_rows=16",
    "corpus.vocab_size=300",
    "corpus.seq_len=32",
    "corpus.tokenizer_mb=0.5",
    "corpus.max_train_mb=1",
    "corpus.val_mb=0.1",
)


def test_cookbook_completes_with_the_right_parents(cluster: Sandbox, slurm: Callable[..., Toy]) -> None:
    """The plan as it is, on our own train.py: prepared, trained and evaluated in earnest."""
    toy = slurm(name='my "research" 5% é')
    (toy.root / "train.py").write_bytes((ROOT / "train.py").read_bytes())
    toy.commit()
    begun = time.monotonic()
    words = ["+round=cookbook", "tag=cookbook", *toy.overrides, "cluster.cpus=1", *CPU_SIZED]
    toy.start(*words).finish(timeout_s=300)
    print(f"cookbook on CPUs: {time.monotonic() - begun:.0f} s")

    journal = toy.journal("cookbook")
    made = [c for line in journal if line["event"] == "round.committed" for c in line["candidates"]]
    assert len(made) == 16
    commits = {c["proposal"]["name"] or "baseline": c["commit"] for c in made}
    names = {commit: name for name, commit in commits.items()}
    parents = {name: names.get(c["parent"]) for name, c in zip(commits, made, strict=True)}
    incumbents = [names[line["incumbent"]["commit"]] for line in journal if line["event"] == "round.judged"]
    assert parents["baseline"] is None
    assert {parents[f"c{i}"] for i in (1, 2, 3)} == {"baseline"}
    assert {parents[f"c{i}"] for i in (4, 5, 6, 7)} == {incumbents[0]}
    assert {parents[f"c{i}"] for i in (8, 9, 10, 11)} == {"baseline"}
    assert {parents[f"c{i}"] for i in (12, 13, 14, 15)} == {"c10"}
    knobs = {name: c["knobs"] for name, c in zip(commits, made, strict=True)}
    assert (knobs["c12"]["MATRIX_LR"], knobs["c12"]["TOTAL_BATCH_SIZE"]) == (0.05, 262144)
    assert toy.git("log", "-1", "--format=%P", commits["c15"]).strip() == commits["c10"]

    results = toy.results("cookbook")
    assert {r["status"] for r in results} == {"OK"}
    assert {r["evaluator"] for r in results} == {"trusted"}
    assert len({r["metric"]["value"] for r in results}) == 16
    arrays = Witness(cluster, toy, "cookbook").arrays(ended=16)
    assert arrays == {f"r0{i}-a0": ["COMPLETED"] * 4 for i in range(4)}
