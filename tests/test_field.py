"""The field: training that can be killed and goes on bit for bit, numbers by hand, and walks on the trigger column."""

import hashlib
import io
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from apm import datasets, field, material, teachers
from apm.field import FieldConfig
from apm.model import APMConfig

STUDENT = APMConfig(grid=(4, 4), patch=2, hidden=(32, 16), width=8, rgb_hidden=(16,))
CONFIG = FieldConfig(STUDENT, epochs=6, batch=8, learning_rate=5e-3)


def problem(n: int = 24) -> material.Material:
    """Grey images, each a mixture of two pictures; the tokens follow the mixture too."""
    g = torch.Generator().manual_seed(0)
    ends, share = torch.rand(2, 1, 4, 4, generator=g), torch.linspace(0, 1, n)[torch.randperm(n, generator=g)]
    coarse = (ends[0] + share[:, None, None, None] * (ends[1] - ends[0])).expand(n, 3, 4, 4)
    pixels = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
    images = np.uint8(255 * pixels.permute(0, 2, 3, 1).numpy())
    tokens = torch.randn(2, 1, 8, generator=g).expand(-1, 16, -1)
    return made(images, (tokens[0] + share[:, None, None] * tokens[1]).numpy())


def made(images: np.ndarray, tokens: np.ndarray | None) -> material.Material:
    """A material of arrays: what `material.prepare` reads from files."""
    n = len(images)
    data = datasets.Dataset(
        "bars",
        images,
        np.arange(n) % 2,
        ("a", "b"),
        ("a {}",),
        datasets.fingerprint(images, np.arange(n), ()),
        np.arange(n),
    )
    colours = teachers.patch_colours(teachers.student_images(images, 8), 2).numpy()
    of = {"data": data.fingerprint, "tokens": None if tokens is None else hashlib.sha256(tokens.tobytes()).hexdigest()}
    return material.Material(data, tokens, colours, np.arange(n), STUDENT, of, {})


def same_weights(one: field.Field, other: field.Field) -> bool:
    return all(torch.equal(one.model.weights[name], value) for name, value in other.model.weights.items())


# -------------------------------------------------------------------------------------------------------------- training


def test_both_losses_fall_below_those_of_the_mean_answer() -> None:
    student = replace(STUDENT, hidden=(64, 32), rgb_hidden=(32,))
    trained = field.train(problem(48), replace(CONFIG, epochs=100, student=student))
    assert trained.losses.shape == (100, 2)
    assert (trained.losses[-1] < 0.5).all()
    assert (trained.losses[-1] < 0.5 * trained.losses[0]).all()
    assert not any(value.requires_grad for value in trained.model.parameters())


def test_the_unit_of_a_balanced_loss_is_what_the_mean_answer_leaves() -> None:
    data = problem()
    tokens = torch.nn.functional.normalize(torch.from_numpy(data.tokens), dim=-1)
    plain = field.train(data, replace(CONFIG, epochs=1, batch=24, balance=False)).losses[0]
    balanced = field.train(data, replace(CONFIG, epochs=1, batch=24)).losses[
        0
    ]  # one batch: the losses before any update
    for i, target in enumerate((tokens, torch.from_numpy(data.colours))):
        left = float((target - target.mean(dim=0)).square().mean())
        assert plain[i] / balanced[i] == pytest.approx(left, rel=1e-5)


def test_a_loss_without_weight_is_not_needed_and_not_trained() -> None:
    data = problem()
    config = replace(CONFIG, loss_grid=0.0, epochs=2)
    alone = field.train(data.without_tokens(), config)
    assert (alone.losses[:, 0] == 0).all()
    assert (alone.losses[:, 1] > 0).all()
    assert same_weights(alone, field.train(data, config))
    with pytest.raises(ValueError, match=r"L_grid needs teacher tokens of the student's width 8, found none"):
        field.train(data.without_tokens(), CONFIG)
    with pytest.raises(ValueError, match=r"prepared for a grid \(4, 4\) of patches of 2 px, this student has \(2, 2\)"):
        field.train(data, replace(CONFIG, student=replace(STUDENT, grid=(2, 2))))


class Killed(Exception):
    pass


