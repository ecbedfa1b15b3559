"""Every profile's YAML files fit the notebooks and the code; the rehearsal's trees are found; its check notices what is missing."""

import dataclasses
import json

import pandas as pd
import pytest
import rehearsal
import trees
import yaml

from apm import methods, model
from apm.analysis import lineup
from apm.data import check, names, prompts, published
from apm.experiments import ablations, field
from apm.project import profiles, root

PAIRS = [(profile, notebook) for profile in profiles.names() for notebook in profiles.runs(profile)]


class Named:
    """What `methods.training_config` asks of a teacher: its width."""

    name, width = "named", 64


@pytest.mark.parametrize(("profile", "notebook"), PAIRS)
def test_every_value_of_every_profile_is_one_that_the_code_knows(profile, notebook):
    values = profiles.load(profile, notebook)
    lines = values.get("baselines", [])
    used = [
        values.get(name) for name in ("dataset", "train_dataset", "labelled", "labelled_train", "coloured", "taught")
    ]
    used += [one.get("train") for line in lines for one in (line, line.get("coop", {}))]
    datasets = {name.removesuffix("?") for name in values.get("datasets", [])}
    assert {*used, *datasets} <= {*names(), "none", None}
    assert set(values.get("counterparts", {})) <= datasets
    if notebook == "07_field":
        fields = {f.name for f in dataclasses.fields(field.FieldConfig)}
        assert set(values["training"]) | set(values["plain"]) | set(values["reconstruction"]) <= fields
        model.preset(values["student"].pop("preset", "mini"), **values["student"])
    elif "training" in values:
        config = methods.training_config(Named(), values.get("student"), values["training"])
        assert len(lineup.parse(lines, Named(), config)) == len(lines)
    if "prompt" in values:
        prompts.check((values["prompt"],))


@pytest.mark.parametrize(
    ("profile", "file"), [(p.parent.name, p.name) for p in sorted((root() / "profiles").glob("*/*.lines.yaml"))]
)
def test_every_ablation_of_every_profile_builds_its_method(profile, file):
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


def test_the_trees_are_the_sets_of_the_profile_and_found(tmp_path, monkeypatch):
    monkeypatch.setenv("APM_CACHE", str(tmp_path / "cache"))
    for build in (trees.cifar, trees.cross_dataset, trees.coco):
        build(tmp_path)
    for name in check.needs("paper"):
        if not name.startswith("imagenet"):  # thousands of files: in the rehearsal
            assert check.check(name, tmp_path, partial=True)[0] == "found", name


def test_the_trees_of_profile_clip_are_found_too(tmp_path, monkeypatch):
    monkeypatch.setenv("APM_CACHE", str(tmp_path / "cache"))
    trees.downloads(tmp_path)
    for name in (*check.needs("clip"), "imagenet-a", "imagenet-v2"):
        state, said = check.check(rehearsal.IN_PLACE_OF.get(name, name), tmp_path, partial=True)
        assert state == "found", said


@pytest.mark.parametrize("profile", rehearsal.PROFILES)
def test_only_sizes_teachers_and_device_differ_from_the_profile(profile, tmp_path):
    source = root() / "profiles" / profile
    teachers = {name: {"teacher": f"{name}.json", "pretrained": "w"} for name in (*rehearsal.TEACHERS, "timm")}
    rehearsal.small_profile(source, tmp_path, teachers)
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in source.glob("*.yaml")}
    same = ("dataset", "datasets", "counterparts", "corruptions", "severities", "corruption_set", "prompt", "coloured")
    for file in source.glob("[0-9]*.yaml"):
        both = (yaml.safe_load((folder / file.name).read_text()) for folder in (source, tmp_path))
        for one, other in zip(*(x if isinstance(x, list) else [x] for x in both), strict=True):
            assert set(other) - {"pretrained"} == set(one) - {"pretrained"}
            for name in ("name", "method", *same):
                (own, instead), *_ = rehearsal.IN_PLACE_OF.items()
                assert str(other.get(name)) == str(one.get(name)).replace(own, instead)
            methods_of = [[line["method"] for line in x.get("baselines", [])] for x in (one, other)]
            assert methods_of[0] == methods_of[1]


def test_the_check_names_what_is_missing_or_empty(tmp_path):
    profile = root() / "profiles" / "paper"
    assert {"table 03_cross_dataset", "report.html"} <= set(rehearsal.missing(tmp_path, profile))
    (tmp_path / "tables").mkdir()
    rows = {"method": ["APM", "APM"], "counting rule": ["final", "any"], "dtd": ["1.0", ""], "Average": ["nan", "2.0"]}
    pd.DataFrame(rows).to_csv(tmp_path / "tables" / "03_cross_dataset.csv", index=False)
    found = [text for text in rehearsal.missing(tmp_path, profile) if "03_cross_dataset" in text]
    assert [text for text in found if "column" not in text] == [
        "03_cross_dataset: row 'APM any' has no value in 'dtd'",
        "03_cross_dataset: row 'APM final' has no value in 'Average'",
    ]
    assert "03_cross_dataset: column 'eurosat'" in found
    assert "03_cross_dataset: column 'dtd'" not in found


def test_a_warning_is_named(tmp_path):
    said = [{"output_type": "stream", "name": name, "text": ["Runtime", "Warning"]} for name in ("stdout", "stderr")]
    book = tmp_path / "02_book.ipynb"
    book.write_text(json.dumps({"cells": [{"cell_type": "markdown"}, {"cell_type": "code", "outputs": said}]}))
    assert rehearsal.complaints(book) == ["02_book wrote to its standard error: RuntimeWarning"]
