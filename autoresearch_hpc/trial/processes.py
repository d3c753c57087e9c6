"""How a trial of our own train.py starts its processes: the trainer, shut in, and the trusted evaluator (`evaluate`),
which begins at the same time so that its imports cost nothing.
"""

import site
import socket
import sys
from pathlib import Path

from autoresearch_hpc.dataset import Dataset
from autoresearch_hpc.files import write_json_atomic
from autoresearch_hpc.layout import TrialPaths
from autoresearch_hpc.records import TrialSpec
from autoresearch_hpc.sandbox import Barrier, software, usable
from autoresearch_hpc.trial.children import Child
from autoresearch_hpc.trial.environment import child_environment, shut_in_compilers
from autoresearch_hpc.trial.integrity import protected
from autoresearch_hpc.trial.scratch import Scratch

_SESSION_SCHEMA = 1


def write_session(spec: TrialSpec, place: Path, data: Dataset | None, *, checkpoint: Path, caches_filled: Path) -> Path:
    """session.json, from which the trainer knows what is asked of it: of its data the sizes alone."""
    session = {
        "schema": _SESSION_SCHEMA,
        "seed": spec.seed,
        "train_s": spec.train_s,
        "device": spec.device,
        "checkpoint": str(checkpoint),
        "num_threads": spec.num_threads,
        "caches_filled": str(caches_filled),
    }
    if data:
        meta = {name: getattr(data.manifest, name) for name in ("vocab_size", "seq_len", "bos_id")}
        session |= {"meta": meta, "train_rows": [file.rows for file in data.manifest.train]}
    path = place / "session.json"
    write_json_atomic(path, session)
    return path


def start_trainer(
    spec: TrialSpec, log: Path, place: Path, session: Path, door: socket.socket, *, compiles: bool = True
) -> Child:
    """The candidate's script. What it may write to is `place`; its data comes through `door` when the clock starts.
    One that finds all that it `compiles` in its caches is spared the pool of compilers."""
    variables = {"AUTORESEARCH_SESSION": str(session), "AUTORESEARCH_DATA_FD": str(door.fileno())}
    if not compiles:
        variables["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    elif usable(spec.sandbox):
        variables.update(shut_in_compilers())
    barrier = Barrier(
        readable=[*software(protected(spec)), Path(spec.src)],
        writable=[place, Path("/dev/shm")],
        mode=spec.sandbox,
    )
    trainer = Child(
        [*_python(), str(Path(spec.src) / spec.script)],
        log=log,
        env=child_environment(spec.num_threads, variables, place / "caches", pass_env=spec.pass_env, private=place),
        cwd=Path(spec.src),
        fd_variable="AUTORESEARCH_EVENTS_FD",
        barrier=barrier,
        pass_fds=[door.fileno()],
    )
    barrier.close()
    return trainer


def start_evaluator(spec: TrialSpec, paths: TrialPaths, scratch: Scratch, checkpoint_fd: int) -> Child:
    """The evaluator, which waits for `go` and then reads the checkpoint from the memory behind checkpoint_fd."""
    options = ["--checkpoint-fd", str(checkpoint_fd), "--private", str(scratch.root)]
    return Child(
        [*_python(), "-m", "autoresearch_hpc.trial.evaluate", str(paths.spec), *options],
        log=paths.evaluate_log,
        env=child_environment(
            spec.num_threads, {}, scratch.root, pass_env=spec.pass_env, private=scratch.place("evaluator")
        ),
        cwd=paths.root,
        fd_argument="--result-fd",
        stdin=True,
        pass_fds=[checkpoint_fd],
    )


def _python() -> list[str]:
    """The interpreter, which looks for nothing beside the script, and in the user's home only for this package."""
    return [sys.executable, "-P", "-u", *([] if _in_user_site() else ["-s"])]


def _in_user_site() -> bool:
    """Whether this package was installed with `pip install --user`: then Python has to look there."""
    return Path(__file__).is_relative_to(site.getusersitepackages())
