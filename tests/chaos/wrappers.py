"""Scripts that stand before Slurm's own commands on the PATH, as at sites that wrap them, and misbehave when told to.

They also witness every array that sbatch took, whoever heard of it.
"""

import re
import shlex
import shutil
from collections import Counter, defaultdict
from pathlib import Path

_SCRIPT = """\
#!/bin/sh
name={name} real={real} here={here}
case " $* " in *" --test-only "*) exec "$real" "$@" ;; esac  # only real submissions are disturbed
mode=usual
if mv "$here/$name.once" "$here/$name.$$" 2>/dev/null; then mode=$(cat "$here/$name.$$")
elif [ -f "$here/$name.lasting" ]; then mode=$(cat "$here/$name.lasting")
fi
[ "$mode" = usual ] || echo "$name $mode" >>"$here/acts"
if [ $name = sbatch ]; then
    for script; do :; done
    array=$(sed -n 's/^#SBATCH --job-name=//p' "$script")
    [ "$mode" = usual ] || echo "$array" >>"$here/disturbed"
fi
submit() {{
    answer=$("$real" "$@"); code=$?
    [ $code != 0 ] || echo "$answer of $array" >>"$here/taken"
}}
fail() {{ echo "$1" >&2; exit 1; }}
refuse() {{ fail "sbatch: error: Batch job submission failed: $1"; }}
case $name-$mode in
sbatch-answer-lost) submit "$@"; refuse "Socket timed out on send/recv operation" ;;
sbatch-killed) submit "$@"; kill -KILL $$ ;;
sbatch-unreachable) refuse "Unable to contact slurm controller (connect failure)" ;;
sbatch-no-room) echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2
    refuse "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)" ;;
sbatch-slow) sleep 6; submit "$@"; echo "$answer"; exit $code ;;
sbatch-chatty) echo "Checking your project's balance ... 1000 hours"; submit "$@"; echo "$answer"
    echo "See https://cluster.example/news"; exit $code ;;
sbatch-*) submit "$@"; echo "$answer"; exit $code ;;
squeue-fails) fail "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" ;;
sacct-fails) fail "sacct: error: Problem talking to the database: Connection refused" ;;
sacct-stale) exit 0 ;;
*-slow) sleep 6 ;;
esac
exec "$real" "$@"
"""

ONCE = {"sbatch": ("answer-lost", "killed", "unreachable", "no-room", "slow", "chatty")}
LASTING = {"squeue": ("fails", "slow"), "sacct": ("fails", "slow", "stale")}


class Wrappers:
    """The scripts, in a folder of their own; `path` is the PATH with them first."""

    def __init__(self, folder: Path, path: str) -> None:
        self._folder = folder
        self.path = f"{folder}:{path}"
        folder.mkdir(parents=True)
        for name in ("sbatch", "squeue", "sacct"):
            real = shutil.which(name, path=path)
            assert real, f"no {name} on the PATH {path}"
            script = folder / name
            script.write_text(_SCRIPT.format(name=name, real=shlex.quote(real), here=shlex.quote(str(folder))))
            script.chmod(0o755)

    def once(self, name: str, mode: str) -> None:
        """The command's next call only."""
        self._write(f"{name}.once", mode)

    def lasting(self, name: str, mode: str) -> None:
        """Every call until `clear`."""
        self._write(f"{name}.lasting", mode)

    def _write(self, name: str, mode: str) -> None:
        fresh = self._folder / f".{name}"
        fresh.write_text(mode)
        fresh.replace(self._folder / name)

    def clear(self, *names: str) -> None:
        """These commands, or all, behave again."""
        for suffix in ("once", "lasting"):
            for file in self._folder.glob(f"*.{suffix}"):
                if not names or file.stem in names:
                    file.unlink(missing_ok=True)

    def acts(self) -> Counter[str]:
        """How often each command misbehaved in each way."""
        return Counter(self._lines("acts"))

    def disturbed(self) -> set[str]:
        """Names of the arrays whose submission was disturbed."""
        return set(self._lines("disturbed"))

    def taken(self) -> dict[str, list[str]]:
        """Name -> ids of the arrays that sbatch took under it, whoever heard of it."""
        found = defaultdict(list)
        for line in self._lines("taken"):
            if matched := re.fullmatch(r"Submitted batch job (\d+) of (\S+)", line):
                found[matched[2]].append(matched[1])
        return dict(found)

    def _lines(self, name: str) -> list[str]:
        file = self._folder / name
        return file.read_text().splitlines() if file.exists() else []