def stop_after(epoch: int) -> field.Callback:
    def callback(done: int, model: object) -> None:
        if done == epoch:
            raise Killed

    return callback


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_stopped_run_goes_on_to_bit_identical_weights(tmp_path: Path, stop: int) -> None:
    data, path = problem(), tmp_path / "field.safetensors"
    straight = field.train(data, CONFIG, seed=3)
    with pytest.raises(Killed):
        field.train(data, CONFIG, seed=3, checkpoint=path, every=2, callback=stop_after(stop))
    resumed = field.train(data, CONFIG, seed=3, checkpoint=path, every=2)
    assert resumed.resumed == stop // 2 * 2 - (2 if stop % 2 == 0 else 0)
    assert same_weights(resumed, straight)
    np.testing.assert_array_equal(resumed.losses, straight.losses)
    again = field.train(data, CONFIG, seed=3, checkpoint=path)
    assert again.resumed == CONFIG.epochs
    assert same_weights(again, straight)
    assert not same_weights(straight, field.train(data, CONFIG, seed=4))


def test_a_run_killed_by_the_system_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "field.safetensors"
    script = (
        "import os, signal\nfrom apm import field\nfrom test_field import CONFIG, problem\n"
        "def kill(epoch, model):\n    if epoch == 4: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"field.train(problem(), CONFIG, checkpoint={str(path)!r}, every=3, callback=kill)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n{script}"],
        cwd=Path(field.__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    resumed = field.train(problem(), CONFIG, checkpoint=path)
    assert resumed.resumed == 3
    assert same_weights(resumed, field.train(problem(), CONFIG))


def test_a_checkpoint_is_plain_tensors_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    field.train(problem(), CONFIG, checkpoint=path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    tensors = load_file(path)
    assert int(tensors["epoch"]) == CONFIG.epochs
    assert {"generator", "losses", "weights.head_weight", "adam.exp_avg_sq.head_weight"} <= set(tensors)


def test_a_checkpoint_of_another_training_is_an_error_that_says_what_differs(tmp_path: Path) -> None:
    data, path = problem(), tmp_path / "field.safetensors"
    field.train(data, CONFIG, checkpoint=path)
    with pytest.raises(
        ValueError, match=r"field\.safetensors is of another training: config\.batch: expected 4, found 8.*delete"
    ):
        field.train(data, replace(CONFIG, batch=4), checkpoint=path)
    with pytest.raises(ValueError, match="seed: expected 1, found 0"):
        field.train(data, CONFIG, seed=1, checkpoint=path)
    other = made(data.dataset.images[::-1].copy(), data.tokens)
    with pytest.raises(ValueError, match=r"of\.data"):
        field.train(other, CONFIG, checkpoint=path)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", "cut"])
def test_a_damaged_checkpoint_is_said_and_made_again(
    tmp_path: Path, content: bytes | str, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    data, path = problem(), tmp_path / "field.safetensors"
    straight = field.train(data, CONFIG, checkpoint=path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if isinstance(content, str) else content)
    again = field.train(data, CONFIG, checkpoint=path)
    assert again.resumed == 0
    assert same_weights(again, straight)
    assert "field.safetensors cannot be read" in capsys.readouterr().out
    assert not recwarn.list
    assert path.read_bytes() == whole


def test_the_name_of_a_checkpoint_changes_with_all_that_determines_it(tmp_path: Path) -> None:
    of = {"data": "a", "teacher": "t"}
    first = field.checkpoint_path(CONFIG, of, 0, tmp_path)
    assert first == field.checkpoint_path(CONFIG, dict(of), 0, tmp_path)
    others = [
        field.checkpoint_path(replace(CONFIG, epochs=7), of, 0, tmp_path),
        field.checkpoint_path(CONFIG, of | {"data": "b"}, 0, tmp_path),
        field.checkpoint_path(CONFIG, of | {"teacher": "u"}, 0, tmp_path),
        field.checkpoint_path(CONFIG, of, 1, tmp_path),
    ]
    assert len({first, *others}) == 5


def test_fields_trained_side_by_side_are_those_trained_alone(tmp_path: Path) -> None:
    data = problem()
    jobs = [
        field.Job(str(width), replace(CONFIG, student=replace(STUDENT, hidden=(width, 16))), data) for width in (16, 24)
    ]
    before = torch.get_num_threads()
    torch.set_num_threads(2)  # two at a time
    try:
        together = field.train_all(jobs, seed=1, folder=tmp_path)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert list(together) == ["16", "24"]
    assert len(list(tmp_path.iterdir())) == 2
    for job in jobs:
        assert same_weights(together[job.name], field.train(data, job.config, seed=1))
    with pytest.raises(ValueError, match=r"one number of threads, found \[1, 2\]"):
        field.train_all([jobs[0], replace(jobs[1], config=replace(CONFIG, threads=2))])
    with pytest.raises(ValueError, match="every name once"):
        field.train_all([jobs[0], jobs[0]])


def test_bad_settings_and_data_are_clear_errors() -> None:
    for changes, message in (
        ({"epochs": 0}, "at least 1, found 0"),
        ({"loss_grid": 0.0, "loss_rgb": 0.0}, "not both zero"),
        ({"student": replace(STUDENT, rgb_head=False)}, "rgb_head=True"),
        ({"student": replace(STUDENT, column="tokens", token_width=8)}, "column='conv'"),
        ({"learning_rate": 0.0}, "must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(CONFIG, **changes)
    data = problem()
    bad = data.tokens.copy()
    bad[2, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"tokens of bars have NaN or infinite values in image\(s\) \[2\]"):
        field.train(made(data.dataset.images, bad), CONFIG)
    with pytest.raises(RuntimeError, match=r"loss is (nan|inf) in epoch .* lower the learning rate"):
        field.train(data, replace(CONFIG, learning_rate=1e30, balance=False))


def test_settings_come_from_plain_values_and_unknown_ones_are_named() -> None:
    class Teacher:
        width = 8

    config = field.settings(Teacher(), {"hidden": [32, 16], "kernels": 3}, {"epochs": 2})
    assert (config.student.kernels, config.student.width, config.student.hidden, config.epochs) == (3, 8, (32, 16), 2)
    with pytest.raises(ValueError, match=r"unknown field of the training 'epoch'.*Did you mean 'epochs'"):
        field.settings(Teacher(), {}, {"epoch": 2})


def test_halves_are_disjoint_and_complete() -> None:
    data = datasets.load("digits-test").subset(range(5, 60))
    one, other = field.halves(data)
    assert (len(one), len(other)) == (27, 28)
    assert sorted([*one.indices, *other.indices]) == sorted(data.indices)


# --------------------------------------------------------------------------------------------------------------- looking


def test_a_look_is_one_pass_in_any_batches() -> None:
    data = problem()
    images = data.batch(range(24)).images
    trained = field.train(data, CONFIG)
    seen, small = field.look(trained, images), field.look(trained, images, batch=5)
    net = trained.model
    np.testing.assert_allclose(seen.features, net.grid(images).numpy(), atol=1e-6)
    np.testing.assert_allclose(seen.folded, net(images).numpy(), atol=1e-6)
    np.testing.assert_allclose(seen.features, small.features, atol=1e-6)
    assert seen.colours.shape == (24, 4, 4, 3)
    assert 0 <= seen.colours.min() <= seen.colours.max() <= 1


def test_what_is_kept_of_a_material_in_batches_is_what_all_at_once_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    data = problem()
    batch = data.batch(range(24))
    trained = field.train(data, CONFIG)
    whole = field.look(trained, batch.images)
    monkeypatch.setattr(material.Material.batches, "__defaults__", (5,))
    kept = field.summaries(trained, data)
    np.testing.assert_allclose(kept.folded, whole.folded, atol=1e-6)
    np.testing.assert_allclose(kept.columns, whole.columns, atol=1e-6)
    np.testing.assert_allclose(field.mean_tokens(data), data.tokens.mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(field.pixels(data), batch.images.flatten(1).numpy(), atol=1e-6)
    assert field.pixels(data, side=4).shape == (24, 48)
    one = field.measure({"x": (trained, trained)}, data)["x"]
    truth = field.as_grid(batch.colours, STUDENT)
    tokens = field.as_grid(batch.tokens, STUDENT)
    np.testing.assert_allclose(one.cosine, field.cosines(whole.features, tokens).mean(axis=(1, 2)), atol=1e-5)
    np.testing.assert_allclose(one.psnr, field.psnr(whole.colours, truth), atol=1e-3)


def test_psnr_and_cosine_by_hand() -> None:
    truth = np.zeros((2, 1, 2, 3))
    decoded = truth.copy()
    decoded[0, 0, 0] = 0.2  # MSE 0.04 / 2 = 0.02
    decoded[1] = 0.1  # MSE 0.01: 20 dB
    np.testing.assert_allclose(field.squared_errors(decoded, truth), [0.02, 0.01])
    np.testing.assert_allclose(field.psnr(decoded, truth), [-10 * np.log10(0.02), 20.0])
    assert (field.psnr(truth, truth) == field.PSNR_LIMIT).all()
    # one perfect picture among others: the mean stays a mean
    assert field.mean(field.psnr(np.repeat(decoded, 10, axis=0), np.repeat(truth, 10, axis=0))).value < 25
    with pytest.raises(ValueError, match="1 of 12 values are NaN or infinite, the first at 3"):
        field.mean(np.where(np.arange(12) == 3, np.inf, 1.0))
    a, b = np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]]), np.array([[4.0, 3.0], [0.0, 2.0], [1.0, 1.0]])
    np.testing.assert_allclose(field.cosines(a, b), [24 / 25, 0.0, 0.0])


def test_share_of_colour_by_hand() -> None:
    red = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    red[0, :2, :2, 0], red[1, 2:4, :2, 1] = 153, 153
    data = made(red, None)
    truth = field.colours_of(data)
    grey = np.broadcast_to(truth[0].mean(axis=-1, keepdims=True), truth[0].shape)
    flat = np.full((4, 4, 3), 0.5)  # grey throughout: an answer without colour
    found = field.measure(
        {"own": (None, truth[0]), "grey": (None, grey), "half": (None, (truth[0] + grey) / 2), "flat": (None, flat)},
        data,
    )
    share = {name: field.colour_share(one.chroma[:1], found["flat"].chroma[:1]) for name, one in found.items()}
    assert share["own"] == pytest.approx(100)
    assert share["grey"] == pytest.approx(0, abs=1e-6)
    assert share["half"] == pytest.approx(75)
    assert np.isnan(field.colour_share(np.zeros(3), np.full(3, 1e-16)))


def test_a_single_grid_is_the_same_answer_for_all_images() -> None:
    data = problem()
    mean_grid, mean_image = field.mean_answer(data)
    tokens = data.tokens.reshape(24, 4, 4, 8)
    np.testing.assert_allclose(mean_grid, field.unit(tokens).mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(mean_image, field.colours_of(data).mean(axis=0), atol=1e-6)
    measured = field.measure({"mean": (mean_grid, None), "image": (None, mean_image)}, data)
    table = field.quality(measured).set_index("answer")
    expected = field.cosines(np.stack([mean_grid] * 24), tokens).mean()
    assert table.loc["mean", "cosine to the teacher's grid"].startswith(f"{expected:.3f} [")
    assert table.loc["mean", "PSNR (dB)"] == ""
    own = field.squared_errors(mean_image, field.colours_of(data)).mean()
    assert table.loc["image", "MSE of the RGB"].startswith(f"{own:.4f} [")
    assert field.way(measured["mean"]._replace(cosine=np.ones(24)), measured["mean"]) == pytest.approx(100)


# --------------------------------------------------------------------------------------------------- what the features hold


def test_nearest_neighbours_by_hand() -> None:
    angles = np.deg2rad([0, 10, 20, 80, 90])
    known, labels = np.stack([np.cos(angles), np.sin(angles)], axis=1), np.array([0, 1, 1, 2, 2])
    asked = 7.0 * np.array(
        [[np.cos(np.deg2rad(a)), np.sin(np.deg2rad(a))] for a in (2, 14, 88)]
    )  # length plays no part
    assert field.nearest(known, labels, asked, 1).tolist() == [0, 1, 2]
    assert field.nearest(known, labels, asked, 2).tolist() == [
        0,
        1,
        2,
    ]  # one vote each for 0 and 1: the nearer one wins
    assert field.nearest(known, labels, asked, 3).tolist() == [1, 1, 2]
    with pytest.raises(ValueError, match=r"k must lie in 1\.\.5.*found 6"):
        field.nearest(known, labels, asked, 6)


def test_judging_counts_right_answers() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 10)
    known = np.stack([np.where(labels, 1.0, -1.0), np.ones(20)], axis=1) + 0.01 * rng.normal(size=(20, 2))
    asked = known.copy()
    asked[[0, 1, 2]] = asked[[10, 11, 12]]  # three held-out images look like the other class
    table = field.judge({"x": (known, asked)}, (labels, labels), k=3)
    assert table.loc[0, "knn"] == table.loc[0, "probe"] == pytest.approx(85.0)
    assert table.loc[0, "knn_low"] < 85 < table.loc[0, "knn_high"]
    assert field.compact(table, 3).loc[0, "3-NN"].startswith("85.0 [")


def test_purity_and_shared_information_by_hand() -> None:
    clusters, classes = np.array([0, 0, 0, 1, 1, 1]), np.array([2, 2, 0, 1, 1, 1])
    assert field.purity(clusters, classes) == pytest.approx(100 * 5 / 6)
    assert field.shared(np.array([0, 0, 1, 1]), np.array([1, 1, 0, 0])) == pytest.approx(100)
    assert field.shared(np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])) == pytest.approx(0, abs=1e-9)


def test_clusters_find_what_is_there() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 8)
    whole = np.where(labels[:, None] == 0, [1.0, 0.0], [0.0, 1.0]) + 0.01 * rng.normal(size=(16, 2))
    front = rng.random((16, 4, 4)) < 0.4
    grid = np.stack([front, ~front], axis=-1) + 0.01 * rng.normal(size=(16, 4, 4, 2))
    table, maps = field.clusters({"a": (whole, grid), "b": (None, grid)}, labels, front, k=2)
    assert table.loc[0, "images: purity"] == 100
    assert table.loc[0, "locations: NMI with foreground"] == pytest.approx(100)
    assert table.loc[0, "locations: NMI with class"] < 5
    assert pd.isna(table.loc[1, "images: purity"])
    assert maps["a"].shape == (16, 4, 4)
    assert field.cluster_pictures(maps["a"]).shape == (16, 4, 4, 3)
    with pytest.raises(ValueError, match=r"2\.\.16"):
        field.cluster(whole, 17)
    few = np.array([1, 3, 9, 12])
    part, maps = field.clusters({"a": (whole, grid[few])}, labels, front[few], k=2, where=few)
    assert part.loc[0, "images: purity"] == 100  # of all images
    assert maps["a"].shape == (4, 4, 4)
    assert (part.iloc[0, 1:].astype(float) * 10 % 1).max() == pytest.approx(0, abs=1e-6)  # one decimal


# --------------------------------------------------------------------------------------------------------- interpolation


def pictures(n: int = 2, side: int = 8) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8))


