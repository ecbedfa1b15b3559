"""Statistics of a benchmark: counting rules, intervals, paired tests. Estimates are `apm.analysis.numbers.Number`s.

Counting rules. A student of test-time training is drawn to its teacher's feature, so what counts as correct must be said:

- "final": the prediction after a number of iterations fixed beforehand. This is the score.
- "teacher": zero-shot prediction of the same teacher, same prompts, same images.
- "minimum loss": the prediction at the iteration of lowest loss: needs no label.
- "any": right after any update k = 1..K (k = 0, random weights, does not count). It uses the labels: an upper bound, never a score.

An image on which a method failed (prediction -1) counts as wrong, and stays in n; under "any" its predictions before the failure count.

Intervals, all in closed form. One proportion of independent images: Wilson's score interval (Wilson 1927; Brown, Cai & DasGupta 2001).
A paired difference of two accuracies on independent images: Bonett & Price (2012): one is added to the images gained and one to those
lost, so that the interval has a width where no image differs. The value reported is the plain difference.

Over several conditions the copies of one image (its 15 corruptions, its seeds) are not independent. Variances are those between images
(linearised, "sandwich"; Cameron & Miller 2015), with t quantiles (Satterthwaite 1946). A proportion then has Wilson's interval for as many
images as its variance is worth (Korn & Graubard 1998), strata combined by the squares of their half widths (Zou & Donner 2008, "MOVER").
A difference gets one block of rows gained and one lost, as large as those seen (`_block`): Bonett & Price for clusters, whose coverage
tests/cover.py shows.

Seeds are not images. Where rows hold several, the variance between seeds is added to that between images (two-way, Cameron, Gelbach &
Miller 2011, without their subtraction of the cells: it errs to the wide side), with degrees of freedom after Satterthwaite. With one seed
an interval is about images only.

Pairs: McNemar's exact test. Several tests: Holm (1979).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest, quantile_test
from scipy.stats import t as student

from apm import project
from apm.analysis.numbers import Number

RULES = ("teacher", "final", "minimum loss", "any")
DIFFERENCE = "final - teacher"
CONDITION = ("dataset", "corruption", "severity")
CALIBRATION_BINS = 15  # as in Guo et al. 2017
CONFIDENCE = 0.95
MINIMUM_SAMPLES = 10  # below, an interval says little: ask for more images


def paths(records: pd.DataFrame) -> np.ndarray:
    """Predictions after k = 0..K updates (n, K + 1). Raises ValueError when rows have no path or paths of different lengths."""
    column, absent = records["path"], records["path"].isna().to_numpy()
    lengths = sorted({len(path) for path in column[~absent]})
    # an image that could not even be read has no path; it is wrong after every update
    if not lengths or (records["prediction"].to_numpy()[absent] != -1).any():
        methods = ", ".join(sorted(set(records["method"][absent].astype(str))))
        raise ValueError(f"no predictions per iteration for {methods}: this needs a method with iterations")
    if len(lengths) > 1:
        raise ValueError(f"expected paths of one length, found K + 1 in {lengths}: do not mix numbers of iterations")
    missing = np.full(lengths[0], -1, dtype=np.int16)
    return np.stack([missing if gone else path for path, gone in zip(column, absent, strict=True)])


def has_path(records: pd.DataFrame) -> bool:
    """Whether any row has predictions per iteration."""
    return bool(records["path"].notna().any())


def correct(records: pd.DataFrame, rule: str) -> np.ndarray | None:
    """Which rows (n,) count as right under a rule; None where the records do not hold what the rule needs, and without labels (-1)."""
    label, answered = records["label"].to_numpy(), records["prediction"].to_numpy() >= 0
    if (label == -1).all():
        return None
    if rule == "any":
        return (paths(records)[:, 1:] == label[:, None]).any(axis=1) if has_path(records) else None
    names = {"final": "prediction", "teacher": "teacher_prediction", "minimum loss": "minimum_loss_prediction"}
    project.among("counting rule", [rule], RULES)
    said = records[names[rule]]
    if said.isna().all() or (rule == "minimum loss" and not has_path(records)):
        return None
    right = said.fillna(-1).to_numpy(dtype=np.int64) == label
    return right & answered if rule == "minimum loss" else right


def accuracy(right: np.ndarray, *, minimum: int = MINIMUM_SAMPLES) -> Number:
    """Accuracy of independent images, right (n,) or not, with Wilson's interval. Raises ValueError for fewer than `minimum`."""
    right = np.asarray(right, dtype=bool)
    _enough(len(right), minimum)
    ends = binomtest(int(right.sum()), len(right)).proportion_ci(CONFIDENCE, method="wilson")
    return Number(100.0 * float(right.mean()), 100.0 * float(ends.low), 100.0 * float(ends.high), len(right))


