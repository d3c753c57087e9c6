"""One line and an exit code instead of a traceback, for every command.

Apart from `entry`, so that commands without a configuration need not import Hydra.
"""

import sys
from collections.abc import Callable

from autoresearch_hpc.errors import AutoresearchError


def run(main: Callable[[], int | None]) -> int:
    """Call main; an operator's problem becomes one line on standard error and its exit code."""
    try:
        return main() or 0
    except AutoresearchError as error:
        print(f"autoresearch_hpc: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # `| head`
        sys.stderr.close()
        return 1
    except OSError as error:  # a full disk, a file of somebody else's: the system's words say it
        print(f"autoresearch_hpc: {error}; correct it and start again", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("autoresearch_hpc: interrupted", file=sys.stderr)
        return 3
