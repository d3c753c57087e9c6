"""Trials above their memory limit, on a cluster whose Slurm watches for that and kills."""

import os
from collections.abc import Callable, Iterator

import pytest
from client import Sandbox, booted, is_slurm_variable
from toy import Toy

HUNGRY = """\
import os, time
LR = 0.1  # the learning rate
with open(os.environ["TRAINED"], "a") as file:
    file.write(os.getcwd() + "\\n")
if LR != 0.1:
    hoard = [bytearray(b"x" * (1 << 20)) for _ in range(400)]
    time.sleep(60)
print("loss:", 1 + LR)
"""


@pytest.fixture(scope="module")
def watched(slurm_programs: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """A cluster that looks every second at what a job's processes take, and kills a job above its --mem."""
    settings = {
        "JobAcctGatherType": "jobacct_gather/linux",
        "JobAcctGatherParams": "OverMemoryKill",
        "JobAcctGatherFrequency": "task=1",
        "SelectTypeParameters": "CR_CPU_Memory",
    }
    options = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    with booted(tmp_path_factory.mktemp("slurm-memory"), *options) as sandbox:
        yield sandbox


@pytest.fixture
def here(watched: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    for name in filter(is_slurm_variable, list(os.environ)):
        monkeypatch.delenv(name)
    for name, value in watched.settings_environment.items():
        monkeypatch.setenv(name, value)
    return watched


@pytest.mark.parametrize("use_srun", ["true", "false"])
def test_a_job_that_slurm_kills_for_its_memory_is_out_of_memory(
    here: Sandbox, toy: Callable[..., Toy], use_srun: str
) -> None:
    """Slurm kills worker and all, and calls the job FAILED or even COMPLETED: only its log says why."""
    overrides = ("cluster.mem_gb=0.15", f"cluster.use_srun={use_srun}")
    repository = toy(cluster="slurm", k=1, rounds=0, baseline="joined", overrides=overrides)
    repository.write("fit.py", HUNGRY)
    repository.commit()
    repository.search("hungry").finish()
    done = {line["result"]["candidate"]: line["result"] for line in repository.journal("hungry") if "result" in line}
    assert {id_: result["status"] for id_, result in done.items()} == {"r00-c00": "OK", "r00-c01": "OOM"}
    assert "host memory" in done["r00-c01"]["error"]["message"]
    assert repository.trained() == {"r00-c00": 1, "r00-c01": 1}, "the candidate's own fault: not tried again"
