"""What a script does besides training: takes more time, leaves things behind, reads and writes what is not its own.

As in test_scores every attack first works on the stand-in, or where that has nothing to attack, in this process.
"""

import http.server
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from conftest import Run
from scripts import FLOOR, TRAIN_S, script

from autoresearch_hpc.records import Status

NOTHING = 0.97 * FLOOR
MORE = """
end = time.clock_gettime(time.CLOCK_BOOTTIME) + 5
while time.clock_gettime(time.CLOCK_BOOTTIME) < end:
    train(model, *next(batches), optimizer)
"""
CLOCKS = {
    "slows the clock down": script(
        started="""
            fast = time.monotonic
            time.monotonic = lambda: fast() / 8
            session._started = time.monotonic()
        """
    ),
    "goes on after the clock": script(after=MORE),
    "says that it has stopped, and goes on": script(after="session._events.emit('stopped')\n" + MORE),
    "stops whoever watches": script(
        started="""
            try:
                os.kill(os.getppid(), signal.SIGSTOP)
            except OSError as error:
                blocked(error)
        """,
        after=MORE
        + """
try:
    os.kill(os.getppid(), signal.SIGCONT)
except OSError as error:
    blocked(error)
""",
    ),
}


@pytest.mark.parametrize("name", CLOCKS)
def test_time_is_charged_from_outside(name: str, real: Run, weak: Run) -> None:
    stand_in = weak(CLOCKS[name])
    assert stand_in.value
    assert stand_in.trained_s > 5 * TRAIN_S, "the attack works"
    outcome = real(CLOCKS[name])
    assert outcome.result
    assert outcome.result.status is Status.INVALID, outcome.log
    assert outcome.error.startswith("Overrun: ")
    assert outcome.result.phases.train_s
    assert outcome.result.phases.train_s < 5 * TRAIN_S + 3


def test_training_before_the_clock(real: Run, weak: Run, data: Path) -> None:
    text = script(
        lr=5.0,
        before=f"""
            import numpy
            try:
                tokens = numpy.fromfile({str(data / "train-00000.bin")!r}, dtype="uint16")
                rows = torch.from_numpy(tokens.astype("int64")).view(-1, 33)
                for step in range(3000):
                    some = rows[step * 32 % 1984 :][:32]
                    train(model, some[:, :-1], some[:, 1:], optimizer)
            except OSError as error:
                blocked(error)
        """,
    )
    fair = real(script(lr=5.0), where="fair").value
    before = weak(text).value
    assert fair
    assert before
    assert before < 0.8 * fair, "the attack works"
    outcome = real(text)
    assert "BLOCKED PermissionError" in outcome.log
    assert outcome.value
    assert outcome.value > 0.93 * fair


REPLACE = """
sys.stdout.flush()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        sys.stdout = sys.stderr = open(os.devnull, "w")
        for fd in (0, 1, 2): os.dup2(sys.stdout.fileno(), fd)
        time.sleep(0.3)
        perfect(model)
        torch.save(model.state_dict(), session._spec.checkpoint + ".better")
        better = open(session._spec.checkpoint + ".better", "rb").read()
        for _ in range(100):  # at one stroke: who reads it meanwhile finds no half of a file
            fd = os.open(session._spec.checkpoint, os.O_WRONLY)
            os.pwrite(fd, better, 0)
            os.ftruncate(fd, len(better))
            os.close(fd)
            time.sleep(0.05)
        os.execvpe("sleep", ["sleep", "61.1875"], {})
    os._exit(0)
"""


def alive(words: str) -> list[int]:
    """Processes whose command line is exactly these words."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if entry.read_bytes().replace(b"\0", b" ").decode().strip() == words:
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


def test_a_process_that_stays_and_replaces_the_checkpoint(real: Run, weak: Run) -> None:
    text = script(lr=5.0, saved=REPLACE)
    outcome = real(text)
    assert outcome.value
    assert outcome.value > 1.5 * FLOOR, "it is the checkpoint of the training"
    assert not alive("sleep 61.1875")
    stand_in = weak(text).value
    assert stand_in
    assert stand_in < 1.1 * FLOOR, "the attack works"
    time.sleep(4)
    stayed = alive("sleep 61.1875")
    assert stayed, "and the process stays"
    for pid in stayed:
        os.kill(pid, signal.SIGKILL)


HOARD = """
import tempfile
places = [os.getcwd(), tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm", os.path.expanduser("~"),
          os.environ.get("TORCHINDUCTOR_CACHE_DIR", ""), os.environ.get("TRITON_CACHE_DIR", "")]
