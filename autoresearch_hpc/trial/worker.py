"""The trusted parent of a trial on the compute node: `python -P -m autoresearch_hpc.trial.worker`.

Claims the trial, checks its files, data and GPU, runs it, and writes `result.json` whatever happens, signals included.
An attempt is claimed exclusively: if it was submitted twice, the second worker leaves without a trace. A worker whose
trial was given to a newer attempt meanwhile (its node had been cut off) keeps its result to itself.

Exit status 0, or 74 where the filesystem did not give the files, or take the claim or the result, within a minute.
"""

import argparse
import contextlib
import json
import logging
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from autoresearch_hpc import sandbox
from autoresearch_hpc.dataset import Dataset
from autoresearch_hpc.errors import STORAGE_ERRORS, DataError
from autoresearch_hpc.files import read_json, sha256_file, storing, sync_directory, write_all, write_json_atomic
from autoresearch_hpc.layout import TrialPaths
from autoresearch_hpc.leftovers import adopt_orphans, kill_descendants
from autoresearch_hpc.records import Failure, Gpu, Phases, Status, TrialResult, TrialSpec, from_json, to_json
from autoresearch_hpc.trial import facts
from autoresearch_hpc.trial.children import StopFlag, Stopped
from autoresearch_hpc.trial.command import CommandTrial
from autoresearch_hpc.trial.ending import Ending
from autoresearch_hpc.trial.gpt import GptTrial
from autoresearch_hpc.trial.integrity import Watched, harness_sha256
from autoresearch_hpc.trial.phases import Phase, PhaseLog
from autoresearch_hpc.trial.staging import Copy, staged

_log = logging.getLogger(__name__)

EXIT_STORAGE = 74  # EX_IOERR
_PATIENCE_S = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description="Run one trial.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--trial", type=Path, help="a trial.json")
    source.add_argument("--array", type=Path, help="an array.json; SLURM_ARRAY_TASK_ID picks the trial")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        run(options.trial or _of_array(options.array))
    except OSError as error:
        _log.error("gives up: %s", error)
        sys.exit(EXIT_STORAGE)


def _of_array(manifest: Path) -> Path:
    trials = _insist(lambda: read_json(manifest))["trials"]
    return Path(trials[int(os.environ["SLURM_ARRAY_TASK_ID"])])


def run(spec_path: Path) -> None:
    """Run the trial of spec_path, once for each of Slurm's attempts.

    Raises OSError where its files stay unreadable or unwritable.
    """
    stop = StopFlag()
    paths, attempt = TrialPaths(spec_path.parent), facts.attempt()
    spec = from_json(TrialSpec, _insist(lambda: read_json(spec_path)))
    if _finished_before(paths):
        _log.info("%s is done; nothing to do", spec.trial)
        return
    if not _insist(lambda: _claim(paths, attempt)):
        _log.info("%s attempt %d is taken; nothing to do", spec.trial, attempt)
        return
    paths.result.unlink(missing_ok=True)  # an earlier attempt that was merely cancelled
    if spec.kind == "gpt" and not sandbox.usable(spec.sandbox):
        why = "task.sandbox=none" if spec.sandbox == "none" else "no Landlock here"
        _log.warning("%s: the candidate can read and write whatever this user can (docs/integrity.md)", why)
    result = _outcome(spec, paths, attempt, stop)
    if not _insist(lambda: _publish(paths, result)):
        _log.info("%s attempt %d was overtaken by a newer one; its result is dropped", spec.trial, attempt)
        return
    _log.info("trial=%s status=%s %s=%s", spec.trial, result.status, result.metric.name, result.metric.value)
    _announce(spec)


