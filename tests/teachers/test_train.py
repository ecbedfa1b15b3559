"""A small teacher is trained bit-identically, on captions that say what is seen; the command, and the teachers that are shipped."""

import inspect
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from trees import uniform

from apm import data as datasets
from apm import teachers
from apm.data import prompts
from apm.project import sha256_file
from apm.teachers import train, weights

ROOT = Path(__file__).resolve().parents[2]
CARDS = sorted((ROOT / "data" / "teachers").glob("*.yaml"))
QUICK = train.TrainConfig(epochs=1, groups=2, threads=1)


def test_training_is_bit_identical_for_a_seed_and_leaves_torch_as_it_was(few, tiny_config):
    config = replace(QUICK, model=str(tiny_config))
    torch.manual_seed(5)
    expected_draw, threads = torch.rand(1), torch.get_num_threads()
    torch.manual_seed(5)
    first = train.train(few, config)
    assert torch.equal(torch.rand(1), expected_draw)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()
    with torch.inference_mode():  # nor does the caller's mode matter
        again = train.train(few, config)
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    other = train.train(few, replace(config, seed=1))
    assert not torch.equal(first["visual.proj"], other["visual.proj"])


def test_training_changes_only_token_embeddings_of_the_captions(few, tiny_config):
    config = replace(QUICK, model=str(tiny_config))
    still, moved = (train.train(few, replace(config, learning_rate=rate)) for rate in (1e-12, 3e-3))
    key = "token_embedding.weight"
    changed = set(torch.nonzero((moved[key] - still[key]).abs().amax(dim=1) > 1e-6).flatten().tolist())
    used = torch.cat([open_clip.get_tokenizer(tiny_config.stem)(texts) for texts in train.captions(few)]).unique()
    assert changed <= set(used.tolist())
    assert len(changed) > 20


