"""`python tests/chaos --seed 1 --minutes 20 --kills 100`: boot a sandbox, run the campaign, print the verdict."""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

_TESTS = Path(__file__).resolve().parents[1]
sys.path[0] = str(_TESTS)
sys.path.insert(1, str(_TESTS / "sandbox"))

from client import booted, is_slurm_variable  # noqa: E402
from toy import Toy  # noqa: E402

from chaos.campaign import OVERRIDES, Campaign, Scale  # noqa: E402
from chaos.verdict import Verdict  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description="A search under kills and faults, on a real sandbox Slurm.")
    parser.add_argument("--seed", type=int, default=1, help="of all that is random")
    parser.add_argument("--minutes", type=float, default=20, help="it has failed if it takes longer")
    parser.add_argument("--kills", type=int, default=100, help="SIGKILLs of the controller, at least")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # with everything that was started
    for name in filter(is_slurm_variable, list(os.environ)):
        del os.environ[name]
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    print(f"seed {options.seed}; the log of kills and faults: {folder}/faults.log", flush=True)
    scale = Scale(kills=options.kills, limit_s=60 * options.minutes)
    begun = time.monotonic()
    with booted(folder / "slurm") as cluster:
        toy = Toy(folder / 'a "toy" 5% é', cluster="slurm", k=4, rounds=2, sleep_s=1.0, overrides=OVERRIDES)
        try:
            checkout = toy.checkout()
            campaign = Campaign(cluster, toy, folder, scale, options.seed)
            campaign.run()
            verdict = Verdict(campaign, checkout, options.seed)
            wrong = verdict.violations()
            print(verdict.table(time.monotonic() - begun))
        except AssertionError as problem:  # of the campaign, or of a command of the cluster's that failed
            wrong = [str(problem)]
        finally:
            toy.stop()
    for line in wrong:
        print(f"FAILED: {line}")
    if wrong:
        print(f"everything is kept in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
