"""Files are written whole or not at all; hashes are stable; errors say what to do; importing apm is light."""

import errno
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from fakes import damaged

from apm import project
from apm.project.paths import SEAL, atomic_path, check_seal


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


def test_root_is_found_from_a_folder_inside_the_project_or_said_to_be_nowhere(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.delenv("APM_ROOT", raising=False)
    monkeypatch.setattr(project.paths, "__file__", str(tmp_path / "apm" / "project" / "paths.py"))
    (tmp_path / "notebooks" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "notebooks" / "deep")
    with pytest.raises(FileNotFoundError, match=r"notebooks/ and profiles/.*APM_ROOT"):
        project.root()
    (tmp_path / "profiles").mkdir()
    assert project.root() == tmp_path.resolve()


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    target = project.atomic_write(tmp_path / "table.csv", "old")
    with pytest.raises(RuntimeError, match="stop"), project.atomic_path(target) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise RuntimeError("stop")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_written_files_are_readable_by_others_as_the_umask_says(tmp_path: Path) -> None:
    code = "from apm.project import atomic_path\n"
    code += f"with atomic_path({str(tmp_path / 'a')!r}) as path:\n    path.chmod(0o600)"  # as safetensors leaves it
    for mask, mode in ((0o022, 0o644), (0o077, 0o600)):
        subprocess.run([sys.executable, "-c", code], check=True, umask=mask)
        assert (tmp_path / "a").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "not writable"),
        (errno.EPERM, "not writable"),
        (errno.EEXIST, "a file stands where a folder is needed"),
    ],
)
def test_what_cannot_be_written_is_explained_and_leaves_the_old_file(
    code: int, advice: str, tmp_path: Path, monkeypatch
) -> None:
    target = project.atomic_write(tmp_path / "a.csv", "old")

    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(OSError, match=f"cannot write a.csv in .*{advice}"):
        project.atomic_write(target, "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
    with pytest.raises(OSError, match=r"cannot write b in .*a\.csv: a file stands where a folder is needed"):
        project.atomic_write(target / "b", "x")


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
    many = [f"ViT-{size}-{patch}" for size in "BLHSTG" for patch in range(8, 40)]
    error = project.unknown("model", "vit-b-32", ["mini", *many])
    assert str(error).endswith("... (193 in all). Did you mean 'ViT-B-32'?")
    assert len(str(error)) < 200


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
def test_portable_text_names_no_folder_of_this_machine(monkeypatch, folder: str, text: str, expected: str) -> None:
    root = project.root()
    monkeypatch.setenv("DATA", folder.format(root=root))
    assert project.portable(text.format(root=root)) == expected


# ------------------------------------------------------------------------------------------------------ sealed files


def sealed(path: Path) -> Path:
    with atomic_path(path, sealed=True) as temporary:
        temporary.write_bytes(b"all that was written")
    return path


DAMAGES = ["zeros", "cut", "flipped", "nothing", "longer", *range(0, 84, 5)]  # the last are places of a flipped bit


@pytest.mark.parametrize("how", DAMAGES)
def test_other_bytes_of_a_sealed_file_are_noticed(how: str | int, tmp_path: Path) -> None:
    path = sealed(tmp_path / "a")
    whole = path.read_bytes()
    check_seal(path)  # that it was whole before says nothing
    assert whole[:-SEAL] == b"all that was written"
    if isinstance(how, int):
        path.write_bytes(whole[:how] + bytes([whole[how] ^ 4]) + whole[how + 1 :])
    else:
        path.write_bytes(whole + b"x" if how == "longer" else damaged(whole, how))
    with pytest.raises(ValueError, match="not those that were written"):
        check_seal(path)


def test_the_bytes_reach_the_disk_before_the_name(tmp_path: Path, monkeypatch) -> None:
    done: list[str] = []
    for name, owner in (("fsync", os), ("replace", Path)):
        own = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given, own=own, name=name: (done.append(name), own(*given))[1])
    sealed(tmp_path / "a")
    assert done == ["fsync", "replace"]
