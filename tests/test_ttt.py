"""Test-time training: equal to the plain formulation, image by image independent, honest about failure."""

import dataclasses
import functools
import itertools
from contextlib import contextmanager
from unittest.mock import Mock

import plain
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from apm import lockstep, ttt
from apm.model import APMConfig, CropFlip, draw_parameters, stack
from apm.ttt import TTTConfig, TTTResult, adapt, initial_parameters

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


def rows(data: dict, chosen: object) -> dict:
    return {name: value[chosen] for name, value in data.items()}


def variant(name: str, **more: object) -> TTTConfig:
    student, changes = VARIANTS[name]
    return dataclasses.replace(CONFIG, student=dataclasses.replace(STUDENT, **student), **{**changes, **more})


def oracle(data: dict, config: TTTConfig, weights: dict) -> list[torch.Tensor]:
    """Losses and features of the plain formulation, image by image."""

    def one(k: int) -> tuple:
        own = {name: value[k] for name, value in weights.items()}
        return plain.adapt_one(
            data["images"][k], data["targets"][k], config, own, data["tokens"][k], data["colours"][k]
        )

    return [torch.stack(values) for values in zip(*map(one, range(len(data["images"]))), strict=True)]


def agree(result: TTTResult, expected, within: float) -> None:
    losses, features = expected
    scale = losses if losses.dtype == torch.float64 else losses[:, :1]
    assert ((result.losses.cpu() - losses).abs() / scale).max() < within
    assert ((result.features.cpu() - features).norm(dim=-1) / features.norm(dim=-1)).max() < within


@pytest.mark.parametrize(
    ("name", "precision"), [*((name, "float64") for name in VARIANTS), ("mean", "float32"), ("attention", "float32")]
)
def test_it_agrees_with_the_plain_formulation_at_every_iteration(name, precision):
    iterations, within = (12, 1e-9) if precision == "float64" else (50, 1e-5)
    config = variant(name, precision=precision, iterations=iterations)
    data = problem(4, dtype=config.dtype)
    losses, features = oracle(data, config, initial_parameters(data["images"], config))
    agree(adapt(**data, config=config), (losses, features), within)
    assert (losses[:, -1] < losses[:, 0]).all()  # it trained: the comparison is not one of standing still


@given(chosen=st.lists(st.integers(0, 4), min_size=1, unique=True), lockstep=st.integers(1, 6))
@settings(max_examples=12, deadline=None)
def test_an_image_does_not_depend_on_the_others_nor_on_their_order(chosen, lockstep):
    data = problem(5)
    everything = adapt(**data, config=variant("attention", lockstep=5))
    part = adapt(**rows(data, chosen), config=variant("attention", lockstep=lockstep))
    torch.testing.assert_close(part.features, everything.features[chosen], rtol=1e-9, atol=1e-12)


