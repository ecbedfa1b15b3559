"""What features hold: do they tell classes apart, and what do clusters of images and of locations agree with? Labels only judge."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from apm.experiments.judge import kmeans, one_thread, probe


@one_thread
def judge(
    features: Mapping[str, tuple[np.ndarray, np.ndarray]], labels: tuple[np.ndarray, np.ndarray], *, k: int
) -> dict[str, pd.DataFrame]:
    """Which held-out images k nearest neighbours (by cosine) and a linear probe on features get right: a row each, columns "k-NN"
    and "linear probe".

    features: name -> (training (N, D), held out (M, D)). labels: (training (N,), held out (M,)). Raises ValueError for k outside 1..N.
    """
    from sklearn.neighbors import KNeighborsClassifier

    if not 1 <= k <= len(labels[0]):
        raise ValueError(f"k must lie in 1..{len(labels[0])}, the number of training images, found {k}")
    classifiers = {"k-NN": KNeighborsClassifier(k, metric="cosine", algorithm="brute"), "linear probe": probe()}
    found = {}
    for name, pair in features.items():
        known, asked = (np.asarray(x, dtype=np.float64).reshape(len(x), -1) for x in pair)
        right = {rule: one.fit(known, labels[0]).predict(asked) == labels[1] for rule, one in classifiers.items()}
        found[name] = pd.DataFrame(right)
    return found


def cluster(rows: np.ndarray, k: int, seed: int = 0) -> np.ndarray:
    """k-means clusters (n,) of rows (n, D), by direction: rows brought to unit length, after their mean was taken off.

    Raises ValueError for k outside 2..n.
    """
    from sklearn.preprocessing import normalize

    rows = np.asarray(rows, dtype=np.float64)
    if not 2 <= k <= len(rows):
        raise ValueError(f"k must lie in 2..{len(rows)}, the number of rows, found {k}")
    return kmeans(normalize(rows - rows.mean(axis=0)), k, starts=2, seed=seed)


def shared(
    clusters: np.ndarray, classes: np.ndarray, *, images: np.ndarray | None = None, least: bool = False
) -> np.ndarray:
    """Normalised mutual information in percent of two labellings (n,), as one value an image whose mean it is.

    The information over the mean of the two entropies, or, with `least`, over the smaller one: few clusters can then reach 100,
    however many classes there are. images: (n,) image of each row, default each its own. A value is the measure plus the jackknife's
    share of its image (Efron and Tibshirani 1993, ch. 11): their spread gives the interval.
    """
    from scipy.special import entr

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
    *,
    k: int,
    seed: int = 0,
    where: np.ndarray | None = None,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """k-means of images, as many clusters as there are classes, and of locations, k clusters, by their features: what they agree with,
    one value an image (purity, a bool; NMI), and the clusters (n, h, w) of the locations.

    whole: one vector per image (N, D) or None; grid: one per location of n images (n, h, w, D'). labels: (N,). where: (n,) positions
    of those n among the N, default all. foreground: (n, h, w) bool. NMI of the locations is over the smaller entropy.
    """
    n, h, w = foreground.shape
    own = labels if where is None else labels[where]
    measures = {}
    if whole is not None:
        found = cluster(np.asarray(whole).reshape(len(labels), -1), len(np.unique(labels)), seed)
        majority = pd.crosstab(found, labels).idxmax(axis=1).loc[found].to_numpy()
        measures = {"images: purity": majority == labels, "images: NMI with class": shared(found, labels)}
    rows = cluster(np.asarray(grid).reshape(n * h * w, -1), k, seed)
    image = np.repeat(np.arange(n), h * w)
    truths = {"foreground": foreground.ravel().astype(int), "place": np.tile(np.arange(h * w), n), "class": own[image]}
    for name, truth in truths.items():
        measures[f"locations: NMI with {name}"] = shared(rows, truth, images=image, least=True)
    return measures, rows.reshape(n, h, w)
