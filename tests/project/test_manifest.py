"""The manifest: what a notebook published, whole or not at all, side by side with others."""

from pathlib import Path

import pytest

from apm.project import manifest


def entry(name: str) -> dict:
    return {"name": name, "kind": "table", "caption": "", "notes": "", "files": [f"tables/{name}.csv"]}


def test_notebooks_that_end_side_by_side_share_the_manifest(tmp_path: Path) -> None:
    for notebook in ("02_b", "01_a"):
        manifest.note(tmp_path, notebook, [entry(notebook)], complete=True)
    assert list(manifest.read(tmp_path)["notebooks"]) == ["01_a", "02_b"]
    assert manifest.files(tmp_path, "01_a") == ["tables/01_a.csv"]
    assert manifest.files(tmp_path, "03_c") == []


def test_files_of_an_earlier_run_are_known_until_this_one_has_ended(tmp_path: Path) -> None:
    manifest.note(tmp_path, "01_a", [entry("01_x"), entry("01_y")], complete=True)
    manifest.note(tmp_path, "01_a", [entry("01_x")], complete=False)
    assert set(manifest.files(tmp_path, "01_a")) == {"tables/01_x.csv", "tables/01_y.csv"}
    manifest.note(tmp_path, "01_a", [entry("01_x")], complete=True)
    assert manifest.files(tmp_path, "01_a") == ["tables/01_x.csv"]


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        (None, FileNotFoundError, "make reproduce"),
        ("", ValueError, "cannot be read"),
        ('{"version": 0, "notebooks": {}}', ValueError, "of version 0"),
    ],
)
def test_a_manifest_that_is_none_is_said(
    tmp_path: Path, body: str | None, error: type[Exception], message: str
) -> None:
    if body is not None:
        (tmp_path / manifest.NAME).write_text(body)
    with pytest.raises(error, match=message):
        manifest.read(tmp_path)
    assert manifest.files(tmp_path, "01_a") == []
