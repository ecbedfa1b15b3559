"""Test-time training: equal to the plain formulation, image by image independent, honest about failure."""

import dataclasses
import inspect
import warnings

import plain
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apm import lockstep, ttt
from apm.model import APMConfig, CropFlip, draw_parameters, stack
from apm.ttt import TTTConfig, adapt, initial_parameters

STUDENT = APMConfig(grid=(4, 4), patch=4, hidden=(32, 24, 16), width=16, heads=4, rgb_hidden=(8,))
CONFIG = TTTConfig(STUDENT, iterations=12, learning_rate=3e-3, precision="float64", lockstep=3)
VARIANTS = {
    "mean": ({}, {}),
    "attention": ({"fold": "attention"}, {}),
    "unnormalised target": ({}, {"normalise_target": False}),
    "all losses": ({"fold": "attention"}, {"loss_grid": 0.7, "loss_rgb": 0.3}),
    "three kernels, local patch": ({"kernels": 3, "local_patch": True}, {"loss_rgb": 1.0}),
    "routed tokens": ({"column": "tokens", "token_width": 16}, {"loss_grid": 1.0}),
    "schedule steps inside the run": ({}, {"decay_every": 4}),
}


def problem(n: int, student: APMConfig = STUDENT, seed: int = 0, dtype: torch.dtype = torch.float64) -> dict:
    g = torch.Generator().manual_seed(seed)
    return {
        "images": torch.randn(n, 3, *student.image_size, generator=g, dtype=dtype),
        "targets": torch.randn(n, student.width, generator=g, dtype=dtype),
        "tokens": torch.randn(n, student.locations, student.width, generator=g, dtype=dtype),
        "colours": torch.rand(n, student.locations, 3, generator=g, dtype=dtype),
    }


def variant(name: str, **more: object) -> TTTConfig:
    student, changes = VARIANTS[name]
    return dataclasses.replace(CONFIG, student=dataclasses.replace(STUDENT, **student), **{**changes, **more})


def oracle(data: dict, config: TTTConfig, weights: dict) -> tuple[torch.Tensor, torch.Tensor]:
    runs = [
        plain.adapt_one(
            data["images"][k], data["targets"][k], config, {n: v[k] for n, v in weights.items()},
            data["tokens"][k], data["colours"][k],
        )
        for k in range(len(data["images"]))
    ]  # fmt: skip
    return torch.stack([r[0] for r in runs]), torch.stack([r[1] for r in runs])


@pytest.mark.parametrize("name", VARIANTS)
def test_float64_agrees_with_the_plain_formulation_at_every_iteration_to_1e_9(name: str) -> None:
    config, data = variant(name), problem(4)
    result = adapt(**data, config=config)
    losses, features = oracle(data, config, initial_parameters(data["images"], config))
    assert ((result.losses - losses).abs() / losses).max() < 1e-9
    assert ((result.features - features).norm(dim=-1) / features.norm(dim=-1)).max() < 1e-9
    assert (losses[:, -1] < losses[:, 0]).all()  # it trained: the comparison is not one of standing still


@pytest.mark.parametrize("fold", ["mean", "attention"])
def test_float32_agrees_with_the_plain_formulation_over_50_iterations_to_1e_5(fold: str) -> None:
    config = variant(fold, iterations=50, precision="float32")
    data = problem(2, dtype=torch.float32)
    result = adapt(**data, config=config)
    losses, features = oracle(data, config, initial_parameters(data["images"], config))
    assert ((result.losses - losses).abs() / losses[:, :1]).max() < 1e-5
    assert ((result.features - features).norm(dim=-1) / features.norm(dim=-1)).max() < 1e-5


@given(order=st.permutations(range(5)), lockstep=st.integers(1, 6), keep=st.integers(1, 5))
@settings(max_examples=12, deadline=None)
def test_an_image_does_not_depend_on_the_others_nor_on_their_order(order: list, lockstep: int, keep: int) -> None:
    config, data = variant("attention", lockstep=lockstep), problem(5)
    everything = adapt(data["images"], data["targets"], variant("attention", lockstep=5))
    chosen = order[:keep]
    part = adapt(data["images"][chosen], data["targets"][chosen], config)
    torch.testing.assert_close(part.features, everything.features[chosen], rtol=1e-9, atol=1e-12)


