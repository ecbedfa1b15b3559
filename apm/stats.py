"""Statistics of a benchmark: counting rules, intervals, paired tests. Plain functions on arrays.

Counting rules. A student of test-time training is drawn to its teacher's feature, so what counts as correct must be said:

- "final": the prediction after a number of iterations fixed beforehand. This is the score.
- "teacher": zero-shot prediction of the same teacher, same prompts, same images.
- "minimum loss": the prediction at the iteration of lowest loss: needs no label.
- "any": right after any update k = 1..K (k = 0, random weights, does not count). It uses the labels: an upper bound, never
  a score.

An image on which a method failed (prediction -1) counts as wrong under every rule, and stays in n; under "any" its
predictions before the failure count.

Intervals. One proportion: Wilson's score interval (Wilson 1927; recommended by Brown, Cai & DasGupta 2001, Statistical
Science 16), which keeps its width where accuracy is 0 or 100 %. Differences and means: percentile bootstrap over images (Efron & Tibshirani 1993,
ch. 13). Over several conditions the copies of one image (its 15 corruptions, its seeds) are not independent, so whole images
are drawn, with all their copies: the cluster bootstrap (Davison & Hinkley 1997, sec. 3.8). Pairs: McNemar's exact test.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import binomtest

RULES = ("teacher", "final", "minimum loss", "any")
RESAMPLES = 10_000
CALIBRATION_BINS = 15  # as in Guo et al. 2017
CONFIDENCE = 0.95
MINIMUM_SAMPLES = 10  # below, the percentile bootstrap and its resamples say little: ask for more images


class Interval(NamedTuple):
    """An estimate with its 95 % interval, in percent (or percentage points), and the number of images behind it."""

    value: float
    low: float
    high: float
    n: int


# ---------------------------------------------------------------------------------------------------------- counting rules


def paths(records: pd.DataFrame) -> np.ndarray:
    """Predictions after k = 0..K updates as an array (n, K + 1).

    Raises ValueError when rows have no path or paths of different lengths.
    """
    column = records["path"]
    lengths = {len(path) if path is not None and not np.isscalar(path) else 0 for path in column}
    if 0 in lengths:
        # an image that could not even be read has no path; it is wrong after every update
        known = lengths - {0}
        empty = [path is None or np.isscalar(path) for path in column]
        if len(known) != 1 or not (records["prediction"].to_numpy()[empty] == -1).all():
            methods = ", ".join(sorted(records["method"].astype(str)[np.array(empty)].unique()))
            raise ValueError(f"no predictions per iteration for {methods}: this needs a method with iterations")
        (length,) = known
        missing = np.full(length, -1, dtype=np.int16)
        return np.stack([missing if absent else path for path, absent in zip(column, empty, strict=True)])
    if len(lengths) > 1:
        raise ValueError(
            f"expected paths of one length, found K + 1 in {sorted(lengths)}: do not mix numbers of iterations"
        )
    return np.stack(column.to_numpy())


def has_path(records: pd.DataFrame) -> bool:
    """Whether any row has predictions per iteration."""
    return bool(records["path"].notna().any())


def correct(records: pd.DataFrame, rule: str) -> np.ndarray | None:
    """Which rows (n,) count as right under a rule; None where the records do not hold what the rule needs.

    Raises ValueError for an unknown rule.
    """
    label = records["label"].to_numpy()
    if rule == "final":
        return records["prediction"].to_numpy() == label
    if rule == "teacher":
        return None if records["teacher_prediction"].isna().all() else _integers(records["teacher_prediction"]) == label
    if rule == "minimum loss":
        if not has_path(records) or records["minimum_loss_prediction"].isna().all():
            return None
        return (_integers(records["minimum_loss_prediction"]) == label) & (records["prediction"].to_numpy() >= 0)
    if rule == "any":
        return (paths(records)[:, 1:] == label[:, None]).any(axis=1) if has_path(records) else None
    raise ValueError(f"unknown counting rule {rule!r}. Known: {', '.join(RULES)}")


def _integers(column: pd.Series) -> np.ndarray:
    """A nullable integer column with -1 for null."""
    return column.fillna(-1).to_numpy(dtype=np.int64)


def agreement(prediction: np.ndarray, teacher: np.ndarray) -> float:
    """Share of images in percent on which two predictions (n,) are the same class; a failed one agrees with nothing.

    Raises ValueError for arrays of different shapes or no image.
    """
    prediction, teacher = _same_shape(prediction, teacher)
    return 100.0 * float(np.mean((prediction == teacher) & (prediction >= 0)))


# --------------------------------------------------------------------------------------------------------------- intervals


def accuracy(right: np.ndarray, *, minimum: int = MINIMUM_SAMPLES) -> Interval:
    """Accuracy of independent images in percent with Wilson's score interval.

    right: (n,) bool. Raises ValueError for fewer than `minimum` images.
    """
    right = np.asarray(right, dtype=bool)
    _enough(len(right), minimum)
    test = binomtest(int(right.sum()), len(right)).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(100.0 * float(right.mean()), 100.0 * float(test.low), 100.0 * float(test.high), len(right))


def bootstrap_mean(
    values: np.ndarray,
    samples: np.ndarray | None = None,
    *,
    conditions: np.ndarray | None = None,
    strata: np.ndarray | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    minimum: int = MINIMUM_SAMPLES,
) -> Interval:
    """Mean of values, in percent, with the percentile bootstrap interval over images.

    values: (n,) bool or numbers per row, such as correct or not, or a difference of two such.
    samples: (n,) image of each row; rows with one image are drawn together. Default: every row its own image.
    conditions: (n,) such as the corruption: the mean is the mean of the conditions' means, each with the same weight.
    strata: (n,) such as the dataset: image 3 of one is not image 3 of another, and each keeps its number of images.

    Images with equal rows of values are interchangeable, so instead of drawing n images the number of times that each
    distinct row is drawn is taken from a multinomial: the same distribution, at a cost that does not grow with n.
    When all values are equal the interval has no width: the bootstrap sees no variation. With none of n images different, up
    to about 3/n of all images may be.

    Raises ValueError for fewer than `minimum` images in a stratum, values that are NaN or infinite, or arrays of different lengths.
    """
    values = np.asarray(values, dtype=np.float64)
    n = len(values)
    if not np.isfinite(values).all():
        bad = np.flatnonzero(~np.isfinite(values))
        raise ValueError(
            f"{len(bad)} of {n} values are NaN or infinite, the first at {bad[0]}: a mean needs finite ones"
        )
    samples = np.arange(n) if samples is None else np.asarray(samples)
    conditions = np.zeros(n, dtype=np.int64) if conditions is None else np.asarray(conditions)
    strata = np.zeros(n, dtype=np.int64) if strata is None else np.asarray(strata)
    for name, array in (("samples", samples), ("conditions", conditions), ("strata", strata)):
        if len(array) != n:
            raise ValueError(f"expected {n} {name}, one per value, found {len(array)}")
    _enough(n, minimum)
    rng = np.random.default_rng(seed)
    means, drawn, images = [], [], 0
    stratum_of = pd.factorize(strata)[0]
    for stratum in range(stratum_of.max() + 1):
        rows = stratum_of == stratum
        sums, counts = _by_image(values[rows], samples[rows], conditions[rows])  # (images, conditions)
        _enough(len(sums), minimum)
        images += len(sums)
        means.append(sums.sum(axis=0) / counts.sum(axis=0))
        if (counts == counts[0]).all() and (counts[0] == counts[0, 0]).all():
            sums, counts = sums.mean(axis=1, keepdims=True), counts[:, :1]  # balanced: only an image's mean matters
            drawn.append(_resample(sums, counts, resamples, rng) * len(means[-1]))
        else:
            drawn.append(_resample(sums, counts, resamples, rng))
    groups = sum(len(m) for m in means)
    distribution = sum(d.sum(axis=1) for d in drawn) / groups
    if not np.isfinite(distribution).all():
        raise ValueError(
            f"{images} images are too few for {groups} conditions: some resamples leave a condition empty. Add images"
        )
    tail = 50.0 * (1.0 - CONFIDENCE)
    low, high = np.percentile(distribution, [tail, 100.0 - tail])
    return Interval(100.0 * float(np.concatenate(means).mean()), 100.0 * float(low), 100.0 * float(high), images)


def _by_image(values: np.ndarray, samples: np.ndarray, conditions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of values per (image, condition), each (images, conditions)."""
    image, images = pd.factorize(samples)
    condition, names = pd.factorize(conditions)
    cell = image * len(names) + condition
    shape = (len(images), len(names))
    size = shape[0] * shape[1]
    return np.bincount(cell, values, size).reshape(shape), np.bincount(cell, minlength=size).reshape(shape).astype(
        float
    )


