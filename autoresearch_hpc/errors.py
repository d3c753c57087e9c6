"""What an operator can get wrong or run into; a candidate's failure is data (`records.Status`), never one of these.

    AutoresearchError          exit 1
    ├── ConfigError            exit 2   a key, a value or a combination that cannot work
    │   ├── KnobError                   a knob that is missing, doubled or not a plain value
    │   ├── DataError                   no data, damaged data, data of another tokenizer
    │   ├── RepoError                   no repository, uncommitted changes, a tag in use
    │   └── RunLockedError              another controller works on this run
    ├── InterruptedRun         exit 3   stopped on request; the same command resumes
    ├── ClusterError           exit 4   the cluster refused
    │   ├── NoRoomError                 for now: a limit on jobs is reached, fewer may fit
    │   └── NoAnswerError               perhaps not: the question failed on its way, or the answer
    ├── StorageError           exit 3   no room, or a filesystem that fails; an OSError as well
    └── JournalError           exit 1   a journal that is damaged beyond its last line

Every message is one line: what is wrong, where, and what to do about it.
"""

import errno
import os


class AutoresearchError(Exception):
    """An operator's problem, told in one line. `exit_code` is the process's exit status."""

    exit_code = 1

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(f"{problem}; {remedy}" if remedy else problem)


class ConfigError(AutoresearchError):
    exit_code = 2


def require(condition: bool, problem: str, remedy: str = "") -> None:
    """Raise ConfigError unless the condition holds."""
    if not condition:
        raise ConfigError(problem, remedy)


class KnobError(ConfigError):
    pass


class DataError(ConfigError):
    pass


class RepoError(ConfigError):
    pass


class RunLockedError(ConfigError):
    pass


class InterruptedRun(AutoresearchError):
    exit_code = 3


class ClusterError(AutoresearchError):
    exit_code = 4


class NoRoomError(ClusterError):
    pass


class NoAnswerError(ClusterError):
    pass


_MAKE_ROOM = "make room (df, quota)"
STORAGE_ERRORS = {
    errno.ENOSPC: _MAKE_ROOM,
    errno.EDQUOT: _MAKE_ROOM,
    errno.EIO: "see that the filesystem works again",
    errno.ESTALE: "see that the filesystem is mounted again",
    errno.EROFS: "see that the filesystem can be written again",
}  # what says nothing of a run, and what to do about it


class StorageError(AutoresearchError, OSError):
    """The write did not happen; all that was written before it is there."""

    exit_code = 3

    def __init__(self, path: str | os.PathLike[str], number: int) -> None:
        remedy = f"{STORAGE_ERRORS[number]}, then start the same command again with the run's tag="
        super().__init__(f"{os.fspath(path)} cannot be written: {os.strerror(number)}; nothing was lost", remedy)
        self.errno = number


class JournalError(AutoresearchError):
    pass
