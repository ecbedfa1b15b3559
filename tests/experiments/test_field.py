"""The field: training that can be killed and goes on bit for bit, and what one forward pass gives."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from bars import CONFIG, STUDENT, made, problem, same_weights
from fakes import damaged
from safetensors.torch import load_file

from apm.experiments import answers, field


def test_both_losses_fall_below_those_of_the_mean_answer() -> None:
    student = replace(STUDENT, hidden=(64, 32), rgb_hidden=(32,))
    trained = field.train(problem(48), replace(CONFIG, epochs=100, student=student))
    assert trained.losses.shape == (100, 2)
    assert (trained.losses.iloc[-1] < 0.5).all()
    assert (trained.losses.iloc[-1] < 0.5 * trained.losses.iloc[0]).all()


def test_the_unit_of_a_balanced_loss_is_what_the_mean_answer_leaves() -> None:
    data = problem()
    one_batch = [replace(CONFIG, epochs=1, batch=24, balance=balance) for balance in (False, True)]
    plain, balanced = (field.train(data, config).losses.iloc[0] for config in one_batch)  # before any update
    tokens = torch.nn.functional.normalize(torch.from_numpy(data.tokens), dim=-1)
    for name, target in (("L_grid", tokens), ("L_rgb", torch.from_numpy(data.colours))):
        left = float((target - target.mean(dim=0)).square().mean())
        assert plain[name] / balanced[name] == pytest.approx(left, rel=1e-5)


def test_a_loss_without_weight_is_not_needed_and_not_trained() -> None:
    data, config = problem(), replace(CONFIG, loss_grid=0.0, epochs=2)
    alone = field.train(data.without_tokens(), config)
    assert alone.losses["L_grid"].isna().all()
    assert (alone.losses["L_rgb"] > 0).all()
    assert same_weights(alone, field.train(data, config))
    with pytest.raises(ValueError, match="no tokens of bars: it was prepared without a teacher"):
        field.train(data.without_tokens(), CONFIG)


@pytest.mark.parametrize(("stop", "precision"), [(1, "float32"), (5, "float32"), (3, "float64")])
def test_a_stopped_run_goes_on_to_bit_identical_weights(tmp_path, monkeypatch, stop: int, precision: str) -> None:
    data, config = problem(), replace(CONFIG, precision=precision)
    straight = field.train(data, config, seed=3)
    advance = field._State.advance

    def killed(state: field._State, done: object) -> None:
        if state.epoch == stop:
            raise InterruptedError
        advance(state, done)

    monkeypatch.setattr(field, "EVERY", 2)
    monkeypatch.setattr(field._State, "advance", killed)
    with pytest.raises(InterruptedError):
        field.train(data, config, seed=3, folder=tmp_path)
    monkeypatch.setattr(field._State, "advance", advance)
    for resumed in (stop // 2 * 2, config.epochs):
        again = field.train(data, config, seed=3, folder=tmp_path)
        assert again.resumed == resumed
        assert same_weights(again, straight)
        pd.testing.assert_frame_equal(again.losses, straight.losses, check_exact=True)
    assert not same_weights(straight, field.train(data, config, seed=4))


def test_a_checkpoint_is_plain_tensors_under_the_name_of_all_that_determines_it(tmp_path: Path) -> None:
    data = problem()
    field.train(data, CONFIG, folder=tmp_path)
    (path,) = tmp_path.iterdir()
    tensors = load_file(path)
    assert int(tensors["epoch"]) == CONFIG.epochs
    assert {"generator", "losses", "weights.head_weight", "adam.exp_avg_sq.head_weight"} <= set(tensors)
    for material, config, seed in (
        (data, replace(CONFIG, batch=4), 0),
        (data, replace(CONFIG, precision="float64"), 0),
        (data, CONFIG, 1),
        (made(data.dataset.images[::-1].copy(), data.tokens), CONFIG, 0),
        (replace(data, taught_by={"teacher": "another"}), CONFIG, 0),
    ):
        assert field.train(material, config, seed=seed, folder=tmp_path).resumed == 0
    assert len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize("how", ["cut", "flipped"])
def test_a_damaged_checkpoint_is_said_and_made_again(tmp_path: Path, how: str) -> None:
    straight = field.train(problem(), CONFIG, folder=tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damaged(whole, how))
    with pytest.warns(UserWarning, match=f"{path.name} .*making it again"):
        again = field.train(problem(), CONFIG, folder=tmp_path)
    assert again.resumed == 0
    assert same_weights(again, straight)
    assert path.read_bytes() == whole


def test_fields_trained_side_by_side_are_those_trained_alone(tmp_path: Path) -> None:
    jobs = {f"{n}": (problem(), replace(CONFIG, student=replace(STUDENT, hidden=(n, 16)))) for n in (16, 24)}
    before = torch.get_num_threads()
    torch.set_num_threads(2)  # two at a time
    try:
        together = field.train_all(jobs, seed=1, folder=tmp_path)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert len(list(tmp_path.iterdir())) == 2
    for name, one in together.items():
        assert same_weights(one, field.train(*jobs[name], seed=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "at least 1 .*found 0"),
        ({"loss_grid": 0.0, "loss_rgb": 0.0}, "not both zero"),
        ({"student": replace(STUDENT, rgb_head=False)}, "rgb_head=True"),
        ({"student": replace(STUDENT, column="tokens", token_width=8)}, "column='conv'"),
        ({"learning_rate": 0.0}, "must be positive"),
        ({"precision": "float46"}, "unknown precision 'float46'.*float32, float64"),
    ],
)
def test_bad_settings_are_clear_errors(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)


def test_what_cannot_be_trained_is_a_clear_error() -> None:
    data = problem()
    bad = data.tokens.copy()
    bad[2, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"tokens of bars have NaN or infinite values in image\(s\) \[2\]"):
        field.train(made(data.dataset.images, bad), CONFIG)
    with pytest.raises(RuntimeError, match=r"loss is (nan|inf) in epoch .* lower the learning rate"):
        field.train(data, replace(CONFIG, learning_rate=1e30, balance=False))


def test_a_look_is_one_pass_in_any_batches_and_in_any_mode_of_the_caller() -> None:
    images = problem().batch(range(24)).images
    trained = field.train(problem(), CONFIG)
    with torch.inference_mode():
        assert same_weights(trained, field.train(problem(), CONFIG))
    seen, small = field.look(trained, images), field.look(trained, images, batch=5)
    np.testing.assert_allclose(seen.features, trained.model.grid(images).numpy(), atol=1e-6)
    np.testing.assert_allclose(seen.folded, trained.model(images).numpy(), atol=1e-6)
    np.testing.assert_allclose(seen.features, small.features, atol=1e-6)
    assert seen.colours.shape == (24, 4, 4, 3)
    assert 0 <= seen.colours.min() <= seen.colours.max() <= 1


def test_a_field_in_float64_or_untrained_is_looked_at_and_measured_as_any_other() -> None:
    data = problem()
    single, double = (field.train(data, replace(CONFIG, precision=name)) for name in ("float32", "float64"))
    for one in (double, field.untrained(double.config)):
        assert {p.dtype for p in one.model.parameters()} == {torch.float64}
    pd.testing.assert_frame_equal(double.losses, single.losses, rtol=1e-3)  # from the same random weights
    one, two = answers.measure({"two": (double, double), "one": (single, single)}, data).values()
    pd.testing.assert_frame_equal(one, two, rtol=1e-3)
    assert same_weights(field.untrained(CONFIG, 3), field.untrained(CONFIG, 3))
    assert not same_weights(field.untrained(CONFIG, 3), field.untrained(CONFIG, 4))
    assert {p.device.type for p in field.untrained(CONFIG, 3, "meta").model.parameters()} == {"meta"}
