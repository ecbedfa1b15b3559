"""What more than one experiment judges features by, and how it shows them: the library's methods with one choice of settings.

Rows are features (n, D) of images or of places. Labels only judge. Everything runs on one thread: sums have the same rounding on every
number of cores.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy.special import entr
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize
from threadpoolctl import threadpool_limits
from torch import Tensor

from apm.analysis import figures, stats
from apm.analysis.numbers import Number
from apm.teachers import IMAGENET_MEAN, IMAGENET_STD

one_thread = threadpool_limits.wrap(limits=1)


def mean(
    values: Any,
    unit: str = "",
    kind: str = "measure",
    *,
    less: Any = None,
    least: int = stats.MINIMUM_SAMPLES,
    ends: tuple[float, float] = (-math.inf, math.inf),
) -> Number:
    """Mean over images of one value each (n,), less another one's, with its 95 % interval over images, within `ends`; without for one.

    Right or wrong (bool) is in percent, differences of two such in points; others keep their unit. Raises as `stats.mean`, least images.
    """
    values = np.asarray(values) if less is None else 1 * np.asarray(values) - 1 * np.asarray(less)  # no bool
    if len(values) == least == 1:
        return Number(float(values.mean()), n=1, unit=unit, kind=kind)
    found = stats.mean(values, minimum=least)
    if found.unit:
        return found
    return replace(found, low=max(ends[0], found.low), high=min(ends[1], found.high), unit=unit, kind=kind)


def table(
    measured: Mapping[str, Mapping[str, Any]],
    names: Sequence[str] | None = None,
    *,
    paired: Collection[str] = (),
    options: Mapping[str, dict[str, Any]] | None = None,
) -> pd.DataFrame:
    """Means over images with their intervals: a row a source, a column a measure (default: all), one value an image each.

    paired: measures with a column "field - this" beside them, the first source less this one. options: of `mean`, by measure; one whose
    name ends with (%) is in percent.
    """
    rows: dict[str, dict[str, Number | None]] = {source: {} for source in measured}
    first = next(iter(measured))
    for source, values in measured.items():
        for name in names or values:
            how: dict[str, Any] = (options or {}).get(name, {"unit": "%"} if name.endswith("(%)") else {})
            rows[source][name] = mean(values[name], **how)
            if name in paired:
                difference = None if source == first else mean(measured[first][name], less=values[name], **how)
                rows[source][f"field - this: {name.split(': ')[-1]}"] = difference
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("features")


def probe() -> Any:
    """A linear probe, not fitted: features standardised, then logistic regression."""
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))


@one_thread
def classify(
    features: Mapping[str, tuple[np.ndarray, np.ndarray]], labels: tuple[np.ndarray, np.ndarray], *, k: int
) -> dict[str, pd.DataFrame]:
    """Which held-out images "k-NN" (by cosine) and a "linear probe" on features get right: two columns, a row an image. Both features, by
    name, and labels are (training (N, ...), held out (M, ...))."""
    classifiers = {"k-NN": KNeighborsClassifier(k, metric="cosine", algorithm="brute"), "linear probe": probe()}
    found = {}
    for name, pair in features.items():
        known, asked = (np.asarray(x, dtype=np.float64).reshape(len(x), -1) for x in pair)
        right = {rule: one.fit(known, labels[0]).predict(asked) == labels[1] for rule, one in classifiers.items()}
        found[name] = pd.DataFrame(right)
    return found


@one_thread
def kmeans(rows: np.ndarray, k: int, *, starts: int, seed: int = 0) -> np.ndarray:
    """k-means clusters (n,) of rows as they are, the best of some starts."""
    return np.asarray(KMeans(k, n_init=starts, random_state=seed).fit_predict(rows))


@one_thread
def tsne(rows: np.ndarray, components: int = 2, *, seed: int = 0) -> np.ndarray:
    """t-SNE (n, components) of rows as they are, from a PCA start; scikit-learn's defaults make a random scatter of few rows."""
    n = len(rows)
    chosen: dict[str, Any] = {"perplexity": max(min(30.0, n / 6), 1.0), "learning_rate": max(n / 12, 1.0)}
    found = TSNE(components, early_exaggeration=4.0, init="pca", random_state=seed, **chosen)
    return np.asarray(found.fit_transform(np.pad(rows, ((0, 0), (0, max(components - rows.shape[1], 0))))))


