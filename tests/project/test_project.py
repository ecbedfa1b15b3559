"""Files are written whole or not at all; hashes are stable; errors say what to do; importing apm is light."""

import errno
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from apm import project


@pytest.mark.parametrize(
    "module",
    [
        *("data", "data.corruptions", "runs.records", "project.profiles", "project.run"),
        *("analysis.stats", "analysis.tables", "analysis.figures", "analysis.report"),
    ],
)
def test_modules_that_need_no_network_weights_do_not_load_torch(module: str) -> None:
    code = f"import sys, apm.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_root_is_found_from_a_folder_inside_the_project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("APM_ROOT", raising=False)
    for name in ("notebooks/deep", "profiles"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "notebooks" / "deep")
    assert project.root() == tmp_path.resolve()


def test_no_project_folder_is_an_error_that_says_what_is_looked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("APM_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(project.paths, "__file__", str(tmp_path / "apm" / "project" / "paths.py"))
    with pytest.raises(FileNotFoundError, match=r"notebooks/ and profiles/.*APM_ROOT"):
        project.root()


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    target = tmp_path / "table.csv"
    project.atomic_write(target, "old")

    def half_way() -> None:
        with project.atomic_path(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        half_way()
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]


def test_written_files_are_readable_by_others_as_the_umask_says(tmp_path: Path) -> None:
    code = f"from apm.project import atomic_write; atomic_write({str(tmp_path / 'a')!r}, b'x')"
    for mask, mode in ((0o022, 0o644), (0o077, 0o600)):
        subprocess.run([sys.executable, "-c", code], check=True, umask=mask)
        assert (tmp_path / "a").stat().st_mode & 0o777 == mode


def test_a_file_in_place_of_a_folder_is_explained(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("")
    with pytest.raises(OSError, match=r"cannot write a\.csv in .*results: a file stands where a folder is needed"):
        project.atomic_write(tmp_path / "results" / "a.csv", "x")


@pytest.mark.parametrize(
    ("code", "advice"),
    [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "read-only"), (errno.EACCES, "not writable")],
)
def test_full_and_read_only_folders_are_explained_and_leave_the_old_file(
    code: int, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a.csv"
    project.atomic_write(target, "old")

    def refuse(self: Path, data: bytes) -> int:
        raise OSError(code, os.strerror(code), str(self))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(OSError, match=f"cannot write a.csv in .*{advice}"):
        project.atomic_write(target, "new")
    assert target.read_text() == "old"


def test_equal_data_have_equal_hashes_whatever_their_container_types() -> None:
    @dataclass
    class Settings:
        a: int
        b: tuple[int, ...]

    same = [{"a": 1, "b": [1, 2]}, {"b": (1, 2), "a": np.int64(1)}, Settings(1, (1, 2))]
    assert len({project.sha256_of(value) for value in same}) == 1
    assert project.sha256_of({"a": 1}) != project.sha256_of({"a": 2})


def test_what_cannot_be_hashed_stably_is_refused() -> None:
    with pytest.raises(TypeError, match="cannot hash a set"):
        project.sha256_of({"a": {1, 2}})


def test_unknown_names_list_the_known_and_the_near_one() -> None:
    error = project.unknown("corruption", "fogg", ["fog", "snow"])
    assert str(error) == "unknown corruption 'fogg'. Known: fog, snow. Did you mean 'fog'?"


@pytest.mark.parametrize(
    ("folder", "text", "expected"),
    [
        ("{root}/data/sets", "{root}/data/sets/a.png {root}/notes.txt /x/b.png", "DATA/a.png notes.txt /x/b.png"),
        ("{root}/..", "{root}/data/sets/a.png {root}/notes.txt", "data/sets/a.png notes.txt"),  # inside the datasets
        ("", "{root}/data/sets/a.png /x/b.png", "data/sets/a.png /x/b.png"),
        # only where a path begins
        ("/data", "results/cifar10/data/published a/data/b", "results/cifar10/data/published a/data/b"),
        ("/data", "https://host/data/a ../data/a", "https://host/data/a ../data/a"),
        ("/d", "iVBORw0KGgo/d/AAA+/d/B", "iVBORw0KGgo/d/AAA+/d/B"),
        ("/data", "in /data/a, '/data/b' DATA=/data/c\n/data/d", "in DATA/a, 'DATA/b' DATA=DATA/c\nDATA/d"),
    ],
)
def test_portable_text_names_no_folder_of_this_machine(
    monkeypatch: pytest.MonkeyPatch, folder: str, text: str, expected: str
) -> None:
    root = project.root()
    monkeypatch.setenv("DATA", folder.format(root=root))
    assert project.portable(text.format(root=root)) == expected
