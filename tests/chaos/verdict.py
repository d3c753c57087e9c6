"""What has to hold when the search is over, whatever happened to it. Each check returns a line for each violation.

Witnesses are asked beside our own journal: sacct and the wrapper of sbatch for arrays, the mark that each training
leaves outside of its directory, git for commits, /proc and squeue for what is left over.
"""

import hashlib
import random
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scenarios import local_workers

from autoresearch_hpc.history import History
from autoresearch_hpc.journal import Journal, read
from autoresearch_hpc.ledger import Ledger
from chaos.campaign import SWEPT, TAG, Campaign

_SETTLE_S = 120  # a slurmctld that was killed may run again what had ended, a minute after its start; it ends at once


class Verdict:
    """The checks on a campaign that came to its end, and its figures."""

    def __init__(self, campaign: Campaign, checkout: dict[str, Any], seed: int) -> None:
        self._campaign, self._checkout, self._rng = campaign, checkout, random.Random(f"{seed} verdict")
        self._toy, self._cluster = campaign.toy, campaign.cluster
        self._journal = campaign.toy.journal(TAG)
        self._lost: set[str] = set()
        self._doubled: set[str] = set()
        self._again: Counter[str] = Counter()
        self._records = 0

    def violations(self) -> list[str]:
        checks = (
            self._nothing_left,  # first, as it waits
            self._accepted_once,
            self._submitted_once,
            self._trained_for_a_reason,
            self._branch,
            self._replay,
            self._enough,
        )
        return [*self._campaign.problems, *(line for check in checks for line in check())]

    def _events(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self._journal if line["event"] == event]

    # the search

    def _accepted_once(self) -> Iterator[str]:
        """Every candidate has exactly one result that counts, and it is a good one: the toy's script never fails."""
        proposed = [id_ for line in self._events("round.proposed") for id_ in line["proposals"]]
        for id_, count in Counter(proposed).items():
            if count > 1:
                yield f"{id_} was proposed {count} times"
        done, dropped = self._events("trial.done"), {line["trial"] for line in self._events("trial.dropped")}
        for trial, count in Counter(line["trial"] for line in done).items():
            if count > 1:
                self._doubled.add(trial.rpartition("-")[0])
                yield f"{trial} has {count} results in the journal"
        counting: dict[str, list[str]] = defaultdict(list)
        for line in done:
            if line["trial"] not in dropped:
                counting[line["result"]["candidate"]].append(line["result"]["status"])
        for id_ in dict.fromkeys(proposed):
            if counting[id_] != ["OK"]:
                (self._doubled if len(counting[id_]) > 1 else self._lost).add(id_)
                yield f"{id_} has the results {counting[id_]}, not one that is OK"
        last = self._journal[-1]
        if (last["event"], last.get("reason")) not in (("run.stopped", "the plan is complete"),):
            yield f"the journal ends with {last}"

    def _submitted_once(self) -> Iterator[str]:
        """No name belongs to two arrays, neither by sacct nor by what sbatch was seen to take."""
        uid = self._journal[0]["uid"]
        intents = [line["job_name"] for line in self._events("submit.intent")]
        if len(set(intents)) != len(intents):
            yield f"a name was announced twice: {Counter(intents).most_common(2)}"
        by_sacct: dict[str, set[str]] = {}
        words = ["sacct", "-X", "-n", "-P", "-S", "now-1day", "-o", "JobID,JobName%200"]
        deadline = time.monotonic() + _SETTLE_S
        while True:  # what slurmdbd missed while it was down reaches it a little later
            for job, name in (line.split("|") for line in self._cluster.run(*words).splitlines()):
                if f"-{uid}-" in name:
                    by_sacct.setdefault(name, set()).add(job.split("_")[0])
            taken = self._campaign.wrappers.taken()
            if taken.keys() <= by_sacct.keys() or time.monotonic() > deadline:
                break
            time.sleep(1)
        for witness, arrays in (("sacct", by_sacct), ("sbatch", taken)):
            for name, ids in arrays.items():
                if len(ids) > 1:
                    yield f"by {witness} {name} was submitted {len(ids)} times: {sorted(ids)}"
                if name not in intents:
                    yield f"by {witness} there is an array {name} that was never announced"
        if len(by_sacct) < len(taken) and not self._campaign.log.counts()["slurmctld killed"]:
            yield f"sacct does not know {sorted(taken.keys() - by_sacct.keys())}"
        self.arrays = len(by_sacct.keys() | taken.keys())

    def _trained_for_a_reason(self) -> Iterator[str]:
        """A training more than one: Slurm ran the job again, or a fault destroyed the trial before."""
        log = self._toy.trained_log.read_text("utf-8").splitlines()
        marks = Counter(f"{Path(line).parts[-4]}-{Path(line).parts[-2]}" for line in log)
        submitted: dict[str, str] = {}
        names: dict[str, set[str]] = defaultdict(set)
        for line in self._events("submit.intent"):
            for trial in line["trials"]:
                submitted.setdefault(trial, line["at"])
                names[trial].add(line["job_name"])
        disturbed = self._campaign.wrappers.disturbed()
        done = {line["trial"]: line for line in self._events("trial.done")}
        for trial, count in marks.items():
            candidate, _, index = trial.rpartition("-")
            folder = self._toy.run_dir(TAG) / "rounds" / candidate[1:3] / candidate / "trials" / index
            attempts = len(list(folder.glob("claim-*.json")))  # numbered by Slurm's count of restarts
            if count > attempts:
                self._again[candidate] += count - attempts
                yield f"{trial} was trained {count} times in {attempts} attempts"
            if trial not in submitted:
                yield f"{trial} was trained and never announced"
        for line in self._events("trial.dropped"):
            trial, status = line["trial"], done[line["trial"]]["result"]["status"]
            if status == "LOST" and not marks[trial] and names[trial] & disturbed:
                # Slurm keeps a FAILED record of an array that it refused. Who never heard the refusal takes the record
                # for the array: a trial is spent, and none is run twice.
                self._records += 1
            elif status != "LOST" or not self._suffered(trial, submitted[trial], done[trial]["at"]):
                self._again[trial.rpartition("-")[0]] += bool(marks[trial])
                yield f"{trial} was dropped as {status} ({line['reason']}) and no fault had hit it"

    def _suffered(self, trial: str, since: str, until: str) -> bool:
        faults = self._campaign.log.happened
        return any(since <= f.at <= until and (trial in f.hit or f.everywhere) for f in faults) or any(
            trial in f.hit for f in faults
        )

    # git

    def _branch(self) -> Iterator[str]:
        """The branch is the line of the incumbents; every candidate has its ref on its recorded parent."""
        git, start = self._toy.git, self._journal[0]["start_commit"]
        made = {c["id"]: c for line in self._events("round.committed") for c in line["candidates"]}
        winners = list(dict.fromkeys(line["incumbent"]["commit"] for line in self._events("round.judged")))
        line = git("rev-list", "--first-parent", "--reverse", f"{start}..autoresearch/{TAG}").split()
        if line != winners:
            yield f"the branch holds {line}, the winners are {winners}"
        for judged in self._events("round.judged"):
            incumbent = judged["incumbent"]
            if made[incumbent["candidate"]]["commit"] != incumbent["commit"]:
                yield f"round {judged['round']} names {incumbent}, which is no commit of that candidate"
        refs = dict(
            reversed(line.split(" ", 1))
            for line in git(
                "for-each-ref", "--format=%(objectname) %(refname)", f"refs/autoresearch/{TAG}"
            ).splitlines()
        )
        for id_, candidate in made.items():
            if refs.pop(f"refs/autoresearch/{TAG}/{id_}", None) != candidate["commit"]:
                yield f"the ref of {id_} does not point to its commit {candidate['commit']}"
            if git("rev-parse", f"{candidate['commit']}^").strip() != candidate["parent"]:
                yield f"{id_} is not built on its recorded parent"
        if refs:
            yield f"refs of no candidate: {sorted(refs)}"
        if self._toy.checkout() != self._checkout:
            yield "the user's checkout was changed"

    # the journal

    def _replay(self) -> Iterator[str]:
        """No line was ever rewritten, and a restart at any point leads to the same state."""
        path = self._toy.run_dir(TAG) / "journal.jsonl"
        content, events = path.read_bytes(), read(path)
        if [event.seq for event in events] != list(range(len(events))):
            yield "the journal's numbers have gaps"
        for length, digest in self._campaign.seen:
            if hashlib.sha256(content[:length]).hexdigest() != digest:
                yield f"the first {length} bytes of the journal are not what they were after a kill"
        final = History.replay(events)
        lines = content.splitlines(keepends=True)
        with tempfile.TemporaryDirectory(prefix="autoresearch-replay-") as folder:
            for cut in sorted(self._rng.sample(range(1, len(lines)), min(40, len(lines) - 1))):
                torn = Path(folder) / f"{cut}.jsonl"
                torn.write_bytes(b"".join(lines[:cut]) + lines[cut][: self._rng.randrange(len(lines[cut]))])
                with Journal(torn) as journal:
                    history = Ledger(journal).history
                for event in events[cut:]:
                    history.apply(event)
                if history != final:
                    yield f"replay with a restart after event {cut - 1} leads to another state"

    # what is left over

    def _nothing_left(self) -> Iterator[str]:
        """No job and no worker. A job that was held by hand just when its trial had ended stays for that hand."""
        uid = self._journal[0]["uid"]
        held = {f.what for f in self._campaign.log.happened if f.kind == "job held by Slurm"}

        def jobs() -> list[str]:
            lines = self._cluster.run("squeue", "-h", "-r", "-o", "%F_%K %T %j").splitlines()
            return [line for line in lines if uid in line and not (line.split()[0] in held and "SPECIAL" in line)]

        deadline = time.monotonic() + _SETTLE_S
        while (jobs() or local_workers(self._toy)) and time.monotonic() < deadline:
            time.sleep(0.5)
        if found := jobs():
            yield f"jobs are left in the queue: {found}"
        if workers := local_workers(self._toy):
            yield f"{workers} workers are left"

    def _enough(self) -> Iterator[str]:
        """The run was as eventful as it was to be."""
        campaign, scale = self._campaign, self._campaign.scale
        if campaign.kills.total() < scale.kills:
            yield f"only {campaign.kills.total()} kills of {scale.kills}"
        if campaign.faults.total() < scale.faults:
            yield f"only {campaign.faults.total()} faults of {scale.faults}"
        if (closed := len(self._events("round.closed"))) < scale.rounds + 1:
            yield f"only {closed} rounds"
        for boundary in scale.boundaries:
            if boundary not in campaign.swept:
                yield f"no kill {boundary[1]} {boundary[0]}"

    # figures

    def table(self, wall_s: float) -> str:
        campaign = self._campaign
        trials = sum(len(line["trials"]) for line in self._events("submit.intent"))
        refused = sum(len(line["trials"]) for line in self._events("submit.refused"))
        restarts = len(list(self._toy.run_dir(TAG).glob("rounds/*/*/trials/*/claim-*.json"))) - len(
            list(self._toy.run_dir(TAG).glob("rounds/*/*/trials/*/claim-0.json"))
        )
        swept = sum(campaign.kills[f"{moment} {event}"] for event, moment in SWEPT)
        others = {what: n for what, n in campaign.kills.items() if what not in {f"{m} {e}" for e, m in SWEPT}}
        rows: list[tuple[str, object]] = [
            ("kills", campaign.kills.total()),
            ("  at a journal boundary", f"{swept} ({len(campaign.swept)} of {len(SWEPT)} boundaries)"),
            *((f"  {what}", n) for what, n in sorted(others.items())),
            ("faults", campaign.faults.total()),
            *((f"  {kind}", n) for kind, n in sorted(campaign.faults.items())),
            ("controllers started", campaign.controllers),
            *((f"  left by themselves, {how}", n) for how, n in sorted(campaign.left.items())),
            ("rounds", len(self._events("round.closed"))),
            ("candidates", sum(len(line["proposals"]) for line in self._events("round.proposed"))),
            ("arrays", self.arrays),
            ("trials submitted", f"{trials} ({refused} of them never got into the queue)"),
            ("trials dropped and repeated", len(self._events("trial.dropped"))),
            ("  never run: the record of a refused array", self._records),
            ("attempts that Slurm ran again", restarts),
            ("trainings", sum(self._toy.trained().values())),
            ("journal events", len(self._journal)),
            ("wall time", f"{wall_s:.0f} s"),
            ("candidates lost", len(self._lost)),
            ("candidates doubled", len(self._doubled)),
            ("trained twice by our doing", sum(self._again.values())),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:{width}}  {value}" for name, value in rows)
