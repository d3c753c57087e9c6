"""What an operator can get wrong or run into; a candidate's failure is data (`records.Status`), never one of these.

    AutoresearchError          exit 1
    ├── ConfigError            exit 2   a key, a value or a combination that cannot work
    │   ├── KnobError                   a knob that is missing, doubled or not a plain value
    │   ├── DataError                   no data, damaged data, data of another tokenizer
    │   ├── RepoError                   no repository, uncommitted changes, a tag in use
    │   └── RunLockedError              another controller works on this run
    ├── InterruptedRun         exit 3   stopped on request; the same command resumes
    ├── ClusterError           exit 4   the cluster refused
    └── JournalError           exit 1   a journal that is damaged beyond its last line

Every message is one line: what is wrong, where, and what to do about it.
"""


class AutoresearchError(Exception):
    """An operator's problem, told in one line. `exit_code` is the process's exit status."""

    exit_code = 1

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(f"{problem}; {remedy}" if remedy else problem)


class ConfigError(AutoresearchError):
    exit_code = 2


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


class JournalError(AutoresearchError):
    pass
