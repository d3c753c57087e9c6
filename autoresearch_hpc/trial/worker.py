"""The trusted parent of a trial on the compute node: `python -P -m autoresearch_hpc.trial.worker`.

Claims the trial, checks its files, data and GPU, runs it, and writes `result.json` whatever happens, signals included.
An attempt is claimed exclusively: if it was submitted twice, the second worker leaves without a trace.
"""

import argparse
import json
import logging
import os
import socket
import traceback
from datetime import UTC, datetime
from pathlib import Path

from autoresearch_hpc.dataset import Dataset
from autoresearch_hpc.errors import DataError
from autoresearch_hpc.files import read_json, sha256_file, write_json_atomic
from autoresearch_hpc.layout import TrialPaths
from autoresearch_hpc.records import Failure, Gpu, Phases, Status, TrialResult, TrialSpec, from_json, to_json
from autoresearch_hpc.trial import facts
from autoresearch_hpc.trial.children import StopFlag, Stopped, adopt_orphans, kill_descendants
from autoresearch_hpc.trial.command import CommandTrial
from autoresearch_hpc.trial.ending import Ending
from autoresearch_hpc.trial.gpt import GptTrial
from autoresearch_hpc.trial.phases import Phase, PhaseLog

_log = logging.getLogger(__name__)


def main() -> None:
    parser = argparse.ArgumentParser(description="Run one trial.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--trial", type=Path, help="a trial.json")
    source.add_argument("--array", type=Path, help="an array.json; SLURM_ARRAY_TASK_ID picks the trial")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    run(options.trial or _of_array(options.array))


def _of_array(manifest: Path) -> Path:
    trials = read_json(manifest)["trials"]
    return Path(trials[int(os.environ["SLURM_ARRAY_TASK_ID"])])


def run(spec_path: Path) -> None:
    """Run the trial of spec_path, once for each of Slurm's attempts."""
    stop = StopFlag()
    spec = from_json(TrialSpec, read_json(spec_path))
    paths = TrialPaths(spec_path.parent)
    attempt = facts.attempt()
    if not _claim(paths, attempt) or _finished_before(paths):
        _log.info("%s attempt %d is taken or done; nothing to do", spec.trial, attempt)
        return
    started_at = _now()
    adopt_orphans()
    phases = PhaseLog(paths.phases)
    gpu = Gpu()
    try:
        stop.check()
        gpu = facts.gpu()
        ending = _refusal(spec, gpu) or _trial(spec, paths, phases, stop)
    except Stopped as reason:
        status = Status.TIMEOUT if stop.timed_out else Status.CANCELLED
        ending = Ending(status=status, error=_failure("Stopped", str(reason), paths))
    except Exception as error:  # noqa: BLE001 - the last line of defence: a trial always has a result
        ending = Ending(
            status=Status.LOST,
            error=Failure(type=type(error).__name__, message=str(error), tail=traceback.format_exc()),
        )
    left = kill_descendants()
    if left:
        _log.info("%s left %d processes behind; they were ended", spec.trial, left)
    result = _result(spec, ending, attempt=attempt, started_at=started_at, gpu=gpu, phases=phases)
    write_json_atomic(paths.result, to_json(result))
    _log.info("trial=%s status=%s %s=%s", spec.trial, result.status, result.metric.name, result.metric.value)


def _claim(paths: TrialPaths, attempt: int) -> bool:
    """Take this attempt; False where another worker has it."""
    claim = {"host": socket.gethostname(), "pid": os.getpid(), "attempt": attempt, "at": _now()}
    claim["job"] = facts.job_id()
    claim["visible"] = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        with paths.claim(attempt).open("x", encoding="utf-8") as file:
            json.dump(claim, file)
        return True
    except FileExistsError:
        return False


def _finished_before(paths: TrialPaths) -> bool:
    """Whether an earlier attempt earned a result; one that was merely cancelled is cleared away."""
    try:
        earlier = from_json(TrialResult, read_json(paths.result))
    except (OSError, ValueError):
        return False
    if earlier.status is Status.CANCELLED:
        paths.result.unlink(missing_ok=True)
        return False
    return True


def _refusal(spec: TrialSpec, gpu: Gpu) -> Ending | None:
    """Why this node cannot run the trial: an infrastructure fault, not the candidate's."""
    if spec.device == "cuda" and gpu.count == 0:
        return _lost("NoGpu", f"no GPU on {socket.gethostname()} (CUDA_VISIBLE_DEVICES={gpu.visible})")
    for name, expected in spec.src_sha256.items():
        path = Path(spec.src) / name
        if not path.is_file() or sha256_file(path) != expected:
            return _lost("SourceChanged", f"{path} is not what was committed")
    if spec.data_dir:
        try:
            data = Dataset(Path(spec.data_dir))
        except DataError as error:
            return _lost("DataError", str(error))
        if spec.data_sha256 and data.manifest.sha256 != spec.data_sha256:
            return _lost("DataError", f"{spec.data_dir} is not the data that the run started with")
    return None


def _trial(spec: TrialSpec, paths: TrialPaths, phases: PhaseLog, stop: StopFlag) -> Ending:
    kind = CommandTrial if spec.kind == "command" else GptTrial
    return kind(spec, paths, phases, stop).run()


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