@pytest.mark.parametrize("kernels", [1, 3])
def test_interpolated_columns_are_the_columns_of_interpolated_pixels(kernels: int) -> None:
    config = replace(CONFIG, student=replace(STUDENT, kernels=kernels, position_width=16))
    data = problem()
    trained = field.train(replace(data, student=config.student), config)
    one, other = pictures()
    walk = field.interpolate(trained, one, other, steps=5)
    assert walk.difference < 1e-5
    np.testing.assert_allclose(walk.shares, [0, 0.25, 0.5, 0.75, 1])
    # the identity in full: the walk's third picture is what the network decodes from the blended image
    ends = teachers.student_images([one, other], 8)
    middle = field.look(trained, ends.mean(dim=0, keepdim=True))
    np.testing.assert_allclose(walk.decoded[2], middle.colours[0], atol=1e-5)
    np.testing.assert_allclose(walk.features[2], middle.features[0], atol=1e-5)
    means = one.reshape(4, 2, 4, 2, 3).mean(axis=(1, 3)) / 255
    np.testing.assert_allclose(walk.blend[0], means, atol=1e-6)


def test_a_pair_of_different_sizes_is_a_clear_error() -> None:
    trained = field.untrained(CONFIG)
    message = r"must have the same size \(height x width\), found 8 x 8 and 16 x 16 px: resize"
    with pytest.raises(ValueError, match=message):
        field.interpolate(trained, pictures()[0], pictures(side=16)[0])
    with pytest.raises(ValueError, match="at least 2 steps"):
        field.interpolate(trained, *pictures(), steps=1)


