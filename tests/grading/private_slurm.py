"""A Slurm of one node for the tests: its own daemons, ports and files, in a temporary folder."""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

# Of util-linux and the Debian packages munge, mariadb-server, slurmdbd, slurmctld, slurmd, slurm-client.
PROGRAMS = "setpriv munged mariadbd mariadb-install-db slurmdbd slurmctld slurmd sbatch".split()
MISSING = [name for name in PROGRAMS if shutil.which(name) is None]
_PATIENCE = 120.0

# Accounting has to be on: what became of a task that died is known from there alone.
_SLURM = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
ReturnToService=2
KillWait=2
SchedulerParameters=sched_interval=1,sched_min_interval=0
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={accounting}
AccountingStoragePass={folder}/munge.socket
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory={memory} State=UNKNOWN
PartitionName=test Nodes={host} Default=YES State=UP
"""
_ACCOUNTING = """
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={accounting}
SlurmUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database}
StorageUser={user}
StorageLoc=accounting
"""


@contextlib.contextmanager
def running(folder: Path) -> Iterator[str]:
    """Start it, and give what ``SLURM_CONF`` has to be; nothing of it is left afterwards."""
    user, data = getpass.getuser(), folder / "data"
    ports = dict(zip(("database", "accounting", "controller", "node"), _free_ports(4), strict=True))
    words = {
        "folder": folder,
        "user": user,
        "host": socket.gethostname().split(".")[0],
        "memory": int(psutil.virtual_memory().total / 2**20 * 0.9),
        **ports,
    }
    for name in ("state", "spool", "log"):
        (folder / name).mkdir()
    for name, text in (("slurm.conf", _SLURM), ("slurmdbd.conf", _ACCOUNTING)):
        (folder / name).write_text(text.format(**words), "utf-8")
        (folder / name).chmod(0o600)
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    configuration = str(folder / "slurm.conf")
    environment = {**os.environ, "SLURM_CONF": configuration}
    with contextlib.ExitStack() as stack:

        def start(*command: str) -> None:
            log = stack.enter_context(open(folder / "log" / f"{command[0]}.out", "w"))
            options = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            # It ends with these tests, also if they are killed.
            command = ("setpriv", "--pdeathsig", "TERM", "--", *command)
            process = subprocess.Popen(command, env=environment, start_new_session=True, **options)
            stack.callback(_stop, process)

        def until_it_answers(*command: str) -> None:
            deadline = time.monotonic() + _PATIENCE
            while (
                answer := subprocess.run(command, env=environment, capture_output=True, text=True)
            ).returncode:
                assert time.monotonic() < deadline, f"{command}: {answer.stderr}"
                time.sleep(0.2)

        munge = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "seed", "log")]
        start("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *munge)
        subprocess.run(
            ["mariadb-install-db", "--no-defaults", f"--datadir={data}", f"--user={user}"],
            check=True,
            capture_output=True,
        )
        sql = f"--socket={folder}/sql.socket"
        start(
            *("mariadbd", "--no-defaults", f"--datadir={data}", f"--user={user}", sql),
            *("--skip-grant-tables", "--bind-address=127.0.0.1", f"--port={ports['database']}"),
            f"--pid-file={folder}/sql.pid",
        )
        until_it_answers("mariadb", "--no-defaults", sql, "--execute=select 1")
        start("slurmdbd", "-D")
        until_it_answers("sacctmgr", "--immediate", "add", "cluster", "test")
        start("slurmctld", "-D", "-f", configuration)
        start("slurmd", "-D", "-f", configuration, "-N", words["host"])
        until_it_answers("srun", "true")
        yield configuration


def _stop(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