places = [place for place in places if place]
"""
FIND = (
    HOARD
    + """
for place in places:
    try:
        model.load_state_dict(torch.load(place + "/hoard-ATTACK.pt"))
        print("FOUND", place)
    except OSError:
        pass
"""
)
STORE = """
perfect(model)
for place in places:
    try:
        os.makedirs(place, exist_ok=True)
        torch.save(model.state_dict(), place + "/hoard-ATTACK.pt")
        print("STORED", place)
    except (OSError, RuntimeError):
        pass
model.table.weight.data.zero_()
"""


def test_state_from_trial_to_trial(real: Run, weak: Run, tmp_path: Path) -> None:
    find, store = (part.replace("ATTACK", f"{os.getpid()}-KIND") for part in (FIND, STORE))
    text = script(lr=1.0, before=find, after=store)
    try:
        for run, kind in ((weak, "weak"), (real, "real")):
            first = run(text.replace("KIND", kind), where=f"{kind} 1")
            assert "STORED" in first.log
            assert "FOUND" not in first.log
            second = run(text.replace("KIND", kind), where=f"{kind} 2")
            assert ("FOUND" in second.log) is (kind == "weak"), second.log
    finally:
        for place in ("/tmp", "/var/tmp", "/dev/shm", str(Path.home())):
            for left in Path(place).glob(f"hoard-{os.getpid()}-*.pt"):
                assert "weak" in left.name, "nothing stays of a real trial"
                left.unlink()


def test_another_trials_files(real: Run, weak: Run, tmp_path: Path) -> None:
    other = tmp_path / "another trial"
    attack = f"""
        for name in ("result.json", "claim-0.json", "inbox-r01-c01-t0"):
            try:
                Path({str(other)!r}, name).write_text("{{}}")
                print("WROTE", name)
            except OSError as error:
                blocked(error)
        try:
            print(len(os.listdir({str(other)!r})), "LISTED")
        except OSError as error:
            blocked(error)
    """
    other.mkdir()
    assert weak(script(saved=attack)).log.count("WROTE") == 3
    for path in other.iterdir():
        path.unlink()
    outcome = real(script(saved=attack))
    assert outcome.log.count("BLOCKED PermissionError") == 4
    assert list(other.iterdir()) == []
    assert outcome.value


def test_keys(real: Run, weak: Run, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh" / "id").write_text("sesame-file")
    (home / ".netrc").write_text("sesame-file")
    attack = f"""
        print(dict(os.environ))
        for path in ({str(home / ".netrc")!r}, {str(home / ".ssh/id")!r}, os.path.expanduser("~/.netrc"),
                     f"/proc/{{os.getppid()}}/environ"):
            try:
                print(open(path).read())
            except OSError as error:
                blocked(error)
    """
    env = {
        "HOME": str(home),
        "OPENAI_API_KEY": "sesame-env",
        "MY_PRIVATE_SETTING": "sesame-env",
        "HF_TOKEN": "sesame-env",
    }
    stand_in = weak(script(saved=attack), env=env).log
    assert "sesame-env" in stand_in
    assert "sesame-file" in stand_in
    outcome = real(script(saved=attack, build=attack), env=env)
    assert outcome.value, outcome.log
    assert outcome.log.count("BLOCKED") >= 8
    assert "sesame" not in outcome.log


def test_the_network(real: Run, weak: Run) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        attack = f"""
            try:
                socket.create_connection(("127.0.0.1", {server.server_address[1]}), 5).close()
                print("CONNECTED")
            except OSError as error:
                blocked(error)
        """
        assert "CONNECTED" in weak(script(before=attack)).log
        outcome = real(script(before=attack, build=attack))
        server.shutdown()
    assert "CONNECTED" not in outcome.log
    assert outcome.log.count("BLOCKED PermissionError") >= 3
    assert outcome.value


def test_a_full_log(real: Run, weak: Run) -> None:
    attack = "for i in range(40): print('x' * (1 << 20) + '\\x1b[31m')\nprint('the end', flush=True)"
    assert len(weak(script(saved=attack)).log) > 40 << 20
    outcome = real(script(saved=attack))
    assert outcome.value
    assert len(outcome.log) < (16 << 20) + 4096
    assert "the end" in outcome.log, "the end is what is kept"


LITTLE = """
import sys
from autoresearch_hpc import sandbox
from autoresearch_hpc.trial import gpt, worker
gpt.MAX_SCRATCH_BYTES = 64 << 20
worker.main()
"""


def test_a_full_disk(real: Run, weak: Run) -> None:
    attack = """
        import tempfile
        for i in range(100):
            with open(tempfile.gettempdir() + f"/fill-{i}", "wb") as file: file.write(bytes(4 << 20))
            time.sleep(0.05)
        for i in range(100):
            Path(tempfile.gettempdir(), f"fill-{i}").unlink()
        print("FILLED", flush=True)
    """
    assert "FILLED" in weak(script(before=attack)).log
    outcome = real(script(before=attack + "\n        time.sleep(20)"), program=("-c", LITTLE))
    assert outcome.result
    assert outcome.result.status is Status.INVALID
    assert outcome.error.startswith("DiskFull: the trial wrote ")
    assert "FILLED" not in outcome.log or outcome.result.phases.total_s


def test_a_file_without_end(real: Run) -> None:
    attack = """
        import resource
        print("LIMIT", resource.getrlimit(resource.RLIMIT_FSIZE), resource.getrlimit(resource.RLIMIT_CORE))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            with open(os.environ["TMPDIR"] + "/huge", "wb") as file: file.truncate(65 << 30)
        except OSError as error:
            blocked(error)
    """
    outcome = real(script(before=attack))
    assert f"LIMIT ({64 << 30}, {64 << 30}) (0, 0)" in outcome.log
    assert "BLOCKED OSError" in outcome.log


def test_a_search_for_a_seed(real: Run) -> None:
    """Three tries in the time of one: each is shorter, and the best of them is no better."""
    text = script(
        lr=5.0,
        started="""
            best = None
            for seed in range(3):
                torch.manual_seed(seed)
                model.table.weight.data.normal_(std=0.01)
                end = time.monotonic() + session._spec.train_s / 3 - 0.02
                while time.monotonic() < end:
                    x, y = next(batches)
                    train(model, x, y, optimizer)
                    time.sleep(0.005)
                loss = float(F.cross_entropy(model(x).flatten(0, 1), y.flatten()))
                if best is None or loss < best[0]:
                    best = (loss, model.table.weight.detach().clone())
        """,
        after="model.table.weight.data.copy_(best[1])",
    )
    fair, searched = real(script(lr=5.0), where="fair").value, real(text).value
    assert fair
    assert searched
    assert searched > 0.97 * fair


DISORDER = {
    "saved before the clock": "session._events.emit('saved', steps=1)",
    "nonsense": "os.write(session._events._fd, b'{{{\\n[]\\n' + b'x' * 100_000 + b'\\n')",
    "a second clock": "session._events.emit('clock')",
}


@pytest.mark.parametrize("name", DISORDER)
def test_messages_out_of_order(name: str, real: Run) -> None:
    outcome = real(script(before=DISORDER[name]))
    assert outcome.result
    if name == "a second clock":  # the training begins where it says so
        assert outcome.result.status is Status.OK
        assert outcome.result.phases.train_s
        assert outcome.result.phases.train_s > TRAIN_S
    else:
        assert outcome.value
        assert outcome.value > NOTHING


SPOIL = {
    "its own files": ("open(__file__, 'a').write('# more')", "Tampered: train.py was changed while the trial ran"),
    "training rows": (
        "import shutil; os.replace(shutil.copy('DATA/train-00000.bin', 'DATA/new'), 'DATA/train-00000.bin')",
        "Tampered: the data's train-00000.bin was changed",
    ),
    "the tokenizer": (
        "os.utime('DATA/tokenizer.json')",
        "Tampered: the data's tokenizer.json was changed",
    ),
    "the data": ("os.utime('DATA/train-00000.bin')", "Tampered: the data's train-00000.bin was changed"),
    "staged rows": (
        "import glob; os.utime(glob.glob('STAGE/*/data-*/train-00000.bin')[0])",
        "Tampered: the staged train-00000.bin was changed",
    ),
}


@pytest.mark.parametrize("name", SPOIL)
def test_what_is_changed_where_nothing_is_shut_in(name: str, real: Run, data: Path, tmp_path: Path) -> None:
    attack, error = SPOIL[name]
    attack = attack.replace("DATA", str(data)).replace("STAGE", str(tmp_path))
    outcome = real(script(saved=attack), sandbox="none", stage=str(tmp_path), stage_limit_s=20.0)
    assert outcome.result
    assert outcome.result.status is Status.INVALID
    assert outcome.error.startswith(error)