def test_the_pair_and_the_labels_are_checked_before_anything_is_trained() -> None:
    data = datasets.load("digits-test").subset(range(20))
    assert field.chosen_pair(data, [3, 14]).indices.tolist() == data.indices[[3, 14]].tolist()
    for pair, message in (([3, 20], r"0\.\.19"), ([3, 3], "given twice"), ([3], "positions of two images")):
        with pytest.raises(ValueError, match=message):
            field.chosen_pair(data, pair)
    sizes = replace(data, images=[*pictures(), pictures(side=16)[0], *pictures(17)])
    with pytest.raises(ValueError, match=r"same size \(height x width\), found 8 x 8 and 16 x 16"):
        field.chosen_pair(sizes, [0, 2])
    assert field.classes_needed(data) is data
    with pytest.raises(ValueError, match=r"one class only: sections 4 to 6.*labelled_train"):
        field.classes_needed(replace(data, labels=np.zeros(20, dtype=np.int64)))


def test_the_conclusion_names_the_controls_beside_each_claim() -> None:
    def accuracies(name: str, value: float) -> dict[str, object]:
        return {"features": name, "knn": value, "knn_low": value - 1, "knn_high": value + 1}

    names = ("raw pixels", "field: RGB alone, folded", "student before training, folded", "teacher: image feature")
    judged = pd.DataFrame(
        [accuracies("field: teacher + RGB, folded", 90.0), *map(accuracies, names, (91.0, 80.0, 85.0, 95.0))]
    )
    groups = ("field: teacher + RGB", "raw pixels", "field: RGB alone", "teacher")
    grouped = pd.DataFrame({"features": groups, "images: NMI with class": (70.0, 60.0, 50.0, 80.0)})
    measured = {
        "field: teacher + RGB": field.NOTHING._replace(cosine=np.full(20, 0.9)),
        "control: mean of the training images": field.NOTHING._replace(cosine=np.full(20, 0.6)),
    }
    data = problem()
    crossing = field.cross(field.train(data, CONFIG), data, np.arange(24).reshape(12, 2), data, steps=3)
    progress = pd.DataFrame({"field": ["teacher + RGB"], "epochs": [9], field.FELL: [5.5]})
    text = field.conclusion(measured, judged, grouped, crossing, 5, progress)
    assert "9 epochs was cut short: its loss fell by 5.5 %" in text
    assert "75 % of the way" in text
    assert "5-NN, 90.0 %" in text
    assert "not apart from raw pixels (91.0), above the field without a teacher (80.0)" in text
    assert "below its teacher (95.0)" in text
    assert "70.0 % (NMI), those of raw pixels to 60.0 %, of the field without a teacher to 50.0 %" in text


