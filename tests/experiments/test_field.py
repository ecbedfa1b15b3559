"""The field: training that can be killed and goes on bit for bit, numbers by hand, and walks on the trigger column."""

import hashlib
import io
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from apm import teachers
from apm.data import datasets
from apm.experiments import field, material
from apm.experiments.field import FieldConfig
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


@pytest.mark.parametrize(("stop", "precision"), [(1, "float32"), (3, "float32"), (5, "float32"), (3, "float64")])
def test_a_stopped_run_goes_on_to_bit_identical_weights(tmp_path: Path, stop: int, precision: str) -> None:
    data, path, config = problem(), tmp_path / "field.safetensors", replace(CONFIG, precision=precision)
    straight = field.train(data, config, seed=3)
    with pytest.raises(Killed):
        field.train(data, config, seed=3, checkpoint=path, every=2, callback=stop_after(stop))
    resumed = field.train(data, config, seed=3, checkpoint=path, every=2)
    assert resumed.resumed == stop // 2 * 2 - (2 if stop % 2 == 0 else 0)
    assert same_weights(resumed, straight)
    np.testing.assert_array_equal(resumed.losses, straight.losses)
    again = field.train(data, config, seed=3, checkpoint=path)
    assert again.resumed == config.epochs
    assert same_weights(again, straight)
    assert not same_weights(straight, field.train(data, config, seed=4))


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
    with pytest.raises(ValueError, match=r"field\.safetensors is of another training, with another config: .*delete"):
        field.train(data, replace(CONFIG, batch=4), checkpoint=path)
    with pytest.raises(ValueError, match="with another seed"):
        field.train(data, CONFIG, seed=1, checkpoint=path)
    other = made(data.dataset.images[::-1].copy(), data.tokens)
    with pytest.raises(ValueError, match="with another of"):
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
        field.checkpoint_path(replace(CONFIG, precision="float64"), of, 0, tmp_path),
    ]
    assert len({first, *others}) == 6


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
        ({"precision": "float46"}, "unknown precision 'float46'.*float32, float64"),
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


