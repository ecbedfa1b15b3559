"""How often the 95 % intervals of `apm.analysis.stats` hold the truth: python tests/cover.py prints the table.

Paired differences of accuracies: images gained and lost at rates of 0.5 to 5 %, one row per image, or images under many conditions
whose rows go the same way with a given correlation. Nominal 95 % is met where coverage is at least 93 % in every setting. The upper
limit, 99.5 %, can bind only where enough images differ: of 10 images at a rate of 1 % mostly none does, the interval then holds
0 and all that is as near, and no method that keeps 93 % elsewhere covers less.
"""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd

from apm.analysis import stats

DESIGNS = ((10, 1), (24, 1), (48, 1), (192, 1), (899, 1), (20, 75), (192, 15))  # images, conditions
RATES = ((0.005, 0.0), (0.01, 0.01), (0.02, 0.005), (0.05, 0.0), (0.025, 0.025), (0.05, 0.01))  # gained, lost
CORRELATIONS = (0.0, 0.1, 0.4)
LEAST, MOST = 93.0, 99.5


def differences(rng: np.random.Generator, shape: tuple[int, int], rates: tuple[float, float], rho: float) -> np.ndarray:
    """Gained (1), lost (-1) or neither (0), (images, conditions): beta-binomial with intraclass correlation rho, one direction an image."""
    gained, lost = rates
    if rho == 0:
        u = rng.random(shape)
        return (u < gained).astype(np.int8) - (u > 1.0 - lost).astype(np.int8)
    rate, each = gained + lost, (shape[0], 1)
    own = rng.beta(rate * (1 - rho) / rho, (1 - rate) * (1 - rho) / rho, each)
    direction = np.where(rng.random(each) < gained / rate, 1, -1)
    return ((rng.random(shape) < own) * direction).astype(np.int8)


def coverage(
    images: int, conditions: int, rates: tuple[float, float], rho: float = 0.0, trials: int = 1000
) -> dict[str, float]:
    """Coverage in percent, mean half width in points and mean number of images that differ, over simulated benchmarks."""
    rng = np.random.default_rng([images, conditions])
    image, condition = np.indices((images, conditions)).reshape(2, -1)
    truth = 100.0 * (rates[0] - rates[1])
    rows = []
    for _ in range(trials):
        values = differences(rng, (images, conditions), rates, rho)
        found = stats.mean(values.ravel(), image, conditions=condition)
        held, width = 100.0 * (found.low <= truth <= found.high), (found.high - found.low) / 2
        rows.append({"coverage": held, "half width": width, "differing images": values.any(axis=1).sum()})
    return pd.DataFrame(rows).mean().to_dict()


def table(trials: int = 1000) -> pd.DataFrame:
    """One row per design, rates and correlation. Columns: those, and those of `coverage`."""
    rows = []
    for (images, conditions), rates, rho in itertools.product(DESIGNS, RATES, CORRELATIONS):
        if conditions > 1 or rho == 0:
            row = {"images": images, "conditions": conditions, "gained %": 100 * rates[0], "lost %": 100 * rates[1]}
            rows.append({**row, "correlation": rho, **coverage(images, conditions, rates, rho, trials)})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    found = table()
    print(found.round(1).to_string(index=False))
    print(found.groupby(["images", "conditions", "correlation"])["coverage"].agg(["min", "mean", "max"]).round(1))
