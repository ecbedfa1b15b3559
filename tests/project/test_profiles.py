"""Profiles hold every number; what a notebook does not know is an error, not a warning."""

import shutil
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_notebook

from apm.project import profiles

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("APM_ROOT", str(tmp_path))
    for name, source in {
        "01_first": 'profile = "mini"\nsamples = 10\nrates = [1.0, 2.0]  # comment',
        "99_report": 'profile = "mini"',
    }.items():
        cell = new_code_cell(source, metadata={"tags": ["parameters"]})
        (tmp_path / "notebooks").mkdir(exist_ok=True)
        nbformat.write(new_notebook(cells=[cell]), tmp_path / "notebooks" / f"{name}.ipynb")
    (tmp_path / "profiles" / "mini").mkdir(parents=True)
    (tmp_path / "profiles" / "mini" / "common.yaml").write_text("samples: 5\nrates: [3.0]\n")
    return tmp_path


def test_notebook_values_come_over_common_ones_and_the_profile_names_itself(project: Path) -> None:
    (project / "profiles" / "mini" / "01_first.yaml").write_text("rates: [4.0]\n")
    assert profiles.load("mini", "01_first") == {"samples": 5, "rates": [4.0], "profile": "mini"}


def test_a_parameter_that_no_file_gives_is_an_error_but_for_those_that_hold_at_any_scale(project: Path) -> None:
    common = project / "profiles" / "mini" / "common.yaml"
    common.write_text("samples: 5\n")
    with pytest.raises(ValueError, match=r"profile mini: 01_first needs rates: .*01_first\.yaml.*common\.yaml"):
        profiles.load("mini", "01_first")
    cell = new_code_cell(
        'profile = "mini"\nsamples = 10\nseed = 0\non_error = "raise"', metadata={"tags": ["parameters"]}
    )
    nbformat.write(new_notebook(cells=[cell]), project / "notebooks" / "01_first.ipynb")
    assert profiles.load("mini", "01_first") == {"samples": 5, "profile": "mini"}


@pytest.mark.parametrize("key", ["teacher", "pretrained", "device", "dataset", "student"])
def test_a_copied_profile_without_a_key_is_refused_not_run_with_the_values_of_mini(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    mine = tmp_path / "profiles" / "mine"
    shutil.copytree(ROOT / "profiles" / "cifar10", mine)
    values = yaml.safe_load((mine / "common.yaml").read_text())
    del values[key]
    (mine / "common.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.setenv("APM_ROOT", str(tmp_path))
    with pytest.raises(ValueError, match=f"profile mine: 00_quickstart needs {key}: "):
        profiles.load("mine", "00_quickstart")


@pytest.mark.parametrize("profile", ["mini", "cifar10", "paper"])
def test_the_profiles_give_every_parameter(profile: str) -> None:
    for notebook in profiles.runs(profile):
        known = set(profiles.notebook_parameters(profiles.notebook_path(notebook)))
        assert known - set(profiles.load(profile, notebook)) <= set(profiles.OPTIONAL)


def test_common_values_that_another_notebook_uses_are_left_out(project: Path) -> None:
    assert profiles.load("mini", "99_report") == {"profile": "mini"}


@pytest.mark.parametrize(
    ("profile", "notebook", "message"),
    [
        ("maxi", "01_first", "unknown profile 'maxi'. Known: mini"),
        ("mini", "02_first", "unknown notebook '02_first'. Known: 01_first, 99_report"),
    ],
)
def test_unknown_names_list_the_known_ones(project: Path, profile: str, notebook: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        profiles.load(profile, notebook)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "01_first.yaml",
            "sample: 3",
            r"01_first\.yaml: unknown parameter of 01_first 'sample'. Known: .*Did you mean 'samples'",
        ),
        ("common.yaml", "sample: 3", r"common\.yaml: unknown parameter 'sample'"),
        ("01_first.yaml", "samples: 1e-5", r"samples is the text '1e-5', not a number: write 1\.0e-5"),
        ("01_first.yaml", "- 1\n- 2", "expected `name: value` lines, found a list"),
        ("01_first.yaml", "a: [", "not valid YAML"),
    ],
)
def test_bad_yaml_is_an_error_that_names_the_file(project: Path, file: str, text: str, message: str) -> None:
    (project / "profiles" / "mini" / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        profiles.load("mini", "01_first")


@pytest.mark.parametrize(
    ("source", "message"),
    [("n = len('abc')", "default of parameter n must be a plain value"), ("import os", "only lines `name = value`")],
)
def test_a_parameters_cell_holds_plain_values_only(project: Path, source: str, message: str) -> None:
    path = project / "notebooks" / "01_first.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(source, metadata={"tags": ["parameters"]})]), path)
    with pytest.raises(ValueError, match=message):
        profiles.notebook_parameters(path)


def test_a_notebook_without_parameters_cell_is_an_error(project: Path) -> None:
    path = project / "notebooks" / "01_first.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell("a = 1")]), path)
    with pytest.raises(ValueError, match="expected one cell tagged `parameters`, found 0"):
        profiles.notebook_parameters(path)


def test_a_profile_runs_the_notebooks_that_it_has_a_file_for_and_the_report(project: Path) -> None:
    (project / "profiles" / "mini" / "99_report.yaml").unlink(missing_ok=True)
    ran = profiles.runs("mini")
    assert "99_report" in ran
    assert [name for name in ran if not name.startswith("99_")] == [
        name for name in profiles.notebooks() if (project / "profiles" / "mini" / f"{name}.yaml").is_file()
    ]
    with pytest.raises(ValueError, match="unknown profile 'big'"):
        profiles.runs("big")