def test_every_image_has_its_own_random_weights_and_the_seed_changes_them() -> None:
    images = problem(3)["images"]
    first, again, other = (initial_parameters(images, CONFIG, seed) for seed in (0, 0, 1))
    weight = first["mlp0_weight"]
    assert torch.equal(weight, again["mlp0_weight"])
    assert not torch.equal(weight, other["mlp0_weight"])
    assert not torch.equal(weight[0], weight[1])


def test_nothing_leaks_from_one_call_to_the_next() -> None:
    data = problem(2)
    first = adapt(data["images"], data["targets"], CONFIG)
    adapt(data["targets"].new_ones(1, 3, 16, 16), data["targets"][:1], CONFIG)
    assert torch.equal(adapt(data["images"], data["targets"], CONFIG).features, first.features)


def test_given_weights_are_the_starting_point_and_stay_untouched() -> None:
    data = problem(2)
    g = torch.Generator().manual_seed(5)
    trained = dataclasses.replace(STUDENT, rgb_head=False)
    init = stack([draw_parameters(trained, g, std=0.2, dtype=torch.float64) for _ in range(2)])
    before = {k: v.clone() for k, v in init.items()}
    result = adapt(data["images"], data["targets"], CONFIG, init=init, keep_parameters=True)
    _, features = oracle(data, CONFIG, init)
    torch.testing.assert_close(result.features, features, rtol=1e-9, atol=1e-12)
    assert all(torch.equal(init[k], before[k]) for k in init)
    assert not torch.equal(result.parameters["head_weight"], init["head_weight"])


def test_scores_are_cosines_to_the_text_features_and_predictions_their_best_class() -> None:
    data = problem(3)
    text = torch.nn.functional.normalize(
        torch.randn(7, 16, generator=torch.Generator().manual_seed(2)).double(), dim=-1
    )
    plain_result = adapt(data["images"], data["targets"], CONFIG)
    scored = adapt(data["images"], data["targets"], CONFIG, text_features=text)
    expected = torch.nn.functional.cosine_similarity(plain_result.features[:, :, None], text, dim=-1)
    torch.testing.assert_close(scored.scores, expected)
    assert torch.equal(scored.predictions(), expected.argmax(-1))
    assert scored.features is None


def test_entry_zero_is_the_student_at_random_weights_and_the_last_one_fits_the_target() -> None:
    data, config = problem(2), variant("mean", iterations=200, decay_every=1000)
    result = adapt(data["images"], data["targets"], config)
    assert result.features.shape == (2, 201, 16)
    target = torch.nn.functional.normalize(data["targets"], dim=-1)
    cosine = torch.nn.functional.cosine_similarity(result.features[:, -1], target, dim=-1)
    assert (cosine > 0.99).all()
    assert (result.losses[:, -1] < 0.01 * result.losses[:, 0]).all()


def test_a_non_finite_loss_stops_that_image_alone() -> None:
    data = problem(3)
    g = torch.Generator().manual_seed(5)
    trained = dataclasses.replace(STUDENT, rgb_head=False)
    init = stack([draw_parameters(trained, g, dtype=torch.float64) for _ in range(3)])
    clean = adapt(data["images"], data["targets"], CONFIG, init=init)
    init["head_weight"][1, 0, 0] = float("inf")
    text = torch.eye(16, dtype=torch.float64)
    result = adapt(data["images"], data["targets"], CONFIG, init=init, text_features=text)
    assert result.status == ["ok", "non-finite loss at iteration 0", "ok"]
    assert (result.predictions()[1] == -1).all()
    assert result.losses[1].isnan().all()
    torch.testing.assert_close(result.losses[[0, 2]], clean.losses[[0, 2]])


def test_a_learning_rate_that_diverges_is_reported_with_its_iteration() -> None:
    data = problem(1, dtype=torch.float32)
    config = variant("mean", precision="float32", learning_rate=1e12)
    status = adapt(data["images"], data["targets"], config).status[0]
    assert status.startswith("non-finite loss at iteration")
    assert int(status.split()[-1]) >= 1


def test_callback_sees_every_iteration_with_the_weights_of_that_iteration() -> None:
    data, seen = problem(4), []
    adapt(
        data["images"],
        data["targets"],
        CONFIG,
        callback=lambda k, part, p: seen.append((k, part.start, p["head_bias"].clone())),
    )
    assert sorted(s[:2] for s in seen) == sorted((k, start) for start in (0, 2) for k in range(13))
    assert torch.equal(
        next(s[2] for s in seen if s[:2] == (0, 0)), initial_parameters(data["images"][:2], CONFIG)["head_bias"]
    )


