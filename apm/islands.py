"""Looks into the student's grid while it learns: the features of every location, at chosen iterations, and what they are worth.

Places whose features agree form *islands* (section 3.5, Figures 3 and 7 of the paper; the word is GLOM's). A picture of them
stretches whatever variation there is to full colour, so the pictures come with numbers: how large the variation is, how much
neighbours agree more than distant places, how many clusters there are, and whether they lie where the object lies.

Grids are arrays (N, h, w, D): N images, h x w places, features of width D. Distances between places count grid steps.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from apm import figures, published, stats
from apm.model import APMConfig, Parameters, activations, head, patches, perceive
from apm.project import unknown
from apm.stats import Interval
from apm.teachers import IMAGENET_MEAN, IMAGENET_STD
from apm.ttt import TTTConfig, TTTResult, adapt, trained_student

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = ("pca", "tsne")
CLUSTER_COUNTS = (2, 3, 4, 5, 6)  # numbers of clusters that the silhouette chooses from
OTHERS = 5  # masks of that many other images are the control of an image's own mask
MOST = 0.9  # from which a share or likeness is called high in the sentences
_one_thread = threadpool_limits.wrap(limits=1)  # several add in an order that depends on their number


class Snapshots:
    """Callback for `apm.ttt.adapt` that keeps the feature grids of all images after chosen numbers of updates.

    student: the config that is trained (`apm.ttt.trained_student`). images: (N, 3, H, W), those passed to `adapt`.
    iterations: numbers of updates to look at, 0 for the random weights. tokens: (N, h*w, D') for column="tokens".
    double: look in float64, whatever the student is trained in. At small random weights the places differ by less than float32
        resolves, and a picture of them would show rounding.

    `grids[k]` is a float32 (with double: float64) array (N, h, w, D) after `adapt` has returned. It only looks: training does
    not depend on it.
    """

    def __init__(
        self,
        student: APMConfig,
        images: Tensor,
        iterations: Sequence[int],
        tokens: Tensor | None = None,
        *,
        double: bool = False,
    ) -> None:
        self.student, self.images, self.tokens, self.double = student, images, tokens, double
        self.iterations = sorted(set(iterations))
        shape = (len(images), *student.grid, student.width)
        self.grids = {k: np.full(shape, np.nan, dtype=np.float64 if double else np.float32) for k in self.iterations}

    def __call__(self, k: int, part: slice, parameters: Mapping[str, Tensor]) -> None:
        """Called by `adapt` after k updates of the images in `part`."""
        if k not in self.grids:
            return
        tokens = None if self.tokens is None else self.tokens[part]
        if self.double:
            parameters = {name: value.double() for name, value in parameters.items()}
        features = feature_grids(parameters, self.images[part], self.student, tokens)
        self.grids[k][part] = features.to(torch.float64 if self.double else torch.float32).cpu().numpy()

    def colours(self, image: int = 0) -> list[np.ndarray]:
        """One RGB picture (h, w, 3) in 0..1 per iteration: the first three principal components of that grid."""
        return [figures.grid_rgb(self.grids[k][image]) for k in self.iterations]


def displayed(image: Tensor) -> np.ndarray:
    """A student's normalised image (3, H, W) as it looks: float RGB (H, W, 3) in 0..1."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (image.cpu() * std + mean).clamp(0, 1).permute(1, 2, 0).numpy()


def feature_grids(parameters: Parameters, images: Tensor, student: APMConfig, tokens: Tensor | None = None) -> Tensor:
    """Feature grids (N, h, w, D) of N students (stacked weights) on N images (N, 3, H, W), in the type of the weights.

    Weight set k looks at image k: with the images rolled, every student looks at an image it was not trained on.
    """
    dtype = parameters["head_weight"].dtype
    with torch.no_grad():
        percept = perceive(
            parameters, patches(images.to(dtype), student), student, None if tokens is None else tokens.to(dtype)
        )
        return head(parameters, activations(parameters, percept, student)).unflatten(1, student.grid)


def watch(
    images: Tensor,
    targets: Tensor,
    config: TTTConfig,
    iterations: Sequence[int],
    *,
    tokens: Tensor | None = None,
    seed: int = 0,
) -> tuple[TTTResult, Snapshots]:
    """Train one student per image (`apm.ttt.adapt`) and look at the grids, in float64, after the given numbers of updates.

    The result holds the final weights. Raises ValueError as `adapt`, and for a look after the last update.
    """
    if late := [k for k in iterations if not 0 <= k <= config.iterations]:
        raise ValueError(
            f"expected looks after 0 to {config.iterations} iterations, found {late}: change them or iterations"
        )
    student = trained_student(config)
    shots = Snapshots(student, images, iterations, tokens, double=True)
    result = adapt(images, targets, config, generator=seed, tokens=tokens, keep_parameters=True, callback=shots)
    return result, shots


def routed(tokens: Tensor | None, grid: tuple[int, int]) -> Tensor:
    """A teacher's patch tokens (N, h', w', D) at the student's places (N, h*w, D): each gets the token it lies in.

    Raises ValueError for a teacher without patch tokens.
    """
    if tokens is None:
        raise ValueError("this teacher's image tower has no patch tokens: choose a ViT with one token per patch")
    h, w = grid
    rows = torch.arange(h, device=tokens.device) * tokens.shape[1] // h
    columns = torch.arange(w, device=tokens.device) * tokens.shape[2] // w
    return tokens[:, rows][:, :, columns].flatten(1, 2)


# ------------------------------------------------------------------------------------------------------------ measures


def _grids(grids: np.ndarray) -> np.ndarray:
    grids = np.asarray(grids, dtype=np.float64)
    if grids.ndim != 4 or min(grids.shape[1:3]) < 2 or not grids.size:
        raise ValueError(f"expected grids of shape (N, h, w, D) with at least 2 x 2 places, found {grids.shape}")
    if not np.isfinite(grids).all():
        bad = np.flatnonzero(~np.isfinite(grids).all(axis=(1, 2, 3))).tolist()
        raise ValueError(f"the grids of image(s) {bad[:10]} have NaN or infinite values")
    return grids


def centred(grids: np.ndarray) -> np.ndarray:
    """Grids (N, h, w, D) less the mean of their places: what distinguishes the places of one image. Raises for other shapes."""
    grids = _grids(grids)
    return grids - grids.mean(axis=(1, 2), keepdims=True)


def spread(grids: np.ndarray) -> np.ndarray:
    """How much places differ, per image (N,): root mean square distance from the mean feature, as a share of its length.

    Near 0 all places say the same; colours show the differences at full contrast however small they are. Raises ValueError
    for other shapes and for a mean of length zero.
    """
    grids = _grids(grids)
    length = np.linalg.norm(grids.mean(axis=(1, 2)), axis=-1)
    if not (length > 0).all():
        raise ValueError(
            f"the mean feature of image(s) {np.flatnonzero(length == 0).tolist()[:10]} is zero: no share of it"
        )
    return np.sqrt(np.square(centred(grids)).sum(axis=-1).mean(axis=(1, 2))) / length


def _directions(grids: np.ndarray, centre: bool) -> tuple[np.ndarray, np.ndarray]:
    """Unit features (N, h, w, D), and which places have one (N, h, w): not those that equal the mean, or zero."""
    grids = _grids(grids)
    size = np.sqrt(np.square(grids).sum(axis=-1).mean(axis=(1, 2), keepdims=True))  # (N, 1, 1)
    features = centred(grids) if centre else grids
    length = np.linalg.norm(features, axis=-1)
    there = length > 1e-12 * size  # below, the difference from the mean is rounding
    if not (there.sum(axis=(1, 2)) >= 2).all():
        bad = np.flatnonzero(there.sum(axis=(1, 2)) < 2).tolist()
        raise ValueError(
            f"the features of image(s) {bad[:10]} do not vary over the grid: they have no directions to compare"
        )
    return features / np.where(there, length, 1.0)[..., None], there


def neighbour_cosine(grids: np.ndarray, *, centre: bool = False) -> np.ndarray:
    """Mean cosine similarity between features of neighbouring places (above, below, left, right), per image (N,).

    grids: (N, h, w, D). centre: of the features less the image's mean. Without it, features that share a large common part have
    cosines near 1 everywhere. A pair with a feature of length zero has no cosine and is left out. Raises ValueError for other
    shapes, non-finite values and grids without any variation.
    """
    unit, there = _directions(grids, centre)
    total, pairs = np.zeros(len(unit)), np.zeros(len(unit))
    for one, two in ((np.s_[:, 1:], np.s_[:, :-1]), (np.s_[:, :, 1:], np.s_[:, :, :-1])):
        total += (unit[one] * unit[two]).sum(axis=(1, 2, 3))
        pairs += (there[one] & there[two]).sum(axis=(1, 2))
    return total / np.maximum(pairs, 1)


def far_cosine(grids: np.ndarray, *, centre: bool = False) -> np.ndarray:
    """Mean cosine similarity between distant places, per image (N,): those at least half the grid's longer side apart, by row or
    by column. Arguments and errors as in `neighbour_cosine`.
    """
    unit, there = _directions(grids, centre)
    n, h, w, d = unit.shape
    row, column = np.divmod(np.arange(h * w), w)
    apart = np.maximum(abs(row[:, None] - row), abs(column[:, None] - column)) >= max(h, w) / 2
    means = np.empty(n)
    for i in range(n):  # image by image: the table of all pairs is as large as the grid squared
        flat, known = unit[i].reshape(-1, d), there[i].reshape(-1)
        pairs = apart & known[:, None] & known
        means[i] = (flat @ flat.T)[pairs].sum() / max(pairs.sum(), 1)
    return means


def first_component(grids: np.ndarray) -> np.ndarray:
    """Share (N,) of the variation over places that lies along one direction, the first principal component. NaN without any."""
    flat = centred(grids).reshape(len(grids), -1, np.shape(grids)[-1])
    variance = np.square(np.linalg.svd(flat, compute_uv=False))
    total = variance.sum(axis=1)
    return np.divide(variance[:, 0], total, out=np.full(len(flat), np.nan), where=total > 0)


def position_share(grids: np.ndarray) -> np.ndarray:
    """R2 (N,) of the features predicted linearly from the positional code: the share of variation that is a row's or a column's.

    The code P[i, j] = (Px[j], Py[i]) is separable, so what is linear in it is exactly a sum of a term per row and a term per
    column; the least squares fit is then the row means and column means. A map that has nothing to do with rows or columns has
    (h + w - 2) / (h w - 1) on average. NaN for a grid without variation.
    """
    flat = centred(grids)
    h, w = flat.shape[1:3]
    explained = w * np.square(flat.mean(axis=2)).sum(axis=(1, 2)) + h * np.square(flat.mean(axis=1)).sum(axis=(1, 2))
    total = np.square(flat).sum(axis=(1, 2, 3))
    return np.divide(explained, total, out=np.full(len(flat), np.nan), where=total > 0)


@_one_thread
def alike(grids: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How alike two grids are as maps, pair by pair (N,): linear CKA (Kornblith et al. 2019), 0 to 1.

    grids: (N, h, w, D), others: (N, h, w, D'). Rotating or scaling the features changes nothing, so students with different random
    weights can be compared: 1 means that the same places differ in the same way. Raises ValueError for grids of different
    places or numbers, and for grids without variation.
    """
    a, b = centred(grids), centred(others)
    if a.shape[:3] != b.shape[:3]:
        raise ValueError(
            f"expected grids of the same images and places, found {a.shape[:3]} and {b.shape[:3]} (N, h, w)"
        )
    values = np.empty(len(a))
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        within = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
        if within == 0:
            raise ValueError(f"the features of pair {i} do not vary over the grid: there is no map to compare")
        values[i] = np.square(np.linalg.norm(x.T @ y)) / within
    return values


def shuffled(grids: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Grids (N, h, w, D) with the places of each image in random order: the control in which no map is left."""
    grids = _grids(grids)
    _, h, w, d = grids.shape
    rng = np.random.default_rng(seed)
    return np.stack([grid.reshape(h * w, d)[rng.permutation(h * w)].reshape(h, w, d) for grid in grids])


@dataclass(frozen=True)
class Clusters:
    """A division of one grid's places into groups of like features."""

    labels: np.ndarray  # (h, w) int, group of each place
    count: int  # number of groups
    silhouette: float  # mean silhouette of that division, -1 to 1


@_one_thread
def clusters(grid: np.ndarray, counts: Sequence[int] = CLUSTER_COUNTS, *, seed: int = 0) -> Clusters:
    """k-means groups of one grid's features (h, w, D), with the number of groups of highest mean silhouette (Rousseeuw 1987).

    counts: numbers of groups to choose from, at least 2. The silhouette compares divisions and cannot say that there is none:
    features that change smoothly over the grid are divided as well, so compare with the controls. The same seed gives the same
    groups.

    Raises ValueError for another shape, no possible number of groups, or fewer different features than the smallest number.
    """
    return _clusters(grid, counts, seed)


def _clusters(grid: np.ndarray, counts: Sequence[int], seed: int) -> Clusters:
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    grid = np.asarray(grid)
    flat = _unit_scale(_grids(grid[None] if grid.ndim == 3 else grid))
    h, w = grid.shape[:2]
    different = len(np.unique(flat.round(9), axis=0))
    possible = [k for k in counts if 2 <= k <= min(different, h * w - 1)]
    if not possible:
        raise ValueError(
            f"cannot divide {h * w} places with {different} different features into {list(counts)} groups: at least 2, and no "
            "more than there are different features"
        )
    best: Clusters | None = None
    for k in possible:
        labels = KMeans(k, n_init=4, random_state=seed).fit_predict(flat)
        score = float(silhouette_score(flat, labels))
        if best is None or score > best.silhouette:
            best = Clusters(labels.reshape(h, w), k, score)
    assert best is not None
    return best


def _unit_scale(grids: np.ndarray) -> np.ndarray:
    """The places (h*w, D) of one grid (1, h, w, D), centred and of mean square 1, so that tolerances of the algorithms fit."""
    if len(grids) != 1:
        raise ValueError(f"expected one grid of shape (h, w, D), found {grids.shape}")
    flat = centred(grids).reshape(-1, grids.shape[-1])
    size = np.sqrt(np.square(flat).sum(axis=1).mean())
    return flat / size if size > 1e-12 * np.sqrt(np.square(grids).sum(axis=-1).mean()) else np.zeros_like(flat)


def foreground(images: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Which places (N, h, w) hold a bright object: the patch's mean brightness exceeds Otsu's threshold on the image's pixels.

    images: (N, H, W, 3) RGB in 0..1 or 0..255; brightness is the mean of the channels. Otsu's threshold (1979) divides the pixels
    into two classes of least variance. Raises ValueError for other shapes, sides that the grid does not divide, and an image of
    one brightness.
    """
    from skimage.filters import threshold_otsu

    images, (h, w) = np.asarray(images, dtype=np.float64), grid
    if images.ndim != 4 or images.shape[-1] != 3 or images.shape[1] % h or images.shape[2] % w:
        raise ValueError(
            f"expected images (N, H, W, 3) whose sides are multiples of the grid {h} x {w}, found {images.shape}: resize them"
        )
    bright = images.mean(axis=-1)
    n, height, width = bright.shape
    flat = np.flatnonzero(np.ptp(bright.reshape(n, -1), axis=1) == 0)
    if len(flat):
        raise ValueError(
            f"image(s) {flat.tolist()[:10]} have one brightness throughout: no foreground can be told apart"
        )
    means = bright.reshape(n, h, height // h, w, width // w).mean(axis=(2, 4))
    return means > np.array([threshold_otsu(image) for image in bright])[:, None, None]


def mask_agreement(labels: np.ndarray, masks: np.ndarray, others: int = OTHERS) -> tuple[np.ndarray, np.ndarray]:
    """Adjusted Rand index (N,) of each image's groups with its own mask, and with the masks of other images (mean).

    labels: (N, h, w) groups. masks: (N, h, w) bool. 1: the same division, 0: as by chance. Objects often stand in the middle, so that
    any division into middle and border does better than chance; the masks of the `others` images that follow (the first after the
    last) show how much. Only what the own mask has more than they can come from the image.

    Raises ValueError for groups and masks of different shapes and for no more than `others` images.
    """
    from sklearn.metrics import adjusted_rand_score

    labels, masks = np.asarray(labels), np.asarray(masks)
    if labels.shape != masks.shape or labels.ndim != 3:
        raise ValueError(
            f"expected groups and masks of one shape (N, h, w), found {labels.shape} and {masks.shape}: make the masks for the "
            "grid of the features (apm.islands.foreground)"
        )
    n = len(labels)
    if not 1 <= others < n:
        raise ValueError(f"expected more than {others} images, found {n}: other images' masks are the control")

    def score(i: int, j: int) -> float:
        return float(adjusted_rand_score(masks[j].ravel(), labels[i].ravel()))

    own = np.array([score(i, i) for i in range(n)])
    return own, np.array([np.mean([score(i, (i + k) % n) for k in range(1, others + 1)]) for i in range(n)])


MEASURES = {  # column of `measure` -> heading
    "spread": "spread (%)",
    "neighbour": "neighbours, raw",
    "far": "far, raw",
    "neighbour_centred": "neighbours",
    "far_centred": "far",
    "neighbour_minus_far": "neighbours - far",
    "first_component": "first component",
    "position": "R2 of P",
    "clusters": "clusters",
    "ari_two": "ARI, 2 clusters",
    "ari": "ARI, chosen number",
    "ari_two_others": "ARI, 2 clusters, other masks",
    "ari_two_gain": "own - other masks",
}


@_one_thread
def measure(
    grids: np.ndarray,
    masks: np.ndarray | None = None,
    *,
    counts: Sequence[int] = CLUSTER_COUNTS,
    others: int = OTHERS,
    seed: int = 0,
) -> pd.DataFrame:
    """Every measure of N grids (N, h, w, D), one row per image: the columns of MEASURES, in that order.

    masks: (N, h, w) foreground; without it the columns that need one are left out. counts: numbers of clusters to choose from.
    "ari_two" takes two clusters, "ari" the chosen number. Raises ValueError as the single measures do.
    """
    grids = _grids(grids)
    near, distant = neighbour_cosine(grids, centre=True), far_cosine(grids, centre=True)
    same = np.array(
        [np.array_equal(grids[0], grid) for grid in grids]
    ).all()  # the positional code: one division serves all
    divided = [_clusters(grid, counts, seed) for grid in (grids[:1] if same else grids)]
    divided = divided * len(grids) if same else divided
    columns = {
        "spread": spread(grids),
        "neighbour": neighbour_cosine(grids),
        "far": far_cosine(grids),
        "neighbour_centred": near,
        "far_centred": distant,
        "neighbour_minus_far": near - distant,
        "first_component": first_component(grids),
        "position": position_share(grids),
        "clusters": np.array([d.count for d in divided], dtype=np.float64),
    }
    if masks is not None:
        two = [d if d.count == 2 else _clusters(grid, [2], seed) for d, grid in zip(divided, grids, strict=True)]
        own, other = mask_agreement(np.stack([d.labels for d in two]), masks, others)
        columns["ari_two"] = own
        columns["ari"] = mask_agreement(np.stack([d.labels for d in divided]), masks, 1)[0]
        columns["ari_two_others"], columns["ari_two_gain"] = other, own - other
    return pd.DataFrame(columns)


def interval(values: np.ndarray | pd.Series) -> Interval:
    """Mean of one value per image with its 95 % bootstrap interval over images, in the values' own unit.

    Raises ValueError for fewer images than `apm.stats.MINIMUM_SAMPLES`.
    """
    found = stats.bootstrap_mean(np.asarray(values, dtype=np.float64))
    return Interval(found.value / 100, found.low / 100, found.high / 100, found.n)


def summary(measures: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Means over images with intervals, in long form: columns source, measure, value, low, high, n.

    measures: rows of `measure` by source. Raises ValueError for too few images.
    """
    rows = [
        {"source": source, "measure": name, **interval(frame[name])._asdict()}
        for source, frame in measures.items()
        for name in frame
    ]
    return pd.DataFrame(rows)


def table(long: pd.DataFrame, measures: Iterable[str] = tuple(MEASURES)) -> pd.DataFrame:
    """A summary as read: one row per source, one column per measure, "value [low, high]", the spread in percent.

    Raises ValueError for a measure that the summary does not have.
    """
    wide: dict[str, dict[str, str]] = {}
    for name in measures:
        part = long[long["measure"] == name]
        if part.empty:
            raise unknown("measure", name, dict.fromkeys(long["measure"]))
        wide[MEASURES.get(name, name)] = {
            row.source: _bracketed(row, percent=name == "spread") for row in part.itertuples()
        }
    order = list(dict.fromkeys(long["source"]))
    return pd.DataFrame(wide).reindex(order).rename_axis("features").reset_index()


def likeness(pairs: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Values of `alike` per image, by comparison, as read: columns compared, CKA with its interval, n. Raises as `interval`."""
    rows = {name: interval(values) for name, values in pairs.items()}
    return pd.DataFrame({"compared": name, "CKA": _bracketed(found), "n": found.n} for name, found in rows.items())


def _bracketed(row: Any, *, percent: bool = False) -> str:
    """ "0.55 [0.54, 0.56]" from anything with value, low and high; without the interval where it is narrower than the digits."""
    numbers = (row.value, row.low, row.high)
    value, low, high = (f"{100 * x:.3g}" if percent else _decimals(x) for x in numbers)
    return value if value == low == high else f"{value} [{low}, {high}]"


def _decimals(value: float) -> str:
    """Two decimals; four where a cosine is so near 1 that two would hide that it is not 1; never "-0.00"."""
    text = f"{value:.4f}" if 0.995 <= abs(value) < 1 else f"{value:.3f}" if abs(value) < 0.0995 else f"{value:.2f}"
    return text.removeprefix("-") if float(text) == 0 else text


def against_zero(found: Interval) -> str:
    """A difference in words: "above 0", "below 0", or "not distinguishable from 0" where its interval holds 0."""
    return "above 0" if found.low > 0 else "below 0" if found.high < 0 else "not distinguishable from 0"


@dataclass(frozen=True)
class PublishedLoss:
    """The losses that the paper prints for Figure 3."""

    iterations: int
    first: float
    last: float
    source: str


def published_loss() -> PublishedLoss:
    """Figure 3's losses from data/published. Raises ValueError when the row is missing or cannot be read as first -> last."""
    known = published.load("table5_and_appendix")
    row = known[known["table"] == "Fig 3"]
    if len(row) != 1:
        raise ValueError(
            f"expected one row 'Fig 3' in table5_and_appendix.csv, found {len(row)}: restore data/published"
        )
    losses = re.fullmatch(r"\s*(\S+)\s*->\s*(\S+)\s*", row["text"].iloc[0])
    count = re.search(r"(\d+) TTT iterations", row["row"].iloc[0])
    if not losses or not count:
        raise ValueError(
            f"expected 'first -> last' and '<n> TTT iterations' in row 'Fig 3' of table5_and_appendix.csv, found "
            f"{row['text'].iloc[0]!r} and {row['row'].iloc[0]!r}"
        )
    return PublishedLoss(int(count[1]), float(losses[1]), float(losses[2]), row["source"].iloc[0])


def loss_table(runs: Mapping[str, np.ndarray], paper: PublishedLoss) -> pd.DataFrame:
    """First and last loss, median over images, of each run's losses (N, K + 1), under the published ones."""
    rows = [("published, Figure 3", paper.iterations, 1, paper.first, paper.last, paper.last)]
    for name, losses in runs.items():
        losses = np.asarray(losses, dtype=np.float64)
        median = np.median(losses, axis=0)
        rows.append((name, losses.shape[1] - 1, len(losses), median[0], median[-1], losses.min()))
    return pd.DataFrame(
        [
            {
                "run": name,
                "iterations": k,
                "images": n,
                "first loss": f"{first:.1e}",
                "last loss": f"{last:.1e}",
                "fall": f"{first / last:.1e}-fold" if last > 0 else "to zero",
                "lowest of any image": f"{lowest:.1e}" if name != rows[0][0] else "",
            }
            for name, k, n, first, last, lowest in rows
        ]
    )


def rounding(targets: Tensor, dtype: torch.dtype) -> float:
    """Mean squared error of unit-length targets (N, D) when no number of them may be finer than `dtype` resolves at its size.

    The mean of (half the distance to the next number of that type)^2 / 3: what rounding to nearest leaves on average, the loss
    below which a feature kept in that type is not expected to fall.
    """
    size = torch.nn.functional.normalize(targets.double(), dim=-1).abs()
    step = torch.finfo(dtype).eps * torch.exp2(torch.floor(torch.log2(size.clamp_min(torch.finfo(dtype).tiny))))
    return float((step / 2).square().mean() / 3)


def by_precision(runs: Mapping[str, np.ndarray], factor: float = 2.0) -> list[str]:
    """In words, for each run named with float32 that has a twin named with float64: does rounding hold its last loss up?

    runs: losses (N, K + 1) by name. It does when the median last loss is more than `factor` times the twin's.
    """
    sentences = []
    for name, losses in runs.items():
        twin = name.replace("float32", "float64")
        if twin == name or twin not in runs:
            continue
        narrow, wide = (float(np.median(np.asarray(x, dtype=np.float64)[:, -1])) for x in (losses, runs[twin]))
        limits = narrow > factor * wide
        sentences.append(
            f"{name}: ends at {narrow:.1e}, in float64 at {wide:.1e}: the rounding of float32 {'holds it up' if limits else 'is not what limits it'}."
        )
    return sentences


def photograph_table(names: Sequence[str], grids: Mapping[str, pd.DataFrame], another: np.ndarray) -> pd.DataFrame:
    """One row per photograph, as read: measures of every source of features beside each other.

    grids: rows of `measure` by source, each in the order of names; the first is the trained student. another: (N,) `alike` of its
    grid with the one that another photograph's T gives. Raises ValueError for different numbers of rows.
    """
    counts = {"another T": len(another), **{label: len(frame) for label, frame in grids.items()}}
    if any(count != len(names) for count in counts.values()):
        raise ValueError(f"expected one row per photograph, found {len(names)} names and {counts} rows")
    columns = {"photograph": list(names)}
    for name in ("spread", "neighbour_centred", "far_centred", "position", "clusters"):
        for label, frame in grids.items():
            show = {
                "spread": lambda v: f"{100 * v:.0f}" if v > 0.1 else f"{100 * v:.2g}",
                "clusters": lambda v: str(int(v)),
            }.get(name, _decimals)
            columns[f"{MEASURES[name]}, {label}"] = [show(v) for v in frame[name]]
    return pd.DataFrame({**columns, f"another T, {next(iter(grids))}": [_decimals(v) for v in another]})


def photograph_reading(
    names: Sequence[str], position: np.ndarray, another: np.ndarray, most: float = MOST
) -> list[str]:
    """What the photographs say, in sentences: how many grids are a map of place, and which are not.

    position: (N,) `position_share` of the trained grids. another: (N,) `alike` with the grid that another photograph's T gives.
    most: from which both count as high. Raises ValueError for different numbers.
    """
    if not len(names) == len(position) == len(another):
        raise ValueError(f"expected one value per photograph, found {len(names)}, {len(position)} and {len(another)}")
    linear, stays = np.asarray(position) >= most, np.asarray(another) >= most
    changed = [name for name, same in zip(names, stays, strict=True) if not same]
    return [
        f"Photographs: on {int(linear.sum())} of {len(names)} the grid is a map of place, a term per row plus a term per column (R2 of P at "
        f"least {most}; the lowest is {_decimals(float(np.min(position)))}).",
        f"With another photograph in T the map stays (CKA of at least {most}) on {int(stays.sum())} of {len(names)}"
        + (
            f" and changes on {', '.join(changed)}: where R2 of P is high, from one map of place to another."
            if changed
            else "."
        ),
    ]


def reading(
    measures: Mapping[str, pd.DataFrame], student: str, control: str, another: Mapping[str, np.ndarray]
) -> list[str]:
    """What the controls say, in sentences computed from the measures.

    measures: rows of `measure` by source. student, control: the rows of the trained student and of the positional code. another:
    by student, `alike` of its grid with the one that another image gives in the same weights. Raises ValueError when a
    row is missing, and for too few images.
    """
    for name in (student, control):
        if name not in measures:
            raise unknown("source", name, measures)
    trained = measures[student]
    size, linear = interval(trained["spread"]), interval(trained["position"])
    own, code = (interval(measures[name]["neighbour_minus_far"]) for name in (student, control))
    gap = interval(trained["neighbour_minus_far"] - measures[control]["neighbour_minus_far"])
    sentences = [
        f"{student}: the places differ from their mean by {100 * size.value:.2g} % of its length, and what is linear in the positional "
        f"code explains {100 * linear.value:.2f} % of that.",
        f"Neighbouring places agree more than distant ones by {_bracketed(own)} in mean cosine for {student} and by {_bracketed(code)} for "
        f"{control}; the difference of the two, {_bracketed(gap)}, is {against_zero(gap)}: "
        f"{'training made the islands larger than the code alone has them' if gap.low > 0 else 'there are islands without any training, and training did not make them larger'}.",
    ]
    for name, frame in measures.items():
        gain = interval(frame["ari_two_gain"])
        sentences.append(
            f"{name}: its two clusters fit the image's own mask better than other images' by {_bracketed(gain)}, {against_zero(gain)}."
        )
    for name, values in another.items():
        found = interval(values)
        sentences.append(
            f"{name}: with another image put in, weights unchanged, the map stays alike to {_bracketed(found)} (1: the same map)."
        )
    return sentences


def conclusion(
    measures: Mapping[str, pd.DataFrame], another: Mapping[str, np.ndarray], most: float = MOST
) -> list[str]:
    """Whose islands they are, one sentence per student, decided by its numbers.

    measures: rows of `measure`, with masks, by student. another: by student, `alike` of its grid with the one that another image
    gives in the same weights. most: from which R2 of P and that likeness count as high. Raises ValueError for a student
    without measures and for too few images.
    """
    sentences = []
    for name, values in another.items():
        if name not in measures:
            raise unknown("student", name, measures)
        linear, same = interval(measures[name]["position"]), interval(values)
        gain = interval(measures[name]["ari_two_gain"])
        place = linear.low >= most and same.low >= most
        verdict = (
            ("a map of place, with a trace of the image" if place else "at least in part a map of the image")
            if gain.low > 0
            else "a map of place, not of the image"
            if place
            else "a map that the numbers tie to the image by its T, but not to the object in it"
            if same.high < most
            else "undecided"
        )
        sentences.append(
            f"{name}: the islands are {verdict}. R2 of P {_bracketed(linear)}; CKA with the grid that another image gives "
            f"{_bracketed(same)}; fit to the own mask less that to other masks {_bracketed(gain)}, {against_zero(gain)}."
        )
    return sentences


# ------------------------------------------------------------------------------------------------------------ embeddings


@_one_thread
def embed(grid: np.ndarray, *, method: str = "pca", components: int = 3, seed: int = 0) -> np.ndarray:
    """One grid's features (h, w, D) reduced to 1, 2 or 3 numbers per place, each stretched from its 1st to 99th percentile to 0..1.

    method: "pca" (linear, stable) or "tsne" (scikit-learn's t-SNE from a PCA start with a fixed seed: repeatable, but it keeps
    neighbourhoods only, and always spreads what it is given). Missing components and those without variation are 0.5.

    Returns (h, w, components). Raises ValueError for an unknown method, another number of components or another shape.
    """
    if method not in METHODS:
        raise unknown("embedding method", method, METHODS)
    if components not in (1, 2, 3):
        raise ValueError(f"expected 1, 2 or 3 components to show as colour, found {components}")
    grid = np.asarray(grid, dtype=np.float64)
    if grid.ndim != 3:
        raise ValueError(f"expected one grid of shape (h, w, D), found {grid.shape}")
    if method == "pca":
        return figures.grid_rgb(grid)[..., :components]
    flat = _unit_scale(_grids(grid[None]))
    if len(flat) <= components or not flat.any():
        return np.full((*grid.shape[:2], components), 0.5)
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    start = np.zeros((len(flat), components))
    main = PCA(min(components, *flat.shape), svd_solver="full").fit_transform(flat)
    start[:, : main.shape[1]] = main
    start *= 1e-4 / max(float(start[:, 0].std()), 1e-300)  # scikit-learn's scale of a PCA start
    # scikit-learn's defaults are made for thousands of points: on a grid of 64 places the learning rate scatters them at random,
    # and the exaggeration draws them all into one point
    tsne = TSNE(
        components,
        perplexity=max(min(30.0, len(flat) / 6), 1.0),
        early_exaggeration=4.0,
        learning_rate=max(len(flat) / 12, 1.0),
        init=start.astype(np.float32),
        random_state=seed,
    )
    found = tsne.fit_transform(flat)
    low, high = np.percentile(found, [1, 99], axis=0)
    span = high - low
    scaled = np.clip((found - low) / np.where(span > 0, span, 1.0), 0.0, 1.0)
    return np.where(span > 0, scaled, 0.5).reshape(*grid.shape[:2], components)


def as_colour(embedding: np.ndarray) -> np.ndarray:
    """An embedding (h, w, 1, 2 or 3) in 0..1 as RGB (h, w, 3): one component as viridis, two as orange (first) and blue (second), three as RGB.

    Raises ValueError for another number of components.
    """
    import matplotlib as mpl

    components = embedding.shape[-1]
    if components == 1:
        return np.asarray(mpl.colormaps["viridis"](embedding[..., 0]))[..., :3]
    if components == 2:
        first, second = embedding[..., 0], embedding[..., 1]
        return np.stack([first, 0.5 * (first + second), second], axis=-1)
    if components == 3:
        return embedding
    raise ValueError(f"expected 1, 2 or 3 components to show as colour, found {components}")


def picture(grid: np.ndarray, method: str = "pca", components: int = 3) -> np.ndarray:
    """One grid (h, w, D) as RGB (h, w, 3): `embed` and `as_colour`."""
    return as_colour(embed(grid, method=method, components=components))


def swapped(own: np.ndarray, other: np.ndarray) -> list[np.ndarray]:
    """A student's grid (h, w, D) with its own image and with another one in the same colours (PCA of the first), each less its mean."""
    own, other = centred(np.stack([own, other]))
    return [figures.grid_rgb(own), figures.grid_rgb(other, fit=own)]


# -------------------------------------------------------------------------------------------------------------- figures


def picture_table(
    rows: Mapping[str, Sequence[np.ndarray]], headings: Sequence[str], *, size: float = 1.15
) -> tuple[Figure, str]:
    """Pictures in rows and columns with headings: (H, W, 3) in 0..1 or uint8, or (H, W) grey or bool.

    rows: pictures by row label. headings: one per column. size: inches per picture. Raises ValueError for no rows or a row with
    another number of pictures than headings.
    """
    import matplotlib.pyplot as plt

    figures.style()
    if not rows:
        raise ValueError("expected at least one row of pictures, found none")
    for name, pictures in rows.items():
        if len(pictures) != len(headings):
            raise ValueError(f"row {name!r}: expected {len(headings)} pictures, one per heading, found {len(pictures)}")
    figure, grid = plt.subplots(
        len(rows),
        len(headings),
        figsize=(size * len(headings) + 0.8, size * len(rows) + 0.4),
        squeeze=False,
        layout="constrained",
    )
    for axes_row, (name, pictures) in zip(grid, rows.items(), strict=True):
        for axes, image in zip(axes_row, pictures, strict=True):
            grey = {"cmap": "gray", "vmin": 0, "vmax": 1} if np.ndim(image) == 2 else {}
            axes.imshow(image, **grey)
            axes.set(xticks=[], yticks=[])
            axes.grid(visible=False)
            for side in axes.spines.values():
                side.set_visible(False)
        axes_row[0].set_ylabel(name, fontsize="small", rotation=0, ha="right", va="center")
    for axes, heading in zip(grid[0], headings, strict=True):
        axes.set_title(heading, fontsize="small")
    return figure, f"{len(rows)} rows of {len(headings)} pictures."


def loss_figure(
    runs: Mapping[str, np.ndarray], paper: PublishedLoss, floors: Mapping[str, float] | None = None
) -> tuple[Figure, str]:
    """Loss (median over images) of several runs on a log axis, with the published first and last loss as marks.

    runs: losses (N, K + 1) by name. floors: losses to mark as lines, such as the rounding of a number type. Raises ValueError
    for another shape.
    """
    import matplotlib.pyplot as plt
    import seaborn as sns

    figures.style()
    figure, axes = plt.subplots(figsize=(figures.WIDTH, 4.6), layout="constrained")
    colours = sns.color_palette("colorblind", len(runs))
    for i, (name, losses) in enumerate(runs.items()):
        losses = np.asarray(losses, dtype=np.float64)
        if losses.ndim != 2 or losses.shape[1] < 2:
            raise ValueError(f"{name}: expected losses of shape (N, K + 1) with K >= 1, found {losses.shape}")
        style = {"color": colours[i], "linestyle": ("-", "--", "-.", ":")[i % 4], "linewidth": 1.8}
        axes.plot(np.median(losses, axis=0), label=name, **style)
        axes.fill_between(
            np.arange(losses.shape[1]), losses.min(axis=0), losses.max(axis=0), color=colours[i], alpha=0.1, linewidth=0
        )
    axes.plot(
        [0, paper.iterations],
        [paper.first, paper.last],
        "k*",
        markersize=11,
        clip_on=False,
        zorder=5,
        label="published",
    )
    for name, value in (floors or {}).items():
        axes.axhline(value, color="0.35", linestyle=":", linewidth=1)
        axes.annotate(
            f"rounding of {name}",
            (0.99, value),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="top",
            fontsize="small",
        )
    axes.set(xlabel="test-time training iteration", ylabel="loss (mean squared error)", yscale="log")
    axes.set_xlim(0, None)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
    numbers = sorted({len(losses) for losses in runs.values()})
    n = " to ".join(map(str, dict.fromkeys((numbers[0], numbers[-1]))))
    return figure, (
        f"Loss over iterations: median over n = {n} images, bands from the lowest to the highest. Stars: the published values of one image, for a "
        "wider teacher feature (the first loss of a unit-length target is one over its width)."
    )


def iterations_figure(by_iteration: Mapping[int, pd.DataFrame]) -> tuple[Figure, str]:
    """Spread, cosines and mask agreement after k updates, with 95 % bands. by_iteration: rows of `measure` by k.

    Raises ValueError for too few images.
    """
    import matplotlib.pyplot as plt

    figures.style()
    panels = (
        ("spread of the places", "spread (% of the mean's length)", {"spread": ("spread", "#0173b2")}),
        (
            "agreement of places",
            "mean cosine, mean removed",
            {"neighbour_centred": ("neighbours", "#0173b2"), "far_centred": ("far", "#949494")},
        ),
        (
            "two clusters and the mask",
            "adjusted Rand index",
            {"ari_two": ("own mask", "#0173b2"), "ari_two_others": ("other images' masks", "#949494")},
        ),
    )
    figure, grid = plt.subplots(1, 3, figsize=(figures.WIDTH * 1.1, 3.6), layout="constrained")
    steps = list(by_iteration)
    x = np.arange(len(steps))
    n = 0
    for axes, (title, unit, lines) in zip(grid, panels, strict=True):
        for name, (label, colour) in lines.items():
            found = [interval((100 if name == "spread" else 1) * by_iteration[k][name]) for k in steps]
            n = found[0].n
            axes.plot(x, [f.value for f in found], "o-", color=colour, label=label, markersize=4)
            axes.fill_between(x, [f.low for f in found], [f.high for f in found], color=colour, alpha=0.2, linewidth=0)
        axes.set_xticks(x, [str(k) for k in steps])
        axes.set(title=title, xlabel="iteration k (steps not to scale)", ylabel=unit)
        if len(lines) > 1:
            axes.legend(fontsize="small")
    grid[0].set_ylim(0, None)
    low, high = grid[2].get_ylim()
    grid[2].set_ylim(min(low, -0.1), max(high, 0.4))  # no zoom into what is near 0
    return figure, (
        f"The student's grid after k iterations; n = {n} images, bands are 95 % bootstrap intervals. Spread: distance of the places from "
        "their mean, in percent of its length. Index: two clusters against the foreground mask. The iterations looked at stand side by "
        "side, whatever lies between them."
    )


def sources_figure(long: pd.DataFrame) -> tuple[Figure, str]:
    """Agreement of neighbours and of distant places, and of two clusters with own and other masks, for every source of features.

    long: rows of `summary` with masks. Raises ValueError for an empty one.
    """
    import matplotlib.pyplot as plt

    figures.style()
    if long.empty:
        raise ValueError("expected measures of at least one source, found none")
    sources = list(dict.fromkeys(long["source"]))
    y = np.arange(len(sources))
    panels = (
        ("cosine, mean removed", (("neighbour_centred", "neighbours", "#0173b2"), ("far_centred", "far", "#949494"))),
        (
            "adjusted Rand index, 2 clusters",
            (("ari_two", "own mask", "#0173b2"), ("ari_two_others", "other images' masks", "#949494")),
        ),
        ("R² of the positional code", (("position", "", "#0173b2"),)),
    )
    figure, grid = plt.subplots(
        1, 3, figsize=(figures.WIDTH * 1.15, 0.36 * len(sources) + 1.6), sharey=True, layout="constrained"
    )
    for axes, (title, marks) in zip(grid, panels, strict=True):
        for name, label, colour in marks:
            part = long[long["measure"] == name].set_index("source").loc[sources]
            value = part["value"].to_numpy()
            error = np.abs(np.stack([value - part["low"].to_numpy(), part["high"].to_numpy() - value]))
            axes.errorbar(value, y, xerr=error, fmt="o", color=colour, markersize=5, capsize=2, label=label)
        axes.set_title(title)
        axes.axvline(0, color="0.6", linewidth=1)
        if len(marks) > 1:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=1, fontsize="small")
    grid[0].set_yticks(y, sources)
    grid[0].set_ylim(len(sources) - 0.5, -0.5)
    n = int(long["n"].min())
    return (
        figure,
        f"Where the agreement comes from; n = {n} images per row, bars are 95 % bootstrap intervals over images.",
    )