def test_every_image_has_its_own_random_weights_and_the_seed_changes_them():
    images = problem(3)["images"]
    first, again, other = (initial_parameters(images, CONFIG, seed)["mlp0_weight"] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


def test_given_weights_are_the_starting_point_and_stay_untouched():
    data, g = problem(2), torch.Generator().manual_seed(5)
    init = stack([draw_parameters(CONFIG.trained, g, std=0.2, dtype=torch.float64) for _ in range(2)])
    before = {k: v.clone() for k, v in init.items()}
    result = adapt(**data, config=CONFIG, init=init, keep_parameters=True)
    agree(result, oracle(data, CONFIG, init), 1e-9)
    assert all(torch.equal(init[k], before[k]) for k in init)
    assert not torch.equal(result.parameters["head_weight"], init["head_weight"])


def test_scores_are_cosines_to_the_text_features_and_predictions_their_best_class():
    data, text = problem(3), F.normalize(problem(7, seed=2)["targets"], dim=-1)
    scored = adapt(**data, config=CONFIG, text_features=text)
    expected = F.cosine_similarity(adapt(**data, config=CONFIG).features[:, :, None], text, dim=-1)
    torch.testing.assert_close(scored.scores, expected)
    assert torch.equal(scored.predictions(), expected.argmax(-1))
    assert scored.features is None


@pytest.mark.parametrize("protocol", ["corrected", "as_released"])
def test_a_non_finite_loss_stops_that_image_alone(protocol):
    data, config = problem(3), variant("mean", protocol=protocol)
    init = initial_parameters(data["images"], config)
    clean = adapt(**data, config=config, init=init)
    init["head_weight"][1, 0, 0] = float("inf")
    result = adapt(**data, config=config, init=init, text_features=torch.eye(16).double())
    assert result.status == ["ok", "non-finite loss at iteration 0", "ok"]
    assert (result.predictions()[1] == -1).all()
    assert result.losses[1].isnan().all()
    same = [0, 2] if protocol == "corrected" else [0]  # else the optimiser had no step where the image failed
    torch.testing.assert_close(result.losses[same], clean.losses[same])
    assert result.losses[2, -1] < result.losses[2, 0]


def test_callback_sees_every_iteration_with_the_weights_of_that_iteration_and_its_errors_are_raised():
    data, seen = problem(4), {}
    adapt(**data, config=CONFIG, callback=lambda k, part, p: seen.update({(k, part.start): p["head_bias"].clone()}))
    assert sorted(seen) == sorted((k, start) for start in (0, 2) for k in range(13))
    assert torch.equal(seen[0, 0], initial_parameters(data["images"][:2], CONFIG)["head_bias"])
    with pytest.raises(ZeroDivisionError):
        adapt(**data, config=CONFIG, callback=lambda k, part, p: 1 // part.start)


def test_bfloat16_keeps_weights_in_float32_and_follows_the_float32_features():
    data, both = problem(4, dtype=torch.float32), [variant("mean", precision=p) for p in ("bfloat16", "float32")]
    low, full = (adapt(**data, config=config, keep_parameters=True) for config in both)
    assert low.parameters["mlp0_weight"].dtype == torch.float32
    assert (F.cosine_similarity(low.features[:, -1], full.features[:, -1], dim=-1) > 0.99).all()
    assert not torch.equal(low.features, full.features)


ONE_ZERO = torch.cat([torch.ones(1, 16), torch.zeros(1, 16)])


@pytest.mark.parametrize(
    ("given", "settings", "message"),
    [
        ({"images": torch.zeros(2, 3, 15, 16)}, {}, r"student of \(4, 4\).*'images': \(\(2, 3, 16, 16\), \(2, 3, 15, 16\)\)"),
        ({"targets": torch.zeros(2, 17)}, {}, r"'targets': \(\(2, 16\), \(2, 17\)\)"),
        ({"targets": torch.zeros(3, 16)}, {}, r"'targets': \(\(2, 16\), \(3, 16\)\)"),
        ({"text_features": torch.zeros(5, 9)}, {}, r"'text_features': \(\(5, 16\), \(5, 9\)\)"),
        ({"init": {"head_weight": torch.zeros(1, 16, 16)}}, {}, r"2 images.*head_weight': \(\(2, 16, 16\), \(1, 16, 16\)\)"),
        ({}, {"loss_grid": 1.0}, "tokens.*None"),
        ({}, {"loss_rgb": 1.0}, "colours.*None"),
        ({"images": torch.full((2, 3, 16, 16), float("nan"))}, {}, r"images \(2, 3, 16, 16\) has NaN.*row\(s\) \[0, 1\]"),
        ({"targets": 1 / ONE_ZERO}, {}, r"targets \(2, 16\).*\[1\]"),
        ({"targets": ONE_ZERO}, {}, r"targets of length 0.*row\(s\) \[1\]"),
        ({"tokens": ONE_ZERO[:, None].expand(2, 16, 16)}, {"loss_grid": 1.0}, r"tokens of length 0.*row\(s\) \[1\]"),
        ({"images": torch.zeros(2, 3, 16, 16, dtype=torch.uint8)}, {}, "expected floating-point values, found {'images': 'torch.uint8'}"),
        ({"targets": torch.ones(2, 16, dtype=torch.int64)}, {}, "found {'targets': 'torch.int64'}"),
        ({}, {"precision": "tf32"}, "precision tf32 is a GPU's, found images on cpu"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_names_and_shapes(given, settings, message):
    arguments = {"images": torch.zeros(2, 3, 16, 16), "targets": torch.ones(2, 16), **given}
    with pytest.raises(ValueError, match=message):
        adapt(config=dataclasses.replace(CONFIG, **settings), **arguments)


def test_a_target_of_length_zero_is_one_where_targets_are_not_normalised():
    assert adapt(torch.zeros(2, 3, 16, 16), ONE_ZERO, variant("unnormalised target")).status == ["ok", "ok"]


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
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_rounding_does_not_depend_on_the_number_of_cores_and_their_number_is_kept(request):
    request.addfinalizer(functools.partial(torch.set_num_threads, torch.get_num_threads()))
    data, config, results = problem(7, dtype=torch.float32), variant("attention", precision="float32"), []
    for cores in (2, 3):
        torch.set_num_threads(cores)
        results.append(adapt(**data, config=config).features)
        assert torch.get_num_threads() == cores
    assert torch.equal(*results)


def test_as_released_is_the_released_loop_with_its_gradient_scaler():
    data = problem(3)
    config = variant("attention", protocol="as_released", iterations=8, decay_every=5, normalise_target=False)
    result = adapt(**data, config=config, seed=4, keep_parameters=True)
    weights = initial_parameters(data["images"], config, 4)
    agree(result, plain.adapt_as_released(data["images"], data["targets"], config, weights), 1e-9)
    ends = result.parameters["head_bias"]
    assert not torch.equal(ends[0], ends[1])  # one set of tensors serves all images: each one's end is a copy
    alone = adapt(**rows(data, [2]), config=config, seed=4)
    assert config.carried
    assert not torch.allclose(alone.losses, result.losses[2:])  # what came before an image matters
    # the first image has nothing before it: gradients in effect zeroed, but for the 65,536th part of the one before
    corrected = adapt(**rows(data, [0]), config=dataclasses.replace(config, protocol="corrected"), seed=4).losses
    assert 1e-9 < ((corrected - result.losses[:1]).abs() / corrected).max() < 1e-3


def test_augmented_views_change_what_is_trained_on_but_not_what_is_predicted_from():
    data, augmented = problem(3), variant("mean", iterations=6, augmentation="crop-flip")
    a, b, other = (
        adapt(**data, config=config, seed=seed)
        for config, seed in ((variant("mean", iterations=6), 1), (augmented, 1), (augmented, 2))
    )
    torch.testing.assert_close(a.losses[:, 0], b.losses[:, 0])  # before any update: the same image, the same weights
    assert not torch.allclose(a.losses[:, -1], b.losses[:, -1])
    again = adapt(**rows(data, [2, 0]), config=augmented, seed=1)
    torch.testing.assert_close(again.features, b.features[[2, 0]], rtol=1e-9, atol=1e-12)
    assert not torch.allclose(other.losses, b.losses)


def test_views_are_crops_of_their_image_and_mirrored_every_other_time():
    views = CropFlip(torch.linspace(0, 1, 32).expand(1, 3, 32, 32), 0)  # grows from left to right
    drawn = torch.cat([views.draw() for _ in range(200)])
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    slope = drawn[:, 0, 0, -1] - drawn[:, 0, 0, 0]
    assert 60 < int((slope > 0).sum()) < 140
    assert (slope.abs() < 1).float().mean() > 0.9  # a crop shows a part of the range
    assert 0.2 < slope.square().mean() < 0.8  # width^2 averages to about the mean area, 54 %, less where aspect clips


# 40: parts for cores
@pytest.mark.parametrize(("n", "size", "ends"), [(5, 3, [2, 5]), (40, 64, [10, 20, 30, 40]), (0, 3, [])])
def test_images_are_shared_out_evenly(n, size, ends):
    parts, config = set(), dataclasses.replace(CONFIG, lockstep=size, iterations=1)
    result = adapt(**problem(n), config=config, callback=lambda k, part, p: parts.add((part.start, part.stop)))
    assert sorted(parts) == list(itertools.pairwise([0, *ends]))
    assert result.features.shape == (n, 2, 16)


def test_students_that_do_not_fit_into_memory_train_in_halves(monkeypatch):
    data, config = problem(5), variant("mean", lockstep=8)
    expected = adapt(**data, config=config)
    original = ttt.objective

    def small(config: TTTConfig, weights: dict, inputs: dict) -> tuple:
        if len(inputs["x"]) > room[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(config, weights, inputs)

    monkeypatch.setattr(ttt, "objective", small)
    monkeypatch.setattr(lockstep, "SMALL", 0)  # a single part, trained here as on a GPU
    room = [2]
    with pytest.warns(UserWarning, match="5 students side by side do not fit into the GPU's memory: going on with 2"):
        halved = adapt(**data, config=config, keep_parameters=True)
    torch.testing.assert_close(halved.features, expected.features, rtol=1e-9, atol=1e-12)
    assert len(halved.parameters["head_bias"]) == 5
    room = [0]
    with pytest.raises(torch.OutOfMemoryError), pytest.warns(UserWarning, match="side by side"):
        adapt(**data, config=config)


@pytest.fixture
def graphs(monkeypatch) -> list[str]:
    """What a GPU would be asked for: "aside" for a step on a stream of its own, "capture" for a graph, which here calls the step."""
    asked: list[str] = []

    def captured(step):
        asked.append("capture")
        result = []

        def replay():
            new = step()
            result[:] = result or map(torch.empty_like, new)
            return tuple(there.copy_(value) for there, value in zip(result, new, strict=True))  # always the same memory

        return replay

    monkeypatch.setattr(lockstep, "_captures", lambda device: True)
    monkeypatch.setattr(lockstep, "_captured", captured)
    monkeypatch.setattr(lockstep, "_aside", lambda step: (asked.append("aside"), step())[1])
    # parts one after the other, as on a GPU
    monkeypatch.setattr(ttt, "side_by_side", lambda train, parts, *_: [train(part) for part in parts])
    return asked


def test_students_whose_updates_are_replayed_are_those_trained_one_by_one(graphs):
    """Everything is started anew in place, part after part."""
    config, data = variant("all losses", lockstep=2, decay_every=4), problem(7)
    result = adapt(**data, config=config, keep_parameters=True)
    # of parts of 1, 2, 2 and 2 images: once for each size in a row, three updates before it
    assert graphs == 2 * [*3 * ["aside"], "capture"]
    weights = initial_parameters(data["images"], config)
    agree(result, oracle(data, config, weights), 1e-5)  # a rate in a tensor is float32
    assert all(torch.equal(value, problem(7)[name]) for name, value in data.items())  # what was passed stays as it was
    ends = result.parameters["head_bias"]
    assert not torch.equal(ends[1], ends[3])  # one set of tensors serves several parts: each one's end is a copy


def test_a_step_that_cannot_be_captured_trains_without_a_graph_and_says_so(graphs, monkeypatch):
    monkeypatch.setattr(lockstep, "_captured", Mock(side_effect=RuntimeError("not permitted when stream is capturing")))
    config, data = variant("mean"), problem(2)
    with pytest.warns(UserWarning, match="no CUDA graph, training goes on without it.*not permitted"):
        result = adapt(**data, config=config)
    agree(result, oracle(data, config, initial_parameters(data["images"], config)), 1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("error")  # no graph is an error here
@pytest.mark.parametrize("name", VARIANTS)
def test_a_gpu_with_graphs_trains_as_the_plain_formulation_does(name):
    config, data = variant(name, lockstep=2), problem(4)
    weights = initial_parameters(data["images"], config)
    there, init = ({key: value.cuda() for key, value in one.items()} for one in (data, weights))
    agree(adapt(**there, config=config, init=init), oracle(data, config, weights), 1e-5)


@pytest.mark.parametrize("fold", ["mean", "attention"])
def test_the_released_form_with_its_repeats_and_chunks_is_the_plain_one(fold):
    data, config = problem(1), variant(fold)
    weights = {name: value[0] for name, value in initial_parameters(data["images"], config).items()}
    student = plain.PlainStudent(config.student, weights)
    released = student.released(data["images"][0], copies=3, chunk=5)
    torch.testing.assert_close(released, student(data["images"][0])[0].expand(3, -1))


@contextmanager
def double_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


MODES = torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16), double_by_default
CHANGES = {}, {"protocol": "as_released"}, {"augmentation": "crop-flip"}, {"precision": "bfloat16"}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("changes", CHANGES)
def test_it_trains_the_same_whatever_the_mode_of_the_caller(mode, changes):
    config = variant("all losses", **{"iterations": 4, "precision": "float32", **changes})
    data = {**problem(3, dtype=torch.float32), "text_features": torch.eye(16)}
    expected = adapt(**data, config=config)
    with mode():
        inside = {name: value.clone() for name, value in data.items()}  # made in that mode
        result = adapt(**inside, config=config, keep_parameters=True)
        own = adapt(**inside, config=config, init=result.parameters)
    assert torch.equal(result.losses, expected.losses)
    assert torch.equal(result.scores, expected.scores)
    assert not result.losses.is_inference()
    assert (own.losses[:, -1] < expected.losses[:, 0]).all()


def test_what_carries_a_graph_is_detached():
    config, data = variant("all losses", iterations=3), {**problem(3), "text_features": torch.eye(16).double()}
    encoder = torch.ones((), dtype=torch.float64, requires_grad=True)
    result = adapt(**{name: value * encoder for name, value in data.items()}, config=config)
    assert torch.equal(result.scores, adapt(**data, config=config).scores)
    assert not result.scores.requires_grad
    assert encoder.grad is None
