"""Profiles hold every number; what a notebook does not know, or cannot take, is one sentence with file, key and value."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from apm.project import profiles

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def small(project: Path, notebook) -> Path:
    """The folder of a profile with one notebook and the report."""
    notebook("01_first", parameters='profile = "mini"\nsamples = 10\nrates = [1.0, 2.0]  # comment\nseed = 0')
    notebook("99_report")
    folder = project / "profiles" / "mini"
    (folder / "common.yaml").write_text("samples: 5\nrates: [3.0]\n")
    return folder


@pytest.fixture
def mine(tmp_path: Path, monkeypatch) -> Path:
    """The folder of a copy of profile mini, with our notebooks."""
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    monkeypatch.setenv("APM_ROOT", str(tmp_path))
    return Path(shutil.copytree(ROOT / "profiles" / "mini", tmp_path / "profiles" / "mine"))


def test_notebook_values_come_over_common_ones_and_the_profile_names_itself(small: Path) -> None:
    (small / "01_first.yaml").write_text("rates: [4.0, 1e-5, -2E3, 1.5e+2]\n")
    expected = {"samples": 5, "rates": [4.0, 0.00001, -2000.0, 150.0], "profile": "mini"}
    assert profiles.load("mini", "01_first") == expected
    assert profiles.load("mini", "99_report") == {"profile": "mini"}  # what another notebook uses is left out


@pytest.mark.parametrize("key", ["teacher", "pretrained", "device", "dataset", "student"])
def test_a_copied_profile_without_a_key_is_refused_not_run_with_the_values_of_mini(mine: Path, key: str) -> None:
    values = yaml.safe_load((mine / "common.yaml").read_text())
    del values[key]
    (mine / "common.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(
        ValueError, match=rf"profile mine: 02_corruptions needs {key}: .*02_corruptions\.yaml.*common\.yaml"
    ):
        profiles.load("mine", "02_corruptions")


@pytest.mark.parametrize("profile", ["mini", "cifar10", "paper", "template"])
def test_the_profiles_give_every_parameter(profile: str) -> None:
    for notebook in profiles.runs(profile):
        known = set(profiles.notebook_parameters(profiles.notebook_path(notebook)))
        assert known - set(profiles.load(profile, notebook)) <= set(profiles.OPTIONAL)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("01_first.yaml", "sample: 3", "unknown parameter of 01_first 'sample'. Known: .*Did you mean 'samples'"),
        ("common.yaml", "sample: 3", "unknown parameter 'sample'"),
        ("01_first.yaml", "samples: 1e-5", "samples: expected a whole number or all, found 1e-05"),
        ("01_first.yaml", "- 1\n- 2", "expected `name: value` lines, found a list"),
        ("01_first.yaml", "word", "expected `name: value` lines, found a str"),
        ("01_first.yaml", "a: [", "not valid YAML"),
        ("common.yaml", "samples: 3\nrates: [1.0]\nsamples: 4", r"key 'samples' stands twice(?s:.*)line 3"),
        ("01_first.yaml", "rates: [{a: 1, a: 2}]", "key 'a' stands twice"),
        ("01_first.yaml", "? [1]\n: 2", "not valid YAML"),
        ("01_first.yaml", "no: 3", "expected text as key, found False"),
        ("01_first.yaml", "rates: &a [*a]", "a value holds itself"),
        ("01_first.yaml", b"samples: \xff", "not valid YAML"),
    ],
)
def test_bad_yaml_is_an_error_that_names_the_file(small: Path, file: str, text: str | bytes, message: str) -> None:
    (small / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=f"^{re.escape(str(small / file))}: .*{message}"):
        profiles.load("mini", "01_first")


WHOLE, LIST, MAP = "expected a whole number", "expected a list", "expected a mapping"


@pytest.mark.parametrize(
    ("notebook", "text", "message"),
    [
        ("00_quickstart", "training: [1, 2]", rf"training: {MAP}, found \[1, 2\]"),
        ("00_quickstart", "student: mini", f"student: {MAP}, found 'mini'"),
        (
            "00_quickstart",
            "second: {teacher: mini}",
            "second: expected the keys teacher, pretrained, .*, found teacher",
        ),
        ("02_corruptions", "photographs: cat", f"photographs: {MAP} or null, found 'cat'"),
        ("02_corruptions", "photographs: {dataset: x}", "photographs: expected the keys teacher, .*, found dataset"),
        ("00_quickstart", "dataset: no", "dataset: expected text, found False"),
        ("00_quickstart", "dataset: 2020-01-01", r"dataset: expected text, found datetime\.date"),
        ("00_quickstart", "dataset:", "dataset: expected text, found None"),
        ("00_quickstart", "pretrained: 3", "pretrained: expected text or null, found 3"),
        ("00_quickstart", "device: gpu", "device: expected one of cpu, cuda, mps, xpu, found 'gpu'"),
        ("00_quickstart", "precision: float32", "precision: expected one of fp32, .*found 'float32'"),
        ("00_quickstart", "position: -1", f"position: {WHOLE} from 0, found -1"),
        ("00_quickstart", "position: true", f"position: {WHOLE}, found True"),
        ("00_quickstart", "seed: .nan", f"seed: {WHOLE}, found nan"),
        ("00_quickstart", "training: {iterations: 1.5}", rf"training\.iterations: {WHOLE}, found 1\.5"),
        ("00_quickstart", "training: {iteration: 3}", "training: unknown field 'iteration'. .*mean 'iterations'"),
        ("01_natural_shifts", "prompt: a photo", r"prompt: expected text with \{\}, found 'a photo'"),
        ("01_natural_shifts", "samples: 0", f"samples: {WHOLE} from 1, found 0"),
        ("01_natural_shifts", "samples: every", f"samples: {WHOLE} or all, found 'every'"),
        ("01_natural_shifts", "datasets: []", f"datasets: {LIST}, each text, found an empty list"),
        ("01_natural_shifts", "baselines: {method: zero}", f"baselines: {LIST}, each a mapping"),
        ("01_natural_shifts", "selection: {set: a}", "selection: expected the keys set, samples, .*, found set"),
        ("01_natural_shifts", "counterparts: {a: 3}", r"counterparts\.a: expected text, found 3"),
        ("01_natural_shifts", "on_error: ignore", "on_error: expected one of raise, record, found 'ignore'"),
        ("02_corruptions", "severities: 5", f"severities: {LIST}, each a whole number or all, found 5"),
        ("02_corruptions", "corruptions: fog", f"corruptions: {LIST}, each text or all, found 'fog'"),
        ("02_corruptions", "table10: {sample: 3}", "table10: expected the keys corruption_set, samples, found sample"),
        ("04_compute", "tpt: {views: 1.5, classes: 2, steps: 1}", rf"tpt\.views: {WHOLE}, found 1\.5"),
        ("05_ablations", "training: {iterations: 20.5}", rf"training\.iterations: {WHOLE}, found 20\.5"),
        ("06_islands", "loss_runs: {a: {}, b: {decay: [1]}}", r"loss_runs\.b\.decay: expected a number"),
        ("06_islands", "variants: {a: 3}", rf"variants\.a: {MAP}, found 3"),
        ("07_field", "training: {epochs: true}", rf"training\.epochs: {WHOLE}, found True"),
        (
            "07_field",
            "plain: {epochs: '3'}",
            r"plain\.epochs: expected a whole number, found '3': write it without quot",
        ),
    ],
)
def test_a_value_of_another_shape_is_one_sentence_with_file_key_expected_and_found(
    mine: Path, notebook: str, text: str, message: str
) -> None:
    path = mine / f"{notebook}.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | yaml.safe_load(text)))
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: {message}") as raised:
        profiles.load("mine", notebook)
    assert "\n" not in str(raised.value)


def test_what_a_notebook_of_one_s_own_takes_is_as_its_defaults_are(small: Path, notebook) -> None:
    notebook("01_first", parameters="limit = None\nnames = []\nshift = -3\nrate = 1.0\noptions = {'a': 1}")
    given = {"limit": 0.5, "names": [1, "b"], "shift": -2, "rate": 2, "options": {"b": [1]}}
    (small / "common.yaml").write_text(yaml.safe_dump(given))
    assert profiles.load("mini", "01_first") == given


@pytest.mark.parametrize("text", ["training: [1]\n", "- {a: 1}\n- b\n", "", "[]"])
def test_lines_that_are_none_are_refused(small: Path, text: str) -> None:
    (small / "01_first.lines.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"01_first\.lines\.yaml: expected a list of `- {...}` lines, found"):
        profiles.load_lines("mini", "01_first.lines.yaml")
    with pytest.raises(FileNotFoundError, match=r"does not exist. Lists of profile mini: 01_first\.lines\.yaml"):
        profiles.load_lines("mini", "02.yaml")


@pytest.mark.parametrize(
    "source", ["n = len('abc')", "import os", "n = ", "a, b = 1, 2", "n: int = 3", "n += 1", "del n"]
)
def test_a_parameters_cell_holds_plain_values_only(small: Path, notebook, source: str) -> None:
    notebook("01_first", parameters=source)
    with pytest.raises(ValueError, match="the parameters cell may hold only lines `name = plain value`"):
        profiles.load("mini", "01_first")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"cells": []}', '{"cells": [3]}', "\xff"])
def test_what_is_no_notebook_with_parameters_is_an_error_that_names_it(small: Path, text: str) -> None:
    path = small.parents[1] / "notebooks" / "01_first.ipynb"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: (not a notebook|expected one cell tagged)"):
        profiles.load("mini", "01_first")


def test_a_profile_runs_the_notebooks_that_it_has_a_file_for_and_the_report(small: Path, notebook) -> None:
    assert profiles.runs("mini") == ["99_report"]
    (small / "01_first.yaml").touch()
    assert profiles.runs("mini") == ["01_first", "99_report"]
    with pytest.raises(ValueError, match="unknown profile 'big'"):
        profiles.runs("big")
