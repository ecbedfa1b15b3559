"""Shards over several processes, GPUs or hosts, by dask.distributed.

    WORKERS=4 make reproduce                      # four processes on this machine, one per GPU where there are GPUs
    SCHEDULER=tls://10.0.0.5:8786 make reproduce  # the workers of an existing cluster

A worker computes one shard and writes its file, under the name that says what it is. One that dies loses the shard it was at,
which another does again. Shards do not depend on who computes them, so one worker and many give the same bytes. Workers on other
hosts must see the same results folder, cache and data, and run the same code (checked).

A scheduler and its workers run whatever anyone who reaches them sends. Those made here listen on 127.0.0.1 only; a cluster
over several hosts should be reached as tls://, with dask's own settings.
"""

from __future__ import annotations

import atexit
import functools
import gc
import logging
import os
import platform
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from apm.project.identity import code_version
from apm.project.paths import say
from apm.runs.shards import Job, Shard

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
    gc.collect()  # of a client that found no scheduler: collected while the next one starts, it would wait for that one's lock for ever
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
    import torch
    from distributed import Client, Nanny, Scheduler, SpecCluster

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    same = {"host": "127.0.0.1", "silence_logs": logging.CRITICAL}  # else dask's workers listen on every interface
    if not gpus and workers * (threads := torch.get_num_threads()) > (cores := os.cpu_count() or 1):
        say(
            f"WORKERS={workers}: {workers} processes of {threads} threads share {cores} cores, which is slower than one process"
        )
    devices = [{"CUDA_VISIBLE_DEVICES": str(i % gpus)} if gpus else {} for i in range(workers)]
    cluster = SpecCluster(
        {i: {"cls": Nanny, "options": {**same, "nthreads": 1, "env": env}} for i, env in enumerate(devices)},
        scheduler={"cls": Scheduler, "options": {"dashboard": False, "host": "127.0.0.1", "port": 0}},
        silence_logs=logging.CRITICAL,
    )
    atexit.register(cluster.close)
    return Client(cluster)


def compute(client: Client, missing: Sequence[Shard], job: Job) -> Iterator[tuple[Shard, Any]]:
    """Compute shards on the workers, in any order: yields (shard, what `Job.make` returns), raises what a worker raises, and
    RuntimeError when the workers of a shard died again and again."""
    import torch
    from distributed import as_completed

    threads = torch.get_num_threads()
    # as a task, not scattered: when the worker that holds it dies, the scheduler can make it again
    shared = client.submit(_keep, job, pure=False)
    waiting = {client.submit(_work, shared, shard, threads, pure=False): (shard, 1) for shard in missing}
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
        again = client.submit(_work, shared, shard, threads, pure=False)
        waiting[again] = (shard, attempt + 1)
        finished.add(again)


def _keep(job: Job) -> Job:
    return job


def _work(job: Job, shard: Shard, threads: int) -> Any:
    """On a worker: one shard, from the method to its file."""
    import torch

    own = code_version(tuple(shard.settings["modules"]))
    if own != shard.settings["code"]:
        raise RuntimeError(
            f"the worker on {platform.node()} runs other code ({own[:12]}) than the run ({shard.settings['code'][:12]}): "
            "restart the workers from the same checkout"
        )
    torch.set_num_threads(threads)  # as where the run was started: rounding must not tell who computed a shard
    return job.make(shard)
