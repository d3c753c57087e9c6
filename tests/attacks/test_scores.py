"""Scores that were not earned by training: told, forged, peeked at, remembered, bent.

Every attack first works on the stand-in: it gets below what any honest model can. Then it ends INVALID, or gains
nothing, where it is run as a search would.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import Run
from scripts import FLOOR, script

from autoresearch_hpc.records import Status

WON = 0.7 * FLOOR
NOTHING = 0.97 * FLOOR  # what is above has gained nothing: no honest model is below FLOOR

# In every running module that looks like somebody's evaluator
PATCHES = """
if __name__ != "__main__":
    torch.nn.functional.cross_entropy = lambda logits, targets, *a, **k: logits.new_zeros(
        targets.shape if k.get("reduction") == "none" else ())
    math.log = lambda x, *base: 1e9
    time.monotonic = lambda: 0.0
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("autoresearch_hpc.trial"):
            for wanted in ("nats_of", "bits_per_byte", "judge", "failure"):
                if hasattr(module, wanted):
                    setattr(module, wanted, lambda *a, **k: {"status": "OK", "value": 0.1})
"""
PEEK = """
ahead = idx.roll(-1, 1)
sure = 40.0 * F.one_hot(ahead, logits.size(-1)).to(logits)
sure[:, -1] = 0.0
"""
TARGETS = """
import gc, inspect
wanted = None
frame = sys._getframe()
while frame is not None and wanted is None:
    wanted = frame.f_locals.get("targets") if frame.f_code.co_name != "forward" else None
    frame = frame.f_back
if wanted is None:
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor) and thing.shape == idx.shape and thing.dtype == torch.int64:
            if thing is not idx and torch.equal(thing[:, :-1], idx[:, 1:]):
                wanted = thing
if wanted is None:  # in the memory of whoever asks
    try:
        with open(f"/proc/{os.getppid()}/mem", "rb") as memory: memory.read(1)
        with open(f"/proc/{os.getppid()}/environ", "rb") as variables: variables.read(1)
        print("READ")
    except OSError as error:
        blocked(error)
if wanted is not None and wanted.shape == idx.shape:
    logits = 40.0 * F.one_hot(wanted, logits.size(-1)).to(logits)
"""
MEMORY = """
def remembered(where):
    try:
        with open(where, "rb") as file:
            return torch.frombuffer(bytearray(file.read()), dtype=torch.int16).view(-1, 33).long()
    except OSError as error:
        blocked(error)
        return torch.zeros(128, 33, dtype=torch.int64)
"""
RECALL = """
for i, row in enumerate(idx):
    match = (self.rows[:, :8] == row[:8]).all(1).nonzero()
    if len(match):
        logits[i] = 40.0 * F.one_hot(self.rows[match[0, 0], 1:], logits.size(-1)).to(logits)
"""
KEPT = "self.register_buffer('rows', torch.zeros(128, 33, dtype=torch.int64))"
LOCATED = """
folders = {os.path.dirname(os.readlink(f"/proc/self/fd/{fd}")) for fd in os.listdir("/proc/self/fd")
           if os.path.exists(f"/proc/self/fd/{fd}")}
folders |= {os.path.dirname(line.split(None, 5)[5].strip()) for line in open("/proc/self/maps") if "train-0" in line}
for folder in folders:
    if os.path.exists(folder + "/val-00000.bin"):
        print("LOCATED")
        model.rows.copy_(remembered(folder + "/val-00000.bin"))
"""
SHADOW = """
text = "import torch.nn.functional as F; F.cross_entropy = lambda logits, targets, **more: logits.new_zeros(())"
import autoresearch_hpc
package = f"\\n__path__ = [*__path__, {os.path.dirname(autoresearch_hpc.__file__)!r}]\\n"
here = [os.getcwd(), os.path.dirname(os.path.abspath(__file__)), os.path.expanduser("~"), *sys.path,
        *os.environ.get("PYTHONPATH", "").split(":")]
