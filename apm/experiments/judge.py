"""What more than one experiment judges features by, and how it shows them: the library's methods with one choice of settings.

Rows are features (n, D) of images or of places. Everything runs on one thread: sums have the same rounding on every number of cores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from apm.analysis import figures, stats, tables
from apm.analysis.numbers import Number
from apm.teachers import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from matplotlib.figure import Figure

one_thread = threadpool_limits.wrap(limits=1)


def mean(values: np.ndarray | pd.Series, unit: str = "", kind: str = "measure") -> Number:
    """Mean over images of one value each (n,), with its 95 % interval over images (`apm.analysis.stats.mean`).

    Right or wrong (bool) and differences of two such (whole numbers) are in percent; others keep their unit. Raises ValueError
    for fewer than `stats.MINIMUM_SAMPLES` images and values that are not finite.
    """
    values = np.asarray(values)
    found = stats.mean(values)
    if values.dtype == bool or np.issubdtype(values.dtype, np.integer):
        return tables.percent(found, kind="accuracy" if values.dtype == bool else "difference")
    return Number(found.value / 100, found.low / 100, found.high / 100, found.n, unit, kind)


def probe() -> Any:
    """A linear probe, not fitted: features standardised, then logistic regression. It uses labels: no method, it says what features hold."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))


@one_thread
def kmeans(rows: np.ndarray, k: int, *, starts: int, seed: int = 0) -> np.ndarray:
    """k-means clusters (n,) of rows as they are, the best of some starts."""
    from sklearn.cluster import KMeans

    return np.asarray(KMeans(k, n_init=starts, random_state=seed).fit_predict(rows))


@one_thread
def tsne(rows: np.ndarray, components: int = 2, *, seed: int = 0) -> np.ndarray:
    """t-SNE (n, components) of rows as they are, from a PCA start: repeatable. It keeps neighbourhoods only, and spreads what it is given.

    scikit-learn's defaults are made for thousands of rows: of the 64 places of a grid its learning rate makes a random scatter, and
    its exaggeration one point.
    """
    from sklearn.manifold import TSNE

    n = len(rows)
    chosen: dict[str, Any] = {"perplexity": max(min(30.0, n / 6), 1.0), "learning_rate": max(n / 12, 1.0)}
    found = TSNE(components, early_exaggeration=4.0, init="pca", random_state=seed, **chosen)
    return np.asarray(found.fit_transform(np.pad(rows, ((0, 0), (0, max(components - rows.shape[1], 0))))))


def foreground(bright: np.ndarray, images: np.ndarray | None = None) -> np.ndarray:
    """Which places (N, h, w) are brighter than Otsu's threshold (1979), which divides brightnesses into two classes of least variance.

    bright: (N, h, w) mean brightness of the places. images: (N, H, W) brightness of the pixels, for a threshold of each image's own;
    default one threshold, of all places.
    """
    from skimage.filters import threshold_otsu

    if images is None:
        return bright > threshold_otsu(bright.ravel())  # a width of 3 or 4 places is no colour
    return bright > np.array([threshold_otsu(image) for image in images])[:, None, None]


def displayed(images: Tensor) -> np.ndarray:
    """A student's normalised images (..., 3, H, W) as they look: float RGB (..., H, W, 3) in 0..1."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (images.cpu() * std + mean).clamp(0, 1).movedim(-3, -1).numpy()


def pictures(rows: Mapping[str, Sequence[Any]], headings: Sequence[str], *, size: float = 1.15) -> Figure:
    """Pictures in rows and columns: (H, W, 3) in 0..1 or uint8, or (H, W) grey or bool.

    rows: pictures by row label, one per heading. size: inches per picture. Raises ValueError for rows of another length.
    """
    import matplotlib.pyplot as plt

    figures.style()
    shape = (len(rows), len(headings))
    figsize = (size * shape[1] + 0.8, size * shape[0] + 0.4)
    figure, grid = plt.subplots(*shape, figsize=figsize, squeeze=False, layout="constrained")
    for axes_row, (name, shown) in zip(grid, rows.items(), strict=True):
        for axes, image in zip(axes_row, shown, strict=True):
            axes.imshow(image, **({"cmap": "gray", "vmin": 0, "vmax": 1} if np.ndim(image) == 2 else {}))
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        axes_row[0].set_ylabel(name, fontsize="small", rotation=0, ha="right", va="center")
    for axes, heading in zip(grid[0], headings, strict=True):
        axes.set_title(heading, fontsize="small")
    return figure
