"""Files are on the disk before they have their name, and a sealed one whose bytes are others is never taken for what was written."""

import os
from pathlib import Path

import pytest
from fakes import damaged

from apm.project import atomic_path
from apm.project.paths import SEAL, check_seal


def sealed(path: Path) -> Path:
    with atomic_path(path, sealed=True) as temporary:
        temporary.write_bytes(b"all that was written")
    return path


def test_a_sealed_file_is_what_was_written_and_its_digest(tmp_path: Path) -> None:
    path = sealed(tmp_path / "a")
    check_seal(path)
    assert path.read_bytes()[:-SEAL] == b"all that was written"


@pytest.mark.parametrize("how", ["zeros", "cut", "flipped", "nothing", "longer", "seal"])
def test_other_bytes_are_noticed(how: str, tmp_path: Path) -> None:
    path = sealed(tmp_path / "a")
    whole = path.read_bytes()
    check_seal(path)  # that it was whole before says nothing
    changed = {"longer": whole + b"x", "seal": whole[:-1] + b"."}
    path.write_bytes(changed[how] if how in changed else damaged(whole, how))
    with pytest.raises(ValueError, match="not those that were written"):
        check_seal(path)


@pytest.mark.parametrize("place", range(0, 84, 5))
def test_any_flipped_bit_is_noticed(place: int, tmp_path: Path) -> None:
    whole = bytearray(sealed(tmp_path / "a").read_bytes())
    whole[place] ^= 4
    (tmp_path / "b").write_bytes(whole)
    with pytest.raises(ValueError, match="not those that were written"):
        check_seal(tmp_path / "b")


def test_the_bytes_reach_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    for name, owner in (("fsync", os), ("replace", Path)):
        own = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given, own=own, name=name: (done.append(name), own(*given))[1])
    sealed(tmp_path / "a")
    assert done == ["fsync", "replace"]
