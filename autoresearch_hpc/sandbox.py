"""Barriers around foreign code, from what an unprivileged process may ask of Linux for itself.

A `Barrier` is made by the trusted parent and entered by the child between fork and exec (or right after a fork); it
holds for whatever the child starts. It consists of

- Landlock (Linux 5.13 and newer): files can be read and written only below the paths named. Processes outside cannot
  be traced, nor their memory, environment or open files be reached through /proc. No TCP (6.7 and newer), no
  signals to processes outside and no abstract sockets of theirs (6.12 and newer).
- no_new_privs: no setuid program helps the child out.
- limits on the size of a file and on core dumps, and a umask.

Where the kernel has no Landlock the rest remains; the worker says so once. With task.sandbox=none Landlock is left out,
with task.sandbox=require the worker runs no trial without it.
"""

import contextlib
import ctypes
import errno
import os
import resource
import site
import stat
import struct
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

MAX_FILE_BYTES = 64 << 30

_PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 4, 24, 38  # <linux/prctl.h>
_CAPABILITIES_3 = 0x20080522  # <linux/capability.h>
# Root's ways around Landlock: DAC_READ_SEARCH, SYS_MODULE, SYS_RAWIO, SYS_PTRACE, SYS_ADMIN, MKNOD, PERFMON, BPF,
# CHECKPOINT_RESTORE. In containers trials do run as root.
_DROPPED = (2, 16, 17, 19, 21, 27, 38, 39, 40)
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_VERSION = 1  # flag of _CREATE_RULESET: tell the ABI
_PATH_BENEATH = 1
# Source: <linux/landlock.h>. Rights by the ABI that brought them; ioctls on devices stay free, as GPUs live by them.
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
_FS_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1}
_NET = 0b11  # TCP: bind, connect; ABI 4
_ABSTRACT_SOCKETS, _SIGNALS = 1 << 0, 1 << 1  # ABI 6

_SYSTEM = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/opt", "/nix", "/gnu", "/cvmfs",
    "/proc", "/sys", "/run/current-system", "/run/opengl-driver", "/run/nvidia-persistenced", "/var/lib/sss",
    "/var/lib/alternatives",
)  # fmt: skip
_SHARED_DEVICES = {"shm", "mqueue", "hugepages"}  # of /dev: memory that outlives a process
_SEARCH_PATHS = ("PATH", "LD_LIBRARY_PATH", "LIBRARY_PATH", "PYTHONPATH", "CUDA_HOME", "CUDA_PATH")
_MANY = 4096  # entries of a folder of which one is to be left out

_libc = ctypes.CDLL(None, use_errno=True)


def landlock_abi() -> int:
    """The version of Landlock that this kernel has; 0 where there is none, or it is switched off."""
    return max(0, int(_libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION))))


def usable(mode: str) -> bool:
    """Whether barriers of this `task.sandbox` hold with Landlock here."""
    return mode != "none" and landlock_abi() > 0


class Barrier:
    """What one child may reach. Close it in the parent once the child has entered."""

    def __init__(
        self,
        *,
        readable: Iterable[Path],
        writable: Iterable[Path],
        mode: str,
        max_file_bytes: int = MAX_FILE_BYTES,
        no_abstract_sockets: bool = True,
        network: bool = False,
    ) -> None:
        self._max_file_bytes = max_file_bytes
        scopes = _SIGNALS | (_ABSTRACT_SOCKETS if no_abstract_sockets else 0)
        self._ruleset = _ruleset(readable, writable, 0 if network else _NET, scopes) if usable(mode) else -1

    def enter(self) -> None:
        """Shut this process in, for good. Raises OSError where the kernel does not do what it said it could."""
        os.umask(0o077)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        limit = self._max_file_bytes if hard == resource.RLIM_INFINITY else min(hard, self._max_file_bytes)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        _drop_capabilities()
        _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if self._ruleset >= 0:
            named = _READ | _WRITE_FILE | _TRUNCATE & _FS_BY_ABI[min(landlock_abi(), 3)]
            _allow(self._ruleset, Path("/proc/self/task"), named)  # CUDA gives its threads names there
            _checked(_libc.syscall(_RESTRICT_SELF, self._ruleset, ctypes.c_uint32(0)))
            os.close(self._ruleset)

    @property
    def fds(self) -> tuple[int, ...]:
        """What the child must still have open when it enters."""
        return (self._ruleset,) if self._ruleset >= 0 else ()

    def close(self) -> None:
        if self._ruleset >= 0:
            os.close(self._ruleset)
            self._ruleset = -1


