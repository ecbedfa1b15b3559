"""What several experiments judge features by: one choice of settings, the same on every number of cores."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import sklearn.cluster
import sklearn.manifold
from sklearn.metrics import normalized_mutual_info_score
from threadpoolctl import threadpool_info, threadpool_limits

from apm.experiments import judge
from apm.teachers import student_images


def test_a_mean_keeps_its_unit_and_right_or_wrong_is_in_percent() -> None:
    values = np.linspace(0.2, 0.6, 20)
    found, error = judge.mean(values, "dB"), values.std() / np.sqrt(20)
    assert (found.value, found.n, found.unit, found.kind) == (pytest.approx(0.4), 20, "dB", "measure")
    assert (found.low, found.high) == pytest.approx((0.4 - 2.1 * error, 0.4 + 2.1 * error), abs=0.01)
    right = np.arange(20) % 4 == 0
    assert (judge.mean(right).value, judge.mean(right).unit, judge.mean(right).kind) == (25.0, "%", "accuracy")
    assert judge.mean(right.astype(int) - 1).kind == "difference"
    with pytest.raises(ValueError, match="at least 10 images, found 9"):
        judge.mean(values[:9])


def test_a_table_holds_means_and_paired_differences_to_its_first_row() -> None:
    right = np.arange(20) < 15
    frames = {"ours": pd.DataFrame({"a: hit": right, "b": 1.0 * right, "share (%)": 1.4}), "other": {"a: hit": ~right}}
    table = judge.table(frames, paired=("a: hit",), options={"b": {"unit": "dB"}})
    assert list(table) == ["a: hit", "field - this: hit", "b", "share (%)"]
    assert table.loc["ours", "field - this: hit"] is None
    difference = table.loc["other", "field - this: hit"]
    assert (difference.value, difference.kind) == (50.0, "difference")
    assert (table.loc["ours", "b"].unit, table.loc["ours", "share (%)"].unit) == ("dB", "%")
    assert list(judge.table({"ours": frames["ours"]}, ["b"])) == ["b"]


@pytest.mark.parametrize("components", [1, 2, 3])
def test_tsne_keeps_groups_apart_and_repeats(components: int) -> None:
    which = np.repeat([0, 1], 18)
    # of fewer columns than components, too
    rows = 2.0 * np.eye(2)[which] + 0.04 * np.random.default_rng(0).normal(size=(36, 2))
    found = judge.tsne(rows, components)
    assert found.shape == (36, components)
    middle = [found[which == k].mean(axis=0) for k in (0, 1)]
    within = max(np.linalg.norm(found[which == k] - middle[k], axis=-1).mean() for k in (0, 1))
    assert np.linalg.norm(middle[0] - middle[1]) > within
    np.testing.assert_array_equal(found, judge.tsne(rows, components))


def test_kmeans_and_embedding_run_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []

    def look(*arguments: object, **options: object) -> None:
        threads.extend(pool["num_threads"] for pool in threadpool_info())
        raise InterruptedError

    monkeypatch.setattr(sklearn.cluster.KMeans, "fit_predict", look)
    monkeypatch.setattr(sklearn.manifold.TSNE, "fit_transform", look)
    rows = np.random.default_rng(0).normal(size=(20, 3))
    for call in (lambda: judge.kmeans(rows, 2, starts=1), lambda: judge.tsne(rows)):
        with threadpool_limits(2), pytest.raises(InterruptedError):
            call()
    assert set(threads) == {1}


def test_classifying_counts_right_answers_and_length_plays_no_part() -> None:
    angles = np.deg2rad([0, 10, 20, 80, 90])
    known, labels = np.stack([np.cos(angles), np.sin(angles)], axis=1), np.array([0, 1, 1, 2, 2])
    asked = 7.0 * np.array([[np.cos(a), np.sin(a)] for a in np.deg2rad([2, 14, 88])])
    for k, expected in ((1, [0, 1, 2]), (3, [1, 1, 2])):
        assert judge.classify({"x": (known, asked)}, (labels, np.array(expected)), k=k)["x"]["k-NN"].all()
    with pytest.raises(ValueError, match="n_neighbors = 6, n_samples_fit = 5"):
        judge.classify({"x": (known, asked)}, (labels, labels[:3]), k=6)
    labels = np.repeat([0, 1], 10)
    known = np.eye(2)[labels] + 0.01 * np.random.default_rng(0).normal(size=(20, 2))
    asked = np.concatenate([known[10:13], known[3:]])  # three held-out images look like the other class
    assert judge.classify({"x": (known, asked)}, (labels, labels), k=3)["x"].sum().tolist() == [17, 17]


@pytest.mark.parametrize(("least", "average"), [(False, "arithmetic"), (True, "min")])
def test_shared_information_is_that_of_scikit_learn_and_its_interval_the_jackknife(least: bool, average: str) -> None:
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 4, 120)
    clusters = np.where(rng.random(120) < 0.7, classes, rng.integers(0, 6, 120))
    images = np.repeat(np.arange(30), 4)
    values = judge.shared(clusters, classes, images=images, least=least)

    def score(keep: np.ndarray) -> float:
        return 100 * normalized_mutual_info_score(classes[keep], clusters[keep], average_method=average)

    assert values.mean() == pytest.approx(score(np.full(120, True)))
    without = np.array([score(images != i) for i in range(30)])
    variance = 29 / 30 * np.square(without - without.mean()).sum()
    assert values.var(ddof=1) / 30 == pytest.approx(variance)
    assert judge.shared(np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])).mean() == pytest.approx(0, abs=1e-9)


def test_clusters_find_what_is_there() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 8)
    whole = np.where(labels[:, None] == 0, [1.0, 0.0], [0.0, 1.0]) + 0.01 * rng.normal(size=(16, 2))
    front = rng.random((16, 4, 4)) < 0.4
    grid = np.stack([front, ~front], axis=-1) + 0.01 * rng.normal(size=(16, 4, 4, 2))
    mixed = labels.copy()
    mixed[3] = 1
    measures, maps = judge.clusters(whole, grid, mixed, front, np.arange(16), k=2)
    assert measures["images: purity"].tolist() == [i != 3 for i in range(16)]
    assert measures["locations: NMI with foreground"].mean() == pytest.approx(100)
    assert measures["locations: NMI with class"].mean() < 5
    assert maps.shape == (16, 4, 4)
    assert not any(name.startswith("images") for name in judge.clusters(None, grid, labels, front, labels, k=2)[0])
    few = np.array([1, 3, 9, 12])
    measures, maps = judge.clusters(whole, grid[few], labels, front[few], few, k=2)
    assert (measures["images: NMI with class"].mean(), maps.shape) == (pytest.approx(100), (4, 4, 4))


def test_a_normalised_image_is_shown_as_it_was_under_its_heading_beside_its_name() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    shown = judge.displayed(student_images(list(pixels), 16))
    np.testing.assert_allclose(shown, pixels / 255, atol=1e-6)
    figure = judge.pictures({"a": [shown[0], shown[1, ..., 0] > 0.5]}, ["x", "y"])
    assert [axes.get_title() for axes in figure.axes] == ["x", "y"]
    assert figure.axes[0].get_ylabel() == "a"
    with pytest.raises(ValueError, match="shorter"):
        judge.pictures({"a": [shown[0]]}, ["x", "y"])
    plt.close("all")
