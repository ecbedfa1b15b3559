"""Run make with its predictions computed by SLURM jobs: `DATA=/data .venv/bin/python examples/slurm.py reproduce PROFILE=paper`.

Needs dask-jobqueue in the environment, openssl, and a file system that this machine and the nodes share: the clone with its
environment, the datasets (DATA), the results (APM_RESULTS) and the cache (APM_CACHE). Scheduler, workers and this machine
talk over TLS, with certificates made for this run: without them anyone who reaches the scheduler could run code as you. The workers live as long as this
script, which ends with make. Change partition, memory and time to those of your cluster.
"""

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import dask
from dask_jobqueue import SLURMCluster
from distributed.security import Security

from apm.runs.cluster import certificates

ROOT = Path(__file__).resolve().parents[1]
WORKERS = 16
FOLDERS = ("DATA", "APM_RESULTS", "APM_CACHE")


def main() -> int:
    """Returns make's exit status."""
    (ROOT / ".make").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix="tls-", dir=ROOT / ".make"
    ) as folder:  # the nodes see it; only you may read it
        tls = certificates(Path(folder))
        os.environ.update(tls)
        dask.config.refresh()  # reads them
        return run(tls)


def run(tls: dict[str, str]) -> int:
    """Make, with a cluster that uses these TLS settings. Returns make's exit status."""
    folders = {name: str(Path(os.environ[name]).expanduser().resolve()) for name in FOLDERS if os.environ.get(name)}
    others = {name: os.environ[name] for name in ("PARTIAL", "HF_HUB_OFFLINE") if os.environ.get(name)}
    same = {**folders, **others, **tls}  # on the workers as here
    with SLURMCluster(
        queue="gpu",
        protocol="tls://",
        security=Security(require_encryption=True),
        scheduler_options={"dashboard": False},
        job_extra_directives=["--gres=gpu:1"],
        walltime="04:00:00",
        memory="64GB",
        processes=1,
        cores=1,  # shards at a time
        job_cpu=8,  # CPUs for each
        python=sys.executable,
        job_script_prologue=[
            f"cd {shlex.quote(str(ROOT))}",
            *(f"export {name}={shlex.quote(value)}" for name, value in same.items()),
        ],
    ) as cluster:
        cluster.scale(WORKERS)
        environment = {**os.environ, **same, "SCHEDULER": cluster.scheduler_address}
        return subprocess.run(["make", *sys.argv[1:]], cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
