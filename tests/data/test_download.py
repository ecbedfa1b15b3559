"""Downloads, from a server of our own."""

import http.client
import http.server
import re
import socket
import threading
import urllib.request
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest

from apm.data import download
from apm.data.published_sets import SETS

BYTES = bytes(range(256)) * 400


class Server(http.server.BaseHTTPRequestHandler):
    """Sends BYTES from where it is asked to; the first answer to /cut breaks off."""

    asked: ClassVar[list[str]] = []
    resumes = True

    def do_GET(self):
        start = int(self.headers.get("Range", "bytes=0-")[6:-1]) if self.resumes else 0
        self.asked.append(f"{self.path} {start}")
        if start >= len(BYTES):
            self.send_error(416)
            return
        self.send_response(206 if self.resumes else 200)
        self.send_header("Content-Length", str(len(BYTES) - start))
        self.end_headers()
        first = "cut" in self.path and len(self.asked) == 1
        self.wfile.write(BYTES[start : 1000 if first else None])

    def log_message(self, *said):
        """Nothing."""


@pytest.fixture
def url(monkeypatch):
    monkeypatch.setattr(Server, "asked", [])
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(("resumes", "second"), [(True, "/cut 1000"), (False, "/cut 0")])
def test_a_download_that_broke_off_goes_on_where_it_stopped(url, tmp_path, monkeypatch, resumes, second):
    monkeypatch.setattr(Server, "resumes", resumes)
    get = partial(download._retrieve, f"{url}/cut", tmp_path / "set.zip")
    with pytest.raises(OSError, match=r"set.zip was cut off after 1,000 of 102,400 bytes"):
        get()
    assert not (tmp_path / "set.zip").exists()
    get()
    assert (tmp_path / "set.zip").read_bytes() == BYTES
    assert Server.asked == ["/cut 0", second]


def test_what_was_whole_but_not_yet_renamed_is_taken(url, tmp_path):
    (tmp_path / "set.zip.part").write_bytes(BYTES)
    download._retrieve(f"{url}/whole", tmp_path / "set.zip")
    assert (tmp_path / "set.zip").read_bytes() == BYTES


def test_sizes_and_licences_are_said_first_and_a_full_disk_before_the_first_byte(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: type("usage", (), {"free": 1e8}))
    with pytest.raises(OSError, match=r"room for 0.1 GB; 0.8 GB are to be fetched"):
        download.fetch(["cifar10", "cifar10-train", "dtd-official"], tmp_path)
    said = capsys.readouterr().out
    assert "in all 0.8 GB" in said, "the two splits of CIFAR-10 are one download"
    assert said.count("Licence: ") == 2


def test_a_set_without_torchvision_is_named_and_one_that_is_there_is_left(tmp_path, capsys):
    (tmp_path / SETS["cifar10"].places[0]).mkdir(parents=True)
    assert download.fetch(["cifar10", "ucf101"], tmp_path) == []
    assert "by hand  ucf101" in capsys.readouterr().out


def test_a_set_of_several_archives_is_fetched_to_its_last_one(tmp_path, monkeypatch):
    """Pets have two: a download that broke off between them leaves images, which are no set yet."""
    asked = []

    class Pets:
        def __init__(self, root, download):
            (root / "oxford-iiit-pet" / "images").mkdir(parents=True, exist_ok=True)
            asked.append(root)
            if len(asked) == 1:
                raise http.client.IncompleteRead(b"")

    monkeypatch.setattr("torchvision.datasets.OxfordIIITPet", Pets)
    assert [download.fetch(["pets"], tmp_path) for _ in range(3)] == [["pets"], [], []]
    assert len(asked) == 2


def test_a_proxy_that_refuses_is_said_and_the_next_set_is_tried(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("urllib.request.getproxies", lambda: {})
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]  # nobody listens there any more
    proxied = urllib.request.ProxyHandler(dict.fromkeys(("http", "https"), f"http://127.0.0.1:{port}"))
    monkeypatch.setattr(urllib.request, "urlopen", urllib.request.build_opener(proxied).open)
    assert download.fetch(["cifar10", "dtd-official"], tmp_path) == ["cifar10", "dtd-official"]
    said = capsys.readouterr().err
    for name in ("cifar10", "dtd-official"):
        assert re.search(
            rf"failed   {name}: URLError: .*Connection refused.* behind a proxy \(https_proxy\)\? Run again", said
        )


def test_a_hash_that_differs_and_a_host_that_does_not_answer_are_failures_by_name(tmp_path, capsys, monkeypatch):
    def other(url, filename, chunk_size=0):
        Path(filename).write_bytes(b"another file")

    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda url, max_hops: url)
    monkeypatch.setattr(download, "_retrieve", other)
    assert download.fetch(["dtd-official"], tmp_path) == ["dtd-official"]
    assert "File not found or corrupted" in capsys.readouterr().err

    def none(url, filename, chunk_size=0):
        raise OSError("Tunnel connection failed: 403 Forbidden")

    monkeypatch.setattr(download, "_retrieve", none)
    assert download.fetch(["cifar10"], tmp_path) == ["cifar10"]
    assert (
        "Tunnel connection failed: 403 Forbidden. Is this machine offline, or behind a proxy" in capsys.readouterr().err
    )
