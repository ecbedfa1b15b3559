"""The network: published sizes, the positional code, and a grid that does not care how it is evaluated."""

import dataclasses
import math
from unittest.mock import Mock

import plain
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apm import model
from apm.model import APM, PRESETS, APMConfig, OnlineFold, count_parameters, draw_parameters, positional_encoding

SMALL = APMConfig(grid=(4, 3), patch=2, hidden=(20, 12), width=16, heads=4, position_width=12, rgb_hidden=(8,))
VARIANTS = {
    "mean": {},
    "attention": {"fold": "attention"},
    "three kernels": {"kernels": 3},
    "local patch": {"local_patch": True, "fold": "attention"},
    "routed tokens": {"column": "tokens", "token_width": 10},
    "routed tokens and local patch": {"column": "tokens", "token_width": 10, "local_patch": True},
}
EVERY = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())


def student(**changes: object) -> APM:
    config = dataclasses.replace(SMALL, **changes)
    # weights of ordinary size: with the paper's 0.01 most activations would vanish and hide differences
    return APM(config, torch.Generator().manual_seed(0), std=0.3, dtype=torch.float64)


def inputs(config: APMConfig) -> tuple[torch.Tensor, torch.Tensor | None]:
    g = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, *config.image_size, generator=g, dtype=torch.float64)
    tokens = torch.randn(2, config.locations, config.column_width, generator=g, dtype=torch.float64)
    return images, tokens if config.column == "tokens" else None


@pytest.mark.parametrize(("name", "count"), [("released", 22_820_176), ("five_layer", 53_494_349)])
def test_presets_have_the_published_number_of_parameters(name, count):
    assert count_parameters(PRESETS[name]) == count
    if name == "released":  # the paper's sizes of the MLP with its head, and of the RGB head
        sizes = {key: math.prod(shape) for key, shape in model.parameter_shapes(PRESETS[name]).items()}
        mlp, rgb = (sum(n for key, n in sizes.items() if key.startswith(of)) for of in (("mlp", "head"), "rgb"))
        assert [round(mlp / 1e6, 1), round(rgb / 1e6, 1)] == [19.7, 0.8]


def test_positional_code_is_the_sinusoid_written_out_entry_by_entry_and_differs_everywhere():
    code = positional_encoding((5, 7), 24, dtype=torch.float64)
    torch.testing.assert_close(code, plain.positional_encoding(5, 7, 24), rtol=1e-12, atol=1e-12)
    assert code.flatten(0, 1).unique(dim=0).shape[0] == 35


@EVERY
def test_grid_fold_and_colours_agree_with_the_plain_formulation(changes):
    model = student(**changes)
    assert sum(p.numel() for p in model.parameters()) == count_parameters(model.config)
    images, tokens = inputs(model.config)
    oracle = plain.PlainStudent(model.config, model.parameters_dict)
    percept = model.perceive(images, tokens)
    found = model(images, tokens), model.grid(images, tokens).flatten(1, 2), model.rgb(percept, model.columns(percept))
    for k, image in enumerate(images):
        for ours, theirs in zip(found, oracle(image, None if tokens is None else tokens[k]), strict=True):
            torch.testing.assert_close(ours[k], theirs, rtol=1e-9, atol=1e-12)


def folded(model: APM, percept, order=None, chunk: int = 1) -> torch.Tensor:
    online = OnlineFold(model.parameters_dict, model.config)
    for where, features in model.stream(percept, order, chunk):
        assert len(where) <= chunk
        torch.testing.assert_close(features, model.columns(percept)[:, where], rtol=1e-9, atol=1e-12)
        online.update(features, where)
    return online.result()


@EVERY
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_any_order_and_any_chunks_give_the_same_grid_and_the_same_fold(changes, data):
    model = student(**changes)
    images, tokens = inputs(model.config)
    order = data.draw(st.permutations(range(model.config.locations)))
    found = folded(model, model.perceive(images, tokens), order, data.draw(st.integers(1, len(order))))
    torch.testing.assert_close(found, model(images, tokens), rtol=1e-9, atol=1e-12)


