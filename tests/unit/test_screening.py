"""autoresearch_hpc.screening: what is found out about an edit before it costs a GPU, and what an edit may not do."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoresearch_hpc import knobs, sandbox
from autoresearch_hpc.config import KnobsBy, MetricConfig, Sandbox, TaskConfig, TaskKind
from autoresearch_hpc.harness import Meta
from autoresearch_hpc.screening import MeasuredMemory, Screen, screen, static
from autoresearch_hpc.screening import memory as memory_check

SCRIPT = (Path(__file__).parents[2] / "train.py").read_text(encoding="utf-8")
SMALL = knobs.rewrite(
    SCRIPT,
    {
        "DEPTH": 2,
        "ASPECT_RATIO": 32,
        "HEAD_DIM": 32,
        "DEVICE_BATCH_SIZE": 8,
        "TOTAL_BATCH_SIZE": 8192,
        "COMPILE": False,
    },
)
SMALL_META = Meta(vocab_size=512, seq_len=128, bos_id=0)
META = Meta(vocab_size=8192, seq_len=2048, bos_id=0)
REQUIRED = ["DEPTH", "MATRIX_LR"]

needs_landlock = pytest.mark.skipif(sandbox.landlock_abi() == 0, reason="this kernel has no Landlock")


@pytest.fixture(scope="module")
def small() -> Iterator[Screen]:
    made = Screen(TaskConfig(), required_knobs=REQUIRED, meta=SMALL_META)
    yield made
    made.close()


@pytest.fixture(scope="module")
def default() -> Iterator[Screen]:
    made = Screen(TaskConfig(), required_knobs=REQUIRED, meta=META)
    yield made
    made.close()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen, "SHAPES_S", 6.0)
    monkeypatch.setattr(screen, "SLACK_S", 3.0)


def edited(old: str, new: str, text: str = SMALL) -> str:
    assert text.count(old) >= 1, old
    return text.replace(old, new)


def tell(checks: Screen, text: str, before: str = SMALL, memory: MeasuredMemory | None = None) -> str:
    return checks.problem({"train.py": before}, {"train.py": text}, memory=memory)


def at_import(code: str) -> str:
    return edited("# Model\nASPECT", f"{code}\n# Model\nASPECT")


# ----------------------------------------------------------------------------------------------------------------------
# By the text alone
# ----------------------------------------------------------------------------------------------------------------------


def by_text(text: str, before: str = SMALL, task: TaskConfig | None = None) -> str:
    return static.problem(task or TaskConfig(), REQUIRED, {"train.py": before}, {"train.py": text})


def test_what_a_text_tells() -> None:
    assert by_text(SMALL) == ""
    line = SMALL.splitlines().index("def main() -> None:") + 1
    found = by_text(edited("def main() -> None:", "def main( -> None:"))
    assert found.startswith(f"train.py:{line}: it does not parse: ")
    assert found.endswith("\n    def main( -> None:")
    found = by_text(edited("loss.backward()", "los.backward()"))
    assert "Undefined name `los` (F821)\n    los.backward()" in found
    assert "build_model" in by_text(edited("def build_model(", "def make_model("))
    assert "DEPTH" in by_text(edited("DEPTH = 2  #", "DEPTH = int('2')  #"))
    assert "has no knob MATRIX_LR" in by_text(SMALL.replace("MATRIX_LR", "LAYER_LR"))
    assert by_text("") == "train.py is empty; give its whole text."
    assert by_text("x = '\ud800'").startswith("train.py does not parse")
    assert by_text("x = " + "(" * 1000 + ")" * 1000).startswith("train.py")
    assert by_text(edited("def build_model(", "def other(") + "\nif True:\n    from x import y as build_model\n") == ""


def test_which_files_an_edit_may_have() -> None:
    task = TaskConfig(editable=["train.py", "helpers/ä b.py", "empty.py", "notes.txt"])
    before = {"train.py": SMALL, "helpers/ä b.py": "x = 1\n", "empty.py": "", "notes.txt": "not python ("}

    def told(after: dict[str, str]) -> str:
        return static.problem(task, REQUIRED, before, after)

    assert told(before) == ""
    assert "changes train.sh; only train.py" in told({**before, "train.sh": ""})
    assert told({k: v for k, v in before.items() if k != "empty.py"}).startswith("empty.py is missing")
    assert told({**before, "helpers/ä b.py": "\n"}).startswith("helpers/ä b.py is empty")
    assert told({**before, "helpers/ä b.py": "x = y\n"}).startswith("helpers/ä b.py:1: Undefined name `y`")


def test_what_was_wrong_before_is_not_told() -> None:
    wrong = edited("loss.backward()", "los.backward()")
    assert by_text(edited("ROTARY_BASE = 10_000.0", "ROTARY_BASE = 5_000.0", wrong), before=wrong) == ""
    twice = edited("losses = []", "losses = [los]", wrong)
    assert by_text(twice, before=wrong).count("`los`") == 1


def test_a_command_is_checked_by_its_text_alone() -> None:
    metric = MetricConfig(regex="loss: (.*)")
    task = TaskConfig(kind=TaskKind.command, command="python fit.py", script="fit.py", metric=metric)
    checks = Screen(task, required_knobs=["LR"], meta=None)
    before = {"fit.py": "LR = 1\nprint(LR)\n"}
    assert checks.problem(before, {"fit.py": "LR = 2\nraise SystemExit(LR)\n"}) == ""
    assert "LR" in checks.problem(before, {"fit.py": "print(1)\n"})
    task.knobs_by = KnobsBy.env
    assert checks.problem(before, {"fit.py": "print(1)\n"}) == ""
    checks.close()


# ----------------------------------------------------------------------------------------------------------------------
# By running it
# ----------------------------------------------------------------------------------------------------------------------


def test_a_good_edit_passes(small: Screen) -> None:
    assert tell(small, edited("LOGIT_CAP = 15.0", "LOGIT_CAP = 20.0")) == ""


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "self.up = Linear(width, 4 * width)",
            "self.up = Linear(width, 3 * width)",
            ["built and run once", "RuntimeError: ", "[128, 192]", "in forward\n    return relu_squared_mlp("],
        ),
        (
            "return soft_cap(self.head(x))",
            "return soft_cap(self.head(x[:, 1:]))",
            ["logits of shape (1, 127, 512), expected (1, 128, 512)"],
        ),
        ("return GPT(meta.vocab_size, meta.seq_len)", "return 3", ["build_model returned a int"]),
        (
            "self.count += 1\n",
            "self.count += 1\n        self.counter += 1\n",
            ["first training step (tried on shapes alone)", "AttributeError", "has no attribute 'counter'", "in step"],
        ),
        (
            "TOTAL_BATCH_SIZE = 2**13",
            "TOTAL_BATCH_SIZE = 8000",
            ["SystemExit: train.py: TOTAL_BATCH_SIZE = 8000 is not"],
        ),
        (
            "session.save(model, steps=steps,",
            "session.save(model, step=steps,",
            ["on the CPU, tried with one row a step of 128 tokens: TypeError", "in main\n    session.save("],
        ),
        ("    session.save(", "    return\n    session.save(", ["NoCheckpoint: train.py ended without session.save"]),
        (
            "loss = model(x, y) / len(batches)",
            "loss = model(x, y) / (len(batches) - 1)",
            ["NonFiniteLoss: the loss is not finite at the first step"],
        ),
        (
            "param.sub_(lr / (1 - beta1**count) * average / denominator)",
            "param.sub_(average / (average - average))",
            ["NotFinite: after the first step ", "of the model hold NaN: embedding.weight"],
        ),
        ("\ndef main() -> None:\n", "\ndef main() -> None:\n    os_exit = sys.modules['os']._exit(7)\n", ["code 7"]),
    ],
)
def test_what_running_it_tells(small: Screen, old: str, new: str, expected: list[str]) -> None:
    found = tell(small, edited(old, new))
    for words in expected:
        assert words in found
    assert "/" not in found.split("\n\n")[-1].split("\n")[0], "no path but the script's"


def test_a_quick_check_finds_shapes_and_leaves_steps_out(small: Screen) -> None:
    steps = edited("stack([p.detach() for p in params])", "stack([p.detach().T for p in params])")
    shapes = edited("LOGIT_CAP = 15.0", "LOGIT_CAP = torch.zeros(3)")
    assert small.problem({"train.py": SMALL}, {"train.py": steps}, quick=True) == ""
    assert "first training step" in small.problem({"train.py": SMALL}, {"train.py": steps})
    assert "run once, forward and backward" in small.problem({"train.py": SMALL}, {"train.py": shapes}, quick=True)


def test_what_failed_before_is_not_told(small: Screen, caplog: pytest.LogCaptureFixture) -> None:
    gpu_only = edited(
        "def build_model(meta: Meta) -> GPT:\n", "def build_model(meta: Meta) -> GPT:\n    raise OSError(1)\n"
    )
    assert "OSError: 1" in tell(small, gpu_only)
    assert tell(small, edited("LOGIT_CAP = 15.0", "LOGIT_CAP = 20.0", gpu_only), before=gpu_only) == ""
    assert "fails in the check 'shapes' before any edit" in caplog.text


def test_what_only_numbers_decide_is_left_to_the_dry_run(small: Screen) -> None:
    first = "        dtype = torch.bfloat16 if idx.is_cuda else torch.float32\n"
    reads = edited(first, f"{first}        assert idx.max().item() >= 0\n")
    assert tell(small, reads) == ""
    wrong = edited(first, f"{first}        assert idx.max().item() < 0\n")
    assert "AssertionError" in tell(small, wrong)


def test_what_only_a_gpu_can_do_passes(small: Screen) -> None:
    text = edited("    warm_up(session, model)\n", "    torch.cuda.synchronize()\n    warm_up(session, model)\n")
    assert tell(small, text) == ""
    # a knob's value that only the whole training refuses, since a check cuts it down
    assert "SystemExit: train.py: TOTAL_BATCH_SIZE" in tell(small, knobs.rewrite(SMALL, {"DEVICE_BATCH_SIZE": 7}))


def test_an_edit_that_cannot_be_cut_down_passes(small: Screen) -> None:
    needs = edited(
        "        accumulate = num_microbatches(session.meta)\n",
        "        accumulate = num_microbatches(session.meta) // 2\n        assert accumulate, 'half of it'\n",
    )
    assert tell(small, needs) == ""


def test_files_beside_the_script(small: Screen) -> None:
    task = TaskConfig(editable=["train.py", "layers/cap.py"])
    checks = Screen(task, required_knobs=REQUIRED, meta=SMALL_META)
    text = edited("LOGIT_CAP = 15.0", "from layers.cap import LOGIT_CAP")
    before = {"train.py": text, "layers/cap.py": "LOGIT_CAP = 15.0\n"}
    assert checks.problem(before, {**before, "layers/cap.py": "LOGIT_CAP = 12.0\n"}) == ""
    found = checks.problem(before, {**before, "layers/cap.py": "LOGIT_CAP = 12.0\nraise ValueError('no cap')\n"})
    assert "ValueError: no cap" in found
    assert "layers/cap.py:2, in <module>" in found
    checks.close()


# ----------------------------------------------------------------------------------------------------------------------
# The default size, and memory
# ----------------------------------------------------------------------------------------------------------------------


def test_the_default_size_in_time(default: Screen) -> None:
    assert tell(default, SCRIPT, before=SCRIPT) == ""  # starts the processes
    begun = time.monotonic()
    assert tell(default, edited("LOGIT_CAP = 15.0", "LOGIT_CAP = 20.0", SCRIPT), before=SCRIPT) == ""
    assert time.monotonic() - begun < 60


def test_numbers_at_the_default_size(default: Screen) -> None:
    text = edited("loss = model(x, y) / len(batches)", "loss = model(x, y) / (len(batches) - 1)", SCRIPT)
    found = tell(default, text, before=SCRIPT)
    assert "NonFiniteLoss" in found or found == ""  # some machines are fast enough for it
    text = edited("average = torch.zeros_like(torch.stack(params))", "average = torch.zeros(8, 512, 512)", SCRIPT)
    assert "tried on shapes alone): RuntimeError" in tell(default, text, before=SCRIPT)


@pytest.mark.parametrize(
    ("settings", "total_mb", "fits"),
    [
        ({"DEVICE_BATCH_SIZE": 64}, 42_000, True),
        ({"LOGIT_CAP": 16.0}, 41_000, True),
        ({"DEVICE_BATCH_SIZE": 1024, "TOTAL_BATCH_SIZE": 2**21}, 80_000, False),
        ({"DEPTH": 48}, 80_000, False),
    ],
)
def test_memory(default: Screen, settings: dict[str, float], total_mb: float, *, fits: bool) -> None:
    measured = MeasuredMemory(peak_mb=40_000, total_mb=total_mb)
    found = tell(default, knobs.rewrite(SCRIPT, settings), before=SCRIPT, memory=measured)
    if fits:
        assert found == ""
    else:
        assert "GB of GPU memory, and the GPU has 84 GB: before the edit 41.9 GB were measured" in found
        assert "DEVICE_BATCH_SIZE" in found


def test_memory_grows_with_rows_but_for_what_is_there_once() -> None:
    shapes = {"parameter_bytes": 10, "activations_of_1": 105, "activations_of_2": 205, "device_batch_size": 3}
    assert memory_check.estimate(shapes) == 40 + 5 + 3 * 100
    assert memory_check.estimate({**shapes, "activations_of_2": None}) == 40 + 3 * 105
    assert memory_check.estimate({**shapes, "activations_of_1": None}) is None
    assert memory_check.estimate(None) is None


# ----------------------------------------------------------------------------------------------------------------------
# What an edit may not do
# ----------------------------------------------------------------------------------------------------------------------


@needs_landlock
def test_files_and_processes_are_out_of_reach(small: Screen, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x", encoding="utf-8")
    here = Path(__file__)
    pid = os.getpid()
    for code in (
        f"open({str(secret)!r}).read()",
        f"open({str(here)!r}).read()",
        f"open({str(Path.cwd() / 'README.md')!r}).read()",
        f"open({str(tmp_path / 'new')!r}, 'w')",
        f"open('/proc/{pid}/environ').read()",
        "import os; os.listdir(os.path.expanduser('~root'))",
    ):
        found = tell(small, at_import(code))
        assert "PermissionError" in found, code
    assert list(tmp_path.iterdir()) == [secret]


@pytest.mark.skipif(sandbox.landlock_abi() < 6, reason="Landlock keeps signals in from ABI 6 on")
def test_its_parents_cannot_be_killed(small: Screen) -> None:
    for pid in ("os.getppid()", str(os.getpid())):
        assert "PermissionError" in tell(small, at_import(f"import os, signal; os.kill({pid}, signal.SIGKILL)"))
    assert tell(small, edited("LOGIT_CAP = 15.0", "LOGIT_CAP = 21.0")) == ""


@pytest.mark.skipif(sandbox.landlock_abi() < 4, reason="Landlock knows the network from ABI 4 on")
def test_the_network_is_out_of_reach(small: Screen) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = f"import socket; socket.create_connection(('127.0.0.1', {port}))"
        assert "PermissionError" in tell(small, at_import(code))


def test_the_environment_is_a_list(small: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("UNKNOWN_VARIABLE", "value")
    checks = Screen(TaskConfig(), required_knobs=REQUIRED, meta=SMALL_META)
    code = "import os; raise ValueError(sorted({'OPENAI_API_KEY', 'UNKNOWN_VARIABLE', 'PATH'} & set(os.environ)))"
    assert "ValueError: ['PATH']" in tell(checks, at_import(code))
    checks.close()


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time; time.sleep(1000)",
        "while True: print('x' * 1000, flush=True)",
        "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]; time.sleep(1000)",
    ],
)
def test_what_does_not_end_is_ended_and_nothing_known(small: Screen, code: str) -> None:
    begun = time.monotonic()
    assert tell(small, at_import(code)) == ""
    assert time.monotonic() - begun < 20
    assert offspring(small) == []


SCREENED = f"autoresearch-screened-{os.getpid()}"  # other tests beside this one start such processes, too
FORKS = f"""
import os, time
for _ in range(40):
    if os.fork() == 0:
        os.setsid()
        for _ in range(3):
            os.fork()
        os.execvp('sleep', ['{SCREENED}', '600'])
