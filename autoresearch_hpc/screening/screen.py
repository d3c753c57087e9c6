"""The checks in their order, the cheapest first, and what is said of an edit that fails one.

1. `static`: files, syntax, names, knobs, the script's contract.
2. on shapes alone: the model forward and backward, its memory, the script up to its first number.
3. on the CPU, with one row a step: the script until its clock ends, where that takes seconds.

What fails an edit has to be new: where the files before it fail in the same stage, on this machine or for lack of
files that an edit does not have, the stage says nothing.
"""

import logging
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoresearch_hpc.config import Sandbox, TaskConfig, TaskKind
from autoresearch_hpc.fingerprint import fingerprint
from autoresearch_hpc.quoting import quoted, quoted_line
from autoresearch_hpc.sandbox import usable
from autoresearch_hpc.screening import memory as memory_check
from autoresearch_hpc.screening import static
from autoresearch_hpc.screening.memory import MeasuredMemory
from autoresearch_hpc.screening.report import Report
from autoresearch_hpc.screening.zygote import Unanswered, Zygote

if TYPE_CHECKING:  # whose import takes seconds
    from autoresearch_hpc.harness import Meta

SHAPES_S = 60.0  # all that is done without numbers; it takes some seconds
DRY_S = 20.0  # a dry run is estimated to take no longer, or it is not tried
SLACK_S = 20.0  # beyond its estimate; then it is ended, and nothing is known
_REMEMBERED = 32

_log = logging.getLogger(__name__)


class Screen:
    """Checks edits on this machine's CPU, in processes that are shut in. To be called from any thread.

    `required_knobs` are those of the search space, which must stay knobs; without `meta` (the shape of the data) no
    code is run. Below `protected` nothing can be read, nor below the current directory.
    """

    def __init__(
        self,
        task: TaskConfig,
        *,
        required_knobs: Sequence[str],
        meta: "Meta | None",
        protected: Sequence[Path] = (),
    ) -> None:
        self._task, self._required, self._meta = task, tuple(required_knobs), meta
        mode = task.sandbox.value
        here = [path for path in (Path.cwd(), *protected) if path.parent != path]
        self._zygote = Zygote(mode, task.pass_env, here)
        self._runs = task.kind is TaskKind.gpt and meta is not None
        if self._runs and task.sandbox is Sandbox.require and not usable(mode):
            self._runs = False
            _log.warning("edits are checked by their text alone: task.sandbox=require, and there is no Landlock here")
        self._reports: dict[tuple[str, bool], Report] = {}
        self._lock = threading.Lock()  # of the reports

    def problem(
        self,
        before: Mapping[str, str],
        after: Mapping[str, str],
        *,
        memory: MeasuredMemory | None = None,
        quick: bool = False,
    ) -> str:
        """What is wrong with the edited files, in words; "" where nothing is, or nothing could be found out.

        before, after: all editable files, path -> text. memory: what `before` was seen to need of its GPU. A quick
        check leaves the script's steps out: one second in place of five.
        """
        found = static.problem(self._task, self._required, before, after)
        if found or not self._runs or self._task.script not in after:
            return found
        report = self._report(after, only_shapes=quick)
        if report.failed_in == "shapes":
            return self._unless_old(report, before)
        if memory is not None and (found := self._memory(before, report, memory)):
            return found
        return self._unless_old(report, before) if report.failed_in else ""

    def close(self) -> None:
        """End the processes. Checks that are under way find nothing."""
        self._zygote.close()

    def _memory(self, before: Mapping[str, str], report: Report, measured: MeasuredMemory) -> str:
        new = memory_check.estimate(report.shapes)
        old = memory_check.estimate(self._report(before, only_shapes=True).shapes) if new else None
        return memory_check.problem(old, new, measured) if old and new else ""

    def _unless_old(self, report: Report, before: Mapping[str, str]) -> str:
        if self._report(before, only_shapes=report.failed_in == "shapes").failed_in != report.failed_in:
            return report.words(self._task.script)
        _say_once(self._task.script, report.failed_in, report.message)
        return ""

    def _report(self, files: Mapping[str, str], *, only_shapes: bool = False) -> Report:
        """What a check of these files found, now or before."""
        key = fingerprint(files)
        for known in (self._reports.get((key, False)), self._reports.get((key, True)) if only_shapes else None):
            if known is not None:
                return known
        assert self._meta is not None
        request: dict[str, Any] = {
            "script": self._task.script,
            "files": dict(files),
            "meta": asdict(self._meta),
            "only_shapes": only_shapes,
            "limit_s": SHAPES_S,
            "dry_s": DRY_S,
            "slack_s": SLACK_S,
            "max_dry_s": DRY_S + SLACK_S,
        }
        try:
            answer = self._zygote.ask(request, SHAPES_S + DRY_S + SLACK_S)
        except Unanswered as error:
            _log.warning("an edit could not be checked by running it: %s", error)
            return Report()
        if not answer["said"]:  # it never came to the edit's code
            reason = quoted_line(answer["output"].strip().rpartition("\n")[2] or answer["ended"])
            _log.warning("an edit could not be checked by running it: %s", reason)
            return Report()
        report = Report.of(answer)
        with self._lock:
            self._reports[key, only_shapes] = report
            while len(self._reports) > _REMEMBERED:
                self._reports.pop(next(iter(self._reports)))
        return report


@lru_cache(maxsize=8)
def _say_once(script: str, stage: str, message: str) -> None:
    reason = re.sub(r"\s+", " ", quoted(message, max_lines=3, max_chars=200))
    _log.warning("%s fails in the check %r before any edit, which then says nothing: %s", script, stage, reason)
