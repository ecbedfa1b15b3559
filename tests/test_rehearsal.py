"""Every profile's YAML files fit the notebooks and the code; the rehearsal's trees are found; its check notices what is missing."""

import dataclasses
import json
from pathlib import Path

import pandas as pd
import pytest
import rehearsal
import trees
import yaml

from apm import methods, model
from apm import methods as baselines
from apm.analysis import lineup
from apm.data import check, names, prompts, published
from apm.experiments import ablations, field
from apm.project import profiles, root
from apm.ttt import TTTConfig

PAIRS = [(profile, notebook) for profile in profiles.names() for notebook in profiles.runs(profile)]


class Named:
    """What `methods.training_config` asks of a teacher: its width."""

    name, width = "named", 64


@pytest.mark.parametrize(("profile", "notebook"), PAIRS)
def test_every_value_of_every_profile_is_one_that_the_code_knows(profile: str, notebook: str) -> None:
    values = profiles.load(profile, notebook)
    known = set(names()) | {"none"}
    for name in ("dataset", "train_dataset", "labelled", "labelled_train", "coloured", "taught"):
        assert values.get(name) is None or values[name] in known, name
    assert set(values.get("datasets", [])) <= known
    assert set(values.get("counterparts", {})) <= set(values.get("datasets", []))
    if "training" in values and notebook != "07_field":
        config = methods.training_config(Named(), values.get("student"), values["training"])
        assert isinstance(config, TTTConfig)
        entries = lineup.parse(values.get("baselines", []), Named(), config)
        assert len(entries) == len(values.get("baselines", []))
    if notebook == "07_field":
        fields = {f.name for f in dataclasses.fields(field.FieldConfig)}
        assert set(values["training"]) | set(values["plain"]) | set(values["reconstruction"]) <= fields
        model.preset(values["student"].pop("preset", "mini"), **values["student"])
    for line in values.get("baselines", []):
        assert line.get("train", "digits-train") in known
        assert line.get("coop", {}).get("train", "digits-train") in known
        assert line["method"] in baselines.REGISTRY
    if "prompt" in values:
        prompts.check((values["prompt"],))


@pytest.mark.parametrize(
    ("profile", "file"), [(p.parent.name, p.name) for p in sorted((root() / "profiles").glob("*/*.lines.yaml"))]
)
def test_every_ablation_of_every_profile_builds_its_method(profile: str, file: str) -> None:
    lines = ablations.load(profile, file)
    values = profiles.load(profile, "05_ablations")
    assert values["base"] in {line.name for line in lines}
    longest = max(line.training.get("iterations", 0) for line in lines if line.part == "iterations")
    assert max(values["iterations"]) <= longest
    for line in lines:
        made = ablations.method(line, Named(), values["student"], values["training"])
        assert made.name == f"ablation {line.name}"
        assert line.dataset is None or line.dataset in names()
    assert ablations.published_cells(lines, published.load("table5"))


def test_the_profile_names_no_set_that_the_trees_leave_out() -> None:
    needed = check.needs("paper")
    optional = [also for name in needed for also in check.ALSO.get(name, ())]
    assert set(needed) <= trees.named()
    assert trees.named() <= {*needed, *optional}


def test_the_trees_are_found_by_check_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APM_CACHE", str(tmp_path / "cache"))
    for build in (
        trees.cifar,
        trees.cross_dataset,
        trees.coco,
    ):  # ImageNet's trees have thousands of files: in the rehearsal
        build(tmp_path)
    there = trees.named() - {name for name in trees.named() if name.startswith("imagenet")}
    for name in there:
        state, text = check.check(name, tmp_path, partial=True)
        assert state == "found", text


def test_only_sizes_teachers_and_device_differ_from_the_profile(tmp_path: Path) -> None:
    source = root() / "profiles" / "paper"
    teachers = {name: {"teacher": f"{name}.json", "pretrained": "w"} for name in (*rehearsal.TEACHERS, "timm")}
    rehearsal.small_profile(source, tmp_path, teachers)
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in source.glob("*.yaml")}
    for file in source.glob("[0-9]*.yaml"):
        true, small = (yaml.safe_load((folder / file.name).read_text()) for folder in (source, tmp_path))
        if isinstance(true, list):
            assert [line["name"] for line in small] == [line["name"] for line in true]
            assert [line.get("dataset") for line in small] == [line.get("dataset") for line in true]
            continue
        assert set(small) - {"pretrained"} == set(true) - {"pretrained"}
        for name in (
            "dataset",
            "datasets",
            "counterparts",
            "corruptions",
            "severities",
            "corruption_set",
            "prompt",
            "coloured",
        ):
            assert small.get(name) == true.get(name)
        if "baselines" in true:
            assert [line["method"] for line in small["baselines"]] == [line["method"] for line in true["baselines"]]


def test_the_check_names_what_is_missing(tmp_path: Path) -> None:
    profile = root() / "profiles" / "paper"
    nothing = rehearsal.missing(tmp_path, profile)
    assert "table 01_natural_shifts" in nothing
    assert "report.html" in nothing
    (tmp_path / "tables").mkdir()
    third = pd.DataFrame(
        columns=["method", "counting rule", "flowers102", "dtd", "pets", "ucf101", "caltech101", "Average"]
    )
    third.to_csv(tmp_path / "tables" / "03_cross_dataset.csv", index=False)
    some = rehearsal.missing(tmp_path, profile)
    assert "table 03_cross_dataset" not in some
    assert "03_cross_dataset: column 'eurosat'" in some
    assert "03_cross_dataset: column 'dtd'" not in some


def test_an_empty_cell_and_a_warning_are_named(tmp_path: Path) -> None:
    profile = root() / "profiles" / "paper"
    (tmp_path / "tables").mkdir()
    rows = pd.DataFrame(
        {"method": ["APM", "APM"], "counting rule": ["final", "any"], "dtd": ["1.0", ""], "Average": ["nan", "2.0"]}
    )
    rows.to_csv(tmp_path / "tables" / "03_cross_dataset.csv", index=False)
    found = [text for text in rehearsal.missing(tmp_path, profile) if "has no value" in text]
    assert found == [
        "03_cross_dataset: row 'APM any' has no value in 'dtd'",
        "03_cross_dataset: row 'APM final' has no value in 'Average'",
    ]
    quiet = {"cell_type": "code", "outputs": [{"output_type": "stream", "name": "stdout", "text": ["fine"]}]}
    loud = {
        "cell_type": "code",
        "outputs": [{"output_type": "stream", "name": "stderr", "text": ["Runtime", "Warning"]}],
    }
    book = tmp_path / "02_book.ipynb"
    book.write_text(json.dumps({"cells": [{"cell_type": "markdown"}, quiet, loud]}))
    assert rehearsal.complaints(book) == ["02_book wrote to its standard error: RuntimeWarning"]
