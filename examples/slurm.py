"""Run make with its predictions computed by SLURM jobs: `DATA=/data .venv/bin/python examples/slurm.py reproduce PROFILE=paper`.

Needs dask-jobqueue and cryptography in the environment, and a file system that this machine and the nodes share: the clone with
its environment, the datasets (DATA), the results (APM_RESULTS) and the cache (APM_CACHE). Scheduler, workers and this machine
talk over TLS, with certificates made for this run: without them anyone who reaches the scheduler could run code as you. The
workers live as long as this script, which ends with make. Change partition, memory and time to those of your cluster.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from dask_jobqueue import SLURMCluster

ROOT = Path(__file__).resolve().parents[1]
WORKERS = 16


def main() -> int:
    """Returns make's exit status."""
    same = {name: os.environ[name] for name in ("PARTIAL", "HF_HUB_OFFLINE") if os.environ.get(name)}  # there as here
    for name in ("DATA", "APM_RESULTS", "APM_CACHE"):
        if os.environ.get(name):
            same[name] = str(Path(os.environ[name]).expanduser().resolve())
    shared = ROOT / ".make"  # the nodes see it; files with the workers' key in it may be read by you only
    shared.mkdir(exist_ok=True)
    with SLURMCluster(
        queue="gpu",
        protocol="tls://",
        security=True,
        shared_temp_directory=str(shared),
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
        made, tls = cluster.security, "DASK_DISTRIBUTED__COMM__TLS__"
        keys = {f"{tls}CA_FILE": made.tls_ca_file, f"{tls}CLIENT__CERT": made.tls_client_cert}
        keys |= {f"{tls}CLIENT__KEY": made.tls_client_key, "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "true"}
        environment = {**os.environ, **same, **keys, "SCHEDULER": cluster.scheduler_address}
        return subprocess.run(["make", *sys.argv[1:]], cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
