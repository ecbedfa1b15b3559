"""TDA's caches by hand, its order, its constants, and a stream that goes on after an image that fails."""

import dataclasses
import math
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from colours import Colour, colours, noise

from apm.data import prompts
from apm.methods import tda
from apm.methods.tda import TDA

SIX = np.arange(6)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_it_adds_the_positive_and_takes_away_the_negative_cache():
    """Features (1, 0) then (0.6, 0.8); text features are the axes; logit scale 2."""
    said = TDA(Colour()).predict(colours((255, 0), (153, 204)), np.arange(2), 0)
    # First image: entropy of sigmoid(2) = 0.881 is 0.365 nats, / log2(2) inside (0.2, 0.5): it enters both caches, and
    # both probabilities (0.881, 0.119) lie above 0.03: the negative cache lowers both classes alike.
    first = (2 + 2 * 1 - 0.117, 0 - 0.117)
    # Second: says class 1 with entropy 0.674: positive cache only. Cosine to the first is 0.6.
    second = (1.2 + 2 * math.exp(-5 * 0.4) - 0.117 * math.exp(-0.4), 1.6 + 2 - 0.117 * math.exp(-0.4))
    assert said.prediction.tolist() == [0, 1]
    expected = [sigmoid(first[0] - first[1]), sigmoid(second[1] - second[0])]
    np.testing.assert_allclose(said.extra["confidence"], expected, rtol=1e-5)
    assert said.extra["teacher_passes"].tolist() == [1, 1]


def test_the_negative_cache_lowers_only_classes_of_middling_probability():
    method = TDA(Colour(), probability_between=(0.2, 1.0), negative_alpha=1.0)
    said = method.predict(colours((255, 0)), np.arange(1), 0)
    np.testing.assert_allclose(said.extra["confidence"], sigmoid((2 + 2 - 1) - 0), rtol=1e-5)  # 0.881 in, 0.119 out


def test_a_full_cache_keeps_the_lowest_entropies():
    cache, one = tda.Cache(2, 2, 2, torch.device("cpu")), torch.tensor([1.0, 0.0])
    for entropy in (0.5, 0.3, 0.4, 0.6):
        cache.add(0, torch.tensor([entropy, 0.0]), entropy, one)
    # exp(-beta (1 - f.g)) for the two kept keys; empty places, and the other class, add nothing
    expected = 2 * (math.exp(-5 * 0.7) + math.exp(-5 * 0.6))
    torch.testing.assert_close(cache.scores(one, alpha=2, beta=5), torch.tensor([expected, 0.0]))


@pytest.mark.parametrize(
    ("name", "constants", "templates"),
    [  # configs/ and datasets/ of the release
        ("imagenet", (2.0, 5.0), prompts.templates("imagenet-7")),
        ("imagenet-v2", (1.0, 8.0), prompts.templates("imagenet-7")),
        ("imagenet-r", (1.0, 8.0), prompts.templates("imagenet-80")),
        ("imagenet-sketch", (2.363, 7.45), prompts.templates("imagenet-80")),
        ("eurosat", (4.0, 8.0), None),
        ("dtd", None, ("{} texture.",)),
        ("toy", (2.0, 5.0), ("a {}",)),  # not in the release: constants of ImageNet, its own prompts
    ],
)
def test_it_takes_the_constants_and_prompts_of_its_release_for_each_set(name, constants, templates):
    data, method, original = dataclasses.replace(noise(), name=name), TDA(Colour()), TDA(Colour(), prompts="original")
    assert constants is None or method.constants(data) == constants
    assert templates is None or tuple(original.prompts_for(data)) == tuple(templates)
    assert method.prompts_for(data) == data.templates
    assert TDA(Colour(), alpha=0.5).constants(data) == (0.5, method.constants(data)[1])
    assert (method.data_identity(data) == method.data_identity(noise())) == (method.constants(data) == (2.0, 5.0))
    by_hand = TDA(Colour(), alpha=method.constants(data)[0], beta=method.constants(data)[1]).predict(noise(), SIX, 0)
    assert np.array_equal(method.predict(data, SIX, 0).extra["confidence"], by_hand.extra["confidence"])


def test_it_depends_on_the_order_and_the_order_on_its_seed():
    orders = [TDA(Colour(), order_seed=s) for s in (None, 1, 1, 2)]
    said = [m.predict(noise(), SIX, 0).extra["confidence"] for m in orders]
    assert [np.array_equal(said[1], other) for other in said] == [False, True, True, False]
    assert orders[0].order(4).tolist() == [0, 1, 2, 3]
    # the same images given in that order by hand: rows stay with their images
    order = orders[1].order(6)
    assert np.array_equal(TDA(Colour()).predict(noise(), order, 0).extra["confidence"], said[1][order])


@pytest.mark.parametrize("views", [1, 10])
def test_any_error_on_one_image_leaves_the_stream_as_if_it_were_not_there(views, monkeypatch):
    data, method, features = noise(40), TDA(Colour(), views=views, order_seed=3), TDA._features
    rest = method.order(40)[method.order(40) != 20]
    without = TDA(Colour(), views=views).predict(data, rest, 0)

    def failing(self, dataset, position, *arguments):
        if position == 20:
            raise RuntimeError("CUDA error:\n out of memory")
        return features(self, dataset, position, *arguments)

    monkeypatch.setattr(TDA, "_features", failing)
    said = method.predict(data, np.arange(40), 0)
    assert np.flatnonzero(said.prediction < 0).tolist() == [20]
    assert said.status[20] == "error: RuntimeError: CUDA error: out of memory"
    assert np.array_equal(said.prediction[rest], without.prediction)
    assert np.array_equal(said.extra["confidence"][rest], without.extra["confidence"])


@pytest.mark.parametrize("error", [TypeError("no such argument"), RuntimeError("no device")])
def test_mistakes_in_code_and_errors_on_every_image_are_raised(error, monkeypatch):
    monkeypatch.setattr(TDA, "_seen", Mock(side_effect=error))
    with pytest.raises(type(error), match=str(error)):
        TDA(Colour()).predict(noise(), SIX, 0)
