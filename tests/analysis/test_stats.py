"""Statistics: counting rules by hand, intervals that cover, and images instead of rows as the unit of resampling."""

import cover
import fakes
import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from apm.analysis import stats
from apm.analysis.numbers import Number
from apm.analysis.stats import accuracy, calibration_error, correct, holm, mcnemar, mean, p_value, paired_difference

Z = 1.959963984540054


def ends(estimate):
    return estimate.value, estimate.low, estimate.high


def width(estimate):
    return estimate.high - estimate.low


def records(**changes) -> pd.DataFrame:
    """Five images of one condition, K = 2."""
    columns = {
        "label": [0, 1, 2, 3, 0],
        "teacher_prediction": pd.array([0, 2, 2, 3, None], dtype="Int32"),
        "minimum_loss_prediction": pd.array([0, 1, 2, 3, 1], dtype="Int32"),
        "path": [np.array(p, dtype=np.int16) for p in ([1, 2, 0], [0, 1, 1], [2, 0, 0], [0, 3, -1], [0, 1, 1])],
    }
    return fakes.records(**{"prediction": [0, 1, 0, -1, 1], **columns, **changes})


def test_counting_rules_by_hand():
    frame = records()
    assert list(correct(frame, "final")) == [True, True, False, False, False]
    assert list(correct(frame, "teacher")) == [True, False, True, True, False]  # no answer is no right answer
    assert list(correct(frame, "any")) == [True, True, False, True, False]  # random weights (k = 0) do not count
    assert list(correct(frame, "minimum loss")) == [True, True, True, False, False]  # the failed image is wrong
    with pytest.raises(ValueError, match=r"unknown counting rule 'best'.*teacher, final"):
        correct(frame, "best")


def test_rules_that_the_records_cannot_answer_are_none():
    frame = records(path=None, teacher_prediction=pd.array([None] * 5, dtype="Int32"))
    assert [rule for rule in stats.RULES if correct(frame, rule) is not None] == ["final"]
    assert stats.estimate(frame, stats.DIFFERENCE) is None


def test_paths_of_images_without_one():
    frame, path = records(), list(records()["path"])
    unreadable = stats.paths(frame.assign(path=[*path[:3], None, path[4]]))[3]
    assert list(unreadable) == [-1, -1, -1]  # always wrong
    with pytest.raises(ValueError, match="needs a method with iterations"):
        stats.paths(frame.assign(path=[None, *path[1:]]))  # it has a prediction
    with pytest.raises(ValueError, match=r"found K \+ 1 in \[3, 5\]"):
        stats.paths(frame.assign(path=[np.zeros(5, dtype=np.int16), *path[1:]]))


@pytest.mark.parametrize(("n", "low", "high"), [(5, np.nan, np.nan), (6, 0, 5), (8, 0, 7), (9, 1, 7), (20, 5, 14)])
def test_the_interval_of_a_median_has_the_ends_of_the_sign_test(n, low, high):
    estimate = stats.median(np.random.default_rng(0).permutation(n))
    assert estimate == pytest.approx(((n - 1) / 2, low, high, n), nan_ok=True)
    for values in (np.array([]), np.array([1.0, np.nan])):
        with pytest.raises(ValueError, match="a median needs"):
            stats.median(values)


def test_accuracy_has_wilsons_interval_and_a_mean_of_numbers_students():
    right, z2 = np.arange(100) < 80, Z**2
    # p = 0.8, n = 100: centre (p + z^2/2n) / (1 + z^2/n), half width z sqrt(p q/n + z^2/4n^2) / (1 + z^2/n)
    centre, half = (0.8 + z2 / 200) / (1 + z2 / 100), Z * np.sqrt(0.0016 + z2 / 40000) / (1 + z2 / 100)
    for found in (accuracy(right), mean(right)):
        assert ends(found) == pytest.approx((80.0, 100 * (centre - half), 100 * (centre + half)))
        assert (found.n, found.unit, found.kind) == (100, "%", "accuracy")
    values = np.random.default_rng(1).normal(30.0, 4.0, 40)
    low, high = scipy_stats.ttest_1samp(values, 0.0).confidence_interval()
    assert ends(mean(values)) == pytest.approx((values.mean(), low, high))


@pytest.mark.parametrize("function", [lambda x: accuracy(x), lambda x: mean(x), lambda x: paired_difference(x, ~x)])
def test_too_few_images_or_few_with_many_copies_are_refused(function):
    with pytest.raises(ValueError, match=r"needs at least 10 images, found 9"):
        function(np.ones(9, dtype=bool))
    function(np.ones(10, dtype=bool))
    with pytest.raises(ValueError, match="at least 10 images, found 3"):
        mean(np.ones(300), np.arange(300) % 3, conditions=np.arange(300) // 3)
    with pytest.raises(ValueError, match="at least 10 images, found 1"):
        mean(np.ones(20), conditions=np.array([0] * 19 + [1]))
    with pytest.raises(ValueError, match="1 of 20 values are NaN"):
        mean(np.array([np.nan] + [1.0] * 19))


def test_paired_difference_is_bonett_and_prices():
    right, reference = np.arange(40) >= 3, ~((np.arange(40) >= 3) & (np.arange(40) < 10))
    # 3 lost, 7 gained of 40: (8 - 4) / 42, each count with one added
    gained, lost = 8 / 42, 4 / 42
    half = Z * np.sqrt((gained + lost - (gained - lost) ** 2) / 42)
    found = paired_difference(right, reference)
    assert ends(found) == pytest.approx((10.0, 100 * (gained - lost - half), 100 * (gained - lost + half)))
    assert (found.n, found.unit, found.kind) == (40, "points", "difference")
    half = 100 * Z * np.sqrt(2) / 42  # none of 40 is not none of all
    assert ends(paired_difference(right, right)) == pytest.approx((0.0, -half, half))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, np.nan, 0.5]) == pytest.approx([0.04, 0.09, 0.09, np.nan, 0.5], nan_ok=True)
    assert holm([]).size == 0
    assert list(holm([0.9, 0.8])) == [1.0, 1.0]