def test_a_field_in_float64_is_looked_at_and_measured_as_any_other() -> None:
    data = problem()
    single, double = (field.train(data, replace(CONFIG, precision=name)) for name in ("float32", "float64"))
    assert {p.dtype for p in double.model.parameters()} == {torch.float64}
    assert {p.dtype for p in field.untrained(double.config).model.parameters()} == {torch.float64}
    assert double.losses == pytest.approx(single.losses, rel=1e-3)  # from the same random weights
    assert {x.dtype for x in field.look(double, data.batch([0, 1]).images)} == {torch.float32}
    linear = field.ridge(field.column(double), data, "colours")
    found = field.measure({"field": (double, double), "its column": (None, linear)}, data)
    np.testing.assert_allclose(found["field"], field.measure({"field": (single, single)}, data)["field"], rtol=1e-3)
    crossing = field.cross(double, data, np.array([[0, 1], [2, 3]]), data, linear=linear, steps=3)
    assert crossing.difference < 1e-14  # of the identity, which float32 holds to 1e-7 only


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
    np.testing.assert_allclose(data.each(field.column(trained)), whole.columns, atol=1e-6)
    np.testing.assert_allclose(data.each(lambda b: field.tokens_of(b).mean(dim=1)), data.tokens.mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(data.each(field.pixels), batch.images.flatten(1).numpy(), atol=1e-6)
    assert data.each(lambda b: field.pixels(b, 4)).shape == (24, 48)
    assert data.each(field.patch_means).shape == (24, 48)
    one = field.measure({"x": (trained, trained)}, data)["x"]
    cosine = torch.cosine_similarity(whole.features.flatten(1, 2), batch.tokens, dim=-1).mean(dim=1)
    mse = (whole.colours.flatten(1, 2) - batch.colours).square().mean(dim=(1, 2))
    np.testing.assert_allclose(one["cosine"], cosine, atol=1e-5)
    np.testing.assert_allclose(one["mse"], mse, atol=1e-6)
    np.testing.assert_allclose(one["psnr"], -10 * np.log10(mse.numpy()), atol=1e-3)
    unit = torch.nn.functional.normalize(batch.tokens, dim=-1)
    np.testing.assert_allclose(one["grid"], (whole.features.flatten(1, 2) - unit).square().mean(dim=(1, 2)), atol=1e-6)
    with pytest.raises(ValueError, match="no teacher tokens"):
        field.measure({"x": (trained, None)}, data.without_tokens())


def test_psnr_and_means_by_hand() -> None:
    np.testing.assert_allclose(
        field.psnr(torch.tensor([0.02, 0.01, 0.0])), [-10 * np.log10(0.02), 20.0, field.PSNR_LIMIT]
    )
    share = field.number(np.arange(20) < 15)
    assert (share.value, share.n, share.unit, share.kind) == (75.0, 20, "%", "accuracy")
    measure = field.number(np.linspace(0, 1, 11), "dB")
    assert (measure.value, measure.unit, measure.kind) == (pytest.approx(0.5), "dB", "measure")
    assert measure.low < 0.5 < measure.high
    one, other = np.array([True, True, False]), np.array([True, False, True])
    assert field.less(one, other).tolist() == [0, 1, -1]
    with pytest.raises(ValueError, match="1 of 12 values are NaN or infinite, the first at 3"):
        field.number(np.where(np.arange(12) == 3, np.inf, 1.0))


def test_share_of_colour_by_hand() -> None:
    red = np.zeros((12, 8, 8, 3), dtype=np.uint8)
    for i in range(12):
        red[i, i % 6 : i % 6 + 2, :2, 0] = 100 + i
    data = made(red, None)
    truth = torch.from_numpy(np.array(data.colours))
    grey = truth.mean(dim=-1, keepdim=True).expand_as(truth)
    sources = {"own": truth, "grey": grey, "half": (truth + grey) / 2, "flat": torch.full((12, 16, 3), 0.5)}
    answers = {name: (None, lambda batch, given=given: given) for name, given in sources.items()}
    found = field.measure(answers, data)
    share = {name: field.colour_share(one["chroma"], found["flat"]["chroma"]) for name, one in found.items()}
    assert share["own"].value == pytest.approx(100)
    assert share["grey"].value == pytest.approx(0, abs=1e-6)
    assert share["half"].value == pytest.approx(75)
    assert np.isnan(field.colour_share(np.zeros(12), np.full(12, 1e-16)).value)


def test_a_single_grid_is_the_same_answer_for_all_images() -> None:
    data = problem()
    mean_grid, mean_image = field.mean_answer(data)
    unit = torch.nn.functional.normalize(torch.from_numpy(data.tokens), dim=-1)
    np.testing.assert_allclose(mean_grid, unit.mean(dim=0), atol=1e-6)
    np.testing.assert_allclose(mean_image, data.colours.mean(axis=0), atol=1e-6)
    found = field.measure({"mean": (mean_grid, mean_image)}, data)["mean"]
    np.testing.assert_allclose(found["mse"], np.square(mean_image.numpy() - data.colours).mean(axis=(1, 2)), atol=1e-7)
    assert field.mean_answer(data.without_tokens())[0] is None


# ------------------------------------------------------------------------------------------------- answers of other kinds


def test_a_ridge_is_that_of_scikit_learn_with_the_penalty_that_held_back_images_choose(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sklearn.linear_model import Ridge

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    tokens = (rng.normal(size=(40, 48)) @ rng.normal(size=(48, 128))).reshape(40, 16, 8)
    data = made(images, tokens.astype(np.float32))
    x, y = data.colours.reshape(40, -1).astype(np.float64), data.tokens.reshape(40, -1).astype(np.float64)
    monkeypatch.setattr(material.Material.batches, "__defaults__", (7,))

    def reference(rows: np.ndarray, penalty: float) -> Ridge:
        return Ridge(penalty * len(rows) * x.var(axis=0).mean()).fit(x[rows], y[rows])

    back = np.arange(40) % 5 == 0
    errors = {
        p: np.square(reference(np.flatnonzero(~back), p).predict(x[back]) - y[back]).mean() for p in field.PENALTIES
    }
    found = field.ridge(field.patch_means, data, "tokens")
    assert found.penalty == min(errors, key=errors.__getitem__)
    expected = reference(np.arange(40), found.penalty).predict(x).reshape(40, 16, 8)
    np.testing.assert_allclose(found(data.batch(range(40))), expected, atol=1e-4)
    with pytest.raises(ValueError, match="at least 10 images, found 9"):
        field.ridge(field.patch_means, made(images[:9], tokens[:9]), "tokens")


def test_a_linear_map_answers_what_is_linear_and_the_nearest_image_what_was_seen() -> None:
    whole = problem(48)  # colours and tokens lie on one line
    known, asked = (made(whole.dataset.images[half], whole.tokens[half]) for half in (slice(24), slice(24, 48)))
    linear = field.ridge(field.patch_means, known, "tokens")
    np.testing.assert_allclose(linear(asked.batch(range(24))), asked.tokens, atol=0.05)
    untrained = field.ridge(field.column(field.untrained(CONFIG)), known, "colours")
    tokens, colours = field.of_nearest(known)
    found = field.measure({"linear": (linear, untrained), "nearest": (tokens, colours)}, known)
    assert found["linear"]["psnr"].min() > 30
    np.testing.assert_allclose(found["nearest"]["cosine"], 1.0, atol=1e-6)
    distance, place = field.nearest_image(torch.from_numpy(known.colours[[5, 0]]).flatten(1), known)
    assert place.tolist() == [5, 0]
    np.testing.assert_allclose(distance, 0, atol=1e-6)


def test_the_field_stands_beside_the_best_control_and_the_whole_interval_decides() -> None:
    base = np.linspace(0, 1, 30)
    row = field.against_best(base + 0.1, {"low": base - 1, "near": base}, unit="dB")
    assert (row["best control"], row["field better"]) == ("near", "yes")
    assert (row["field - control"].value, row["field - control"].unit) == (pytest.approx(0.1), "dB")
    assert field.against_best(base - 0.1, {"near": base})["field better"] == "no"
    assert field.against_best(base - 0.1, {"near": base}, higher=False)["field better"] == "yes"
    assert field.against_best(base[::-1], {"near": base})["field better"] == "undecided"
    right = np.arange(30) < 20
    row = field.against_best(right, {"a": ~right, "b": right})
    assert (row["best control"], row["field better"], row["field - control"].kind) == ("b", "undecided", "difference")


# --------------------------------------------------------------------------------------------------- what the features hold


def test_judging_counts_right_answers_and_length_plays_no_part() -> None:
    angles = np.deg2rad([0, 10, 20, 80, 90])
    known, labels = np.stack([np.cos(angles), np.sin(angles)], axis=1), np.array([0, 1, 1, 2, 2])
    asked = 7.0 * np.array([[np.cos(a), np.sin(a)] for a in np.deg2rad([2, 14, 88])])
    assert field.judge({"x": (known, asked)}, (labels, np.array([0, 1, 2])), k=1)["x"]["knn"].all()
    assert field.judge({"x": (known, asked)}, (labels, np.array([1, 1, 2])), k=3)["x"]["knn"].all()
    with pytest.raises(ValueError, match=r"k must lie in 1\.\.5.*found 6"):
        field.judge({"x": (known, asked)}, (labels, labels[:3]), k=6)
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 10)
    known = np.stack([np.where(labels, 1.0, -1.0), np.ones(20)], axis=1) + 0.01 * rng.normal(size=(20, 2))
    asked = known.copy()
    asked[[0, 1, 2]] = asked[[10, 11, 12]]  # three held-out images look like the other class
    assert field.judge({"x": (known, asked)}, (labels, labels), k=3)["x"].sum().tolist() == [17, 17]


def test_purity_and_shared_information_by_hand() -> None:
    clusters, classes = np.array([0, 0, 0, 1, 1, 1]), np.array([2, 2, 0, 1, 1, 1])
    assert field.in_majority(clusters, classes).tolist() == [True, True, False, True, True, True]
    assert field.in_majority(np.array([0, 2, 2]), np.array([4, 7, 7])).all()
    assert field.shared(np.array([0, 0, 1, 1]), np.array([1, 1, 0, 0])).mean() == pytest.approx(100)
    assert field.shared(np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])).mean() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("least", "average"), [(False, "arithmetic"), (True, "min")])
