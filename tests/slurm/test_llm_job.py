"""A language model's server as a job: the file that tells of it comes, moves and goes with the job."""

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import thinking
from client import Sandbox
from toy import Toy

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "sbatch" / "llm_server.sbatch"
STAND_IN = f"{sys.executable} {ROOT / 'tests' / 'stand_in_llm.py'} --port {{port}}"
Submit = Callable[..., str]


pytestmark = pytest.mark.usefixtures("empty_queue")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A user's home; what is submitted is submitted there."""
    (tmp_path / "home of é").mkdir()
    return tmp_path / "home of é"


@pytest.fixture
def submit(cluster: Sandbox, home: Path) -> Submit:
    def sbatch(*options: str, words: tuple[str, ...] = (), **settings: str) -> str:
        environment = cluster.env | {"HOME": str(home), "AUTORESEARCH_PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
        environment |= {"LLM_SERVER": STAND_IN, "LLM_OPTIONS": "--host localhost"} | settings
        argv = ["sbatch", "--parsable", *options, str(SCRIPT), *words]
        done = subprocess.run(argv, cwd=home, env=environment, capture_output=True, text=True, check=True, umask=0)
        return done.stdout.strip()

    return sbatch


def address_file(home: Path) -> Path:
    return home / ".autoresearch_hpc" / "llm_server.json"


def address(cluster: Sandbox, path: Path, *, unlike: str = "") -> dict[str, Any]:
    """What the file says once it is there and has another key than `unlike`."""
    found: dict[str, Any] = {}

    def there() -> bool:
        try:
            found.update(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return False
        return found["api_key"] != unlike

    cluster.wait_until(there, 60, str(path))
    return found


def is_up(found: dict[str, Any]) -> bool:
    request = urllib.request.Request(
        f"{found['base_url']}/models", headers={"Authorization": f"Bearer {found['api_key']}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return bool(json.load(response)["data"][0]["id"] == "stand-in")
    except OSError:  # also of one that ends while it is asked
        return False


def details(cluster: Sandbox, job: str) -> dict[str, str]:
    words = cluster.run("scontrol", "--oneliner", "show", "job", job).split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def log(home: Path, job: str) -> str:
    return (home / f"autoresearch-llm-{job}.log").read_text(encoding="utf-8")


def test_it_is_there_with_its_job_and_scancel_ends_both(cluster: Sandbox, home: Path, submit: Submit) -> None:
    job = submit()
    found = address(cluster, address_file(home))
    assert (found["job_id"], found["model"]) == (job, "stand-in")
    assert is_up(found)
    assert (address_file(home).stat().st_mode & 0o777, address_file(home).parent.stat().st_mode & 0o777) == (
        0o600,
        0o700,
    )
    seen = details(cluster, job)
    assert (seen["Requeue"], seen["TresPerNode"].replace("/", ":")) == ("1", "gres:gpu:1")
    assert found["api_key"] not in cluster.run("ps", "-eww", "-o", "args")
    cluster.scancel(job)
    cluster.wait_state(job, "CANCELLED", timeout_s=20)
    assert not address_file(home).exists()
    assert not is_up(found)
    assert f"llm_server: stand-in answers at {found['base_url']}" in log(home, job)
    assert "the server was stopped by SIGTERM" in log(home, job)
    assert found["api_key"] not in log(home, job)


def test_requeued_by_whomever_it_comes_back_elsewhere(cluster: Sandbox, home: Path, submit: Submit) -> None:
    job = submit()
    before = address(cluster, address_file(home))
    cluster.run("scontrol", "requeue", job)
    after = address(cluster, address_file(home), unlike=before["api_key"])
    assert after["job_id"] == before["job_id"] == job
    assert after["port"] != before["port"]
    assert is_up(after)
    assert not is_up(before)


def test_warned_before_its_time_limit_it_comes_back(
    cluster: Sandbox, home: Path, submit: Submit, tmp_path: Path
) -> None:
    path = tmp_path / "an address"
    job = submit("--gres=gpu:h100:2", LLM_ADDRESS=str(path))
    before = address(cluster, path)
    cluster.scancel("--signal=USR1", "--batch", job)
    after = address(cluster, path, unlike=before["api_key"])
    assert after["job_id"] == job
    assert is_up(after)
    assert details(cluster, job)["Restarts"] == "1"
    assert log(home, job).count("the server was stopped by SIG") == 1
    assert not address_file(home).exists()


def test_where_requeue_is_forbidden_another_job_follows(cluster: Sandbox, home: Path, submit: Submit) -> None:
    """With the same GPUs, limits and words."""
    options = ["--no-requeue", "--gres=gpu:h100:2", "--partition=high", "--account=lab", "--qos=high", "--time=17"]
    line = f'echo "words: $1, $2"; exec {STAND_IN}'
    job = submit(*options, "--cpus-per-task=2", "--mem=1G", words=("a model", "--an=option"), LLM_SERVER=line)
    before = address(cluster, address_file(home))
    same = (
        "Partition",
        "Account",
        "QOS",
        "TimeLimit",
        "MinMemoryNode",
        "CPUs/Task",
        "WorkDir",
        "JobName",
        "TresPerNode",
    )
    first = details(cluster, job)
    assert first["TresPerNode"].replace("/", ":") == "gres:gpu:h100:2"
    cluster.scancel("--signal=USR1", "--batch", job)
    after = address(cluster, address_file(home), unlike=before["api_key"])
    assert after["job_id"] != job
    second = details(cluster, after["job_id"])
    assert {key: second[key] for key in same} == {key: first[key] for key in same}
    assert all("words: a model, --an=option" in log(home, one) for one in (job, after["job_id"]))


def test_a_server_that_dies_fails_its_job_in_one_line(cluster: Sandbox, home: Path, submit: Submit) -> None:
    job = submit(LLM_SERVER=f"{STAND_IN} --dies")
    address(cluster, address_file(home))
    cluster.wait_state(job, "FAILED", timeout_s=30)
    assert details(cluster, job)["ExitCode"] == "1:0"
    assert not address_file(home).exists()
    assert "status 7: RuntimeError: no room on the GPU" in log(home, job).splitlines()[-1]


def test_without_a_server_named_vllm_serves_the_model(cluster: Sandbox, home: Path, submit: Submit) -> None:
    """A program of that name takes its place, and says how it was called."""
    program = home / "bin" / "vllm"
    program.parent.mkdir()
    line = f'while [ "$1" != --port ]; do shift; done; exec {STAND_IN.replace("{port}", "$2")}'
    program.write_text(f'#!/bin/bash\necho "vllm $*"\n{line}\n')
    program.chmod(0o755)
    path = f"{program.parent}:{os.environ['PATH']}"
    job = submit(words=("org/model", "--max-model-len", "32768"), LLM_SERVER="", PATH=path)
    found = address(cluster, address_file(home))
    said = f"vllm serve org/model --max-model-len 32768 --host 0.0.0.0 --port {found['port']}\n"
    assert said in log(home, job)
    nameless = submit(LLM_SERVER="", PATH=path)
    cluster.wait_state(nameless, "FAILED")
    assert log(home, nameless).startswith("usage: sbatch sbatch/llm_server.sbatch MODEL")


def test_an_agent_waits_for_it_and_outlives_its_requeue(
    cluster: Sandbox, home: Path, submit: Submit, toy: Callable[..., Toy]
) -> None:
    tests = ROOT / "tests"
    script = home / "model.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(tests)!r})\nfrom thinking import BadModel\nanswer = BadModel()\n"
    )
    told = address_file(home)
    overrides = (f"agent.base_url='file:{told}'", "agent.prefetch=none", "agent.timeout_s=10", "cluster.max_parallel=2")
    repository = toy(
        cluster="slurm", name="toy", k=thinking.K, rounds=thinking.ROUNDS, overrides=("agent=llm", *overrides)
    )
    run = repository.search("job")
    cluster.wait_until(lambda: "waiting for a server to be told of" in run.said()[1], 30, "the agent waits")
    job = submit(LLM_SERVER=f"{sys.executable} {tests / 'llm_server.py'} --script model.py --port {{port}}")

    def proposed() -> int:
        return sum(line["event"] == "round.proposed" for line in repository.journal("job"))

    cluster.wait_until(lambda: proposed() >= 2, 60, "a first round of the model's")
    before = json.loads(told.read_text())["api_key"]
    cluster.run("scontrol", "requeue", job)
    run.finish(timeout_s=120)
    assert address(cluster, told, unlike=before)["job_id"] == job
    made = [line["proposals"] for line in repository.journal("job") if line["event"] == "round.proposed"]
    assert [len(round_) for round_ in made[1:]] == [thinking.K] * thinking.ROUNDS
    for round_ in made[1:]:
        assert "llm" in {proposal["origin"] for proposal in round_.values()}