def test_the_control_before_training_stands_on_the_device_that_is_asked_for() -> None:
    on_cpu, elsewhere = field.untrained(CONFIG, 3), field.untrained(CONFIG, 3, "meta")
    assert {p.device.type for p in elsewhere.model.parameters()} == {"meta"}
    again = field.untrained(CONFIG, 3)
    for own, other in zip(on_cpu.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(own, other)


@pytest.mark.filterwarnings("error")
def test_foreground_of_a_grid_as_wide_as_rgb_has_channels_is_no_colour_image() -> None:
    colours = np.zeros((5, 4, 4, 3))
    colours[:, 1:3, 1:3] = 0.9
    np.testing.assert_array_equal(field.ink(colours), colours.mean(axis=-1) > 0.5)


def test_pairs_are_of_different_classes_and_use_an_image_once() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    found = field.pairs(labels, 2)
    assert found.shape == (2, 2)
    assert len(np.unique(found)) == 4
    assert (labels[found[:, 0]] != labels[found[:, 1]]).all()
    with pytest.raises(ValueError, match=r"expected 2 pairs .* found 1"):
        field.pairs(np.array([0, 0, 0, 1]), 2)


def test_distances_along_a_walk_by_hand() -> None:
    data = problem()
    trained = field.train(data, CONFIG)
    known = field.colours_of(data)
    which = np.array([[2 * i, 2 * i + 1] for i in range(12)])
    crossing = field.cross(trained, data, which, data, steps=3)
    assert crossing.decoded.shape == crossing.blend_contrast.shape == (12, 3)
    np.testing.assert_allclose(crossing.blend[:, [0, 2]], 0, atol=1e-5)  # the ends are training images
    half = (known[0] + known[1]) / 2
    by_hand = min(np.sqrt(np.square(half - image).mean()) for image in known)
    assert crossing.blend[0, 1] == pytest.approx(by_hand, rel=1e-4)
    assert crossing.blend_contrast[0, 1] == pytest.approx(
        half.std() / np.mean([known[0].std(), known[1].std()]), rel=1e-4
    )
    table = field.crossing_table(crossing).set_index("picture")
    assert table.loc["pixels interpolated", "distance halfway"].startswith(f"{crossing.blend[:, 1].mean():.3f} [")
    paired = (crossing.decoded - crossing.blend)[:, 1].mean()
    assert table.loc["decoded - pixels, paired", "distance halfway"].startswith(f"{paired:.3f} [")


def test_the_animation_is_the_walk_there_and_back_with_the_same_bytes_each_time(tmp_path: Path) -> None:
    walk = field.interpolate(field.train(problem(), CONFIG), *pictures(), steps=4)
    gif = field.animation(walk, side=64)
    assert gif == field.animation(walk, side=64)
    with Image.open(io.BytesIO(gif)) as opened:
        assert opened.n_frames == 6  # 4 there, 2 back
        assert opened.info["loop"] == 0
        opened.seek(3)
        panel = np.asarray(opened.convert("RGB"))[38 : 38 + 64, 10 : 10 + 64] / 255
    np.testing.assert_allclose(panel[8::16, 8::16], walk.decoded[3], atol=0.12)  # 256 colours in all
    shown = field.save_animation(gif, "walk", tmp_path, "There and back.")
    assert (tmp_path / "walk.gif").read_bytes() == gif
    assert (tmp_path / "walk.txt").read_text() == "There and back.\n"
    assert "data:image/gif;base64," in shown._repr_html_()
    with pytest.raises(ValueError, match="plain file name"):
        field.save_animation(gif, "a/b", tmp_path, "")


# --------------------------------------------------------------------------------------------------------------- figures


def test_a_training_says_how_much_its_loss_still_fell() -> None:
    def trained(losses: list[list[float]], **changes: float) -> field.Field:
        one = field.untrained(replace(CONFIG, **changes))
        return replace(one, losses=np.array(losses))

    slow = [[1.0 - 0.01 * i, 0.5] for i in range(10)]  # the last fifth of ten: from the eighth epoch to the tenth
    table = field.training_table({
        "teacher + RGB": trained(slow), "no grid": trained([[9.0, 1.0], [9.0, 0.9]], loss_grid=0.0), "one": trained([[1.0, 1.0]]),
    }).set_index("field")  # fmt: skip
    assert table[field.FELL].tolist()[:2] == pytest.approx([100 * (1 - 1.41 / 1.43), 10.0])
    assert table["L_grid"].tolist() == pytest.approx([0.91, np.nan, 1.0], nan_ok=True)
    verdicts = [field.cut_short(table.reset_index(), name) for name in table.index]
    assert verdicts == [False, True, True]  # after one epoch nothing is known


def test_names_in_a_scatter_do_not_overlap() -> None:
    places = np.array([[0.0, 0.0], [0.05, 0.01], [0.02, -0.01], [9.0, 9.0]])
    moved = field._apart(places, [5, 5, 5, 5], np.array([10.0, 10.0]), 3)
    assert np.array_equal(moved[3], places[3])
    gaps = np.diff(np.sort(moved[:3, 1]))
    assert (gaps > 0.4).all()
    assert np.array_equal(moved[:, 0], places[:, 0])


def test_figures_say_what_they_show() -> None:
    data = problem()
    trained = {"a": field.train(data, CONFIG), "b": field.train(data, replace(CONFIG, loss_grid=0.0))}
    figure, caption = field.training_curves(trained)
    assert [axes.get_title() for axes in figure.axes] == ["L_grid", "L_rgb"]
    assert "mean over the training images" in caption
    with pytest.raises(ValueError, match="one unit"):
        field.training_curves({**trained, "c": field.train(data, replace(CONFIG, balance=False))})
    with pytest.raises(ValueError, match="one length"):
        field.picture_table({"a": pictures(2), "b": pictures(3)})
    figure, _ = field.picture_table({"a": pictures(2), "e": [np.zeros((4, 4))] * 2}, errors=["e"])
    assert len(figure.axes) == 5  # four pictures and the colour bar
    assert figure.axes[-1].get_ylabel() == "error: 1 - cosine"
    walk = field.interpolate(trained["a"], *pictures(), steps=3)
    figure, caption = field.walk_strip(walk, tuple(pictures()))
    assert "in 3 steps" in caption
    figure, caption = field.scatters({"x": np.zeros((6, 2))}, np.array([0, 0, 1, 1, 2, 2]), ["a", "b", "c"])
    assert "6 held-out images" in caption
    assert {text.get_text() for text in figure.axes[0].texts} == {"a", "b", "c"}
    assert len(set(field._palette(30))) == 30


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_field_trains_in_any_mode_of_the_caller(mode: type) -> None:
    expected = field.train(problem(8), replace(CONFIG, epochs=2))
    with mode():
        found = field.train(problem(8), replace(CONFIG, epochs=2))
    np.testing.assert_array_equal(found.losses, expected.losses)
