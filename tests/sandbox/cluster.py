"""A private, real Slurm cluster on one machine: no systemd, any user, several nodes, several clusters side by side.

    python tests/sandbox/cluster.py up              start it (nothing happens when it is up)
    eval "$(python tests/sandbox/cluster.py env)"   point sbatch, squeue, ... of this shell to it
    python tests/sandbox/cluster.py down            stop every process of it

Needs nothing but the standard library and Slurm's Debian packages. docs/sandbox.md describes the settings.
"""

import argparse
import contextlib
import fcntl
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import accounting
import daemons
import packages
from configuration import write_files
from settings import SandboxError, Settings, chosen, load, own_folder

_USABLE = ("idle", "mix", "alloc", "comp")


class Cluster:
    """The commands on one cluster. The settings are those of its last start."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.nodes = [f"n{k}" for k in range(len(settings.nodes))]
        self.names = ["munged"] if settings.auth == "munge" else []
        self.names += ["mariadbd", "slurmdbd"] if settings.accounting == "mysql" else []
        self.names += ["slurmctld", *(f"slurmd-{node}" for node in self.nodes)]

    def pids(self) -> dict[str, int | None]:
        return {name: daemons.pid_of(self.settings, name) for name in self.names}

    def up(self, cache: Path | None) -> None:
        """Start what is not running, and wait until every node can take jobs."""
        settings, fresh = self.settings, not any(self.pids().values())
        if fresh:
            write_files(settings)
        try:
            if settings.auth == "munge":
                files = {"key-file": "etc/munge.key", "socket": "run/munge.socket", "pid-file": "run/munged.pid"}
                files |= {"log-file": "log/munged.log", "seed-file": "run/munged.seed"}
                options = [f"--{option}={settings.path(file)}" for option, file in files.items()]
                daemons.start(settings, {"munged": (["munged", "--force", "--num-threads=4", *options], None)})
            if settings.accounting == "mysql":
                accounting.start(settings, cache)
            daemons.start(settings, {"slurmctld": (["slurmctld"], settings.port)})
            self.start_nodes(self.nodes)
        except SandboxError:
            if fresh:
                self.down()
            raise

    def start_nodes(self, nodes: list[str]) -> None:
        """Start these slurmds, all at once, and wait until slurmctld has heard from them."""
        commands = {}
        for node in nodes:
            self.settings.path("spool", node).mkdir(exist_ok=True)
            step = ["-d", f"{self.settings.root}/usr/sbin/slurmstepd"] if self.settings.root else []
            port = self.settings.port + 3 + self.nodes.index(node)
            commands[f"slurmd-{node}"] = (["slurmd", *step, "-N", node], port)
        daemons.start(self.settings, commands)
        ask = ("sinfo", "-hN", "-p", "main", "-n", ",".join(nodes), "-o", "%N %t")

        def all_usable() -> bool:  # a "*" after the state would mean: not heard from
            words = daemons.answer(self.settings, *ask).split()
            return {n for n, state in zip(words[::2], words[1::2], strict=True) if state in _USABLE} == set(nodes)

        if not daemons.wait_for(all_usable, 30):
            log = self.settings.path("log/slurmctld.log")
            raise SandboxError(f"not every node of {','.join(nodes)} became usable within 30 s (see {log})")

    def down(self) -> None:
        """Cancel the jobs, stop the daemons, kill what is left."""
        settings, queue = self.settings, ("squeue", "-h", "-o", "%A")
        if daemons.pid_of(settings, "slurmctld") and (jobs := daemons.answer(settings, *queue, timeout_s=5).split()):
            daemons.answer(settings, "scancel", *dict.fromkeys(jobs), timeout_s=5)
            daemons.wait_for(lambda: not daemons.answer(settings, *queue, timeout_s=5), 4)
        daemons.stop(settings, ["slurmctld", *(f"slurmd-{node}" for node in self.nodes)])
        for name in ("slurmdbd", "mariadbd", "munged"):  # each one needs the next
            daemons.stop(settings, [name])
        daemons.kill_leftovers(settings)
        if settings.path("spool").is_symlink():
            shutil.rmtree(settings.spool, ignore_errors=True)
        if (guard := daemons.guard_of(settings)) not in (None, os.getpid()):
            daemons.kill([guard])

    def kill_slurmd(self, node: str) -> None:
        """The daemon dies, its jobs go on: as on a real node."""
        daemons.stop(self.settings, [f"slurmd-{node}"], force=True)

    def kill_node(self, node: str, *, unannounced: bool) -> None:
        """The node crashes with all its jobs. Slurm is told at once, or finds out by itself (after about 30 s)."""
        self.kill_slurmd(node)
        daemons.kill_leftovers(self.settings, node)
        if not unannounced:
            daemons.answer(self.settings, "scontrol", "update", f"nodename={node}", "state=down", "reason=killed")

    def status(self) -> int:
        for name, pid in self.pids().items():
            print(f"{name:12} {f'up    pid {pid}' if pid else 'down'}")
        print(daemons.answer(self.settings, "sinfo", "-N", "-p", "main", "-o", "%N %t %G"), end="")
        return 0 if all(self.pids().values()) else 1


@contextlib.contextmanager
def _locked(state: Path) -> Iterator[None]:
    """One command at a time on a cluster: a second `up` waits for the first and then finds it done."""
    state.mkdir(parents=True, exist_ok=True)
    with (state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cluster.py", description=__doc__.splitlines()[0])
    parser.add_argument("--state", type=Path, help="state folder (default: SLURM_SANDBOX_STATE, or below TMPDIR)")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    up = commands.add_parser("up", help="start the cluster", argument_default=argparse.SUPPRESS)
    up.add_argument("--port", type=int, help="first of its ports (default: a free block)")
    up.add_argument("--nodes", type=lambda text: tuple(text.split(",")), help="such as gpu:h100:4,gpu:h200:3")
    up.add_argument("--cpus", type=int, help="CPUs that each node claims (64)")
    up.add_argument("--devices", metavar="PREFIX", help="this machine's own GPUs, on one node: /dev/nvidia")
    up.add_argument("--max-array-size", type=int, help="MaxArraySize (4001)")
    up.add_argument("--accounting", choices=["mysql", "none"], help="none: no slurmdbd and no sacct")
    up.add_argument("--auth", choices=["munge", "none"], help="none: only where no stranger reaches the ports")
    up.add_argument("--user", dest="users", action="append", metavar="NAME", help="another user with an account")
    up.add_argument("--set", dest="extra", action="append", metavar="LINE", help="a line of slurm.conf")
    up.add_argument("--root", help="folder with unpacked packages (default: SLURM_SANDBOX_ROOT, or installed)")
    up.add_argument("--cache", help="folder for a ready-made database, or 'none'")
    up.add_argument("--guard", type=int, metavar="PID", help="stop the cluster when this process has ended")
    down = commands.add_parser("down", help="stop it")
    down.add_argument("--wipe", action="store_true", help="remove the state folder as well")
    down.add_argument("--after", type=int, metavar="PID", help="wait until this process has ended")
    commands.add_parser("status", help="show daemons and nodes; status 1 unless all are up")
    commands.add_parser("env", help="print the shell commands that point Slurm's commands to it")
    for name, text in (("kill-slurmd", "kill a node's daemon"), ("start-slurmd", "start it again")):
        commands.add_parser(name, help=text).add_argument("node", type=_node)
    node = commands.add_parser("kill-node", help="crash a node with its jobs")
    node.add_argument("node", type=_node)
    node.add_argument("--unannounced", action="store_true", help="let slurmctld find out by itself")
    commands.add_parser("unpack", help="unpack the packages, for --root").add_argument("folder", type=Path)
    return parser


def _node(text: str) -> str:
    return f"n{int(text.removeprefix('n'))}"


def _up(state: Path, given: dict[str, object]) -> None:
    cache, guarded = given.pop("cache", None) or str(own_folder("cache")), given.pop("guard", None)
    if root := given.get("root", os.environ.get("SLURM_SANDBOX_ROOT")):
        given["root"] = str(Path(str(root)).resolve())
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    before = load(state)
    if before and any(Cluster(before).pids().values()):
        if differing := [key for key, value in given.items() if getattr(before, key) != value]:
            raise SandboxError(f"the cluster is up with another {', '.join(differing)}: run `down` first")
        cluster = Cluster(before)
    else:
        cluster = Cluster(chosen(state, given))
    if not all(cluster.pids().values()):
        cluster.up(None if cache == "none" else Path(str(cache)))
    if guarded:
        words = [sys.executable, str(Path(__file__).resolve()), "--state", str(state), "down", "--after", str(guarded)]
        guard = daemons.launch(cluster.settings, "guard", words)
        cluster.settings.path("run/guard.pid").write_text(str(guard.pid))


def _down(cluster: Cluster, *, wipe: bool, after: int | None) -> None:
    while after and daemons.is_running(after):
        if not any(cluster.pids().values()):  # somebody else stopped it
            return
        time.sleep(0.5)
    state = cluster.settings.path()
    with _locked(state):
        cluster.down()
        if wipe:
            shutil.rmtree(state)


def main() -> int:
    options = vars(_parser().parse_args())
    command = options.pop("command")
    if command == "unpack":
        packages.unpack(options["folder"])
        return 0
    named = options.pop("state") or os.environ.get("SLURM_SANDBOX_STATE")
    state = (Path(named) if named else own_folder("cluster")).resolve()
    if command == "up":
        with _locked(state):
            _up(state, options)
        words = [sys.executable, sys.argv[0], *(["--state", str(state)] if named else []), "env"]
        print(f'The cluster is up. For this shell: eval "$({shlex.join(words)})"')
        return 0
    settings = load(state)
    if settings is None:
        if command == "down":
            return 0
        raise SandboxError(f"there is no cluster in {state}: run `up` first")
    cluster = Cluster(settings)
    if command == "status":
        return cluster.status()
    if command == "env":
        for name, value in settings.client_environment().items():
            print(f"export {name}={shlex.quote(value)}")
    elif command == "down":
        _down(cluster, **options)
    elif (node := options["node"]) not in cluster.nodes:
        raise SandboxError(f"there is no node {node}, only {', '.join(cluster.nodes)}")
    else:
        with _locked(state):
            if command == "kill-slurmd":
                cluster.kill_slurmd(node)
            elif command == "kill-node":
                cluster.kill_node(node, unannounced=options["unannounced"])
            else:
                cluster.start_nodes([node])
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SandboxError as error:
        print(f"sandbox: {error}", file=sys.stderr)
        sys.exit(1)
