"""The shipped teachers, and `make teacher`, which trains a profile's teacher anew by the settings in the profile."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from apm import data as datasets
from apm import teachers
from apm.project import sha256_file
from apm.teachers import train, weights

ROOT = Path(__file__).resolve().parents[2]
CARDS = sorted((ROOT / "data" / "teachers").glob("*.yaml"))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with profile cifar10 and one of digits, whose teacher is as small."""
    monkeypatch.setenv("APM_ROOT", str(tmp_path))
    monkeypatch.delenv("DATA", raising=False)
    for name in ("cifar10", "mini"):
        shutil.copytree(ROOT / "profiles" / name, tmp_path / "profiles" / name)
    for name in ("bare", "digits"):
        (tmp_path / "profiles" / name).mkdir()
        common = "teacher: apm-mini\npretrained: made/digits.safetensors\n"
        (tmp_path / "profiles" / name / "common.yaml").write_text(common)
    settings = "data: digits-train\ntest: digits-test\nepochs: 2\ngroups: 5\nlearning_rate: 1.0e-3\n"
    (tmp_path / "profiles" / "digits" / "teacher.yaml").write_text(settings)
    return tmp_path


def untrained(path: Path, without: tuple[str, ...] = ()) -> Path:
    """A checkpoint of an untrained apm-mini with the notes of a training of profile digits."""
    said = train.determined_by(datasets.load("digits-train"), train.TrainConfig(epochs=2, groups=5))
    held = {key: value.float() for key, value in load_file(str(ROOT / "data/teachers/mini.safetensors")).items()}
    teachers.save(held, path, {key: value for key, value in said.items() if key not in without})
    return path


def make(profile: str, *options: str) -> int:
    return train.main(["--profile", profile, *options])


@pytest.mark.parametrize("card", CARDS, ids=lambda path: path.stem)
def test_a_shipped_teacher_is_what_its_card_says(card):
    said, file = yaml.safe_load(card.read_text()), card.with_suffix(".safetensors")
    assert {"command", "data", "data_sha256", "seed", "settings", "versions", "accuracy"} <= said.keys()
    if not file.exists():
        assert "weights_sha256" in said
        assert "not shipped" in said["stored_as"]
        return
    assert said["sha256"] == sha256_file(file)
    assert said["bytes"] == file.stat().st_size <= train.LARGEST
    with safe_open(file, "pt") as stored:
        assert {stored.get_slice(key).get_dtype() for key in stored.keys()} <= {"F16", "I64"}  # noqa: SIM118
        assert json.loads(stored.metadata()["apm"])["settings"] == said["settings"]


def test_it_trains_where_there_is_none_and_where_settings_or_images_differ_and_not_otherwise(
    project, monkeypatch, capsys
):
    trained = []

    def run(options, out):
        trained.append((train.configured(options), out))
        if options["data"].startswith("digits"):
            said = train.determined_by(datasets.load(options["data"]), train.configured(options))
            teachers.save({"w": torch.zeros(1)}, out, said)

    monkeypatch.setattr(train, "run", run)
    assert make("cifar10") == 0
    ((config, out),) = trained
    assert out == project / "cache" / "teachers" / "apm-cifar10.safetensors"
    assert (config.model, config.epochs) == ("apm-cifar10", 8)
    settings = project / "profiles" / "digits" / "teacher.yaml"
    assert [make("digits") for _ in range(2)] == [0, 0]
    assert len(trained) == 2
    assert "up to date: " in capsys.readouterr().out
    for before, after, said in (
        ("epochs: 2", "epochs: 3", "was trained with epochs 2, not 3: training it again"),
        ("digits-train", "digits-test", "was trained with images "),
    ):
        settings.write_text(settings.read_text().replace(before, after))
        assert make("digits") == 0
        assert said in capsys.readouterr().out
    monkeypatch.setattr(train.open_clip, "__version__", "9.9")
    assert make("digits") == 0
    assert ", not 9.9: training it again" in capsys.readouterr().out
    assert len(trained) == 5


def test_what_was_not_trained_here_is_not_replaced_nor_what_lacks_a_later_note(project, capsys):
    path = project / "cache" / "teachers" / "digits.safetensors"
    path.parent.mkdir(parents=True)
    for metadata in (None, {"apm": json.dumps({"settings": {}})}, {"apm": "no JSON"}):
        save_file({"w": torch.zeros(1)}, str(path), metadata=metadata)
        assert make("digits") == 1
        assert "says nothing of how it was trained" in capsys.readouterr().err
    before = untrained(path, without=("versions", "recipe")).read_bytes()
    assert make("digits") == 0
    assert "up to date" in capsys.readouterr().out
    assert path.read_bytes() == before


def test_slow_training_anew_is_compared_with_the_shipped_one(capsys):
    """Trains for half a minute. Another processor rounds otherwise: the weights differ, the decisions hardly."""
    assert make("mini") == 0
    said = capsys.readouterr().out
    shares = re.search(r"shipped ([\d.]+) %, trained here ([\d.]+) %; the same decision on ([\d.]+) %", said)
    assert shares, said
    assert min(map(float, shares.groups())) > 95


def test_a_teacher_is_frozen_with_its_card_or_over_the_limit_as_its_card_alone(project, monkeypatch, capsys):
    monkeypatch.setattr(weights, "SHIPPED", project / "cards")
    (project / "cards").mkdir()
    source = untrained(project / "digits.safetensors")
    monkeypatch.setattr(train, "LARGEST", 1000)
    assert make("digits", "--freeze", str(source)) == 0
    assert [path.name for path in (project / "cards").iterdir()] == ["digits.yaml"]
    said = yaml.safe_load((project / "cards" / "digits.yaml").read_text())
    assert said["accuracy"] == {"digits-test": pytest.approx(98, abs=0.3), "images": 899}
    assert said["weights_sha256"] == weights.weights_sha256(load_file(str(source)))
    monkeypatch.setattr(train, "LARGEST", 10_000_000)
    assert make("digits", "--freeze", str(source)) == 0
    said = yaml.safe_load((project / "cards" / "digits.yaml").read_text())
    assert said["sha256"] == sha256_file(project / "cards" / "digits.safetensors")
    assert said["settings"]["epochs"] == 2
    monkeypatch.setattr(train, "LARGEST", 1000)
    assert make("digits", "--freeze", str(source)) == 1
    assert "too large to take its place" in capsys.readouterr().err
    settings = project / "profiles" / "digits" / "teacher.yaml"
    settings.write_text(settings.read_text().replace("digits-train", "digits-test"))
    assert make("digits", "--freeze", str(source)) == 1
    assert "trained on other images" in capsys.readouterr().err


def test_a_profile_without_a_teacher_of_its_own_is_said(project, capsys):
    assert make("digits", "--epochs", "3") == 1
    assert "unknown option beside --profile 'epochs'" in capsys.readouterr().err
    for profile, message in (("bare", "profile bare trains no teacher of its own"), ("maxi", "unknown profile 'maxi'")):
        assert make(profile) == 1
        assert message in capsys.readouterr().err
