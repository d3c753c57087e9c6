"""The text of a sandbox cluster's configuration files: slurm.conf, gres.conf, slurmdbd.conf and the accounts.

Only what differs from Slurm's defaults is said. Without cgroups, real GPUs or the machine's true number of CPUs, and
with every delay as short as Slurm takes it, so that tests see within seconds what takes minutes on a real site.
"""

import json
import os
import socket
import time
from dataclasses import asdict
from pathlib import Path

from settings import SandboxError, Settings, gpus_of, user_name

_CLUSTER, _ACCOUNT = "sandbox", "lab"

_SLURM = """
ClusterName={cluster}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdUser={user}
CredType=cred/{auth}
StateSaveLocation={state}/control
SlurmdSpoolDir={spool}/%n
SlurmctldPidFile={state}/run/slurmctld.pid
SlurmdPidFile={state}/run/slurmd-%n.pid
SlurmctldLogFile={state}/log/slurmctld.log
SlurmdLogFile={state}/log/slurmd-%n.log
SlurmdDebug=error
GresTypes=gpu
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,bf_max_job_test=2000,default_queue_depth=2000
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdTimeout=10
BatchStartTimeout=30
KillWait=5
UnkillableStepTimeout=20
TCPTimeout=2
EpilogMsgTime=0
Epilog=/bin/true
MaxArraySize={max_array_size}
MaxJobCount=20000
FirstJobId={first_job_id}
"""  # With an epilog, even /bin/true, a job's GPU is free at once; else only in slurmctld's next one-second round.

# Nothing uses cgroups, but slurmd loads a plugin for them: this one asks neither for systemd nor for a mounted cgroup2.
_CGROUP = "CgroupPlugin=cgroup/v1\n"

_ACCOUNTING = """
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStorageEnforce=associations,limits,qos
AccountingStorageTRES={tres}
"""

_SLURMDBD = """
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
PidFile={state}/run/slurmdbd.pid
LogFile={state}/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={sql_port}
StorageUser={user}
StorageLoc=slurm_acct
"""

_PARTITIONS = """
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=60 PriorityTier=1
PartitionName=high Nodes=ALL MaxTime=INFINITE DefaultTime=60 PriorityTier=10
"""


def account_commands(settings: Settings) -> str:
    """What sacctmgr is told once, in a new database."""
    lines = [
        "add qos low",
        "add qos high preempt=low priority=100",
        "add qos capped MaxSubmitJobsPerUser=5 MaxJobsPerUser=2",
        f"add cluster {_CLUSTER} qos=normal,low,high,capped",
        f"add account {_ACCOUNT} cluster={_CLUSTER} Description={_ACCOUNT} Organization={_ACCOUNT}",
    ]
    users = dict.fromkeys([user_name(), *settings.users])
    lines += [f"add user {user} account={_ACCOUNT} cluster={_CLUSTER} defaultaccount={_ACCOUNT}" for user in users]
    return "\n".join(lines) + "\n"


def write_files(settings: Settings) -> None:
    """Make the folders and write every file of the cluster. Secrets are readable by their owner only."""
    for folder in ("etc", "log", "run", "control", "dev"):
        settings.path(folder).mkdir(parents=True, exist_ok=True)
    settings.spool.mkdir(parents=True, exist_ok=True)
    if not settings.path("spool").exists():
        settings.path("spool").symlink_to(settings.spool)
    if not settings.path("etc/munge.key").exists():
        _write_private(settings.path("etc/munge.key"), os.urandom(128))
    for k in range(max(sum(count for _, count in gpus_of(node)) for node in settings.nodes)):
        _link_gpu(settings.path(f"dev/gpu{k}"), Path(settings.device(k)))
    settings.path("etc/gres.conf").write_text(_gres_conf(settings))
    settings.path("etc/slurm.conf").write_text(_slurm_conf(settings))
    settings.path("etc/cgroup.conf").write_text(_CGROUP)
    _write_private(settings.path("etc/slurmdbd.conf"), _slurmdbd_conf(settings).encode())
    settings.path("settings.json").write_text(json.dumps(asdict(settings), indent=1))


def _link_gpu(link: Path, device: Path) -> None:
    """Name a GPU's file: it has to be a device, or jobs get no CUDA_VISIBLE_DEVICES."""
    if not device.is_char_device():
        raise SandboxError(f"{device} is no device: this machine has fewer GPUs than --nodes says")
    link.unlink(missing_ok=True)
    link.symlink_to(device)


def _write_private(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(content)


def _common(settings: Settings) -> str:
    """What slurm.conf and slurmdbd.conf both say."""
    lines = [f"SlurmUser={user_name()}", f"AuthType=auth/{settings.auth}"]
    # A requeued job waits until its credential has expired: 5 s is the least that Slurm takes, 120 s its default.
    lines += ["AuthInfo=cred_expire=5" + (f",socket={settings.munge_socket}" if settings.auth == "munge" else "")]
    lines += [f"PluginDir={settings.library}/slurm-wlm"] if settings.root else []
    return "\n".join(lines)


def _slurmdbd_conf(settings: Settings) -> str:
    ports = {"port": settings.port + 1, "sql_port": settings.port + 2}
    return _common(settings) + _SLURMDBD.format(state=settings.state, user=user_name(), **ports)


def _gres_conf(settings: Settings) -> str:
    lines = []
    for k, node in enumerate(settings.nodes):
        first = 0
        for kind, count in gpus_of(node):
            files = settings.path(f"dev/gpu[{first}-{first + count - 1}]")
            lines.append(f"NodeName=n{k} Name=gpu Type={kind} File={files}\n")
            first += count
    return "".join(lines)


def _slurm_conf(settings: Settings) -> str:
    host = socket.gethostname().split(".")[0]
    # Job ids of a new cluster must not meet the folders that an older cluster's jobs left behind.
    values = asdict(settings) | {"spool": settings.spool, "first_job_id": 1_000 + 4 * int(time.time()) % 60_000_000}
    text = _common(settings) + _SLURM.format(cluster=_CLUSTER, host=host, user=user_name(), **values)
    if settings.accounting == "mysql":
        kinds = dict.fromkeys(kind for node in settings.nodes for kind, _ in gpus_of(node))
        tres = ",".join(["gres/gpu", *(f"gres/gpu:{kind}" for kind in kinds)])
        text += _ACCOUNTING.format(port=settings.port + 1, tres=tres)
        text += f"AccountingStoragePass={settings.munge_socket}\n" if settings.auth == "munge" else ""
    for k, node in enumerate(settings.nodes):
        text += (
            f"NodeName=n{k} NodeHostname={host} NodeAddr=127.0.0.1 Port={settings.port + 3 + k} CPUs={settings.cpus} "
            f"RealMemory=200000 Gres={node.replace('+', ',')} Feature={','.join(kind for kind, _ in gpus_of(node))}\n"
        )
    lines = (text + _PARTITIONS).split("\n")
    for extra in settings.extra:
        key = extra.partition("=")[0].strip().lower()
        if key not in ("nodename", "partitionname"):  # a key that stands there twice makes every command complain
            lines = [line for line in lines if line.partition("=")[0].lower() != key]
        lines.append(extra)
    return "\n".join(filter(None, lines)) + "\n"