@pytest.mark.parametrize("gained", range(12))
def test_p_value_says_what_the_interval_says(gained):
    estimate = paired_difference(np.arange(50) < gained, np.zeros(50, dtype=bool))
    assert (p_value(estimate) < 0.05) == (estimate.low > 0)
    assert p_value(estimate, estimate.value) == 1.0
    assert np.isnan([p_value(Number(1.0)), p_value(Number(1.0, 1.0, 1.0, 20))]).all()  # no width says nothing
    assert p_value(Number(1.0, 0.0, 2.0, 900, df=2.0), -1.0) > 3 * p_value(Number(1.0, 0.0, 2.0, 900), -1.0)


def three_seeds(*right: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Right, teacher right (21 of 24), image and seed of 24 images under seeds with these numbers right."""
    image, seed = np.tile(np.arange(24), len(right)), np.repeat(np.arange(len(right)), 24)
    return image < np.array(right)[seed], image < 21, image, seed


def test_one_bad_seed_of_three_is_no_finding():
    """21, 21 and 17 of 24 against 21: over seeds p = 0.42 by a t-test; over images alone it reads as a loss."""
    right, teacher, image, seed = three_seeds(21, 21, 17)
    estimate = paired_difference(right, teacher, image, seeds=seed)
    assert estimate.value == pytest.approx(-100 * 4 / 72)
    assert estimate.low < -15
    assert estimate.high > 5
    assert p_value(estimate) > scipy_stats.ttest_1samp([0, 0, -4], 0).pvalue - 0.1 > 0.3
    assert estimate.df < 10
    right, teacher, image, seed = three_seeds(17, 17, 17)  # seeds that agree do not widen the interval
    assert paired_difference(right, teacher, image, seeds=seed) == paired_difference(right, teacher, image)


def test_records_of_several_seeds_are_about_seeds():
    one = records().loc[np.repeat(range(5), 4)].assign(sample=range(20), teacher_prediction=0, label=0, prediction=0)
    several = pd.concat([one, one.assign(seed=1), one.assign(seed=2, prediction=np.where(one["sample"] < 5, 1, 0))])
    assert stats.estimate(several, "final").df < 3
    assert stats.estimate(several, stats.DIFFERENCE).high > 0
    assert stats.estimate(one, "final").df > 10


@pytest.mark.parametrize(
    ("images", "conditions", "rates", "rho"),
    [
        (10, 1, (0.05, 0), 0),
        (24, 1, (0.05, 0), 0),
        (48, 1, (0.02, 0.005), 0),
        (192, 1, (0.005, 0), 0),
        (20, 75, (0.005, 0), 0.4),
        (192, 15, (0.005, 0), 0.4),
        (20, 75, (0.05, 0), 0.1),
    ],
)
def test_paired_intervals_cover(images, conditions, rates, rho):
    """A percentile bootstrap over images covers 43, 72, 61 and 60 % in the first four."""
    assert cover.coverage(images, conditions, rates, rho, trials=200)["coverage"] >= 90


@pytest.mark.slow
def test_the_table_of_coverage():
    found = cover.table(trials=4000)
    print(found.round(1).to_string(index=False))
    assert found["coverage"].min() >= cover.LEAST - 0.8  # two standard errors of 4,000 trials
    often = found[found["differing images"] >= 30]
    assert often["coverage"].max() <= cover.MOST


def test_rows_of_one_image_are_not_more_images_unless_they_are_of_two_datasets():
    """15 equal copies of every image carry the information of one: the interval must not shrink by sqrt(15)."""
    right = np.random.default_rng(0).random(400) < 0.6
    one = mean(right)
    options = {"samples": np.tile(np.arange(400), 15), "conditions": np.repeat(np.arange(15), 400)}
    many, apart = mean(np.tile(right, 15), **options), mean(np.tile(right, 15), **options, strata=options["conditions"])
    assert (many.n, apart.n) == (400, 6000)
    assert many.value == pytest.approx(one.value)
    assert width(many) == pytest.approx(width(one), rel=0.05)
    assert width(apart) == pytest.approx(width(one) / np.sqrt(15), rel=0.05)


def test_conditions_have_equal_weight_whatever_their_size():
    size = np.repeat([0, 1], [30, 10])
    assert mean(1.0 - size, conditions=size, strata=size).value == 0.5


def test_mcnemar_by_hand():
    right = np.array([True] * 5 + [False] + [True] * 20)
    reference = np.array([False] * 5 + [True] + [True] * 20)
    # 5 gained, 1 lost: two-sided binomial p = 2 * (1 + 6) / 2**6
    assert mcnemar(right, reference) == pytest.approx(2 * 7 / 64)
    assert mcnemar(reference, right) == pytest.approx(2 * 7 / 64)
    assert mcnemar(right, right) == 1.0


def test_calibration_error_by_hand():
    # bin (0.4, 0.6]: confidence 0.5, accuracy 1/2; bin (0.8, 1]: confidence 0.9, accuracy 1/2, half of the images
    confidence = np.array([0.5, 0.5, 0.9, 0.9])
    assert calibration_error(confidence, np.array([1, 0, 1, 0]), bins=5) == pytest.approx(20.0)
    assert calibration_error(np.array([0.0, 1.0]), np.array([False, True])) == 0.0