def directions(rows: np.ndarray) -> np.ndarray:
    """Rows (n, ...) flat, of unit length after their mean was taken off."""
    flat = np.asarray(rows, dtype=np.float64).reshape(len(rows), -1)
    return normalize(flat - flat.mean(axis=0))


def shared(
    clusters: np.ndarray, classes: np.ndarray, *, images: np.ndarray | None = None, least: bool = False
) -> np.ndarray:
    """Normalised mutual information in percent of two labellings (n,), as one value an image whose mean it is.

    Over the mean of the two entropies, or, with `least`, over the smaller one: few clusters can then reach 100. images: (n,) image of each
    row, default each its own. A value is the measure plus the jackknife's share of its image (Efron and Tibshirani 1993, ch. 11).
    """
    k, c = int(clusters.max()) + 1, int(classes.max()) + 1
    images = np.arange(len(clusters)) if images is None else images
    n = int(images.max()) + 1
    counts = np.bincount((images * k + clusters) * c + classes, minlength=n * k * c).reshape(n, k, c).astype(np.float64)

    def information(table: np.ndarray) -> np.ndarray:
        p = table / table.sum(axis=(-2, -1), keepdims=True)
        h_k, h_c, both = (entr(q).sum(axis=-1) for q in (p.sum(-1), p.sum(-2), p.reshape(*p.shape[:-2], -1)))
        of = np.minimum(h_k, h_c) if least else (h_k + h_c) / 2
        return 100.0 * np.where(of > 0, (h_k + h_c - both) / np.where(of > 0, of, 1.0), 0.0)

    total = counts.sum(axis=0)
    without = information(total - counts)
    return np.asarray(np.round(float(information(total)) + (n - 1) * (without.mean() - without), 9))


def clusters(
    whole: np.ndarray | None,
    grid: np.ndarray,
    labels: np.ndarray,
    foreground: np.ndarray,
    where: np.ndarray,
    *,
    k: int,
    seed: int = 0,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """k-means of images, as many clusters as classes, and of locations, k clusters: what they agree with, one value an image (purity, a bool;
    NMI, of locations over the smaller entropy), and the clusters (n, h, w) of the locations.

    whole: (N, D) or None, labels: (N,) of images. grid: (n, h, w, D'), foreground: (n, h, w), where: (n,) of some of them.
    """
    n, h, w = foreground.shape
    measures = {}
    if whole is not None:
        found = kmeans(directions(whole), len(np.unique(labels)), starts=2, seed=seed)
        majority = pd.crosstab(found, labels).idxmax(axis=1).loc[found].to_numpy()
        measures = {"images: purity": majority == labels, "images: NMI with class": shared(found, labels)}
    rows = kmeans(directions(np.asarray(grid).reshape(n * h * w, -1)), k, starts=2, seed=seed)
    image = np.repeat(np.arange(n), h * w)
    truths = {"foreground": foreground.ravel().astype(int), "place": np.tile(np.arange(h * w), n)}
    truths["class"] = labels[where][image]
    for name, truth in truths.items():
        measures[f"locations: NMI with {name}"] = shared(rows, truth, images=image, least=True)
    return measures, rows.reshape(n, h, w)


def displayed(images: Tensor) -> np.ndarray:
    """A student's normalised images (..., 3, H, W) as they look: float RGB (..., H, W, 3) in 0..1."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (images.cpu() * std + mean).clamp(0, 1).movedim(-3, -1).numpy()


def pictures(rows: Mapping[str, Sequence[Any]], headings: Sequence[str], *, size: float = 1.15) -> Figure:
    """Pictures in rows, by label, under headings: (H, W, 3) in 0..1 or uint8, or (H, W) grey or bool. size: inches per picture."""
    figures.style()
    how: dict[str, Any] = {"squeeze": False, "layout": "constrained", "subplot_kw": {"xticks": [], "yticks": []}}
    how["figsize"] = size * len(headings) + 0.8, size * len(rows) + 0.4
    figure, grid = plt.subplots(len(rows), len(headings), **how)
    for row, (name, shown) in zip(grid, rows.items(), strict=True):
        for axes, image in zip(row, shown, strict=True):
            axes.imshow(image, cmap="gray", vmin=0, vmax=1)
            axes.spines[:].set(visible=True, color="0.7", linewidth=0.5)  # white pixels at the edge are not the page
        row[0].set_ylabel(name, fontsize="small", rotation=0, ha="right", va="center")
    for axes, heading in zip(grid[0], headings, strict=True):
        axes.set_title(heading, fontsize="small")
    return figure