def _resample(sums: np.ndarray, counts: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Means per condition (resamples, conditions) of images drawn with replacement."""
    distinct, multiplicity = np.unique(np.hstack([sums, counts]), axis=0, return_counts=True)
    sums, counts = np.hsplit(distinct, 2)
    n = int(multiplicity.sum())
    means = np.empty((resamples, sums.shape[1]))
    block = max(1, 4_000_000 // len(distinct))  # bounds the memory of the weights to 32 MB
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        weights = rng.multinomial(n, multiplicity / n, size=size).astype(np.float64)  # (size, distinct)
        with np.errstate(invalid="ignore"):
            means[start : start + size] = (weights @ sums) / (weights @ counts)
    return means


def paired_difference(
    right: np.ndarray,
    reference: np.ndarray,
    samples: np.ndarray | None = None,
    **options: np.ndarray | int | None,
) -> Interval:
    """Accuracy minus the reference's on the same rows, in percentage points, with the bootstrap interval over images.

    right, reference: (n,) bool; samples and options as in `bootstrap_mean`. Raises ValueError as it does.
    """
    right, reference = _same_shape(right, reference)
    return bootstrap_mean(right.astype(np.int8) - reference.astype(np.int8), samples, **options)  # type: ignore[arg-type]


def mcnemar(right: np.ndarray, reference: np.ndarray) -> float:
    """Exact two-sided p-value of McNemar's test: of the images that only one of two got right, is either favoured?

    right, reference: (n,) bool on the same independent images. 1 when there is no such image. Raises ValueError for arrays of
    different shapes.
    """
    right, reference = (np.asarray(a, dtype=bool) for a in _same_shape(right, reference))
    gained, lost = int((right & ~reference).sum()), int((~right & reference).sum())
    return 1.0 if gained + lost == 0 else float(binomtest(gained, gained + lost, 0.5).pvalue)


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error in percent: mean distance of confidence and accuracy over equally wide bins (Guo et al. 2017).

    confidence: (n,) in 0..1 of the predicted class. Raises ValueError outside that range or for different shapes.
    """
    confidence, right = _same_shape(confidence, right)
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise ValueError(f"confidences must lie in 0..1, found {np.nanmin(confidence):g} to {np.nanmax(confidence):g}")
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)  # bins (0, 1/15], (1/15, 2/15], ...
    gap = np.bincount(bin_of, right.astype(float) - confidence, minlength=bins)
    return 100.0 * float(np.abs(gap).sum() / len(right))