def test_bfloat16_keeps_weights_in_float32_and_follows_the_float32_loss() -> None:
    data = problem(4, dtype=torch.float32)
    low = adapt(
        data["images"], data["targets"], variant("mean", precision="bfloat16", iterations=40), keep_parameters=True
    )
    full = adapt(data["images"], data["targets"], variant("mean", precision="float32", iterations=40))
    assert low.parameters["mlp0_weight"].dtype == torch.float32
    cosine = torch.nn.functional.cosine_similarity(low.features[:, -1], full.features[:, -1], dim=-1)
    assert (cosine > 0.99).all()


def test_labels_are_no_argument_of_test_time_training() -> None:
    assert not any("label" in name for name in inspect.signature(adapt).parameters)
    assert not any("label" in name.co_names for name in [inspect.unwrap(adapt).__code__, ttt.objective.__code__])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"images": torch.zeros(2, 3, 15, 16)},
            r"student of \(4, 4\).*'images': \(\(2, 3, 16, 16\), \(2, 3, 15, 16\)\)",
        ),
        ({"targets": torch.zeros(2, 17)}, r"'targets': \(\(2, 16\), \(2, 17\)\)"),
        ({"targets": torch.zeros(3, 16)}, r"'targets': \(\(2, 16\), \(3, 16\)\)"),
        ({"text_features": torch.zeros(5, 9)}, r"'text_features': \(\(5, 16\), \(5, 9\)\)"),
        (
            {"images": torch.full((2, 3, 16, 16), float("nan"))},
            r"images \(2, 3, 16, 16\) has NaN.*row\(s\) \[0, 1\]",
        ),
        ({"targets": torch.tensor([[0.0] * 16, [float("inf")] * 16])}, r"targets \(2, 16\).*\[1\]"),
    ],
)
def test_bad_input_is_refused_with_names_and_shapes(change: dict, message: str) -> None:
    arguments = {"images": torch.zeros(2, 3, 16, 16), "targets": torch.ones(2, 16), **change}
    with pytest.raises(ValueError, match=message):
        adapt(config=CONFIG, **arguments)


@pytest.mark.parametrize(("loss", "name"), [("loss_grid", "tokens"), ("loss_rgb", "colours")])
def test_a_loss_without_its_target_is_refused(loss: str, name: str) -> None:
    data = problem(2)
    with pytest.raises(ValueError, match=f"{name}.*None"):
        adapt(data["images"], data["targets"], dataclasses.replace(CONFIG, **{loss: 1.0}))


