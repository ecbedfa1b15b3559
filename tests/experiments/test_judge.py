"""What several experiments judge features by: one choice of settings, the same on every number of cores."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from apm.experiments import judge
from apm.teachers import student_images


def test_a_mean_keeps_its_unit_and_right_or_wrong_is_in_percent() -> None:
    values = np.linspace(0.2, 0.6, 20)
    found, error = judge.mean(values), values.std() / np.sqrt(20)
    assert (found.value, found.n, found.unit, found.kind) == (pytest.approx(0.4), 20, "", "measure")
    assert (found.low, found.high) == pytest.approx((0.4 - 2.1 * error, 0.4 + 2.1 * error), abs=0.01)
    right = np.arange(20) % 4 == 0
    assert (judge.mean(right).value, judge.mean(right).unit, judge.mean(right).kind) == (25.0, "%", "accuracy")
    assert judge.mean(right.astype(int) - 1).kind == "difference"
    with pytest.raises(ValueError, match="at least 10 images, found 9"):
        judge.mean(values[:9])


def test_foreground_is_above_one_threshold_of_all_places_or_each_images_own() -> None:
    dark, light = np.array([[0.0, 0.0], [0.0, 0.1]]), np.array([[0.7, 0.7], [0.7, 0.9]])
    bright = np.stack([dark, light])
    assert judge.foreground(bright).tolist() == [[[False] * 2] * 2, [[True] * 2] * 2]
    own = judge.foreground(bright, bright)
    assert own.tolist() == [[[False, False], [False, True]]] * 2


@pytest.mark.parametrize("components", [1, 2, 3])
def test_tsne_keeps_groups_apart_and_repeats(components: int) -> None:
    which = np.repeat([0, 1], 18)
    rows = 50.0 * np.eye(2)[which] + np.random.default_rng(0).normal(
        size=(36, 2)
    )  # of fewer columns than components, too
    rows /= 25
    found = judge.tsne(rows, components)
    assert found.shape == (36, components)
    middle = [found[which == k].mean(axis=0) for k in (0, 1)]
    within = max(np.linalg.norm(found[which == k] - middle[k], axis=-1).mean() for k in (0, 1))
    assert np.linalg.norm(middle[0] - middle[1]) > within
    np.testing.assert_array_equal(found, judge.tsne(rows, components))


def test_kmeans_and_embedding_run_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    import sklearn.cluster
    import sklearn.manifold

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


def test_a_normalised_image_is_shown_as_it_was() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    np.testing.assert_allclose(judge.displayed(student_images(list(pixels), 16)), pixels / 255, atol=1e-6)


def test_pictures_stand_under_their_headings_beside_their_names() -> None:
    figure = judge.pictures({"a": [np.zeros((2, 2, 3)), np.ones((2, 2), dtype=bool)]}, ["x", "y"])
    assert [axes.get_title() for axes in figure.axes] == ["x", "y"]
    assert figure.axes[0].get_ylabel() == "a"
    with pytest.raises(ValueError, match="shorter"):
        judge.pictures({"a": [np.zeros((2, 2, 3))]}, ["x", "y"])
    plt.close("all")
