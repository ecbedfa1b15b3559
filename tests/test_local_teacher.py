"""`make teacher` trains a profile's teacher once, by the settings in the profile."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from apm import datasets, local_teacher, teachers

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with profile cifar10 and one of digits, whose teacher is as small."""
    monkeypatch.setenv("APM_ROOT", str(tmp_path))
    monkeypatch.delenv("DATA", raising=False)
    for name in ("cifar10", "mini"):
        shutil.copytree(ROOT / "profiles" / name, tmp_path / "profiles" / name)
    digits = tmp_path / "profiles" / "digits"
    digits.mkdir()
    (digits / "common.yaml").write_text("teacher: apm-mini\npretrained: made/digits.safetensors\n")
    (digits / "teacher.yaml").write_text("data: digits-train\nepochs: 2\ngroups: 5\nlearning_rate: 1.0e-3\n")
    return tmp_path


def test_the_command_of_cifar10_is_one_that_the_trainer_reads(project: Path) -> None:
    command = local_teacher.arguments("cifar10")
    options = vars(teachers._parser().parse_args(command))
    common = yaml.safe_load((project / "profiles" / "cifar10" / "common.yaml").read_text())
    assert options["out"] == project / common["pretrained"]
    assert (options["data"], options["config"], options["epochs"]) == ("cifar10-train", common["teacher"], 8)


def test_it_trains_where_there_is_none_and_where_settings_or_images_differ_and_not_otherwise(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[list[str]] = []

    def train(command: list[str]) -> int:
        trained.append(command)
        options = vars(teachers._parser().parse_args(command))
        settings = asdict(teachers.TrainConfig(epochs=options["epochs"], groups=options["groups"]))
        said = {"settings": settings, "data": datasets.load(options["data"]).fingerprint}
        teachers.save({"w": torch.zeros(1)}, options["out"], said)
        return 0

    monkeypatch.setattr(teachers, "main", train)
    assert [local_teacher.main(["digits"]) for _ in range(2)] == [0, 0]
    assert len(trained) == 1
    assert "up to date: " in capsys.readouterr().out
    settings = project / "profiles" / "digits" / "teacher.yaml"
    settings.write_text(settings.read_text().replace("epochs: 2", "epochs: 3"))
    assert local_teacher.main(["digits"]) == 0
    assert "was trained with epochs 2, not 3: training it again" in capsys.readouterr().out
    settings.write_text(settings.read_text().replace("digits-train", "digits-test"))
    assert local_teacher.main(["digits"]) == 0
    assert len(trained) == 3


def test_what_was_not_trained_here_is_not_replaced(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = project / "made" / "digits.safetensors"
    path.parent.mkdir()
    for metadata in (None, {"apm": json.dumps({"settings": {}})}):
        save_file({"w": torch.zeros(1)}, str(path), metadata=metadata)
        before = path.read_bytes()
        assert local_teacher.main(["digits"]) == 2
        assert "says nothing of how it was trained" in capsys.readouterr().err
        assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["mini"],
            "profile mini trains no teacher of its own: it has no teacher.yaml. Profiles that have one: cifar10",
        ),
        (["maxi"], "unknown profile 'maxi'"),
        ([], "usage"),
    ],
)
def test_a_profile_without_a_teacher_of_its_own_is_said(
    project: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert local_teacher.main(arguments) == 2
    assert message in capsys.readouterr().err
