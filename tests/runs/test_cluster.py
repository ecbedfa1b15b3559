"""Shards on many workers: the same bytes as in one process, also when a worker is killed at work."""

import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import dask
import psutil
import pytest
from distributed import LocalCluster

from apm import data as datasets
from apm import methods, teachers, ttt
from apm.analysis import tables
from apm.model import preset
from apm.runs import cluster, records, shards

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def client():
    client = cluster._client("", 2)
    yield client
    client.close()


@pytest.fixture
def workers(client, monkeypatch: pytest.MonkeyPatch):
    """The cluster that the environment names."""
    monkeypatch.setattr(cluster, "current", lambda: client)
    return client


@pytest.fixture(scope="module")
def job():
    teacher = teachers.load("mini")
    data = datasets.load("digits-test").subset(64, seed=0)
    config = ttt.TTTConfig(preset("mini"), iterations=60, learning_rate=2e-3, lockstep=4)
    return methods.APM(teacher, config), data, methods.ZeroShot(teacher)


def test_a_worker_killed_at_work_loses_its_shard_to_another_and_no_byte_changes(client, job, tmp_path, monkeypatch):
    method, data, zero_shot = job
    options = {"seed": 3, "shard_size": 8, "teacher_method": zero_shot}
    one = records.run(method, data, folder=tmp_path / "one", **options)
    monkeypatch.setattr(cluster, "current", lambda: client)
    pids, killed = list(client.run(os.getpid).values()), []

    def written(name: str) -> list[str]:
        return sorted(path.name for path in (tmp_path / name).glob("*.parquet"))

    def kill() -> None:
        while not written("many"):
            time.sleep(0.02)
        os.kill(pids[0], signal.SIGKILL)
        killed.append(len(written("many")))

    threading.Thread(target=kill, daemon=True).start()
    many = records.run(method, data, folder=tmp_path / "many", **options)
    assert 0 < killed[0] < 8  # it died in the middle
    assert pids[0] not in client.run(os.getpid).values()
    assert written("one") == written("many")
    assert len(written("one")) == 8
    assert one.drop(columns="milliseconds").equals(many.drop(columns="milliseconds"))  # the one column that is a time
    assert str(tables.wide(one)) + tables.footer(one) == str(tables.wide(many)) + tables.footer(many)


def test_what_a_worker_raises_is_raised_here(workers, job, tmp_path: Path) -> None:
    method, data, _ = job
    wrong = methods.APM(method.teacher, ttt.TTTConfig(preset("mini", width=32), iterations=2))
    said = "the student's width 32 must be the width 64"
    for on_error, message in (("raise", said), ("record", "nothing was recorded")):
        with pytest.raises(records.RecordError, match=message):
            records.run(wrong, data, folder=tmp_path, shard_size=32, on_error=on_error)
    assert not list(tmp_path.glob("*.parquet"))


def test_workers_with_other_code_are_refused(workers, job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "code_version", lambda modules: "0" * 64)  # here, not on the workers
    with pytest.raises(RuntimeError, match="runs other code"):
        records.run(*job[:2], folder=tmp_path, shard_size=32)


def test_the_environment_says_how_many_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_client", lambda scheduler, workers: (scheduler, workers))

    def current(scheduler: str, workers: str) -> tuple[str, int] | None:
        monkeypatch.setenv("SCHEDULER", scheduler)
        monkeypatch.setenv("WORKERS", workers)
        return cluster.current()

    assert current("", "") is current("", "1") is None
    assert (current("", "3"), current("tcp://host:8786", "")) == (("", 3), ("tcp://host:8786", 1))
    with pytest.raises(ValueError, match="WORKERS must be a number of processes, at least 1; found 'many'"):
        current("", "many")


def test_nobody_outside_this_machine_reaches_the_local_cluster(client) -> None:
    me = psutil.Process()
    listening = {
        process.pid: [c.laddr.ip for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
        for process in [me, *me.children(recursive=True)]
    }
    assert {pid for pid, places in listening.items() if places} >= {me.pid, *client.run(os.getpid).values()}
    assert {place for places in listening.values() for place in places} == {"127.0.0.1"}


def test_a_scheduler_over_tls_lets_in_who_has_its_certificate_and_nobody_else(tmp_path, monkeypatch) -> None:
    def certificate(name: str) -> dict[str, str]:
        key, made, tls = f"{tmp_path}/{name}.key", f"{tmp_path}/{name}.pem", "distributed.comm.tls"
        command = f"openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=apm -keyout {key} -out {made}"
        subprocess.run(command.split(), check=True, capture_output=True)
        roles = [f"{tls}.{role}" for role in ("scheduler", "worker", "client")]
        return {f"{tls}.ca-file": made} | {
            f"{role}.{k}": v for role in roles for k, v in (("cert", made), ("key", key))
        }

    monkeypatch.setattr(cluster, "PATIENCE", "2s")
    ours, others = certificate("ours"), certificate("others")
    options = {"processes": False, "protocol": "tls://", "host": "127.0.0.1", "dashboard_address": None}
    with dask.config.set(ours), LocalCluster(1, **options) as made:
        with cluster._client(made.scheduler_address, 1) as client:
            assert client.submit(sum, [1, 2]).result() == 3
        cluster._client.cache_clear()
        for settings, reason in ((dict.fromkeys(ours), "needs dask's TLS settings"), (others, "no dask scheduler ans")):
            with dask.config.set(settings), pytest.raises(ConnectionError, match=reason):
                cluster._client(made.scheduler_address, 1)


def test_jupyterlab_is_for_this_machine_and_keeps_its_token() -> None:
    (line,) = re.findall(r"^\t.*jupyter lab .*$", (ROOT / "Makefile").read_text(), flags=re.M)
    assert "--ip 127.0.0.1 " in line
    assert not re.search("token|password", line)
