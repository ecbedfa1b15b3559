"""ZERO's vote and MTA's mode against loops over plain numbers."""

import math
import operator

import numpy as np
import pytest
import torch
from colours import Colour, colours, noise, units

from apm import methods
from apm.methods import mta, zero


def unit(*degrees: float) -> torch.Tensor:
    angles = torch.tensor(degrees, dtype=torch.float64) * math.pi / 180
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    e = [math.exp((v - max(row)) / temperature) for v in row]
    return [v / sum(e) for v in e]


def test_zero_counts_votes_and_not_probabilities():
    # three of three views kept: two say class 0 weakly, one says class 1 strongly; averaging would have said 1
    logits = torch.tensor([[0.2, 0.0], [0.3, 0.0], [0.0, 9.0]])
    assert zero.vote(logits, 1.0) == 0
    assert zero.vote(logits, 0.4) == 1  # one of three kept: the most confident


@pytest.mark.parametrize(
    ("views", "share", "said"),
    [
        # the first two, one vote for 0 and one for 1, are kept; discarded views decide from the most confident on
        ([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 4.0], [0.0, 3.0, 0.0], [2.0, 0.0, 0.0]], 0.4, 1),
        ([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 4.0], [0.0, 2.0, 0.0], [3.0, 0.0, 0.0]], 0.4, 0),
        # none of them says 0 or 1: the one they score highest among the tied
        ([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.5, 5.0], [0.4, 0.0, 4.0], [0.4, 0.0, 4.0]], 0.4, 1),
        ([[0.0, 5.0], [9.0, 0.0]], 1.0, 0),  # nothing discarded: the most confident
    ],
)
def test_ties_of_zero_are_broken_by_the_discarded_views(views, share, said):
    assert zero.vote(torch.tensor(views), share) == said


def plain_zero(cosines: list[list[float]], scale: float, share: float) -> int:
    """The release's vote in float16: views sorted by entropy, softmax of cosines / eps summed over the kept, exact ties broken by the
    dropped views in that order."""
    half = [[float(np.float16(c)) for c in row] for row in cosines]
    entropies = [-sum(p * math.log(p) for p in softmax(row, 1 / scale) if p > 0) for row in cosines]
    order = sorted(range(len(cosines)), key=entropies.__getitem__)
    k = int(len(cosines) * share)
    soft = [softmax(half[i], float(np.finfo(np.float16).eps)) for i in order[:k]]
    votes = [sum(row[c] for row in soft) for c in range(len(cosines[0]))]
    tied = [c for c, v in enumerate(votes) if v == max(votes)]
    said = [int(np.argmax(cosines[i])) for i in order[k:]]
    return next((c for c in said if c in tied), tied[0]) if len(tied) > 1 else tied[0]


def test_the_soft_vote_is_that_of_float16():
    # class 1 has the whole vote of one view; class 0 leads class 1 by a thousandth in two: whole votes 2 to 1, soft ones 1.5 to 1.5
    cosines = torch.tensor([[0.0, 0.5, 0.0], [0.3005, 0.3, 0.0], [0.3005, 0.3, 0.0]])
    assert zero.vote(100 * cosines, 1.0) == 0
    assert zero.vote(100 * cosines, 1.0, cosines=cosines) == 1
    some = 0.25 + 0.002 * np.random.default_rng(0).normal(size=(200, 10, 4))
    soft = [zero.vote(100 * one, 0.5, cosines=one) for one in torch.tensor(some)]
    assert soft == [plain_zero(one.tolist(), 100, 0.5) for one in some]
    assert 0 < sum(a != zero.vote(100 * one, 0.5) for a, one in zip(soft, torch.tensor(some), strict=True)) < 100


@pytest.mark.parametrize("soft", [False, True])
def test_zero_votes_softly_where_asked(soft):
    data, places, teacher = noise(200), np.arange(200), Colour(text=unit(44.9, 45.1).tolist())  # near ties
    said = methods.create("zero", teacher, views=10, soft_vote=soft).predict(data, places, 0).prediction.tolist()
    cosines = units(teacher, data, places, 10) @ teacher.text.T
    by_hand = [
        [zero.vote(2 * one, 0.3, cosines=of) for one, of in zip(cosines, c, strict=True)]
        for c in ([None] * 200, cosines)
    ]
    assert said == by_hand[soft] != by_hand[not soft]


@pytest.mark.parametrize("name", ["zero", "mta"])
def test_equal_views_are_zero_shot_with_its_probability_and_passes_are_counted_whoever_paid_for_them(name):
    method = methods.create(name, Colour(), views=10)
    said, again = (method.predict(colours((153, 204), (255, 0)), np.arange(2), 0) for _ in range(2))
    assert said.prediction.tolist() == [1, 0]
    # features (0.6, 0.8) and (1, 0), times 2: logits differ by 0.4 and 2
    np.testing.assert_allclose(said.extra["confidence"], [1 / (1 + math.exp(-0.4)), 1 / (1 + math.exp(-2))], rtol=1e-5)
    assert said.extra["teacher_passes"].tolist() == again.extra["teacher_passes"].tolist() == [10, 10]
    assert (said.extra["saved_milliseconds"] == 0).all()
    assert (again.extra["saved_milliseconds"] > 0).all()


def plain_mta(points: list[list[float]], logits: list[list[float]], lambda_q: float, lambda_y: float):
    """The two steps of MTA, five rounds of five each, without early stops."""
    y, mode = [1 / len(points)] * len(points), points[0]
    k = max(1, int(0.3 * (len(points) - 1)))
    h2 = [0.5 * sum(sorted(math.dist(a, b) ** 2 for b in points)[1 : k + 1]) / k for a in points]
    p = [softmax(row) for row in logits]
    w = [[sum(map(operator.mul, one, other)) for other in p] for one in p]

    def kernel() -> list[float]:
        return [math.exp(-(math.dist(point, mode) ** 2) / (2 * h)) for point, h in zip(points, h2, strict=True)]

    for _ in range(5):
        density = kernel()
        for _ in range(5):
            y = softmax(
                [d + lambda_q * sum(map(operator.mul, row, y)) for d, row in zip(density, w, strict=True)], lambda_y
            )
        for _ in range(5):
            weight = list(map(operator.mul, y, kernel()))
            moved = [sum(map(operator.mul, weight, column)) for column in zip(*points, strict=True)]
            mode = [v / math.hypot(*moved) for v in moved]
    return mode, y


@pytest.mark.parametrize("weights", [(4.0, 0.2), (1.0, 1.0)])
def test_mode_and_inlierness_agree_with_the_definition_in_plain_numbers(weights):
    points = unit(0, 10, 25, 90, 100, 14, 5, 40)  # with a bandwidth from the two nearest, 0.3 of 7
    mode, inlierness = mta.seek(points, points * 2, lambda_q=weights[0], lambda_y=weights[1])
    expected_mode, expected_y = plain_mta(points.tolist(), (points * 2).tolist(), *weights)
    np.testing.assert_allclose(mode, expected_mode, atol=1e-5)
    np.testing.assert_allclose(inlierness, expected_y, atol=1e-5)
    assert inlierness[3] < inlierness[1]  # the views of the other class count less
