"""Which Debian packages the sandbox runs, and how they get onto a machine: installed (root) or unpacked (anybody).

Nothing here starts a service: the packages are wanted for their programs, which `cluster.py` runs itself.
"""

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

PACKAGES = (
    "slurmctld",
    "slurmd",
    "slurmdbd",
    "slurm-client",
    "munge",
    "mariadb-server-core",
    "slurm-wlm-basic-plugins",
    "slurm-wlm-mysql-plugin",
)
# Shared libraries of the above that a small system may lack, or may have in another version than they were built for.
LIBRARIES = ("libmunge2", "libhwloc15", "libmariadb3", "libaio1", "liburing2")
PROGRAMS = ("slurmctld", "slurmd", "slurmdbd", "sbatch", "munged", "mariadbd")
APT_LINE = f"apt-get update && apt-get install -y --no-install-recommends {' '.join(PACKAGES)}"


def missing() -> list[str]:
    """The programs that are neither installed nor, where SLURM_SANDBOX_ROOT says so, unpacked."""
    root = os.environ.get("SLURM_SANDBOX_ROOT")
    installed = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/bin", "/sbin"])
    path = f"{root}/usr/sbin:{root}/usr/bin" if root else installed
    return [program for program in PROGRAMS if shutil.which(program, path=path) is None]


def install() -> int:
    """Install what is missing; return an exit status. Without root it only says what an administrator has to run."""
    if not missing():
        return 0
    if root := os.environ.get("SLURM_SANDBOX_ROOT"):
        print(f"SLURM_SANDBOX_ROOT={root} lacks {', '.join(missing())}: unset it, or unpack there", file=sys.stderr)
        return 1
    if os.geteuid() != 0:
        print(f"Slurm is not installed here (no {', '.join(missing())}); as root run:\n  {APT_LINE}", file=sys.stderr)
        return 1 if os.environ.get("CI") == "true" else 0
    if shutil.which("apt-get") is None:
        print("The sandbox needs Debian's or Ubuntu's Slurm packages, and there is no apt-get here.", file=sys.stderr)
        return 1
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with _no_service_starts():
        for words in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
            status = subprocess.run(["apt-get", "-q", *words], env=environment, stdin=subprocess.DEVNULL).returncode
            if status != 0:
                print(f"apt-get {words[0]} failed with status {status}; see its output above.", file=sys.stderr)
                return 1
    return 0


@contextmanager
def _no_service_starts():
    """Debian's invoke-rc.d asks this script before it starts a service; 101 means "not allowed"."""
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():  # the machine has its own policy: leave it
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink(missing_ok=True)


def unpack(folder: Path) -> None:
    """Fetch the packages with what they need that is not installed here, and unpack them below folder. Any user may."""
    folder = folder.resolve()
    downloads = folder / "debs"
    downloads.mkdir(parents=True, exist_ok=True)
    wanted = set(PACKAGES + LIBRARIES)
    plan = subprocess.run(
        ["apt-get", "-s", "--no-install-recommends", "install", *sorted(wanted)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    wanted.update(line.split()[1] for line in plan.splitlines() if line.startswith("Inst "))
    subprocess.run(["apt-get", "-q", "download", *sorted(wanted)], cwd=downloads, check=True, stdout=sys.stderr)
    for archive in sorted(downloads.glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", archive, folder], check=True)
    for program in ("slurmctld", "slurmd", "slurmstepd"):  # otherwise the work of update-alternatives
        link = folder / "usr/sbin" / program
        link.unlink(missing_ok=True)
        link.symlink_to(f"{program}-wlm")


if __name__ == "__main__":
    sys.exit(install())