def test_the_convolutional_teacher_of_cifar10_trains_and_loads_like_any_other(few, tmp_path):
    config = train.TrainConfig(model="apm-cifar10", epochs=1, groups=2, precision="bf16")
    teachers.save(train.train(few.subset(40), config), tmp_path / "w.safetensors", {})
    teacher = teachers.load("apm-cifar10", pretrained=tmp_path / "w.safetensors")
    assert (teacher.width, teacher.image_size, teacher.grid) == (128, 64, (8, 8))
    batch = teacher.transform(few.images[:2])
    encoding = teacher.encode(batch, tokens=True)
    with torch.no_grad():  # a token every 8 px; every 32 px those of the tower's own map
        own = teacher.model.visual.head(teacher.model.visual.trunk.forward_features(batch).permute(0, 2, 3, 1))
    torch.testing.assert_close(encoding.tokens[:, ::4, ::4], own, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(own.mean(dim=(1, 2)), encoding.feature, rtol=1e-4, atol=1e-5)
    assert teachers.token_grid(teacher, few.images[:2], (16, 16)).shape == (2, 256, 128)


def test_every_group_of_a_batch_holds_one_image_per_class_and_passes_are_complete():
    labels = torch.tensor([0] * 7 + [1] * 5 + [2] * 6)
    batches = train._balanced(labels, 3, 2, torch.Generator().manual_seed(0))
    drawn = torch.stack([next(batches) for _ in range(5)])
    assert labels[drawn].tolist() == 5 * [[0, 1, 2, 0, 1, 2]]
    second = drawn[labels[drawn] == 1].tolist()
    assert sorted(second[:5]) == sorted(second[5:]) == [7, 8, 9, 10, 11]


def test_augmentation_of_nothing_is_the_identity_and_mirrors_on_request():
    images = torch.rand(4, 3, 16, 16)
    still = replace(QUICK, rotation=0.0, scale=0.0, shear=0.0, shift=0.0)
    generator = torch.Generator().manual_seed(0)
    torch.testing.assert_close(train.augment(images, still, generator), images, atol=1e-5, rtol=0)
    mirrored = train.augment(images, replace(still, flip=1.0), generator)
    torch.testing.assert_close(mirrored, images.flip(-1), atol=1e-5, rtol=0)
    moved = train.augment(images, QUICK, generator)
    assert moved.shape == images.shape
    assert (moved - images).abs().amax(dim=(1, 2, 3)).min() > 0.1


def test_captions_say_words_and_numerals(few):
    per_class = train.captions(few)
    assert {"a photo of the number seven.", "a photo of the number 7."} <= set(per_class[7])
    assert len({len(c) for c in per_class}) == 1
    assert len(set(per_class[3])) == len(per_class[3]) >= 2 * len(prompts.DIGITS)


def test_the_recipe_is_made_of_all_functions_that_train():
    called = {name for own in (train.train, train._fit) for name in inspect.unwrap(own).__code__.co_names}
    here = {name for name, x in vars(train).items() if inspect.isfunction(x) and x.__module__ == train.__name__}
    assert called & here == {"captions", "train", "_fit", *(helper.__name__ for helper in train.HELPERS)}


def test_impossible_trainings_are_refused(few, tiny_config):
    config = replace(QUICK, model=str(tiny_config))
    with pytest.raises(ValueError, match="no images of class 'three'"):
        train.train(few.subset(np.nonzero(few.labels != 3)[0]), config)
    with pytest.raises(RuntimeError, match="lower the learning rate"):
        train.train(few, replace(config, epochs=30, learning_rate=1e30, clip_norm=1e30))
    for options, message in (
        ({"data": "x", "epochs": 0}, "must be positive"),
        ({"data": "x", "precision": "int8"}, "unknown training precision"),
        ({"data": "x", "epoch": 3}, "unknown option .* 'epoch'.*epochs"),
        ({}, "needs data"),
    ):
        with pytest.raises(ValueError, match=message):
            train.configured(options)


def test_the_command_trains_on_a_folder_and_prints_the_held_out_accuracy(tiny_config, tmp_path, capsys):
    for i in range(12):
        uniform(tmp_path / "data" / ("dark", "light")[i % 2] / f"{i}.png", (30, 220)[i % 2] + i)
    data, out = f"folder:{tmp_path / 'data'}", tmp_path / "out.safetensors"
    common = ["--model", str(tiny_config), "--epochs", "2", "--flip", "0.5"]
    assert train.main(["--data", data, *common, "--out", str(out), "--test", data]) == 0
    assert "% of 12 images" in capsys.readouterr().out
    assert teachers.load(str(tiny_config), pretrained=out).text_features(("dark", "light"), ("a {}",)).shape == (2, 16)
    for arguments, message in (
        (["--data", data, "--out", str(tmp_path / "out.pt")], ".safetensors"),
        (["--data", "digits-tran", "--out", f"{out.parent}/new.safetensors"], "digits-train"),
        (["--data", data, "--test", "digits-test", "--out", f"{out.parent}/new.safetensors"], "has other classes than"),
    ):
        assert train.main([*arguments, *common]) == 1
        assert message in capsys.readouterr().err


# ---- the teachers of profiles


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


def test_it_trains_where_there_is_none_and_where_anything_differs_and_not_otherwise(project, monkeypatch, capsys):
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
    assert make("digits") == make("digits") == 0
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
    cards, source = project / "cards", untrained(project / "digits.safetensors")
    monkeypatch.setattr(weights, "SHIPPED", cards)
    cards.mkdir()

    def freeze(largest: int) -> int:
        monkeypatch.setattr(train, "LARGEST", largest)
        return make("digits", "--freeze", str(source))

    def said() -> dict:
        return yaml.safe_load((cards / "digits.yaml").read_text())

    assert freeze(1000) == 0
    assert [path.name for path in cards.iterdir()] == ["digits.yaml"]
    assert said()["accuracy"] == {"digits-test": pytest.approx(98, abs=0.3), "images": 899}
    assert said()["weights_sha256"] == weights.weights_sha256(load_file(str(source)))
    assert freeze(10_000_000) == 0
    assert said()["sha256"] == sha256_file(cards / "digits.safetensors")
    assert said()["settings"]["epochs"] == 2
    assert freeze(1000) == 1
    assert "too large to take its place" in capsys.readouterr().err
    settings = project / "profiles" / "digits" / "teacher.yaml"
    settings.write_text(settings.read_text().replace("digits-train", "digits-test"))
    assert freeze(1000) == 1
    assert "trained on other images" in capsys.readouterr().err


def test_a_profile_without_a_teacher_of_its_own_is_said(project, capsys):
    assert make("digits", "--epochs", "3") == 1
    assert "unknown option beside --profile 'epochs'" in capsys.readouterr().err
    for profile, message in (("bare", "profile bare trains no teacher of its own"), ("maxi", "unknown profile 'maxi'")):
        assert make(profile) == 1
        assert message in capsys.readouterr().err
