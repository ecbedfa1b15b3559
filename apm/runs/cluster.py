"""Shards over several processes, GPUs or hosts, by dask.distributed.

    WORKERS=4 make reproduce                      # four processes on this machine, one per GPU where there are GPUs
    SCHEDULER=tls://10.0.0.5:8786 make reproduce  # the workers of an existing cluster

The unit of work is one shard of the records: a worker computes it and writes its file, under the name that says what it is.
A worker that dies loses the shard it was at, which another does again; the others are files already. Shards do not depend on
who computes them, so one worker and many give the same bytes. Workers on other hosts must see the same results folder, cache
and data, and run the same code (checked).

A scheduler and its workers run whatever anyone who reaches them sends. Those made here listen on 127.0.0.1 only; a cluster
over several hosts should be reached as tls://, with dask's own settings (`certificates` makes a pair, and says them).
"""

from __future__ import annotations

import atexit
import functools
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apm.project.identity import code_version
from apm.runs import shards
from apm.runs.shards import Shard

if TYPE_CHECKING:
    from distributed import Client

PATIENCE = "20s"  # how long to wait for a scheduler's answer
ATTEMPTS = 5  # how often a shard is given out again when its worker died

SETTINGS = {
    "distributed.scheduler.allowed-failures": ATTEMPTS,
    "distributed.admin.large-graph-warning-threshold": "10GB",  # a method travels with its teacher, once per worker
}


def current() -> Client | None:
    """The cluster that the environment asks for, made or connected to at the first call; None: work in this process.

    SCHEDULER: address of an existing scheduler. WORKERS: number of processes here (1: none). Raises ValueError for a WORKERS
    that is no number, ConnectionError for a scheduler that does not answer.
    """
    scheduler, workers = os.environ.get("SCHEDULER", ""), os.environ.get("WORKERS", "") or "1"
    if not workers.isdigit() or int(workers) < 1:
        raise ValueError(f"WORKERS must be a number of processes, at least 1; found {workers!r}")
    if not scheduler and int(workers) == 1:
        return None
    return _client(scheduler, int(workers))


@functools.cache
def _client(scheduler: str, workers: int) -> Client:
    import dask
    from distributed import Client

    dask.config.set(SETTINGS)
    # a killed worker is expected here, and its shard is done again: no pages of warnings in a notebook
    for name in ("distributed", "distributed.nanny", "distributed.core", "distributed.scheduler", "distributed.worker"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if scheduler:
        try:
            client = Client(scheduler, timeout=PATIENCE)
        except TypeError as error:  # dask's word for an address tls:// without certificates
            raise ConnectionError(
                f"SCHEDULER={scheduler} needs dask's TLS settings: DASK_DISTRIBUTED__COMM__TLS__CA_FILE, ..__CLIENT__CERT and "
                f"..__CLIENT__KEY, or distributed.comm.tls in dask's configuration file ({error})"
            ) from error
        except OSError as error:
            raise ConnectionError(
                f"no dask scheduler answers at SCHEDULER={scheduler} ({error}): start one with `dask scheduler`, with the same "
                "TLS settings where it is tls://, or unset SCHEDULER"
            ) from error
    else:
        client = local(workers)
    atexit.register(client.close)
    return client


def local(workers: int) -> Client:
    """A cluster of processes on this machine, reached from this machine only; each sees one GPU where there are GPUs."""
    import dask
    import torch
    from distributed import Client, Nanny, Scheduler, SpecCluster

    dask.config.set(SETTINGS)
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    options = [
        {
            "nthreads": 1,
            "host": "127.0.0.1",  # else dask's workers listen on every interface
            "env": {"CUDA_VISIBLE_DEVICES": str(i % gpus)} if gpus else {},
            "silence_logs": logging.CRITICAL,
        }
        for i in range(workers)
    ]
    cluster = SpecCluster(
        workers={i: {"cls": Nanny, "options": chosen} for i, chosen in enumerate(options)},
        scheduler={"cls": Scheduler, "options": {"dashboard": False, "host": "127.0.0.1", "port": 0}},
        silence_logs=logging.CRITICAL,
    )
    atexit.register(cluster.close)
    return Client(cluster)


def certificates(folder: Path) -> dict[str, str]:
    """Makes a key and a certificate (by openssl, for a week) and returns dask's TLS settings for them, as environment variables.

    Whoever can read the folder can use the cluster: it becomes its owner's only. Raises FileNotFoundError without openssl.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    if not (openssl := shutil.which("openssl")):
        raise FileNotFoundError("openssl is not installed: certificates for tls:// cannot be made")
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "7", "-subj", "/CN=apm"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    tls = "DASK_DISTRIBUTED__COMM__TLS__"
    pairs = {
        f"{tls}{role}__{what}": str(file)
        for role in ("SCHEDULER", "WORKER", "CLIENT")
        for what, file in (("CERT", certificate), ("KEY", key))
    }
    return {"DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "true", f"{tls}CA_FILE": str(certificate), **pairs}


def compute(
    client: Client, missing: Sequence[Shard], method: Any, dataset: Any, teacher_method: Any, on_error: str
) -> Iterator[tuple[Shard, Any]]:
    """Compute shards on the workers, in any order: yields (shard, None) for one that was written, (shard, table) for one in
    which every image failed, which is not written.

    What a worker raises is raised here. Raises RuntimeError when the workers of a shard died again and again.
    """
    import torch
    from distributed import as_completed

    job = (method, dataset, teacher_method, on_error, torch.get_num_threads())
    # as a task, not scattered: when the worker that holds it dies, the scheduler can make it again
    shared = client.submit(_keep, job, pure=False)
    waiting = {client.submit(_work, shared, shard, pure=False): (shard, 1) for shard in missing}
    finished = as_completed(waiting)
    for future in finished:
        shard, attempt = waiting.pop(future)
        if future.status == "finished":
            yield shard, future.result()
            continue
        if future.status == "error" and type(future.exception()).__name__ != "KilledWorker":
            client.cancel(list(waiting))
            future.result()  # raises what the worker raised
        if attempt == ATTEMPTS:
            raise RuntimeError(
                f"the workers of shard {shard.path.name} died {ATTEMPTS} times: is there memory enough? Fewer WORKERS, or a smaller lockstep"
            )
        if shared.status != "finished":
            shared = client.submit(_keep, job, pure=False)
        again = client.submit(_work, shared, shard, pure=False)
        waiting[again] = (shard, attempt + 1)
        finished.add(again)


def _keep(job: tuple[Any, ...]) -> tuple[Any, ...]:
    return job


def _work(job: tuple[Any, ...], shard: Shard) -> Any:
    """On a worker: one shard, from the method to its file."""
    import torch

    method, dataset, teacher_method, on_error, threads = job
    own = code_version(tuple(shard.settings["modules"]))
    if own != shard.settings["code"]:
        raise RuntimeError(
            f"the worker on {platform.node()} runs other code ({own[:12]}) than the run ({shard.settings['code'][:12]}): "
            "restart the workers from the same checkout"
        )
    torch.set_num_threads(threads)  # as where the run was started: rounding must not tell who computed a shard
    return shards.make(shard, method, dataset, teacher_method, on_error=on_error)