def mean(
    values: np.ndarray,
    samples: np.ndarray | None = None,
    *,
    conditions: np.ndarray | None = None,
    strata: np.ndarray | None = None,
    seeds: np.ndarray | None = None,
    minimum: int = MINIMUM_SAMPLES,
) -> Number:
    """Mean of values with its 95 % interval over images, and over seeds where there are several.

    values: (n,) per row. Their type says what they are: bool, right or not (percent, score interval); whole numbers -1, 0 and 1, a
    difference of two such (points, pseudo-counts: never without width); other numbers, in their own unit (t interval). samples: (n,) image
    of each row, default its own. conditions: (n,) whose means have the same weight. strata: (n,) such as the dataset: image 3 of one is
    not image 3 of another. seeds: (n,) of the training run; with several, the interval is about other seeds too.

    Raises ValueError for fewer than `minimum` images in a stratum or in a condition, and for values that are NaN or infinite.
    """
    values = np.asarray(values)
    is_share = values.dtype == bool
    is_difference = np.issubdtype(values.dtype, np.integer) and (np.abs(values) <= 1).all()
    values, n = np.asarray(values, dtype=np.float64), len(values)
    _enough(n, minimum)
    if bad := n - np.isfinite(values).sum():
        raise ValueError(f"{bad} of {n} values are NaN or infinite: a mean needs finite ones")
    stratum, condition, seed = (
        pd.factorize(np.zeros(n) if codes is None else np.asarray(codes))[0] for codes in (strata, conditions, seeds)
    )
    image, images = _pairs(stratum, np.arange(n) if samples is None else pd.factorize(np.asarray(samples))[0])
    group, members = _pairs(stratum, condition)
    stratum_of = np.zeros(len(images), dtype=np.int64)
    stratum_of[image] = stratum
    size = np.bincount(stratum_of, minlength=1)
    _enough(int(min(size.min(), members.min())), minimum)

    # linearised (sandwich) variances of the mean of the conditions' means, as fractions
    share = 1.0 / (len(members) * members[group])  # weight of each row: conditions weigh the same
    means = np.bincount(group, values) / members
    value = float(means.mean())
    part = share * (values - means[group])
    by_stratum: np.ndarray = np.bincount(stratum_of, np.bincount(image, part) ** 2)
    df = np.inf
    if not (is_share or is_difference) or n > len(images):  # Welch and Satterthwaite: strata of different sizes
        degrees = np.maximum(size - 1, 1)
        by_stratum = by_stratum * size / degrees
        total = float(by_stratum.sum())
        df = total**2 / float((by_stratum**2 / degrees).sum()) if total > 0 else float(degrees.sum())
    variance, centre = float(by_stratum.sum()), value
    if is_difference:
        # Bonett and Price: one image (here one block of rows) that gained and one that lost, each with the weight of the heaviest
        weights = np.bincount(image, share)
        one = float(weights.max()) * _block(values, share, image, weights)
        shrink = 1.0 / (1.0 + 2.0 * one)
        variance = shrink**2 * (variance + 2.0 * one**2 * (1.0 + shrink * value**2))
        centre = shrink * value
    by_seed = np.bincount(seed, part)
    over_seeds = float((by_seed**2).sum() * len(by_seed) / (len(by_seed) - 1)) if len(by_seed) > 1 else 0.0
    if over_seeds > 0:
        df = (variance + over_seeds) ** 2 / (variance**2 / df + over_seeds**2 / (len(by_seed) - 1))
    q = float(student.ppf(0.5 + 0.5 * CONFIDENCE, df))

    if is_share:
        weight = np.bincount(stratum, share)
        rate = np.bincount(stratum, share * values) / weight
        below, above = (
            np.sqrt(((weight * (rate - end)) ** 2).sum() + q**2 * over_seeds)
            for end in _wilson(rate, by_stratum / weight**2, size, q)
        )
        low, high = np.clip([value - below, value + above], 0.0, 1.0)
    else:
        half = q * np.sqrt(variance + over_seeds)
        low, high = centre - half, centre + half
        if is_difference:
            low, high = np.clip([low, high], -1.0, 1.0)
    percent, points, plain = (100.0, "%", "accuracy"), (100.0, "points", "difference"), (1.0, "", "measure")
    scale, unit, kind = percent if is_share else points if is_difference else plain
    return Number(scale * value, scale * float(low), scale * float(high), len(images), unit, kind, df=float(df))


def _wilson(p: np.ndarray, variance: np.ndarray, size: np.ndarray, q: float) -> tuple[np.ndarray, np.ndarray]:
    """Score interval (strata,), (strata,) of each stratum's share, for as many images as its variance is worth."""
    with np.errstate(divide="ignore", invalid="ignore"):
        n = np.where(variance > 0, p * (1 - p) / variance, size)
    centre = (p + q**2 / (2 * n)) / (1 + q**2 / n)
    half = q / (1 + q**2 / n) * np.sqrt(p * (1 - p) / n + q**2 / (4 * n**2))
    return centre - half, centre + half


