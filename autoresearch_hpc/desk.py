"""The agent's desk: what the controller does for an agent that thinks for long, spends money, or edits code."""

import threading
from collections.abc import Mapping
from pathlib import Path

from autoresearch_hpc.files import sha256_text
from autoresearch_hpc.layout import RunLayout
from autoresearch_hpc.ledger import Ledger
from autoresearch_hpc.records import Status
from autoresearch_hpc.screening import MeasuredMemory, Screen
from autoresearch_hpc.stopping import StopRequest


class RunDesk:
    """The desk of one run. Its methods may be called from any thread, `check_stop` from the main one."""

    def __init__(
        self, layout: RunLayout, ledger: Ledger, screen: Screen, stop: StopRequest, llm_usd: float | None
    ) -> None:
        self._layout, self._ledger, self._screen, self._stop = layout, ledger, screen, stop
        self._llm_usd = llm_usd
        self._found: dict[tuple[str, bool], str] = {}  # what a check of an edit found, by its text and its haste
        self._spending = threading.Lock()  # two calls that begin at once see each other's price

    def folder(self, round_: int) -> Path:
        path = self._layout.agent(round_)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def problem(self, before: Mapping[str, str], after: Mapping[str, str], *, quick: bool = False) -> str:
        edit = sha256_text(repr((sorted(before.items()), sorted(after.items()))))
        for known in ((edit, False), (edit, quick)):
            if known in self._found:
                return self._found[known]
        found = self._found[edit, quick] = self._screen.problem(before, after, memory=self._memory(), quick=quick)
        return found

    def may_spend(self, call: str, usd: float) -> str:
        with self._spending:
            spent = self._ledger.history.llm_usd
            if self._llm_usd is not None and spent + usd > self._llm_usd:
                return f"budget.llm_usd={self._llm_usd:g}: {spent:.4f} used, {call} may cost {usd:.4f}"
            self._ledger.record("agent.calling", call=call, at_most_usd=usd)
        return ""

    def spent(self, call: str, usd: float, prompt_tokens: int, answer_tokens: int) -> None:
        with self._spending:
            known = self._ledger.history.calls.get(call)
            if known is None or known.usd is None:
                tokens = {"prompt_tokens": prompt_tokens, "answer_tokens": answer_tokens}
                self._ledger.record("agent.called", call=call, usd=usd, **tokens)

    def check_stop(self) -> None:
        self._stop.check()

    def close(self) -> None:
        self._screen.close()

    def _memory(self) -> MeasuredMemory | None:
        """Of the incumbent, on the kind of GPU that it ran on."""
        history = self._ledger.history
        if history.incumbent is None:
            return None
        results = [r for r in history.entry(history.incumbent.candidate).results if r.status is Status.OK]
        measured = [r for r in results if r.peak_vram_mb and r.gpu.memory_mb]
        if not measured:
            return None
        newest = measured[-1]
        assert newest.peak_vram_mb
        assert newest.gpu.memory_mb
        return MeasuredMemory(peak_mb=newest.peak_vram_mb, total_mb=newest.gpu.memory_mb)
