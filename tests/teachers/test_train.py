"""A small teacher is trained bit-identically, on captions that say what is seen, by a command."""

from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from apm import teachers
from apm.data import prompts
from apm.teachers import train

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


def test_training_lowers_the_loss_and_changes_only_token_embeddings_of_the_captions(few, tiny_config):
    config = replace(QUICK, model=str(tiny_config), epochs=12, learning_rate=3e-3)
    weights = train.train(few, config)
    start = train.train(few, replace(config, epochs=1, learning_rate=1e-12))
    moved = (weights["token_embedding.weight"] - start["token_embedding.weight"]).abs().amax(dim=1) > 1e-6
    tokenizer = open_clip.get_tokenizer(tiny_config.stem)
    used = torch.cat([tokenizer(texts) for texts in train.captions(few)]).unique()
    assert set(torch.nonzero(moved).flatten().tolist()) <= set(used.tolist())
    assert moved.sum() > 20

    def loss(state):
        model = open_clip.create_model(tiny_config.stem)
        model.load_state_dict(state)
        teacher = teachers.Teacher("x", model, tokenizer, {"embed_dim": 16})
        image = F.normalize(teacher.encode(teacher.transform(few.images)).feature, dim=-1)
        scores = teacher.logit_scale * image @ teacher.text_features(few.classnames, few.templates).T
        return F.cross_entropy(scores, torch.tensor(few.labels)).item()

    assert loss(weights) < 0.9 * loss(start)


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
    drawn = [next(batches) for _ in range(5)]
    for batch in drawn:
        assert labels[batch].tolist() == [0, 1, 2, 0, 1, 2]
    second = [int(i) for batch in drawn for i in batch if labels[i] == 1]
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


def test_captions_say_words_and_numerals_and_nothing_of_print(few):
    per_class = train.captions(few)
    assert {"a photo of the number seven.", "a photo of the number 7."} <= set(per_class[7])
    assert len({len(c) for c in per_class}) == 1
    assert len(set(per_class[3])) == len(per_class[3]) >= 2 * len(prompts.DIGITS)
    assert not any("print" in text for texts in per_class for text in texts)


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
    for name, value in (("dark", 30), ("light", 220)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (20 + i, 18), (value + i,) * 3).save(tmp_path / "data" / name / f"{i}.png")
    data, out = f"folder:{tmp_path / 'data'}", tmp_path / "out.safetensors"
    common = ["--model", str(tiny_config), "--epochs", "2", "--flip", "0.5"]
    assert train.main(["--data", data, *common, "--out", str(out), "--test", data]) == 0
    assert "% of 12 images" in capsys.readouterr().out
    assert teachers.load(str(tiny_config), pretrained=out).text_features(("dark", "light"), ("a {}",)).shape == (2, 16)
    for arguments, message in (
        (["--data", data, "--out", str(tmp_path / "out.pt")], ".safetensors"),
        (["--data", "digits-tran", "--out", str(out)], "digits-train"),
        (["--data", data, "--test", "digits-test", "--out", str(out)], "has other classes than"),
    ):
        assert train.main([*arguments, *common]) == 1
        assert message in capsys.readouterr().err