def _outcome(spec: TrialSpec, paths: TrialPaths, attempt: int, stop: StopFlag) -> TrialResult:
    """The trial from its start to its end, whatever happens."""
    started_at = _now()
    adopt_orphans()
    phases = PhaseLog(paths.phases)
    gpu = Gpu()
    try:
        stop.check()
        gpu = facts.gpu()
        ending = _refusal(spec, gpu) or _watched_trial(spec, paths, phases, stop, gpu)
        ending = _excused(ending, paths)
    except Stopped as reason:
        status = Status.TIMEOUT if stop.timed_out else Status.CANCELLED
        ending = Ending(status=status, error=_failure("Stopped", str(reason), paths))
    except Exception as error:  # noqa: BLE001 - the last line of defence: a trial always has a result
        broken = isinstance(error, OSError) and error.errno in STORAGE_ERRORS
        name = "OSError" if broken else type(error).__name__  # not the node's fault, nor the candidate's
        ending = Ending(status=Status.LOST, error=Failure(type=name, message=str(error), tail=traceback.format_exc()))
    left = kill_descendants()
    if left:
        _log.info("%s left %d processes behind; they were ended", spec.trial, left)
    return _result(spec, ending, attempt=attempt, started_at=started_at, gpu=gpu, phases=phases)


_T = TypeVar("_T")


def _insist(act: Callable[[], _T]) -> _T:
    """Act, and try again for a while where the filesystem fails: room is made, servers come back, files appear late."""
    deadline, pause_s = time.monotonic() + _PATIENCE_S, 0.5
    while True:
        try:
            return act()
        except OSError as error:
            if time.monotonic() + pause_s > deadline:
                raise
            _log.warning("%s; trying again in %g s", error, pause_s)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 5.0)


def _claim(paths: TrialPaths, attempt: int) -> bool:
    """Take this attempt; False where another worker has it."""
    claim = {"host": socket.gethostname(), "pid": os.getpid(), "attempt": attempt, "at": _now()}
    claim["job"] = facts.job_id()
    claim["visible"] = os.environ.get("CUDA_VISIBLE_DEVICES")
    path = paths.claim(attempt)
    with storing(path):
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileExistsError:
            return False
        try:
            write_all(fd, json.dumps(claim).encode())
            os.fsync(fd)
            sync_directory(path.parent)
        except OSError:
            path.unlink(missing_ok=True)  # it is ours: whoever comes next may have it
            raise
        finally:
            os.close(fd)
    return True


def _publish(paths: TrialPaths, result: TrialResult) -> bool:
    """Write the result; False where a newer attempt has been claimed."""
    with contextlib.suppress(OSError):
        os.utime(paths.root)  # a client of NFS may keep old listings for a minute, but not of what it has touched
    claims = (path.stem.removeprefix("claim-") for path in paths.root.glob("claim-*.json"))
    if any(int(number) > result.attempt for number in claims if number.isdigit()):
        return False
    write_json_atomic(paths.result, to_json(result))
    return True


def _announce(spec: TrialSpec) -> None:
    """Tell the controller that there is a result to read; it would find out without."""
    if spec.inbox is None:
        return
    try:
        Path(spec.inbox, spec.trial).touch()
    except OSError as error:
        _log.warning("the result is not announced: %s", error)


def _finished_before(paths: TrialPaths) -> bool:
    """Whether an earlier attempt earned a result; one that was merely cancelled is none."""
    try:
        earlier = from_json(TrialResult, read_json(paths.result))
    except (OSError, ValueError):
        return False
    return earlier.status is not Status.CANCELLED


def _excused(ending: Ending, paths: TrialPaths) -> Ending:
    """LOST in the place of a failure where the trial's directory cannot be written: even the reason may be missing."""
    if ending.status not in (Status.CRASHED, Status.INVALID):
        return ending
    broken = facts.broken_storage(paths.root)
    if broken is None:
        return ending
    seen = f"{ending.error.type}: {ending.error.message}" if ending.error else str(ending.status)
    return _lost("OSError", f"[Errno {broken.errno}] {broken.strerror}: {paths.root} (seen: {seen})")