"""


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("then", ["", "time.sleep(600)", "os._exit(0)"])
def test_what_it_starts_is_ended(small: Screen, then: str) -> None:
    tell(small, at_import(FORKS + then))
    assert named(SCREENED) == []


@pytest.mark.usefixtures("hasty")
def test_memory_is_bounded(small: Screen) -> None:
    code = "import mmap\nheld = [mmap.mmap(-1, 1 << 30, flags=mmap.MAP_PRIVATE) for _ in range(64)]"
    assert tell(small, at_import(code)) == ""  # a bound of this machine, too
    lines = "".join(f"\n    {line}" for line in code.splitlines())
    assert "bounded" in tell(small, at_import(f"try:{lines}\nexcept OSError:\n    raise ValueError('bounded')"))
    code = "held = []\nwhile True: held.append(bytearray(1 << 28))"
    assert tell(small, at_import(code)) == ""
    assert tell(small, edited("LOGIT_CAP = 15.0", "LOGIT_CAP = 22.0")) == ""


def test_files_are_bounded_and_removed(small: Screen) -> None:
    code = "import os, tempfile; os.truncate(tempfile.mkstemp()[1], 9 << 30)"
    assert tell(small, at_import(code)) == ""  # a bound of this machine, which says nothing of a trial's
    code = "import os, tempfile; path = tempfile.mkdtemp(); open(path + '/file', 'w').close(); os.chmod(path, 0)"
    assert tell(small, at_import(code)) == ""
    assert [path for path in small._zygote._root.iterdir() if path.name.startswith("check-")] == []


def test_rubbish_is_quoted(small: Screen) -> None:
    code = r"raise ValueError('\x1b[2J\u202e' + 'long ' * 10_000)"
    found = tell(small, at_import(code))
    assert "ValueError: long long" in found
    assert len(found) < 3000
    assert "\x1b" not in found
    lines = b'{"said": 1}\n[]\n{"stage": {}}\n{"shapes": {"parameter_bytes": 1' + b"0" * 400 + b"}}\n\xff\n"
    code = f"import os\nfor fd in range(3, 64):\n    try: os.write(fd, {lines!r} * 100)"
    code += "\n    except OSError: pass\nos._exit(3)"
    assert "code 3" in tell(small, at_import(code))
    assert tell(small, edited("LOGIT_CAP = 15.0", "LOGIT_CAP = 23.0")) == ""


def test_a_supervisor_that_died_is_started_again(small: Screen, caplog: pytest.LogCaptureFixture) -> None:
    tell(small, edited("LOGIT_CAP = 15.0", "LOGIT_CAP = 24.0"))
    first = small._zygote._process
    assert first is not None
    threading.Timer(1.0, os.kill, (first.pid, signal.SIGKILL)).start()
    assert tell(small, at_import("import time; time.sleep(3)\nraise ValueError(1)")) == ""
    assert "could not be checked" in caplog.text
    assert "ValueError: 2" in tell(small, at_import("raise ValueError(2)"))


def test_two_threads_at_once(small: Screen) -> None:
    found: dict[int, str] = {}
    threads = [
        threading.Thread(target=lambda n=n: found.update({n: tell(small, at_import(f"raise ValueError('no {n}')"))}))
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(f"no {n}" in found[n] for n in range(4))


def test_closing_ends_a_check_that_is_under_way(caplog: pytest.LogCaptureFixture) -> None:
    checks = Screen(TaskConfig(), required_knobs=REQUIRED, meta=SMALL_META)
    assert tell(checks, SMALL) == ""
    root = checks._zygote._root
    found: list[str] = []
    code = "import os\nos.execvp('sleep', ['autoresearch-closed', '600'])"
    thread = threading.Thread(target=lambda: found.append(tell(checks, at_import(code))))
    thread.start()
    while not named("autoresearch-closed"):
        time.sleep(0.05)
    begun = time.monotonic()
    checks.close()
    thread.join()
    assert time.monotonic() - begun < 10
    assert found == [""]
    assert not root.exists()
    assert named("autoresearch-closed") == []
    assert tell(checks, at_import("raise ValueError")) == ""  # closed for good
    checks.close()


OWNER = """
import sys, threading, time
from autoresearch_hpc.config import TaskConfig
from autoresearch_hpc.harness import Meta
from autoresearch_hpc.screening import Screen
checks = Screen(TaskConfig(), required_knobs=[], meta=Meta(vocab_size=512, seq_len=128, bos_id=0))
text = sys.stdin.read()
checks.problem({"train.py": text}, {"train.py": text})
"""


def test_nothing_is_left_where_the_controller_is_killed(tmp_path: Path) -> None:
    code = "import os\nos.execvp('sleep', ['autoresearch-orphan', '600'])"
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdin=subprocess.PIPE, env=env, text=True)
    assert owner.stdin is not None
    with owner.stdin as stdin:
        stdin.write(at_import(code))
    while not named("autoresearch-orphan"):
        assert owner.poll() is None
        time.sleep(0.05)
    owner.kill()
    owner.wait()
    deadline = time.monotonic() + 10
    while list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(tmp_path.iterdir()) == []
    assert named("autoresearch-orphan") == []


def test_without_landlock_the_rest_holds() -> None:
    checks = Screen(TaskConfig(sandbox=Sandbox.none), required_knobs=REQUIRED, meta=SMALL_META)
    assert tell(checks, edited("LOGIT_CAP = 15.0", "LOGIT_CAP = 20.0")) == ""
    assert "ValueError" in tell(checks, at_import("raise ValueError"))
    killed = at_import("import os, signal, time; os.kill(os.getppid(), signal.SIGKILL); time.sleep(600)")
    assert tell(checks, killed) == ""
    assert "ValueError: 2" in tell(checks, at_import("raise ValueError(2)"))
    checks.close()


def test_where_landlock_is_required_and_missing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sandbox, "landlock_abi", lambda: 0)
    checks = Screen(TaskConfig(sandbox=Sandbox.require), required_knobs=REQUIRED, meta=SMALL_META)
    assert "by their text alone" in caplog.text
    assert tell(checks, at_import("raise ValueError")) == ""
    checks.close()


def offspring(checks: Screen) -> list[int]:
    process = checks._zygote._process
    assert process is not None
    return [pid for pid, parent, _ in processes() if parent == process.pid]


def named(name: str) -> list[int]:
    return [pid for pid, _, command in processes() if name in command]


def processes() -> Iterator[tuple[int, int, str]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                yield int(entry.name), parent, (entry / "cmdline").read_text()