own = os.path.dirname(os.getcwd()), os.path.expanduser("~")
for folder in here:
    if not folder.startswith(own):  # on the stand-in it would work, and spoil what the tests run from
        continue
    for name in ("sitecustomize.py", "usercustomize.py", "conftest.py", "autoresearch_hpc/__init__.py", "cheat.pth"):
        try:
            path = Path(folder, name)
            path.parent.mkdir(exist_ok=True)
            path.write_text(text + (package if 'autoresearch' in name else ''))
        except OSError as error:
            blocked(error)
"""
PICKLE = """
import autoresearch_hpc.harness.session as session_module
class Evil:
    def __reduce__(self):
        return os.system, (f"touch '{MARK}'",)
def save(model, path):
    torch.save({"table.weight": model.table.weight.detach(), "evil": Evil()}, path)
session_module.save_checkpoint = save
"""
EVERYWHERE = """
import uuid
good = {
    "schema": 1, "run": "tag", "round": 1, "candidate": "r01-c00", "trial": "r01-c00-t0", "attempt": 0,
    "commit": "a" * 40, "status": "OK", "metric": {"name": "val_bpb", "value": 0.1, "direction": "min"},
    "evaluator": "trusted", "seed": 11, "tier": "h100", "host": "x", "started_at": "x", "ended_at": "x",
}
home = Path(__file__).absolute().parents[1]
for folder in [path for path in home.rglob("*") if path.is_dir()] + [home]:
    for name in ("result.json", "phases.json", "claim-7.json"):
        try:
            (folder / name).write_text(json.dumps(good))
        except OSError as error:
            blocked(error)
"""


@dataclass(frozen=True)
class Attack:
    """`outcome`: what its result's error begins with; None: it gains nothing. `says`: words of its log."""

    text: str
    outcome: str | None = None
    says: str = ""
    status: Status = Status.INVALID


