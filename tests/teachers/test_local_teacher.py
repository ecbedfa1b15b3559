"""The shipped teachers, and `make teacher`, which trains a profile's teacher anew by the settings in the profile."""

import json
import re
import shutil
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from apm import teachers
from apm.data import datasets
from apm.project import located, profiles, sha256_file
from apm.teachers import local_teacher

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with profile cifar10 and one of digits, whose teacher is as small."""
    monkeypatch.setenv("APM_ROOT", str(tmp_path))
    monkeypatch.setenv("APM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DATA", raising=False)
    for name in ("cifar10", "mini"):
        shutil.copytree(ROOT / "profiles" / name, tmp_path / "profiles" / name)
    (tmp_path / "profiles" / "bare").mkdir()
    (tmp_path / "profiles" / "bare" / "common.yaml").write_text("teacher: apm-mini\n")
    digits = tmp_path / "profiles" / "digits"
    digits.mkdir()
    (digits / "common.yaml").write_text("teacher: apm-mini\npretrained: made/digits.safetensors\n")
    (digits / "teacher.yaml").write_text("data: digits-train\nepochs: 2\ngroups: 5\nlearning_rate: 1.0e-3\n")
    return tmp_path


def test_the_command_of_cifar10_is_one_that_the_trainer_reads(project: Path) -> None:
    local = local_teacher.of_profile("cifar10")
    options = vars(teachers._parser().parse_args(local.command))
    common = yaml.safe_load((project / "profiles" / "cifar10" / "common.yaml").read_text())
    assert common["pretrained"] == "data/cache/teachers/apm-cifar10.safetensors"
    assert local.used == local.trained  # data/cache is wherever the cache is
    assert options["out"] == project / "cache" / "teachers" / "apm-cifar10.safetensors"
    assert (options["data"], options["config"], options["epochs"]) == ("cifar10-train", common["teacher"], 8)


@pytest.mark.filterwarnings("ignore:.*not the weights that the committed results")
def test_a_teacher_trained_into_another_cache_is_the_one_that_the_profile_names(project: Path) -> None:
    local = local_teacher.of_profile("cifar10")
    named = profiles.load_teacher("cifar10")[1]
    tiny(local.trained)
    for name in (named, f"openai={named}"):
        assert Path(located(name).rpartition("=")[2]).is_file()
    teacher = teachers.load("apm-mini", pretrained=named)
    assert teacher.hash == teachers.load("apm-mini", pretrained=local.trained).hash


def test_it_trains_where_there_is_none_and_where_settings_or_images_differ_and_not_otherwise(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[list[str]] = []

    def train(command: list[str]) -> int:
        trained.append(command)
        options = vars(teachers._parser().parse_args(command))
        config = teachers.TrainConfig(epochs=options["epochs"], groups=options["groups"])
        said = teachers.determined_by(datasets.load(options["data"]), config)
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
    monkeypatch.setattr(teachers.open_clip, "__version__", "9.9")
    assert local_teacher.main(["digits"]) == 0
    assert ", not 9.9: training it again" in capsys.readouterr().out


def test_what_was_not_trained_here_is_not_replaced(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = project / "cache" / "teachers" / "digits.safetensors"
    path.parent.mkdir(parents=True)
    for metadata in (None, {"apm": json.dumps({"settings": {}})}):
        save_file({"w": torch.zeros(1)}, str(path), metadata=metadata)
        before = path.read_bytes()
        assert local_teacher.main(["digits"]) == 2
        assert "says nothing of how it was trained" in capsys.readouterr().err
        assert path.read_bytes() == before


CARDS = sorted((ROOT / "data" / "teachers").glob("*.yaml"))


@pytest.mark.parametrize("card", CARDS, ids=lambda path: path.stem)
def test_a_shipped_teacher_is_what_its_card_says(card: Path) -> None:
    said, file = yaml.safe_load(card.read_text()), card.with_suffix(".safetensors")
    if not file.exists():
        assert {
            "command",
            "data",
            "data_sha256",
            "seed",
            "settings",
            "versions",
            "accuracy",
            "weights_sha256",
        } <= said.keys()
        assert "not shipped" in said["stored_as"]
        return
    assert said["sha256"] == sha256_file(file)
    assert said["bytes"] == file.stat().st_size <= local_teacher.LARGEST
    assert {"command", "data", "data_sha256", "seed", "settings", "versions", "accuracy"} <= said.keys()
    with safe_open(file, "pt") as stored:
        assert {stored.get_slice(key).get_dtype() for key in stored.keys()} <= {"F16", "I64"}  # noqa: SIM118
        assert json.loads(stored.metadata()["apm"])["settings"] == said["settings"]


def test_the_teacher_of_mini_is_the_shipped_one_in_float32_with_the_rounded_values() -> None:
    assert "mini" in [card.stem for card in CARDS]
    said = yaml.safe_load((ROOT / "data" / "teachers" / "mini.yaml").read_text())
    teacher, digits = teachers.load("mini"), datasets.load("digits-test")
    stored = load_file(str(ROOT / "data" / "teachers" / "mini.safetensors"))
    for key, value in teacher.model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, stored[key].float())
    assert 100 * teachers.accuracy(teacher, digits) == pytest.approx(said["accuracy"]["digits-test"], abs=0.3)


def test_a_teacher_that_was_cut_off_changed_or_lost_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teachers, "SHIPPED", tmp_path)
    with pytest.raises(FileNotFoundError, match="git checkout data/teachers"):
        teachers.load("mini")
    for name in ("mini.yaml", "mini.safetensors"):
        shutil.copy(ROOT / "data" / "teachers" / name, tmp_path)
    whole = (tmp_path / "mini.safetensors").read_bytes()
    for damaged in (whole[:-1000], whole[:-1] + bytes([whole[-1] ^ 1])):
        (tmp_path / "mini.safetensors").write_bytes(damaged)
        with pytest.raises(
            ValueError, match=r"not the file that mini\.yaml .*git checkout data/teachers.*make teacher"
        ):
            teachers.load("mini")
    (tmp_path / "mini.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"mini\.yaml is not there"):
        teachers.load("mini")


def test_slow_training_anew_is_compared_with_the_shipped_one_and_freezing_gives_its_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trains for half a minute. Another processor rounds otherwise: the weights differ, the decisions hardly."""
    monkeypatch.setenv("APM_CACHE", str(tmp_path / "cache"))
    assert local_teacher.main(["mini"]) == 0
    said = capsys.readouterr().out
    shares = re.search(r"shipped ([\d.]+) %, trained here ([\d.]+) %; the same decision on ([\d.]+) %", said)
    assert shares, said
    assert min(map(float, shares.groups())) > 95
    monkeypatch.setattr(teachers, "SHIPPED", tmp_path)
    assert local_teacher.main(["mini", "--freeze"]) == 0
    card = yaml.safe_load((tmp_path / "mini.yaml").read_text())
    assert card["sha256"] == sha256_file(tmp_path / "mini.safetensors")
    assert card["settings"] == yaml.safe_load((ROOT / "data" / "teachers" / "mini.yaml").read_text())["settings"]
    monkeypatch.setattr(local_teacher, "LARGEST", 1000)
    assert local_teacher.main(["mini", "--freeze"]) == 2
    assert "too large to take its place" in capsys.readouterr().err