def _block(values: np.ndarray, share: np.ndarray, image: np.ndarray, heavy: np.ndarray) -> float:
    """Share of its rows in which an image differs, given that it does: of the images that were seen to (net of opposite rows), and of one
    whole image more (Laplace's rule of succession: where few images differ, little is known about how much)."""
    if heavy.size == values.size:
        return 1.0
    moved, net = np.bincount(image, share * np.abs(values)), np.bincount(image, share * values)
    differing = int((moved > 0).sum())
    if differing == 0:
        return 1.0
    seen = float(np.clip((net**2 / heavy).sum() / moved.sum(), (share / heavy[image]).min(), 1.0))
    return (differing * seen + 1.0) / (differing + 1.0)


def _pairs(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number of each row's pair of codes (n,), and how many rows each pair has."""
    number, pairs = pd.factorize(first * (second.max() + 1) + second)
    return number, np.bincount(number, minlength=len(pairs))


def median(values: np.ndarray) -> tuple[float, float, float, int]:
    """Median of independent values (n,), in their unit; low, high: the two values between which it is in at least 95 %; n.

    The ends are order statistics (sign test; Conover 1999, section 3.2); NaN for fewer than six. Raises ValueError for none, and for NaN.
    """
    if not len(values) or np.isnan(values).any():
        raise ValueError(f"a median needs values, none of them NaN, found {len(values)}")
    ends = quantile_test(values, p=0.5).confidence_interval(CONFIDENCE)
    return float(np.median(values)), float(ends.low), float(ends.high), len(values)


def paired_difference(right: np.ndarray, reference: np.ndarray, *samples: np.ndarray, **options: Any) -> Number:
    """Accuracy minus the reference's on the same rows (n,) bool, in percentage points; samples, options and errors as of `mean`."""
    return mean(right.astype(np.int8) - reference.astype(np.int8), *samples, **options)


def mcnemar(right: np.ndarray, reference: np.ndarray) -> float:
    """Exact two-sided p-value of McNemar's test on the same independent images (n,) bool; 1 where none differs."""
    gained, lost = int((right & ~reference).sum()), int((~right & reference).sum())
    return 1.0 if gained + lost == 0 else float(binomtest(gained, gained + lost, 0.5).pvalue)


def p_value(estimate: Number, null: float = 0.0) -> float:
    """Two-sided p-value of an estimate against a value: the level at which its interval, made wider or narrower, ends there. NaN for one
    without an interval, or whose interval has no width."""
    value, df = estimate.value, max((estimate.n or 0) - 1, 1) if estimate.df is None else estimate.df
    if not estimate.high > estimate.low:
        return float("nan")
    if null == value:
        return 1.0
    towards = value - estimate.low if null < value else estimate.high - value
    if towards <= 0:  # an end at 0 or 100 %, where the interval was cut
        return 0.0
    return float(2.0 * student.sf(student.ppf(0.5 + 0.5 * CONFIDENCE, df) * abs(value - null) / towards, df))


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's adjusted p-values (m,) of m tests made together (Holm 1979); NaN, a test that was not made, stays and is not counted."""
    p = np.asarray(p_values, dtype=np.float64)
    made = np.flatnonzero(~np.isnan(p))
    order = made[np.argsort(p[made], kind="stable")]
    adjusted = np.full(p.shape, np.nan)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return adjusted


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error in percent over equally wide bins (Guo et al. 2017): confidence (n,) in 0..1 of the predicted class."""
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)  # bins (0, 1/15], (1/15, 2/15], ...
    gap = np.bincount(bin_of, right.astype(float) - confidence, minlength=bins)
    return 100.0 * float(np.abs(gap).sum() / len(right))


def _enough(n: int, minimum: int) -> None:
    if n < minimum:
        more = "raise the number of images (n in the profile)"
        raise ValueError(f"an interval needs at least {minimum} images, found {n}: {more}")


def groups(records: pd.DataFrame, conditions: Sequence[str] = CONDITION) -> dict[str, Any]:
    """What `mean` has to know of records: which rows are of one image (in any condition), and what is averaged with the same weight."""
    found = {"samples": records["sample"], "strata": records["dataset"], "seeds": records["seed"]}
    found["conditions"] = records.groupby(list(conditions), sort=False).ngroup()
    return {name: column.to_numpy() for name, column in found.items()}


def estimate(
    records: pd.DataFrame, rule: str, *, conditions: Sequence[str] = CONDITION, **options: Any
) -> Number | None:
    """Accuracy under a rule, or `DIFFERENCE`, as the mean over conditions with the interval of `mean`; None as in `correct`."""
    right, grouped = correct(records, "final" if rule == DIFFERENCE else rule), groups(records, conditions)
    if rule == DIFFERENCE and right is not None:
        reference = correct(records, "teacher")
        return None if reference is None else paired_difference(right, reference, **grouped, **options)
    return None if right is None else mean(right, **grouped, **options)