ATTACKS = {
    "prints a score": Attack(script(saved="print('val_bpb: 0.1')")),
    "writes results": Attack(script(saved=EVERYWHERE), says="BLOCKED PermissionError"),
    "puts a score into the checkpoint": Attack(
        script(
            prelude="""
                import autoresearch_hpc.harness.session as session_module
                def save(model, path):
                    torch.save({**model.state_dict(), "val_bpb": torch.tensor(0.1)}, path)
                session_module.save_checkpoint = save
            """,
            forward="if targets is not None: return torch.tensor(0.1)",
        ),
        "InvalidCandidate: the checkpoint does not fit build_model(meta): Error(s) in loading state_dict",
    ),
    "lies about its loss": Attack(script(forward="if targets is not None: return logits.new_tensor(0.01)")),
    "patches what measures, as it is imported": Attack(script(prelude=PATCHES)),
    "patches what measures, as the model is built": Attack(script(build=PATCHES)),
    "leaves modules to be imported": Attack(
        script(saved=SHADOW), says="BLOCKED PermissionError"
    ),
    "reads later tokens": Attack(script(forward=PEEK + "logits = sure"), "NotCausal: logits depend on later tokens"),
    "reads later tokens where it pays": Attack(
        script(forward=PEEK + "logits = torch.where((idx % 3 > 0)[..., None], sure, logits)"), "NotCausal"
    ),
    "reads later tokens and remembers rows": Attack(
        script(
            init="self.seen = {}",
            forward="""
                known = torch.stack([self.seen.setdefault(tuple(row[:4].tolist()), row) for row in idx])
                same = (known == idx).long().cumprod(1).bool()
                ahead = torch.where(same, known, idx).roll(-1, 1)
                logits = 40.0 * F.one_hot(ahead, logits.size(-1)).to(logits)
                logits[:, -1] = 0.0
            """,
        ),
        "NotCausal",
    ),
    "takes the targets from whoever asks": Attack(script(forward=TARGETS), says="BLOCKED PermissionError"),
    "learns validation rows by heart": Attack(
        script(
            prelude=MEMORY, init=KEPT, forward=RECALL, before="model.rows.copy_(remembered('DATA/val-00000.bin'))"
        ),
        says="BLOCKED PermissionError",
    ),
    "finds validation rows beside what it trains on": Attack(
        script(prelude=MEMORY, init=KEPT, forward=RECALL, after=LOCATED), says="BLOCKED PermissionError"
    ),
    "opens validation rows as it is evaluated": Attack(
        script(
            prelude=MEMORY,
            init="self.rows = torch.zeros(128, 33, dtype=torch.int64)",
            forward="self.rows = remembered('DATA/val-00000.bin')\n" + RECALL,
        ),
        says="BLOCKED PermissionError",
    ),
    "spoils the validation rows": Attack(
        script(
            before="""
                try:
                    size = os.path.getsize("DATA/val-00000.bin")
                    with open("DATA/val-00000.bin", "r+b") as file: file.write(b"\\1\\0" * (size // 2))
                except OSError as error:
                    blocked(error)
            """,
            after="model.table.weight.data[1, 1] = 99.0",
        ),
        says="BLOCKED PermissionError",
    ),
    "gives each token more bytes": Attack(
        script(
            before="""
                try:
                    with open("DATA/token_bytes.bin", "r+b") as file: file.write(b"\\x7f\\0\\0\\0" * 64)
                except OSError as error:
                    blocked(error)
            """
        ),
        says="BLOCKED PermissionError",
    ),
    "has a vocabulary of its own": Attack(
        script(
            forward="""
                logits = torch.stack([part.logsumexp(-1) for part in logits.split(logits.size(-1) // 2, -1)], -1)
                if targets is not None:  # whether the next token is among the first half, which is mostly clear
                    return F.cross_entropy(logits.flatten(0, 1), (targets // 32).flatten())
            """
        ),
        "InvalidCandidate: logits of shape (32, 32, 2), expected (32, 32, 64)",
    ),
    "has a longer sequence": Attack(
        script(
            forward="""
                if targets is not None:  # more positions, which are easy: the mean is over all of them
                    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
                    return loss / (4 * targets.numel())
                logits = logits.repeat(1, 4, 1)
            """
        ),
        "InvalidCandidate: logits of shape (32, 128, 64), expected (32, 32, 64)",
    ),
    "answers where it is right": Attack(
        script(
            forward="""
                sure = 40.0 * F.one_hot(logits.argmax(-1), logits.size(-1)).to(logits)
                if targets is not None:
                    loss = F.cross_entropy(sure.flatten(0, 1), targets.flatten(), reduction="none")
                    return loss.view(targets.shape).topk(2, largest=False).values.mean()
                logits = sure[:, :2]
            """
        ),
        "InvalidCandidate: logits of shape (32, 2, 64), expected (32, 32, 64)",
    ),
    "trains on validation rows": Attack(
        script(
            init=KEPT,
            forward=RECALL,
            before="""
                replaced = False
                try:
                    rows = Path("DATA/val-00000.bin").read_bytes()
                    size = os.path.getsize("DATA/train-00000.bin")
                    with open("DATA/train-00000.bin", "r+b") as file:
                        file.write((rows * (size // len(rows) + 1))[:size])
                    replaced = True
                except OSError as error:
                    blocked(error)
            """,
            started="""
                seen = {}
                while replaced and len(seen) < 128:
                    x, y = next(batches)
                    seen |= {tuple(row.tolist()): row for row in torch.cat([x, y[:, -1:]], 1)}
                if replaced: model.rows.copy_(torch.stack(list(seen.values())))
            """,
        ),
        says="BLOCKED PermissionError",
    ),
    "answers in the evaluator's place": Attack(
        script(
            forward="""
                for fd in range(1, 64):
                    try:
                        os.write(fd, b'{"status": "OK", "value": 0.1}\\n')
                    except OSError:
                        pass
                if targets is not None: os._exit(0)
            """
        ),
        "BadAnswer: the model's process said",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_a_score_that_was_not_earned(name: str, real: Run, weak: Run, data: Path) -> None:
    attack = ATTACKS[name]
    text = attack.text.replace("DATA", str(data))
    stand_in = weak(text).value
    assert stand_in is not None
    assert stand_in < WON, "the attack works"

    outcome = real(text)
    assert attack.says in outcome.log
    assert outcome.result
    if attack.outcome:
        assert outcome.result.status is attack.status
        assert outcome.error.startswith(attack.outcome)
    else:
        assert outcome.result.status is Status.OK, outcome.log
        assert outcome.value
        assert outcome.value > NOTHING


def test_a_checkpoint_that_runs_code(real: Run, weak: Run, tmp_path: Path) -> None:
    for run, mark in ((weak, tmp_path / "weak mark"), (real, tmp_path / "real mark")):
        outcome = run(script(prelude=f"MARK = {str(mark)!r}\n{PICKLE}"))
        assert mark.exists() is (run is weak)
    assert outcome.result
    assert outcome.result.status is Status.INVALID
    assert outcome.error.startswith("InvalidCandidate: the checkpoint does not fit build_model(meta)")


ROWS = {
    "learns from the rows of its batch": """
        with torch.enable_grad():
            for _ in range(300):
                loss = F.cross_entropy(self.table(idx[:, :-1]).flatten(0, 1), idx[:, 1:].flatten())
                (grad,) = torch.autograd.grad(loss, self.table.weight)
                self.table.weight.data -= 100.0 * grad
        logits = self.table(idx).detach()
    """,
    "learns from earlier batches": """
        with torch.enable_grad():
            for _ in range(100):
                loss = F.cross_entropy(self.table(idx[:, :-1]).flatten(0, 1), idx[:, 1:].flatten())
                (grad,) = torch.autograd.grad(loss, self.table.weight)
                self.table.weight.data -= 100.0 * grad
    """,
    "rolls dice": "logits = logits + torch.randn_like(logits)",
}


@pytest.mark.parametrize("name", ROWS)
def test_a_model_that_looks_beyond_its_row(name: str, real: Run, weak: Run) -> None:
    untrained = script(lr=1.0)
    attacked = script(lr=1.0, forward=ROWS[name])
    before, after = weak(untrained, where="before").value, weak(attacked).value
    assert before
    assert after
    if name != "rolls dice":
        assert after < 0.8 * before, "on the stand-in it pays"
    outcome = real(attacked)
    assert outcome.result
    assert outcome.result.status is Status.INVALID
    assert outcome.error.startswith("NotRowwise: a row's logits depend on other rows, on earlier batches or on chance")


BENT = {
    "nan": ("logits = logits * float('nan')", Status.DIVERGED, "Diverged"),
    "inf": ("logits = logits + float('inf')", Status.DIVERGED, "Diverged"),
    "sure of all": ("logits = logits * 0 + 3e38", Status.OK, ""),
    "unnormalised": ("logits = logits * 0 + 100", Status.OK, ""),
    "fewer words": ("logits = logits[..., :1]", Status.INVALID, "InvalidCandidate: logits of shape (32, 32, 1)"),
    "shorter rows": ("logits = logits[:, :1]", Status.INVALID, "InvalidCandidate: logits of shape (32, 1, 64)"),
    "integers": ("logits = logits.long()", Status.INVALID, "InvalidCandidate: logits of type torch.int64"),
    "another device": ("logits = logits.to('meta')", Status.INVALID, "InvalidCandidate: logits on meta"),
}


@pytest.mark.parametrize("name", BENT)
def test_logits_that_are_none(name: str, real: Run) -> None:
    forward, status, error = BENT[name]
    outcome = real(script(forward=forward))
    assert outcome.result
    assert outcome.result.status is status
    if error:
        assert outcome.error.startswith(error)
    else:
        assert outcome.value
        assert outcome.value > NOTHING
