"""A stand-in for a coding agent's command line: it behaves in its working directory as its first argument says.

    good        change one constant of train.py or fit.py
    syntax      make it no Python
    forbidden   a good edit, a file more, and an edit of every Python file that is not the script
    nothing     leave all as it is
    hang        for ever, deaf to what can be ignored; hang.json has the process id
    daemon      a good edit, and a process in a session of its own that stays; daemon.json has its id
    fail        words on standard error and exit code 3
    probe       a good edit; probe.json says of each place outside "written", or the error
    env         a good edit; env.json has the environment
    flood       100 MB on standard output, then a good edit
    script      what --script says: a JSON list of [path, search, replace], with {number} in it

The constant's value goes by a number: --number, SCRIPTED_NUMBER, `NUMBER=5` in the prompt, or the process id. With the
word REPAIR in the prompt it undoes what it broke and makes a good edit, whatever the behaviour.
"""

import argparse
import json
import os
import pwd
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_BEHAVIOURS = ["good", "syntax", "forbidden", "nothing", "hang", "daemon", "fail", "probe", "env", "flood", "script"]
_CONSTANT = re.compile(r"^((?:[A-Z]+_)*LR) = [0-9.]+", re.MULTILINE)
_BROKEN, _INTRUDER, _NEW_FILE = "def broken(:\n", "# an edit where none may be\n", Path("sitecustomize.py")
_EVER_S = 3600  # long enough for any test, and no process is lost for good


def change(script: Path, number: int) -> None:
    text, changed = _CONSTANT.subn(lambda m: f"{m[1]} = {0.2 + number % 500 / 1000}", script.read_text(), count=1)
    assert changed, f"no constant in {script}"
    script.write_text(text)


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def written(place: Path) -> str:
    """The word written, or why not."""
    try:
        tempfile.NamedTemporaryFile(dir=place, prefix="probe-").close()
    except OSError as error:
        return str(error)
    return "written"


def behave(behaviour: str, script: Path, given: argparse.Namespace) -> None:
    if behaviour in ("good", "forbidden", "daemon", "probe", "env"):
        change(script, given.number)
    match behaviour:
        case "syntax":
            append(script, _BROKEN)
        case "forbidden":
            for path in {_NEW_FILE, *Path().glob("*.py")} - {script}:
                append(path, _INTRUDER)
        case "hang":
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            Path("hang.json").write_text(str(os.getpid()))
            time.sleep(_EVER_S)
        case "daemon":
            null = subprocess.DEVNULL
            argv = ["sleep", str(_EVER_S)]
            left = subprocess.Popen(argv, start_new_session=True, stdin=null, stdout=null, stderr=null)
            Path("daemon.json").write_text(str(left.pid))
        case "fail":
            print("error: the model is overloaded", file=sys.stderr)
            sys.exit(3)
        case "probe":
            home, real = Path.home(), Path(pwd.getpwuid(os.getuid()).pw_dir)
            places = {"home": home, "home_parent": home.parent, "real_home": real, "real_home_parent": real.parent}
            places |= {"cwd": Path(), "tmp": Path("/tmp"), "repository": given.repository or Path()}
            Path("probe.json").write_text(json.dumps({name: written(place) for name, place in places.items()}))
        case "env":
            Path("env.json").write_text(json.dumps(dict(os.environ)))
        case "flood":
            for _ in range(100):
                sys.stdout.write("all work and no play\n" * 50_000)
            change(script, given.number)
        case "script":
            for name, search, replace in json.loads(given.script.read_text()):
                text = Path(name).read_text()
                Path(name).write_text(text.replace(search, replace.replace("{number}", str(given.number))))
        case "repair":
            _NEW_FILE.unlink(missing_ok=True)
            for path in Path().glob("*.py"):
                path.write_text(path.read_text().replace(_BROKEN, "").replace(_INTRUDER, ""))
            change(script, given.number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("behaviour", choices=_BEHAVIOURS)
    parser.add_argument("--prompt", default="", metavar="TEXT")
    parser.add_argument("--stdin", action="store_true", help="the prompt comes on standard input")
    parser.add_argument("--number", type=int, default=os.environ.get("SCRIPTED_NUMBER"))
    for name in ("--prompt-file", "--script", "--repository"):
        parser.add_argument(name, type=Path, metavar="PATH")
    given = parser.parse_args()
    prompt = given.prompt_file.read_text() if given.prompt_file else sys.stdin.read() if given.stdin else given.prompt
    if given.number is None:
        told = re.search(r"NUMBER=(\d+)", prompt)
        given.number = int(told[1]) if told else os.getpid()
    script = next(path for path in map(Path, ("train.py", "fit.py")) if path.exists())
    behave("repair" if "REPAIR" in prompt else given.behaviour, script, given)


if __name__ == "__main__":
    main()