def test_a_subset_of_locations_is_evaluated_and_folded_without_the_others():
    model, subset = student(), [7, 2, 9]
    percept = model.perceive(inputs(model.config)[0])
    grid = model.columns(percept)[:, subset]
    torch.testing.assert_close(model.columns(percept, torch.tensor(subset)), grid)
    torch.testing.assert_close(folded(model, percept, subset), grid.mean(dim=1))


def test_online_softmax_survives_scores_that_would_overflow_a_plain_one():
    model = student(fold="attention")
    model.weights["fold_query"].data.mul_(1e4)
    images, _ = inputs(model.config)
    found = folded(model, model.perceive(images))
    assert found.isfinite().all()
    torch.testing.assert_close(found, model(images), rtol=1e-9, atol=1e-9)


def test_unfolded_columns_hold_the_same_trigger_column_everywhere_and_their_own_code():
    one = student()
    percept = one.perceive(inputs(one.config)[0])
    q = model.unfold(percept, one.config)
    assert q.shape == (2, 12, one.config.query_width)
    assert torch.equal(q[:, :, :12], percept.column[:, None].expand(-1, 12, -1))
    assert torch.equal(q[0, :, 12:], positional_encoding((4, 3), 12, dtype=torch.float64).flatten(0, 1))


def test_draws_do_not_depend_on_whether_the_rgb_head_exists():
    config = dataclasses.replace(SMALL, rgb_head=False)
    with_head, without = (draw_parameters(c, torch.Generator().manual_seed(3)) for c in (SMALL, config))
    assert set(with_head) - set(without) == {k for k in with_head if k.startswith("rgb")}
    # the random stream is one flat draw cut in order, and the RGB head comes last
    assert all(torch.equal(without[k], with_head[k]) for k in without)


def test_random_weights_are_normal_with_the_given_spread_biases_included():
    weights = draw_parameters(PRESETS["mini"], torch.Generator().manual_seed(0), std=0.01)
    values = torch.cat([v.flatten() for v in weights.values()])
    assert abs(values.mean().item()) < 1e-4
    assert math.isclose(values.std().item(), 0.01, rel_tol=0.02)
    assert weights["mlp0_bias"].std() > 0.005


def test_default_initialisation_for_dataset_training_is_uniform_within_the_fan_in_bound():
    weight = APM(SMALL, torch.Generator().manual_seed(0), std=None).weights["mlp0_weight"]
    assert 0.9 < weight.abs().max() * math.sqrt(SMALL.query_width) <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": (0, 4)}, "positive"),
        ({"column": "rnn"}, "Known: conv, tokens"),
        ({"column": "tokens"}, "token_width"),
        ({"fold": "max"}, "Known: mean, attention"),
        ({"fold": "attention", "heads": 5}, "divisible by its 5 heads"),
        ({"position_width": 10}, "divisible by 4"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        APMConfig(**changes)


def test_streaming_makes_the_shared_products_once_and_not_once_per_chunk(monkeypatch):
    counted = Mock(wraps=model.shared_products)
    monkeypatch.setattr(model, "shared_products", counted)
    one = student(local_patch=True)
    assert len(list(one.stream(one.perceive(inputs(one.config)[0]), chunk=3))) == 4
    assert counted.call_count == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: student()(torch.zeros(1, 3, 9, 6, dtype=torch.float64)), r"\(N, 3, 8, 6\).*found \(1, 3, 9, 6\)"),
        (lambda: model.preset("huge"), "Known: mini, released, five_layer"),
        (lambda: APM.from_parameters(SMALL, draw_parameters(PRESETS["mini"])), "do not fit"),
        (lambda: OnlineFold(student().parameters_dict, SMALL).result(), "nothing folded"),
        (lambda: model.rgb({}, None, None, APMConfig(rgb_head=False)), "rgb_head=True"),
    ],
)
def test_what_does_not_fit_the_student_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