def _drop_capabilities() -> None:
    for number in _DROPPED:
        _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)
    header, data = struct.pack("=Ii", _CAPABILITIES_3, 0), ctypes.create_string_buffer(24)
    if _libc.capget(header, data) == 0:
        keep = [(1 << 32) - 1, (1 << 32) - 1]
        for number in _DROPPED:
            keep[number // 32] &= ~(1 << number % 32)
        words = struct.unpack("=6I", data.raw)  # effective, permitted, inheritable of the first 32, then of the rest
        _libc.capset(header, struct.pack("=6I", *(word & keep[i // 3] for i, word in enumerate(words))))


def hide_memory() -> None:
    """Keep other processes of this user from reading this one's memory and open files: it holds what they want."""
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _ruleset(readable: Iterable[Path], writable: Iterable[Path], net: int, scopes: int) -> int:
    abi = landlock_abi()
    handled = _FS_BY_ABI[min(abi, 3)]
    attributes = struct.pack("=Q", handled)
    if abi >= 4:
        attributes += struct.pack("=Q", net)
    if abi >= 6:
        attributes += struct.pack("=Q", scopes)
    ruleset = _checked(_libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0)))
    for path in readable:
        _allow(ruleset, path, _READ & handled)
    for path in _import_roots():  # of a checkout with runs and data in it: Python has to list it, names only
        _allow(ruleset, path, _READ_DIR)
    for path in writable:
        _allow(ruleset, path, handled)
    for device in _devices():
        _allow(ruleset, device, handled & (_READ | _WRITE_FILE | _TRUNCATE))
    return ruleset


def _allow(ruleset: int, path: Path, access: int) -> None:
    """Allow access below path; what is not there is no rule."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            access &= _OF_FILES
        rule = struct.pack("=Qi", access, fd)
        _checked(_libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, ctypes.c_uint32(0)))
    except OSError as error:
        if error.errno != errno.EBADFD:  # a file of the kernel's own, such as a pipe: not Landlock's business
            raise
    finally:
        os.close(fd)


def _checked(answer: int) -> int:
    if answer < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"Landlock: {os.strerror(number)}")
    return answer


def _devices() -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from (path for path in Path("/dev").iterdir() if path.name not in _SHARED_DEVICES)


def software(protected: Iterable[Path]) -> list[Path]:
    """What a Python program needs to read: the system, this interpreter, its libraries. Nothing of `protected`,
    unless the interpreter lives there, and no home directory."""
    home = Path.home()
    guarded = [path.resolve() for path in protected]
    own = {Path(__file__).resolve().parent, Path(sys.executable).resolve().parent}
    own |= {Path(p).resolve() for p in (sys.prefix, sys.base_prefix, sys.exec_prefix, *site.getsitepackages())}
    found = set(own) - _ancestors(home)
    for name in _SYSTEM:
        found.update(_without(Path(name), guarded))
    for entry in _searched():
        for path in (entry, entry.parent) if entry.name in ("bin", "sbin", "lib", "lib64") else (entry,):
            if path not in _ancestors(home) and len(path.parts) > 1:
                found.update(_without(path, guarded))
    return sorted(found)


def _import_roots() -> set[Path]:
    """Where Python looks for modules, this package's parent among them."""
    return {Path(__file__).resolve().parents[1], *(Path(entry) for entry in sys.path if Path(entry).is_absolute())}


def _searched() -> Iterator[Path]:
    listed = [entry for name in _SEARCH_PATHS for entry in os.environ.get(name, "").split(os.pathsep)]
    for entry in {*listed, *sys.path}:
        if entry and Path(entry).is_absolute() and Path(entry).exists():
            yield Path(entry).resolve()


def _ancestors(path: Path) -> set[Path]:
    """The path and all above it."""
    resolved = path.resolve()
    return {path, resolved, *path.parents, *resolved.parents}


def _without(path: Path, guarded: list[Path]) -> Iterator[Path]:
    """The path, or where it holds something guarded, its entries without that."""
    real = path.resolve()
    if any(real == guard or guard in real.parents for guard in guarded):
        return
    if not any(real in guard.parents for guard in guarded):
        yield path
        return
    with contextlib.suppress(OSError):
        entries = list(real.iterdir())
        if len(entries) <= _MANY:
            for entry in entries:
                yield from _without(entry, guarded)