def tiny(path: Path, scale: float = 1.0) -> Path:
    """A checkpoint of an untrained apm-mini with the notes of a training."""
    torch.manual_seed(0)
    weights = {
        k: v * scale if v.is_floating_point() else v for k, v in teachers._untrained("apm-mini").state_dict().items()
    }
    data, config = datasets.load("digits-train"), teachers.TrainConfig(epochs=2, groups=5)
    teachers.save({k: v.contiguous() for k, v in weights.items()}, path, teachers.determined_by(data, config))
    return path


def test_a_teacher_over_the_limit_gets_its_card_alone_and_other_weights_of_its_name_are_said(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = project / "profiles" / "digits" / "teacher.yaml"
    settings.write_text(settings.read_text() + "test: digits-test\n")
    cards = project / "cards"
    cards.mkdir()
    monkeypatch.setattr(teachers, "SHIPPED", cards)
    monkeypatch.setattr(local_teacher, "LARGEST", 1000)
    source = tiny(project / "digits.safetensors")
    assert local_teacher.main(["digits", "--freeze", str(source)]) == 0
    assert "the card alone" in capsys.readouterr().out
    assert [path.name for path in cards.iterdir()] == ["digits.yaml"]
    said = yaml.safe_load((cards / "digits.yaml").read_text())
    assert said["accuracy"]["images"] == 899
    assert said["weights_sha256"] == teachers.weights_sha256(load_file(str(source)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        teachers.load("apm-mini", pretrained=source)
        teachers.save(load_file(str(source)), source, {"another": "note"})  # the same weights in another file
        teachers.load("apm-mini", pretrained=source)
        other_name = tiny(project / "other.safetensors", scale=1.5)
        teachers.load("apm-mini", pretrained=other_name)
    other_name.replace(source)
    with pytest.warns(UserWarning, match="not the weights that the committed results were made with"):
        teachers.load("apm-mini", pretrained=source)


def test_a_checkpoint_that_lacks_a_note_only_is_kept(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny(project / "cache" / "teachers" / "digits.safetensors")
    with safe_open(path, "pt") as stored:
        notes = json.loads(stored.metadata()["apm"])
    for missing in ("versions", "recipe"):
        notes.pop(missing)
    teachers.save(load_file(str(path)), path, notes)
    before = path.read_bytes()
    assert local_teacher.main(["digits"]) == 0
    assert "up to date" in (said := capsys.readouterr().out)
    assert "does not say with which code, torch, open_clip" in said
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["bare"],
            "profile bare trains no teacher of its own: it has no teacher.yaml. Profiles that have one: cifar10, digits, mini",
        ),
        (["maxi"], "unknown profile 'maxi'"),
    ],
)
def test_a_profile_without_a_teacher_of_its_own_is_said(
    project: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert local_teacher.main(arguments) == 2
    assert message in capsys.readouterr().err
