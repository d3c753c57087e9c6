"""What a sandbox cluster is: its settings, its folder and ports, and the environment that points to it.

A cluster owns one state folder and one block of ports; two clusters share neither. The settings of the last `up` lie in
`settings.json` of the state folder, so every other command needs only the folder.
"""

import json
import os
import pwd
import re
import socket
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

_FIRST_PORT, _PORT_BLOCK, _NUM_BLOCKS = 26_800, 64, 90  # below 32768, where Linux starts to take ports for its clients


class SandboxError(Exception):
    """The sandbox cannot do what was asked; the message is one line for a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    state: str
    port: int
    nodes: tuple[str, ...] = ("gpu:h100:4", "gpu:h100:4", "gpu:h100:5", "gpu:h200:3")  # "a+b": both kinds in one node
    cpus: int = 64
    max_array_size: int = 4001
    accounting: str = "mysql"  # or "none": no slurmdbd, no sacct
    auth: str = "munge"  # or "none": no munged; anybody who reaches the ports may submit
    users: tuple[str, ...] = ()  # who else gets an account
    extra: tuple[str, ...] = ()  # lines of slurm.conf; "Key=Value" replaces the sandbox's own
    root: str = ""  # where the packages were unpacked; empty: installed
    devices: str = ""  # the GPUs' device files up to their number, as /dev/nvidia; empty: they are pretended

    def __post_init__(self) -> None:
        paths = {"state folder": self.state, "package folder": self.root, "devices": self.devices}
        for what, path in paths.items():
            if not re.fullmatch(r"[\w./+-]*", path, re.ASCII):
                raise SandboxError(f"Slurm cannot use the {what} {path!r}: only letters, digits and . _ + - / please")
        if len(self.state) > 80:  # a Unix socket's path has at most 107 bytes
            raise SandboxError(f"the state folder's path is longer than 80 characters: {self.state}")
        for node in self.nodes:
            if not re.fullmatch(r"gpu:\w+:[1-9]\d*(\+gpu:\w+:[1-9]\d*)*", node):
                raise SandboxError(f"a node is gpu:TYPE:COUNT (or several joined by +), not {node!r}")
        if len(self.nodes) > _PORT_BLOCK - 3:
            raise SandboxError(f"at most {_PORT_BLOCK - 3} nodes, not {len(self.nodes)}")
        if self.devices and len(self.nodes) > 1:
            raise SandboxError("GPUs of this machine are on one node: give --devices with one in --nodes")

    @property
    def spool(self) -> Path:
        """Where slurmd keeps its jobs: a short path, because sockets are made there, whose paths end at 108 bytes."""
        inside = self.path("spool")
        return inside if len(os.fsencode(inside)) < 60 else own_folder(f"spool-{zlib.crc32(self.state.encode()):08x}")

    def device(self, number: int) -> str:
        """The file behind a node's GPU of this number."""
        return f"{self.devices}{number}" if self.devices else "/dev/null"

    def path(self, *parts: str) -> Path:
        return Path(self.state, *parts)

    @property
    def munge_socket(self) -> Path:
        return self.path("run/munge.socket")

    @property
    def ports(self) -> range:
        """slurmctld, slurmdbd, MariaDB, then one for each node."""
        return range(self.port, self.port + 3 + len(self.nodes))

    @property
    def library(self) -> str:
        """The folder of the unpacked shared libraries; below it, slurm-wlm holds Slurm's own and its plugins."""
        found = sorted(Path(self.root).glob("usr/lib/*/slurm-wlm"))
        return str(found[0].parent) if found else f"{self.root}/usr/lib"

    def client_environment(self) -> dict[str, str]:
        """The variables that point sbatch, squeue and so on to this cluster."""
        environment = {"SLURM_CONF": str(self.path("etc/slurm.conf"))}
        if self.root:
            libraries = [f"{self.library}/slurm-wlm", self.library, os.environ.get("LD_LIBRARY_PATH", "")]
            environment["LD_LIBRARY_PATH"] = _joined(libraries)
            environment["PATH"] = _joined([f"{self.root}/usr/bin", os.environ.get("PATH", "/usr/bin:/bin")])
        return environment

    def daemon_environment(self) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH", "MUNGE"))}
        environment = inherited | self.client_environment()
        programs = [f"{self.root}/usr/sbin"] if self.root else []
        environment["PATH"] = _joined(
            [*programs, environment.get("PATH", ""), "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        )
        environment["HWLOC_SYNTHETIC"] = f"core:{self.cpus} pu:1"  # reading the real topology takes longer
        return environment


def _joined(folders: list[str]) -> str:
    return os.pathsep.join(dict.fromkeys(":".join(filter(None, folders)).split(":")))


def gpus_of(node: str) -> list[tuple[str, int]]:
    """`gpu:h100:4+gpu:h200:1` -> kinds and counts."""
    parts = (part.split(":") for part in node.split("+"))
    return [(kind, int(count)) for _, kind, count in parts]


def user_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        raise SandboxError(f"user id {os.geteuid()} has no name, which Slurm needs: add it to /etc/passwd") from None


def own_folder(name: str) -> Path:
    """A folder of this user in the temporary directory, where another user may have put something under its name."""
    base = Path(os.environ.get("TMPDIR") or "/tmp") / f"slurm-sandbox-{os.geteuid()}"
    base.mkdir(mode=0o755, parents=True, exist_ok=True)
    if base.is_symlink() or base.stat().st_uid != os.geteuid():
        raise SandboxError(f"{base} belongs to somebody else: set TMPDIR or --state to a folder of your own")
    return base / name


def load(state: Path) -> Settings | None:
    """The settings of the cluster in this folder; None where there is no cluster."""
    try:
        stored = json.loads((state / "settings.json").read_text())
        return Settings(**{k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        raise SandboxError(f"{state}/settings.json is damaged: remove the folder {state}") from None


def chosen(state: Path, given: dict[str, object]) -> Settings:
    """Defaults, then what was given; the block of ports is one whose ports are all free, the last one's if possible."""
    settings = Settings(**{"state": str(state), "port": _FIRST_PORT, **given})
    if settings.root and not Path(settings.library, "slurm-wlm").is_dir():
        raise SandboxError(f"no unpacked Slurm in {settings.root}: make one with `cluster.py unpack {settings.root}`")
    before = load(state)
    start = zlib.crc32(str(state).encode())  # clusters that start at the same moment begin their search apart
    blocks = [_FIRST_PORT + _PORT_BLOCK * ((start + k) % _NUM_BLOCKS) for k in range(_NUM_BLOCKS)]
    for port in [settings.port] if "port" in given else [*([before.port] if before else []), *blocks]:
        settings = replace(settings, port=port)
        if all(map(_is_free, settings.ports)):
            return settings
    busy = next((port for port in settings.ports if not _is_free(port)), settings.port)
    raise SandboxError(f"port {busy} is in use: choose another --port" + (", or leave it out" * ("port" in given)))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
    return True
