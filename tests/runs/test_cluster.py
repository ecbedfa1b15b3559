"""Shards on many workers: the same bytes as in one process, also when a worker is killed at work."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from apm import data as datasets
from apm import methods, teachers, ttt
from apm.analysis import tables
from apm.model import preset
from apm.runs import cluster, records, shards

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def workers():
    client = cluster.local(2)
    yield client
    client.close()


@pytest.fixture(scope="module")
def job():
    teacher = teachers.load("mini")
    data = datasets.load("digits-test").subset(64, seed=0)
    config = ttt.TTTConfig(preset("mini"), iterations=60, learning_rate=2e-3, lockstep=4)
    return methods.APM(teacher, config), data, methods.ZeroShot(teacher)


def rows(folder: Path) -> "object":
    frame = records.load(folder)
    return frame.drop(columns="milliseconds")  # the one column that is a time


def test_a_worker_killed_at_work_loses_its_shard_to_another_and_no_byte_changes(
    workers, job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, data, zero_shot = job
    options = {"seed": 3, "shard_size": 8, "teacher_method": zero_shot}
    records.run(method, data, folder=tmp_path / "one", **options)
    monkeypatch.setattr(cluster, "current", lambda: workers)
    pids, killed = list(workers.run(os.getpid).values()), []

    def kill() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not list((tmp_path / "many").glob("*.parquet")):
            time.sleep(0.02)
        os.kill(pids[0], signal.SIGKILL)
        killed.append(len(list((tmp_path / "many").glob("*.parquet"))))

    thread = threading.Thread(target=kill)
    thread.start()
    records.run(method, data, folder=tmp_path / "many", **options)
    thread.join()
    assert 0 < killed[0] < 8  # it died in the middle
    assert pids[0] not in workers.run(os.getpid).values()
    one, many = (sorted(path.name for path in (tmp_path / name).glob("*.parquet")) for name in ("one", "many"))
    assert one == many
    assert len(one) == 8
    assert rows(tmp_path / "one").equals(rows(tmp_path / "many"))
    saved = {}
    for name in ("one", "many"):
        loaded = records.load(tmp_path / name)
        paths = tables.save(tables.wide(loaded), "table", tmp_path / name / "tables", "caption", tables.footer(loaded))
        saved[name] = {suffix: path.read_bytes() for suffix, path in paths.items()}
    assert saved["one"] == saved["many"]
    assert not list((tmp_path / "many").glob("*.tmp"))


def test_what_a_worker_raises_is_raised_here(workers, job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method, data, _ = job
    monkeypatch.setattr(cluster, "current", lambda: workers)
    wrong = methods.APM(method.teacher, ttt.TTTConfig(preset("mini", width=32), iterations=2))
    with pytest.raises(records.RecordError, match="the student's width 32 must be the width 64"):
        records.run(wrong, data, folder=tmp_path, shard_size=32)
    with pytest.raises(records.RecordError, match="nothing was recorded"):
        records.run(wrong, data, folder=tmp_path, shard_size=32, on_error="record")
    assert not list(tmp_path.glob("*.parquet"))


def test_workers_with_other_code_are_refused(workers, job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method, data, _ = job
    monkeypatch.setattr(cluster, "current", lambda: workers)
    monkeypatch.setattr(shards, "code_version", lambda modules=(): "0" * 64)  # here, not on the workers
    with pytest.raises(RuntimeError, match="runs other code"):
        records.run(method, data, folder=tmp_path, shard_size=32)


def test_the_environment_says_how_many_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORKERS", "SCHEDULER"):
        monkeypatch.delenv(name, raising=False)
    assert cluster.current() is None
    monkeypatch.setenv("WORKERS", "1")
    assert cluster.current() is None
    monkeypatch.setenv("WORKERS", "many")
    with pytest.raises(ValueError, match="WORKERS must be a number of processes, at least 1; found 'many'"):
        cluster.current()
    made = []
    monkeypatch.setattr(cluster, "_client", lambda scheduler, workers: made.append((scheduler, workers)))
    monkeypatch.setenv("WORKERS", "3")
    cluster.current()
    monkeypatch.setenv("SCHEDULER", "tcp://host:8786")
    cluster.current()
    assert made == [("", 3), ("tcp://host:8786", 3)]


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "PATIENCE", "1s")
    with pytest.raises(ConnectionError, match=r"no dask scheduler answers at SCHEDULER=tcp://127.0.0.1:9 "):
        cluster._client("tcp://127.0.0.1:9", 1)


def test_nobody_outside_this_machine_reaches_the_local_cluster(workers) -> None:
    workers.submit(sum, [1, 2]).result()
    me = psutil.Process()
    listening = {
        process.pid: [c.laddr.ip for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
        for process in [me, *me.children(recursive=True)]
    }
    assert {pid for pid, places in listening.items() if places} >= {me.pid, *workers.run(os.getpid).values()}
    assert {place for places in listening.values() for place in places} == {"127.0.0.1"}


CONNECT = "from apm.runs import cluster; client = cluster.current(); print(client.submit(sum, [1, 2]).result())"


def connect(address: str, settings: dict[str, str]) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("DASK_")}
    command = [sys.executable, "-c", CONNECT]
    return subprocess.run(
        command, env={**own, **settings, "SCHEDULER": address}, cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_a_scheduler_over_tls_lets_in_who_has_its_certificate_and_nobody_else(tmp_path: Path) -> None:
    ours, others = cluster.certificates(tmp_path / "ours"), cluster.certificates(tmp_path / "others")
    assert (tmp_path / "ours").stat().st_mode & 0o077 == 0
    file, started = tmp_path / "scheduler.json", []
    environment = {**os.environ, **ours}

    def start(role: str, *arguments: str) -> None:
        command = [sys.executable, "-m", f"distributed.cli.dask_{role}", "--no-dashboard", *arguments]
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    def address() -> str:
        try:
            return json.loads(file.read_text())["address"]
        except (OSError, ValueError):
            return ""

    try:
        start("scheduler", "--host", "tls://127.0.0.1", "--port", "0", "--scheduler-file", str(file))
        deadline = time.monotonic() + 60
        while not address() and time.monotonic() < deadline:
            time.sleep(0.1)
        start("worker", address(), "--nthreads", "1", "--no-nanny")
        assert address().startswith("tls://127.0.0.1:")
        let_in = connect(address(), ours)
        assert (let_in.returncode, let_in.stdout.strip()) == (0, "3"), let_in.stderr
        for settings, reason in (({}, "needs dask's TLS settings"), (others, "no dask scheduler answers")):
            refused = connect(address(), settings)
            assert refused.returncode == 1
            assert "ConnectionError: " in refused.stderr
            assert reason in refused.stderr
        plain = connect(address().replace("tls://", "tcp://"), {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "2s"})
        assert plain.returncode == 1
        assert "3" not in plain.stdout
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_jupyterlab_is_for_this_machine_and_keeps_its_token() -> None:
    (line,) = re.findall(r"^\t.*jupyter lab .*$", (ROOT / "Makefile").read_text(), flags=re.M)
    assert "--ip 127.0.0.1 " in line
    assert "token" not in line
    assert "password" not in line