def _same_shape(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"expected two arrays over the same images, found shapes {a.shape} and {b.shape}")
    if len(a) == 0:
        raise ValueError("expected at least one image, found none")
    return a, b


def _enough(n: int, minimum: int) -> None:
    if n < minimum:
        raise ValueError(
            f"an interval needs at least {minimum} images, found {n}: raise the number of images (n in the profile)"
        )


# --------------------------------------------------------------------------------------------------------- records in groups


def mean_accuracy(
    records: pd.DataFrame,
    rule: str,
    *,
    conditions: Sequence[str] = ("dataset", "corruption", "severity"),
    **options: int,
) -> Interval | None:
    """Accuracy under a rule as the mean over conditions, with the cluster bootstrap interval over images.

    Images are drawn within each dataset, with all their corruptions, severities and seeds. None as in `correct`.
    """
    right = correct(records, rule)
    return None if right is None else bootstrap_mean(right, **_groups(records, conditions), **options)  # type: ignore[arg-type]


def mean_difference(
    records: pd.DataFrame, *, conditions: Sequence[str] = ("dataset", "corruption", "severity"), **options: int
) -> Interval | None:
    """final - teacher as the mean over conditions, in percentage points, with the interval of `mean_accuracy`."""
    final, teacher = correct(records, "final"), correct(records, "teacher")
    if final is None or teacher is None:
        return None
    return paired_difference(final, teacher, **_groups(records, conditions), **options)  # type: ignore[arg-type]


def _groups(records: pd.DataFrame, conditions: Sequence[str]) -> dict[str, np.ndarray]:
    return {
        "samples": records["sample"].to_numpy(),
        "conditions": records.groupby(list(conditions), sort=False).ngroup().to_numpy(),
        "strata": records["dataset"].to_numpy(),
    }
