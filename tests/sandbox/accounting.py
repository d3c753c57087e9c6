"""MariaDB and slurmdbd of a sandbox cluster. Making a database takes seconds, so a ready one is kept as a tar."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import daemons
from configuration import account_commands
from settings import SandboxError, Settings


def start(settings: Settings, cache: Path | None) -> None:
    """Start both with a database that knows the accounts: this cluster's own, the cache's copy, or a new one."""
    database, ready = settings.path("database"), settings.path("database/.ready")
    accounts = account_commands(settings)
    kept = _kept_copy(settings, cache, accounts) if cache else None
    if not ready.exists():
        shutil.rmtree(database, ignore_errors=True)
        if kept and kept.exists():
            subprocess.run(["tar", "-C", settings.state, "-xf", kept], check=True)
        else:
            _make_database(settings)
    _start_servers(settings)
    if ready.exists():
        return
    daemons.finish(settings, "sacctmgr", ["sacctmgr", "-iQ"], accounts)
    ready.touch()
    if kept:
        daemons.stop(settings, ["slurmdbd"])  # only what was closed properly may be copied
        daemons.stop(settings, ["mariadbd"])
        kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = kept.with_suffix(f".{os.getpid()}")
        subprocess.run(["tar", "-C", settings.state, "--sparse", "-cf", partial, "database"], check=True)
        partial.replace(kept)
        _start_servers(settings)


def _kept_copy(settings: Settings, cache: Path, accounts: str) -> Path:
    """A copy serves the same versions and the same accounts only."""
    versions = [daemons.answer(settings, *argv) for argv in (("mariadbd", "--version"), ("slurmdbd", "-V"))]
    tag = hashlib.sha256("\0".join([*versions, accounts]).encode()).hexdigest()[:16]
    return cache / f"database-{tag}.tar"


def _mariadbd(settings: Settings) -> list[str]:
    command = ["mariadbd", "--no-defaults", f"--datadir={settings.path('database')}", "--skip-grant-tables"]
    command += [f"--basedir={settings.root}/usr", f"--lc-messages-dir={settings.root}/usr/share/mysql"]
    command += ["--user=root"] if os.geteuid() == 0 else []
    # Small files, and no waiting for the disk: what a power cut would lose is a sandbox.
    command += ["--innodb-buffer-pool-size=64M", "--innodb-log-file-size=8M", "--innodb-autoextend-increment=4"]
    return [*command, "--innodb-flush-method=nosync"]


def _make_database(settings: Settings) -> None:
    tables = Path(f"{settings.root}/usr/share/mysql/mysql_system_tables.sql")
    if not tables.exists():
        raise SandboxError(f"{tables} is missing: run `make slurm-packages`")
    settings.path("database/mysql").mkdir(parents=True)
    command = [*_mariadbd(settings), "--bootstrap", "--log-warnings=0"]
    daemons.finish(settings, "mariadbd-bootstrap", command, "use mysql;\n" + tables.read_text())


def _start_servers(settings: Settings) -> None:
    command = [*_mariadbd(settings), "--bind-address=127.0.0.1", f"--port={settings.port + 2}"]
    command += [f"--socket={settings.path('run/sql.socket')}", f"--pid-file={settings.path('run/mariadbd.pid')}"]
    command += [f"--log-error={settings.path('log/mariadbd.log')}", "--skip-name-resolve", "--skip-log-bin"]
    command += ["--innodb-flush-log-at-trx-commit=0", "--performance-schema=OFF", "--skip-networking=0"]
    command += ["--innodb-lock-wait-timeout=900"]  # slurmdbd complains of less
    daemons.start(settings, {"mariadbd": (command, settings.port + 2)})
    daemons.start(settings, {"slurmdbd": (["slurmdbd"], settings.port + 1)})