def test_shared_information_is_that_of_scikit_learn_and_its_interval_the_jackknife(least: bool, average: str) -> None:
    from sklearn.metrics import normalized_mutual_info_score

    rng = np.random.default_rng(0)
    classes = rng.integers(0, 4, 120)
    clusters = np.where(rng.random(120) < 0.7, classes, rng.integers(0, 6, 120))
    images = np.repeat(np.arange(30), 4)
    values = field.shared(clusters, classes, images=images, least=least)

    def score(keep: np.ndarray) -> float:
        return 100 * normalized_mutual_info_score(classes[keep], clusters[keep], average_method=average)

    assert values.shape == (30,)
    assert values.mean() == pytest.approx(score(np.full(120, True)))
    without = np.array([score(images != i) for i in range(30)])
    variance = 29 / 30 * np.square(without - without.mean()).sum()
    assert values.var(ddof=1) / 30 == pytest.approx(variance)


def test_few_clusters_can_reach_the_whole_of_many_places() -> None:
    place = np.tile(np.arange(64), 20)
    assert field.shared(place // 8, place, least=True).mean() == pytest.approx(100)
    assert field.shared(place // 8, place).mean() < 70


def test_clusters_find_what_is_there() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 8)
    whole = np.where(labels[:, None] == 0, [1.0, 0.0], [0.0, 1.0]) + 0.01 * rng.normal(size=(16, 2))
    front = rng.random((16, 4, 4)) < 0.4
    grid = np.stack([front, ~front], axis=-1) + 0.01 * rng.normal(size=(16, 4, 4, 2))
    found = field.clusters(whole, grid, labels, front, k=2)
    assert found.purity.all()
    assert found.classes.mean() == pytest.approx(100)
    assert found.places["foreground"].mean() == pytest.approx(100)
    assert found.places["class"].mean() < 5
    assert found.maps.shape == (16, 4, 4)
    assert field.clusters(None, grid, labels, front, k=2).purity is None
    with pytest.raises(ValueError, match=r"2\.\.16"):
        field.cluster(whole, 17)
    few = np.array([1, 3, 9, 12])
    part = field.clusters(whole, grid[few], labels, front[few], k=2, where=few)
    assert (part.purity.shape, part.maps.shape) == ((16,), (4, 4, 4))


def test_an_embedding_needs_rows() -> None:
    rows = np.random.default_rng(0).normal(size=(12, 4))
    assert field.embed(rows).shape == (12, 2)
    with pytest.raises(ValueError, match="at least 10 rows, found 9"):
        field.embed(rows[:9])


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
    known = data.colours.reshape(24, -1)
    which = np.array([[2 * i, 2 * i + 1] for i in range(12)])
    crossing = field.cross(trained, data, which, data, steps=3)
    blend = crossing.distance[field.BLEND]
    assert crossing.distance[field.DECODED].shape == crossing.contrast[field.BLEND].shape == (12, 3)
    np.testing.assert_allclose(blend[:, [0, 2]], 0, atol=1e-5)  # the ends are training images
    half = (known[0] + known[1]) / 2
    by_hand = min(np.sqrt(np.square(half - image).mean()) for image in known)
    assert blend[0, 1] == pytest.approx(by_hand, rel=1e-3, abs=1e-6)
    assert crossing.contrast[field.BLEND][0, 1] == pytest.approx(
        half.std() / np.mean([known[0].std(), known[1].std()]), rel=1e-4
    )
    distance = crossing.distance[field.DECODED]
    np.testing.assert_allclose(crossing.away(field.DECODED), distance[:, 1] - (distance[:, 0] + distance[:, 2]) / 2)
    table = field.crossing_table(crossing)
    paired = table.loc[field.DECODED, "halfway - ends, less the blend's"]
    assert paired.value == pytest.approx((crossing.away(field.DECODED) - crossing.away(field.BLEND)).mean())
    assert paired.n == 12


def test_decoders_without_a_field_stand_beside_it() -> None:
    data = problem()
    decoders = field.decoders(data)
    colours = data.colours.reshape(24, -1)
    np.testing.assert_allclose(
        decoders["control: PCA-10 of the pixels"](colours), colours, atol=5e-3
    )  # on one line, but for 8 bits
    np.testing.assert_allclose(
        decoders["control: contrast curve"](np.array([0.0, 0.25, 0.5, 1.0])), [0, 0.15625, 0.5, 1]
    )
    pulled = decoders["control: three tenths towards the mean"](colours)
    np.testing.assert_allclose(pulled - colours.mean(axis=0), 0.7 * (colours - colours.mean(axis=0)), atol=1e-6)
    trained = field.train(data, CONFIG)
    linear = field.ridge(field.column(trained), data, "colours")
    crossing = field.cross(trained, data, np.array([[i, i + 12] for i in range(12)]), data, linear=linear, steps=3)
    assert set(crossing.distance) == {field.DECODED, field.BLEND, "control: ridge from T", *decoders}
    # T is affine in the pixels, so the ridge gives the blend of what it gives at the ends
    np.testing.assert_allclose(crossing.distance["control: ridge from T"], crossing.distance[field.BLEND], atol=0.05)


def test_the_animation_is_the_walk_there_and_back_with_the_same_bytes_each_time() -> None:
    walk = field.interpolate(field.train(problem(), CONFIG), *pictures(), steps=4)
    gif = field.animation(walk, side=64)
    assert gif == field.animation(walk, side=64)
    with Image.open(io.BytesIO(gif)) as opened:
        assert opened.n_frames == 6  # 4 there, 2 back
        assert opened.info["loop"] == 0
        opened.seek(3)
        panel = np.asarray(opened.convert("RGB"))[38 : 38 + 64, 10 : 10 + 64] / 255
    np.testing.assert_allclose(panel[8::16, 8::16], walk.decoded[3], atol=0.12)  # 256 colours in all


# ------------------------------------------------------------------------------------------------------ how a training ends


def test_a_training_says_how_much_its_loss_still_fell() -> None:
    def trained(losses: list[list[float]], **changes: float) -> field.Field:
        one = field.untrained(replace(CONFIG, **changes))
        return replace(one, losses=np.array(losses))

    slow = [[1.0 - 0.01 * i, 0.5] for i in range(10)]  # the last fifth of ten: from the eighth epoch to the tenth
    table = field.training_table({
        "teacher + RGB": trained(slow), "no grid": trained([[9.0, 1.0], [9.0, 0.9]], loss_grid=0.0), "one": trained([[1.0, 1.0]]),
        "between": trained([[1.0, 1.0], [0.95, 0.95]], balance=False),
    })  # fmt: skip
    fell = [cell.value for cell in table["fell over the last fifth"]]
    assert fell == pytest.approx([100 * (1 - 1.41 / 1.43), 10.0, np.nan, 5.0], nan_ok=True)
    assert [cell.value for cell in table["L_grid"]] == pytest.approx([0.91, np.nan, 1.0, 0.95], nan_ok=True)
    # after one epoch nothing is known
    assert table["cut short"].tolist() == ["nearly level", "yes", "undecided", "undecided"]
    assert table.loc["between", "losses in units of"] == "1 (plain sum)"


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_field_trains_in_any_mode_of_the_caller(mode: type) -> None:
    expected = field.train(problem(8), replace(CONFIG, epochs=2))
    with mode():
        found = field.train(problem(8), replace(CONFIG, epochs=2))
    np.testing.assert_array_equal(found.losses, expected.losses)
