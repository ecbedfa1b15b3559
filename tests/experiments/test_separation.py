"""What features hold, judged by hand-made features, and mutual information as scikit-learn's."""

import numpy as np
import pytest
from sklearn.metrics import normalized_mutual_info_score

from apm.experiments import separation


def test_judging_counts_right_answers_and_length_plays_no_part() -> None:
    angles = np.deg2rad([0, 10, 20, 80, 90])
    known, labels = np.stack([np.cos(angles), np.sin(angles)], axis=1), np.array([0, 1, 1, 2, 2])
    asked = 7.0 * np.array([[np.cos(a), np.sin(a)] for a in np.deg2rad([2, 14, 88])])
    for k, expected in ((1, [0, 1, 2]), (3, [1, 1, 2])):
        assert separation.judge({"x": (known, asked)}, (labels, np.array(expected)), k=k)["x"]["k-NN"].all()
    with pytest.raises(ValueError, match=r"k must lie in 1\.\.5.*found 6"):
        separation.judge({"x": (known, asked)}, (labels, labels[:3]), k=6)
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 10)
    known = np.stack([np.where(labels, 1.0, -1.0), np.ones(20)], axis=1) + 0.01 * rng.normal(size=(20, 2))
    asked = known.copy()
    asked[[0, 1, 2]] = asked[[10, 11, 12]]  # three held-out images look like the other class
    assert separation.judge({"x": (known, asked)}, (labels, labels), k=3)["x"].sum().tolist() == [17, 17]


def test_purity_and_shared_information_by_hand() -> None:
    clusters, classes = np.array([0, 0, 0, 1, 1, 1]), np.array([2, 2, 0, 1, 1, 1])
    assert separation.in_majority(clusters, classes).tolist() == [True, True, False, True, True, True]
    assert separation.in_majority(np.array([0, 2, 2]), np.array([4, 7, 7])).all()
    assert separation.shared(np.array([0, 0, 1, 1]), np.array([1, 1, 0, 0])).mean() == pytest.approx(100)
    assert separation.shared(np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])).mean() == pytest.approx(0, abs=1e-9)
    place = np.tile(np.arange(64), 20)  # few clusters can reach the whole of many places
    assert separation.shared(place // 8, place, least=True).mean() == pytest.approx(100)
    assert separation.shared(place // 8, place).mean() < 70


@pytest.mark.parametrize(("least", "average"), [(False, "arithmetic"), (True, "min")])
def test_shared_information_is_that_of_scikit_learn_and_its_interval_the_jackknife(least: bool, average: str) -> None:
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 4, 120)
    clusters = np.where(rng.random(120) < 0.7, classes, rng.integers(0, 6, 120))
    images = np.repeat(np.arange(30), 4)
    values = separation.shared(clusters, classes, images=images, least=least)

    def score(keep: np.ndarray) -> float:
        return 100 * normalized_mutual_info_score(classes[keep], clusters[keep], average_method=average)

    assert values.shape == (30,)
    assert values.mean() == pytest.approx(score(np.full(120, True)))
    without = np.array([score(images != i) for i in range(30)])
    variance = 29 / 30 * np.square(without - without.mean()).sum()
    assert values.var(ddof=1) / 30 == pytest.approx(variance)


def test_clusters_find_what_is_there() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 8)
    whole = np.where(labels[:, None] == 0, [1.0, 0.0], [0.0, 1.0]) + 0.01 * rng.normal(size=(16, 2))
    front = rng.random((16, 4, 4)) < 0.4
    grid = np.stack([front, ~front], axis=-1) + 0.01 * rng.normal(size=(16, 4, 4, 2))
    found = separation.clusters(whole, grid, labels, front, k=2)
    assert found.measures["images: purity"].all()
    assert found.measures["images: NMI with class"].mean() == pytest.approx(100)
    assert found.measures["locations: NMI with foreground"].mean() == pytest.approx(100)
    assert found.measures["locations: NMI with class"].mean() < 5
    assert found.maps.shape == (16, 4, 4)
    assert not any(name.startswith("images") for name in separation.clusters(None, grid, labels, front, k=2).measures)
    with pytest.raises(ValueError, match=r"2\.\.16"):
        separation.cluster(whole, 17)
    few = np.array([1, 3, 9, 12])
    part = separation.clusters(whole, grid[few], labels, front[few], k=2, where=few)
    assert (part.measures["images: purity"].shape, part.maps.shape) == ((16,), (4, 4, 4))


def test_an_embedding_needs_rows() -> None:
    rows = np.random.default_rng(0).normal(size=(12, 4))
    assert separation.embed(rows).shape == (12, 2)
    with pytest.raises(ValueError, match="at least 10 rows, found 9"):
        separation.embed(rows[:9])