def _refusal(spec: TrialSpec, gpu: Gpu) -> Ending | None:
    """Why this node cannot run the trial: an infrastructure fault, not the candidate's."""
    if spec.device == "cuda" and gpu.count == 0:
        return _lost("NoGpu", f"no GPU on {socket.gethostname()} (CUDA_VISIBLE_DEVICES={gpu.visible})")
    if spec.harness_sha256 and spec.harness_sha256 != harness_sha256():
        return _lost("HarnessChanged", f"the package on {socket.gethostname()} is not the one that made the trial")
    if spec.sandbox == "require" and not sandbox.usable(spec.sandbox):
        return _lost(
            "NoSandbox", f"the kernel of {socket.gethostname()} has no Landlock; task.sandbox=require asks for it"
        )
    for name, expected in spec.src_sha256.items():
        path = Path(spec.src) / name
        if _sha256(path) != expected:
            return _lost("SourceChanged", f"{path} is not what was committed")
    if spec.data_dir:
        try:
            data = Dataset(Path(spec.data_dir))
        except DataError as error:
            return _lost("DataError", str(error))
        if spec.data_sha256 and data.manifest.sha256 != spec.data_sha256:
            return _lost("DataError", f"{spec.data_dir} is not the data that the run started with")
    return None


def _sha256(path: Path) -> str | None:
    """The file's hash, None where it is not there: files may appear late on another node."""
    try:
        return _insist(lambda: sha256_file(path))
    except OSError:
        return None


def _watched_trial(spec: TrialSpec, paths: TrialPaths, phases: PhaseLog, stop: StopFlag, gpu: Gpu) -> Ending:
    """The trial, which counts only if what it was measured by is as it was before."""
    with staged(spec, stop) as copy:
        watched = Watched(spec)
        ending = _trial(spec, paths, phases, stop, gpu, copy)
        kill_descendants()
        changed = watched.changed() or (copy and copy.changed()) if ending.status is Status.OK else None
    if not changed:
        return ending
    return Ending(status=Status.INVALID, error=_failure("Tampered", changed, paths))


def _trial(spec: TrialSpec, paths: TrialPaths, phases: PhaseLog, stop: StopFlag, gpu: Gpu, copy: Copy | None) -> Ending:
    if spec.kind == "command":
        return CommandTrial(spec, paths, phases, stop).run()
    return GptTrial(spec, paths, phases, stop, gpu.name, copy).run()


def _result(
    spec: TrialSpec, ending: Ending, *, attempt: int, started_at: str, gpu: Gpu, phases: PhaseLog
) -> TrialResult:
    metric, seconds = spec.metric, phases.seconds()
    submitted = datetime.fromisoformat(spec.submitted_at) if spec.submitted_at else None
    queue_s = round((datetime.fromisoformat(started_at) - submitted).total_seconds(), 3) if submitted else None
    return TrialResult(
        run=spec.run,
        round=spec.round,
        candidate=spec.candidate,
        trial=spec.trial,
        attempt=attempt,
        commit=spec.commit,
        status=ending.status,
        metric=type(metric)(name=metric.name, value=ending.value, direction=metric.direction),
        evaluator="self-reported" if spec.kind == "command" else "trusted",
        seed=spec.seed,
        tier=spec.tier,
        host=socket.gethostname(),
        started_at=started_at,
        ended_at=_now(),
        gpu=gpu,
        torch=facts.torch_version(),
        slurm=facts.slurm_job(),
        phases=Phases(
            queue_s=queue_s,
            startup_s=seconds.get(Phase.STARTUP),
            compile_s=seconds.get(Phase.COMPILE),
            train_s=seconds.get(Phase.TRAIN),
            eval_s=seconds.get(Phase.EVAL),
            total_s=phases.total_s,
        ),
        peak_vram_mb=ending.peak_vram_mb,
        steps=ending.steps,
        tokens=ending.tokens,
        mfu=ending.mfu,
        num_params=ending.num_params,
        error=ending.error,
        data_sha256=spec.data_sha256,
        harness_sha256=spec.harness_sha256,
    )


def _lost(type_: str, message: str) -> Ending:
    return Ending(status=Status.LOST, error=Failure(type=type_, message=message))


def _failure(type_: str, message: str, paths: TrialPaths) -> Failure:
    return Failure(type=type_, message=message, tail=facts.log_tail(paths.log))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


if __name__ == "__main__":
    main()
