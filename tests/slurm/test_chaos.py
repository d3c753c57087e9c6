"""`make chaos` in small: some kills at journal boundaries, some at random moments, and faults meanwhile."""

import random
import time
from pathlib import Path

import pytest
from chaos.campaign import OVERRIDES, SWEPT, Campaign, Scale
from chaos.faults import Mix
from chaos.verdict import Verdict
from client import booted
from toy import Toy

_QUICK = ("round.", "submit.", "trial.done")  # boundaries that are met within a second or two
_WEATHER = (
    Mix(every_s=1, share={"worker_killed": 1, "task_requeued": 1, "result_damaged": 1, "stray_announcement": 1}),
    Mix(every_s=1.5, share={"sbatch_misbehaves": 1}),
    Mix(every_s=12, share={"slurmctld_killed": 1}),
)


@pytest.mark.timeout(180)
def test_nothing_is_lost_or_doubled(slurm_programs: None, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder, seed = tmp_path_factory.mktemp("chaos"), 1
    boundaries = [b for b in SWEPT if b[0].startswith(_QUICK) and b[0] != "submit.refused"]
    swept = sorted(random.Random(seed).sample(boundaries, 6), key=boundaries.index)
    scale = Scale(
        kills=12, faults=5, rounds=3, limit_s=110, boundaries=swept, longest_life_s=5, weather=_WEATHER, doubles=1
    )
    begun = time.monotonic()
    with booted(folder / "slurm") as cluster:  # its own: daemons are killed
        toy = Toy(Path(folder, 'a "toy" 5% é'), cluster="slurm", k=3, rounds=2, sleep_s=1.0, overrides=OVERRIDES)
        try:
            checkout = toy.checkout()
            campaign = Campaign(cluster, toy, folder, scale, seed)
            campaign.run()
            verdict = Verdict(campaign, checkout, seed)
            wrong = verdict.violations()
            print(verdict.table(time.monotonic() - begun))
            assert not wrong, (wrong, campaign.log.path.read_text())
        finally:
            toy.stop()