def test_stacked_weights_of_the_wrong_count_are_refused() -> None:
    data = problem(2)
    init = initial_parameters(data["images"][:1], CONFIG)
    with pytest.raises(ValueError, match=r"2 images.*head_weight': \(\(2, 16, 16\), \(1, 16, 16\)\)"):
        adapt(data["images"], data["targets"], CONFIG, init=init)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"iterations": 0}, "at least 1"),
        ({"learning_rate": 0.0}, "positive"),
        ({"precision": "float8"}, "unknown precision 'float8'. Known: float32, tf32, bfloat16, float64"),
        ({"loss_cls": 0.0}, "not all zero"),
        ({"augmentation": "mixup"}, "unknown augmentation 'mixup'. Known: none, crop-flip"),
        ({"protocol": "released"}, "unknown protocol 'released'. Known: corrected, as_released"),
        ({"loss_rgb": 1.0, "student": dataclasses.replace(STUDENT, rgb_head=False)}, "rgb_head=True"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_rounding_does_not_depend_on_the_number_of_cores_and_their_number_is_kept() -> None:
    data, config = problem(7, dtype=torch.float32), variant("attention", precision="float32", lockstep=3)
    before = torch.get_num_threads()
    try:
        results = []
        for cores in (2, 3):
            torch.set_num_threads(cores)
            results.append(adapt(data["images"], data["targets"], config).features)
            assert torch.get_num_threads() == cores
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


def test_an_error_in_a_callback_reaches_the_caller() -> None:
    data = problem(7)

    def fail(k: int, part: slice, parameters: dict) -> None:
        raise RuntimeError(f"looked at {part.start}")

    with pytest.raises(RuntimeError, match="looked at 0"):
        adapt(data["images"], data["targets"], CONFIG, callback=fail)


def test_as_released_is_the_released_loop_with_its_gradient_scaler() -> None:
    data = problem(3)
    config = variant("attention", protocol="as_released", iterations=8, decay_every=5, normalise_target=False)
    result = adapt(data["images"], data["targets"], config, seed=4)
    weights = initial_parameters(data["images"], config, 4)
    losses, features = plain.adapt_as_released(data["images"], data["targets"], config, weights)
    assert ((result.losses - losses).abs() / losses).max() < 1e-9
    assert ((result.features - features).norm(dim=-1) / features.norm(dim=-1)).max() < 1e-9
    assert all(torch.equal(value, problem(3)[name]) for name, value in data.items())  # what was passed stays as it was
    alone = adapt(data["images"][2:], data["targets"][2:], config, seed=4)
    assert config.carried
    assert not torch.allclose(alone.losses, result.losses[2:])  # what came before an image matters
    # the first image has nothing before it: gradients in effect zeroed, but for the 65,536th part of the one before
    corrected = adapt(
        data["images"][:1], data["targets"][:1], dataclasses.replace(config, protocol="corrected"), seed=4
    )
    difference = (corrected.losses - result.losses[:1]).abs() / corrected.losses
    assert difference.max() < 1e-3
    assert difference.max() > 1e-9


def test_as_released_the_scale_grows_as_the_scaler_s_own_does() -> None:
    """Every 2,000 steps it doubles: here over 2,100 steps of a tiny student."""
    student = APMConfig(grid=(2, 2), patch=2, hidden=(4,), width=4, position_width=4)
    config = TTTConfig(student, iterations=1050, protocol="as_released", precision="float64")
    data = problem(2, student)
    result = adapt(data["images"], data["targets"], config)
    weights = initial_parameters(data["images"], config)
    losses, _ = plain.adapt_as_released(data["images"], data["targets"], config, weights)
    assert ((result.losses - losses).abs() / losses).max() < 1e-9


def test_as_released_an_image_that_fails_leaves_nothing_to_the_next() -> None:
    data = problem(3)
    config = variant("mean", protocol="as_released")
    init = initial_parameters(data["images"], config)
    init["head_weight"][1, 0, 0] = float("inf")
    result = adapt(data["images"], data["targets"], config, init=init)
    assert result.status == ["ok", "non-finite loss at iteration 0", "ok"]
    assert result.losses[2, -1] < result.losses[2, 0]


def test_the_released_protocol_leaves_no_learning_rate_to_later_images() -> None:
    data = problem(4)
    config = variant("mean", protocol="as_released", iterations=20, decay_every=5)
    fall = adapt(data["images"], data["targets"], config).losses
    assert (fall[0, -1] < 0.9 * fall[0, 0]).all()
    assert fall[3, -1] > 0.999999 * fall[3, 0]  # 60 iterations at a tenfold cut every 5: 1e-12 of the rate
    kept = adapt(data["images"], data["targets"], config, keep_parameters=True).parameters["head_bias"]
    assert not torch.equal(kept[0], kept[1])  # one set of tensors serves all images: each one's end is a copy


def test_augmented_views_change_what_is_trained_on_but_not_what_is_predicted_from() -> None:
    data = problem(3)
    plain_config = variant("mean", iterations=6)
    augmented = dataclasses.replace(plain_config, augmentation="crop-flip")
    a, b = (adapt(data["images"], data["targets"], c, seed=1) for c in (plain_config, augmented))
    torch.testing.assert_close(a.losses[:, 0], b.losses[:, 0])  # before any update: the same image, the same weights
    assert not torch.allclose(a.losses[:, -1], b.losses[:, -1])
    again = adapt(data["images"][[2, 0]], data["targets"][[2, 0]], augmented, seed=1)
    torch.testing.assert_close(again.features, b.features[[2, 0]], rtol=1e-9, atol=1e-12)
    other = adapt(data["images"], data["targets"], augmented, seed=2)
    assert not torch.allclose(other.losses, b.losses)


def test_views_are_crops_of_their_image_and_mirrored_every_other_time() -> None:
    ramp = torch.linspace(0, 1, 32).expand(1, 3, 32, 32)  # grows from left to right
    views = CropFlip(ramp, 0)
    drawn = torch.cat([views.draw() for _ in range(200)])
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    slope = drawn[:, 0, 0, -1] - drawn[:, 0, 0, 0]
    assert 60 < int((slope > 0).sum()) < 140
    assert (slope.abs() < 1).float().mean() > 0.9  # a crop shows a part of the range
    assert (
        0.2 < slope.abs().square().mean() < 0.8
    )  # width^2 averages to about the mean area, 54 %, less where aspect clips


def test_images_are_shared_out_evenly() -> None:
    data, parts = problem(5), set()
    adapt(data["images"], data["targets"], CONFIG, callback=lambda k, part, p: parts.add((part.start, part.stop)))
    assert sorted(parts) == [(0, 2), (2, 5)]
    many, wide = problem(40), set()
    chosen = dataclasses.replace(CONFIG, lockstep=64, iterations=1)
    adapt(many["images"], many["targets"], chosen, callback=lambda k, part, p: wide.add((part.start, part.stop)))
    assert sorted(wide) == [(0, 10), (10, 20), (20, 30), (30, 40)]  # parts for cores, although all fit side by side
    assert adapt(data["images"][:0], data["targets"][:0], CONFIG).features.shape == (0, 13, 16)


def test_students_that_do_not_fit_into_memory_train_in_halves_with_the_same_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, config = problem(5), variant("mean", lockstep=8)
    expected = adapt(data["images"], data["targets"], config)
    original = ttt.objective

    def small(config: TTTConfig, weights: dict, inputs: dict) -> tuple:
        if len(inputs["x"]) > room[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(config, weights, inputs)

    monkeypatch.setattr(ttt, "objective", small)
    monkeypatch.setattr(lockstep, "SMALL", 0)  # a single part, trained here as on a GPU
    room = [2]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        halved = adapt(data["images"], data["targets"], config, keep_parameters=True)
    torch.testing.assert_close(halved.features, expected.features, rtol=1e-9, atol=1e-12)
    assert "5 students side by side do not fit into the GPU's memory: going on with 2" in str(said[0].message)
    assert len(halved.parameters["head_bias"]) == 5
    room = [0]
    with pytest.raises(torch.OutOfMemoryError), pytest.warns(UserWarning, match="side by side"):
        adapt(data["images"], data["targets"], config)


def test_students_whose_updates_are_replayed_are_those_trained_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of a GPU, with a capture that a CPU can do: everything is started anew in place, part after part."""
    config, data = variant("all losses", lockstep=2, decay_every=4), problem(7)
    expected = adapt(**data, config=config)
    losses, _ = oracle(data, config, initial_parameters(data["images"], config))
    captures, aside = [], []

    def captured(step):
        captures.append(None)
        result = None

        def replay():
            nonlocal result
            new = step()
            result = result or tuple(torch.empty_like(value) for value in new)
            for there, value in zip(result, new, strict=True):
                there.copy_(value)  # a graph's results lie in the same memory every time
            return result

        return replay

    monkeypatch.setattr(lockstep, "_captures", lambda device: True)
    monkeypatch.setattr(lockstep, "_captured", captured)
    monkeypatch.setattr(lockstep, "_aside", lambda step: (aside.append(None), step())[1])
    # parts one after the other, as on a GPU
    monkeypatch.setattr(ttt, "side_by_side", lambda train, parts, *_: [train(part) for part in parts])
    result = adapt(**data, config=config, keep_parameters=True)
    # of parts of 1, 2, 2 and 2 images: once for each size in a row, three updates before it
    assert [len(captures), len(aside)] == [2, 6]
    torch.testing.assert_close(result.losses, expected.losses, rtol=1e-6, atol=0)  # a rate in a tensor is float32
    torch.testing.assert_close(result.losses, losses, rtol=1e-6, atol=0)
    torch.testing.assert_close(result.features, expected.features, rtol=1e-5, atol=1e-8)
    assert all(torch.equal(value, problem(7)[name]) for name, value in data.items())  # what was passed stays as it was
    ends = result.parameters["head_bias"]
    assert not torch.equal(ends[1], ends[3])  # one set of tensors serves several parts: each one's end is a copy


def test_a_step_that_cannot_be_captured_trains_without_a_graph_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    config, data = variant("mean"), problem(2)
    expected = adapt(data["images"], data["targets"], config)

    def captured(step):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(lockstep, "_captures", lambda device: True)
    monkeypatch.setattr(lockstep, "_captured", captured)
    monkeypatch.setattr(lockstep, "_aside", lambda step: step())
    with pytest.warns(UserWarning, match="no CUDA graph, training goes on without it.*not permitted"):
        result = adapt(data["images"], data["targets"], config)
    torch.testing.assert_close(result.losses, expected.losses, rtol=1e-6, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", VARIANTS)
def test_a_gpu_with_graphs_trains_as_the_plain_formulation_does(name: str) -> None:
    config, data = variant(name, lockstep=2), problem(4)
    weights = initial_parameters(data["images"], config)
    there = {key: value.cuda() for key, value in data.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no graph is an error here
        result = adapt(**there, config=config, init={key: value.cuda() for key, value in weights.items()})
    losses, features = oracle(data, config, weights)
    torch.testing.assert_close(result.losses.cpu(), losses, rtol=1e-6, atol=0)
    torch.testing.assert_close(result.features.cpu(), features, rtol=1e-5, atol=1e-8)


def test_tf32_is_refused_where_there_is_no_gpu() -> None:
    data = problem(1)
    with pytest.raises(ValueError, match="precision tf32 is a GPU's, found images on cpu"):
        adapt(data["images"], data["targets"], variant("mean", precision="tf32"))


@pytest.mark.parametrize("fold", ["mean", "attention"])
def test_the_released_form_with_its_repeats_and_chunks_is_the_plain_one(fold: str) -> None:
    data, config = problem(1), variant(fold)
    weights = {name: value[0] for name, value in initial_parameters(data["images"], config).items()}
    student = plain.PlainStudent(config.student, weights)
    released = student.released(data["images"][0], copies=3, chunk=5)
    torch.testing.assert_close(released, student(data["images"][0])[0].expand(3, -1))


def test_small_students_train_with_single_threaded_operations_and_large_ones_with_all_cores() -> None:
    seen = {}
    for name, product in (("small", 1e6), ("large", 1e12)):
        lockstep.side_by_side(
            lambda part, name=name: seen.update({name: torch.get_num_threads()}) or {},
            [slice(0, 1)], torch.device("cpu"), product,
        )  # fmt: skip
    assert seen["small"] == 1
    assert seen["large"] == torch.get_num_threads()


@pytest.mark.parametrize(
    "mode",
    [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)],
    ids=["no_grad", "inference_mode", "autocast"],
)
@pytest.mark.parametrize(
    "changes", [{}, {"protocol": "as_released"}, {"augmentation": "crop-flip"}, {"precision": "bfloat16"}]
)
def test_it_trains_the_same_whatever_the_mode_of_the_caller(mode, changes: dict) -> None:
    config = variant("all losses", **{"iterations": 4, "precision": "float32", **changes})
    text = torch.eye(16)
    data = problem(3, dtype=torch.float32)
    expected = adapt(**data, config=config, text_features=text)
    with mode():
        inside = {name: value.clone() for name, value in data.items()}  # made in that mode
        result = adapt(**inside, config=config, text_features=text.clone(), keep_parameters=True)
        own = adapt(**inside, config=config, init=result.parameters)
    assert torch.equal(result.losses, expected.losses)
    assert torch.equal(result.scores, expected.scores)
    assert not result.losses.is_inference()
    assert (own.losses[:, -1] < expected.losses[:, 0]).all()


def test_what_carries_a_graph_is_detached() -> None:
    config, data = variant("all losses", iterations=3), problem(3)
    text = torch.eye(16, dtype=torch.float64)
    expected = adapt(**data, config=config, text_features=text)
    encoder = torch.ones((), dtype=torch.float64, requires_grad=True)
    graph = {name: value * encoder for name, value in data.items()}
    result = adapt(**graph, config=config, text_features=text * encoder)
    assert torch.equal(result.scores, expected.scores)
    assert not result.scores.requires_grad
    assert encoder.grad is None


@pytest.mark.parametrize("name", ["targets", "tokens"])
def test_a_direction_of_length_zero_is_refused_by_its_rows(name: str) -> None:
    data = problem(3)
    data[name][1] = 0
    with pytest.raises(ValueError, match=rf"{name} of length 0.*row\(s\) \[1\]"):
        adapt(**data, config=variant("all losses"))
    assert adapt(**data, config=variant("all losses", normalise_target=False)).status == ["ok"] * 3


@pytest.mark.parametrize("name", ["images", "targets", "tokens", "colours"])
def test_whole_numbers_are_refused(name: str) -> None:
    data = problem(2)
    data[name] = (data[name] * 10).clamp(0, 255).to(torch.uint8)
    with pytest.raises(ValueError, match=f"expected floating-point values, found {{'{name}': 'torch.uint8'}}"):
        adapt(**data, config=variant("all losses"))


@pytest.mark.parametrize("changes", [{}, {"augmentation": "crop-flip"}, {"protocol": "as_released"}])
def test_another_default_dtype_changes_nothing(changes: dict) -> None:
    data, config = problem(2, dtype=torch.float32), variant("all losses", precision="float32", iterations=3, **changes)
    expected = adapt(**data, config=config)
    torch.set_default_dtype(torch.float64)
    try:
        result = adapt(**data, config=config)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(result.losses, expected.losses)
