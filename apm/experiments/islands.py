"""Looks into the student's grid while it learns: the features of every location, at chosen iterations, and what they are worth.

Places whose features agree form *islands* (section 3.5, Figures 3 and 7 of the paper; the word is GLOM's). A picture of them
stretches whatever variation there is to full colour, so the pictures come with numbers: how large the variation is, how much
neighbours agree more than distant places, how many clusters there are, and whether they lie where the object lies.

Grids are arrays (N, h, w, D): N images, h x w places, features of width D. Distances between places count grid steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from apm.analysis import figures, stats
from apm.analysis.numbers import Number
from apm.model import APMConfig, Parameters, activations, head, patches, perceive
from apm.project import unknown
from apm.teachers import IMAGENET_MEAN, IMAGENET_STD
from apm.ttt import TTTConfig, TTTResult, adapt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = ("pca", "tsne")
CLUSTER_COUNTS = (2, 3, 4, 5, 6)  # numbers of clusters that the silhouette chooses from
OTHERS = 5  # masks of that many other images are the control of an image's own mask
MOST = 0.9  # from which R2 of P and the likeness to another image's map are those of a map of place
_one_thread = threadpool_limits.wrap(limits=1)  # several add in an order that depends on their number


class Snapshots:
    """Callback for `apm.ttt.adapt` that keeps the feature grids of all images after chosen numbers of updates.

    student: the config that is trained (`TTTConfig.trained`). images: (N, 3, H, W), those passed to `adapt`.
    iterations: numbers of updates to look at, 0 for the random weights. tokens: (N, h*w, D') for column="tokens".

    `grids[k]` is an array (N, h, w, D) after `adapt` has returned (`feature_grids`). It only looks: training does not depend on it.
    """

    def __init__(
        self, student: APMConfig, images: Tensor, iterations: Sequence[int], tokens: Tensor | None = None
    ) -> None:
        self.student, self.images, self.tokens = student, images, tokens
        self.iterations = sorted(set(iterations))
        self.grids = {k: np.full((len(images), *student.grid, student.width), np.nan) for k in self.iterations}

    def __call__(self, k: int, part: slice, parameters: Mapping[str, Tensor]) -> None:
        """Called by `adapt` after k updates of the images in `part`."""
        if k in self.grids:
            tokens = None if self.tokens is None else self.tokens[part]
            self.grids[k][part] = feature_grids(parameters, self.images[part], self.student, tokens)

    def colours(self, image: int = 0) -> list[np.ndarray]:
        """One RGB picture (h, w, 3) in 0..1 per iteration, in the colours of the last: its principal components, each look stretched."""
        last = self.grids[self.iterations[-1]][image]
        return [picture(self.grids[k][image], fit=last) for k in self.iterations]


def displayed(image: Tensor) -> np.ndarray:
    """A student's normalised image (3, H, W) as it looks: float RGB (H, W, 3) in 0..1."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (image.cpu() * std + mean).clamp(0, 1).permute(1, 2, 0).numpy()


def feature_grids(
    parameters: Parameters, images: Tensor, student: APMConfig, tokens: Tensor | None = None
) -> np.ndarray:
    """Feature grids (N, h, w, D) of N students (stacked weights) on N images (N, 3, H, W), computed in float64.

    At small random weights the places differ by less than float32 resolves. Weight set k looks at image k: with the images rolled,
    every student looks at an image it was not trained on.
    """
    double = {name: value.double() for name, value in parameters.items()}
    with torch.no_grad():
        percept = perceive(
            double, patches(images.double(), student), student, None if tokens is None else tokens.double()
        )
        return head(double, activations(double, percept, student)).unflatten(1, student.grid).cpu().numpy()


def watch(
    images: Tensor,
    targets: Tensor,
    config: TTTConfig,
    iterations: Sequence[int],
    *,
    tokens: Tensor | None = None,
    seed: int = 0,
) -> tuple[TTTResult, Snapshots]:
    """Train one student per image (`apm.ttt.adapt`) and look at the grids after the given numbers of updates.

    The result holds the final weights. Raises ValueError as `adapt`, and for a look after the last update.
    """
    if late := [k for k in iterations if not 0 <= k <= config.iterations]:
        raise ValueError(
            f"expected looks after 0 to {config.iterations} iterations, found {late}: change them or iterations"
        )
    student = config.trained
    shots = Snapshots(student, images, iterations, tokens)
    result = adapt(images, targets, config, seed=seed, tokens=tokens, keep_parameters=True, callback=shots)
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


def clusters(grid: np.ndarray, counts: Sequence[int] = CLUSTER_COUNTS, *, seed: int = 0) -> Clusters:
    """k-means groups of one grid's features (h, w, D), with the number of groups of highest mean silhouette (Rousseeuw 1987).

    counts: numbers of groups to choose from, at least 2. The silhouette compares divisions and cannot say that there is none:
    features that change smoothly over the grid are divided as well, so compare with the controls. The same seed gives the same
    groups on one thread (`measure` takes one).

    Raises ValueError for another shape, no possible number of groups, or fewer different features than the smallest number.
    """
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
            "grid of the features (apm.experiments.islands.foreground)"
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
    "first_component": "first component",
    "position": "R2 of P",
    "neighbour_centred": "neighbours",
    "far_centred": "far",
    "neighbour_minus_far": "neighbours - far",
    "another": "CKA, another image",
    "clusters": "clusters",
    "ari": "ARI, chosen number",
    "ari_two": "ARI, 2 clusters",
    "ari_two_others": "ARI, 2 clusters, other masks",
    "ari_two_gain": "own - other masks",
    "ari_two_gain_another": "own - other masks, another image's map",
}


@_one_thread
def measure(
    grids: np.ndarray,
    masks: np.ndarray | None = None,
    *,
    another: np.ndarray | None = None,
    counts: Sequence[int] = CLUSTER_COUNTS,
    others: int = OTHERS,
    seed: int = 0,
) -> pd.DataFrame:
    """Every measure of N grids (N, h, w, D), one row per image: the columns of MEASURES, in that order, spread in percent.

    masks: (N, h, w) foreground. another: (N, h, w, D) the grids that the image before (the last before the first) gives, in the same
    weights where there are weights. Columns that need what is not given are left out. counts: numbers of clusters to choose from.
    "ari_two" takes two clusters, "ari" the chosen number. Raises ValueError as the single measures do.
    """
    grids = _grids(grids)
    near, distant = neighbour_cosine(grids, centre=True), far_cosine(grids, centre=True)
    divided = _each(grids, counts, seed)
    columns = {
        "spread": 100 * spread(grids),
        "neighbour": neighbour_cosine(grids),
        "far": far_cosine(grids),
        "first_component": first_component(grids),
        "position": position_share(grids),
        "neighbour_centred": near,
        "far_centred": distant,
        "neighbour_minus_far": near - distant,
        "another": None if another is None else alike(grids, another),
        "clusters": np.array([d.count for d in divided], dtype=np.float64),
    }
    if masks is not None:
        columns["ari"] = mask_agreement(np.stack([d.labels for d in divided]), masks, 1)[0]
        for end, shown in (("", grids), ("_another", another)):
            if shown is not None:
                two = np.stack([d.labels for d in _each(shown, [2], seed)])
                own, other = mask_agreement(two, masks, others)
                columns |= {f"ari_two{end}": own, f"ari_two_others{end}": other, f"ari_two_gain{end}": own - other}
    return pd.DataFrame({name: columns[name] for name in MEASURES if columns.get(name) is not None})


def _each(grids: np.ndarray, counts: Sequence[int], seed: int) -> list[Clusters]:
    """The division of each grid; one serves all where they are the same, as the positional code's are."""
    same = all(np.array_equal(grids[0], grid) for grid in grids)
    divided = [clusters(grid, counts, seed=seed) for grid in (grids[:1] if same else grids)]
    return divided * len(grids) if same else divided


def interval(values: np.ndarray | pd.Series, unit: str = "") -> Number:
    """Mean of one value per image with its 95 % interval over images, in the values' own unit.

    Raises ValueError for fewer images than `apm.analysis.stats.MINIMUM_SAMPLES`.
    """
    value, low, high, n = stats.mean(np.asarray(values, dtype=np.float64))
    return Number(value / 100, low / 100, high / 100, n, unit, "measure")


def table(measures: Mapping[str, pd.DataFrame], names: Iterable[str] = tuple(MEASURES)) -> pd.DataFrame:
    """Means over images with intervals: one row per source of features, one column per measure.

    measures: rows of `measure` by source. Raises ValueError for a measure that they do not have, and for too few images.
    """
    names = list(names)
    for name in names:
        if missing := [source for source, frame in measures.items() if name not in frame]:
            raise unknown("measure", name, list(measures[missing[0]]))
    rows = {
        source: {MEASURES[name]: interval(frame[name], "%" if name == "spread" else "") for name in names}
        for source, frame in measures.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("features")


CHANGED = "larger where the whole interval of the change is above 0, smaller where it is below, else not decided"


def changes(
    before: Mapping[str, pd.DataFrame], after: Mapping[str, pd.DataFrame], names: Sequence[str]
) -> pd.DataFrame:
    """What training changed: measures of the same students on the same images before and after it, paired by image.

    before, after: rows of `measure` by student. Index: measure, student. Columns: random weights, trained, change, verdict (CHANGED).
    Raises ValueError for students that are not in both, and for too few images.
    """
    if list(before) != list(after):
        raise ValueError(f"expected the same students before and after, found {list(before)} and {list(after)}")
    rows = {}
    for name in names:
        for student in after:
            change = interval(after[student][name] - before[student][name])
            rows[MEASURES[name], student] = {
                "random weights": interval(before[student][name]),
                "trained": interval(after[student][name]),
                "change": change,
                "training made it": "larger" if change.low > 0 else "smaller" if change.high < 0 else "not decided",
            }
    found = pd.DataFrame.from_dict(rows, orient="index")
    return found.set_index(pd.MultiIndex.from_tuples(rows, names=["measure", "student"]))


WHOSE = (
    f"A map of place: R2 of P and the CKA with another image's map are at least {MOST} (yes where both whole intervals are, no where one "
    "whole interval is below). Shows its own image: own - other masks is above 0 (yes where the whole interval is, no where it is below), and "
    "larger than that of another image's map (the whole interval of the difference above 0)."
)


def whose(measures: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Whose map the grid of each source is, by the rule WHOSE: place, the image, both or neither. One row per source.

    measures: rows of `measure`, with masks and another image's maps, by source. Raises ValueError as `table`.
    """
    found = table(measures, ["position", "another", "ari_two_gain", "ari_two_gain_another"])
    place, image = [], []
    for frame, (linear, same, gain, _) in zip(measures.values(), found.itertuples(index=False), strict=True):
        more = interval(frame["ari_two_gain"] - frame["ari_two_gain_another"])
        high, low = min(linear.low, same.low) >= MOST, min(linear.high, same.high) < MOST
        place.append("yes" if high else "no" if low else "not decided")
        shows, not_ = min(gain.low, more.low) > 0, gain.high < 0
        image.append("yes" if shows else "no" if not_ else "not decided")
    return found.assign(**{"a map of place": place, "shows its own image": image})


def rounding(targets: Tensor, dtype: torch.dtype) -> float:
    """Mean squared error of unit-length targets (N, D) when no number of them may be finer than `dtype` resolves at its size.

    The mean of (half the distance to the next number of that type)^2 / 3: what rounding to nearest leaves on average, the loss
    below which a feature kept in that type is not expected to fall.
    """
    size = torch.nn.functional.normalize(targets.double(), dim=-1).abs()
    step = torch.finfo(dtype).eps * torch.exp2(torch.floor(torch.log2(size.clamp_min(torch.finfo(dtype).tiny))))
    return float((step / 2).square().mean() / 3)


# ------------------------------------------------------------------------------------------------------------ embeddings


@_one_thread
def embed(grid: np.ndarray, components: int = 3, *, seed: int = 0) -> np.ndarray:
    """One grid's features (h, w, D) by t-SNE in 1, 2 or 3 numbers per place, each stretched from its 1st to 99th percentile to 0..1.

    scikit-learn's t-SNE from a PCA start with a fixed seed: repeatable, but it keeps neighbourhoods only, and always spreads what it is
    given. Missing components and those without variation are 0.5. Returns (h, w, components). Raises ValueError for another shape.
    """
    flat = _unit_scale(_grids(np.asarray(grid)[None]))
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
    """An embedding (h, w, 1, 2 or 3) in 0..1 as RGB (h, w, 3): one component as viridis, two as orange (first) and blue (second), three as RGB."""
    import matplotlib as mpl

    components = embedding.shape[-1]
    if components == 1:
        return np.asarray(mpl.colormaps["viridis"](embedding[..., 0]))[..., :3]
    if components == 2:
        first, second = embedding[..., 0], embedding[..., 1]
        return np.stack([first, 0.5 * (first + second), second], axis=-1)
    return embedding


def picture(grid: np.ndarray, method: str = "pca", components: int = 3, *, fit: np.ndarray | None = None) -> np.ndarray:
    """One grid (h, w, D) as RGB (h, w, 3), reduced to 1, 2 or 3 components by "pca" (`apm.analysis.figures.grid_rgb`) or "tsne" (`embed`).

    fit: the look (h, w, D) whose principal components, with their signs, are the colours: give one grid for all looks at a student,
    or colours flip from look to look while the map stays. The range is the grid's own, one scale for all components. t-SNE has no such
    thing, each of its pictures has its own colours.

    Raises ValueError for an unknown method, another number of components or another shape.
    """
    if method not in METHODS:
        raise unknown("embedding method", method, METHODS)
    if components not in (1, 2, 3):
        raise ValueError(f"expected 1, 2 or 3 components to show as colour, found {components}")
    if np.ndim(grid) != 3:
        raise ValueError(f"expected one grid of shape (h, w, D), found {np.shape(grid)}")
    if method == "tsne":
        return as_colour(embed(grid, components))
    return as_colour(figures.grid_rgb(grid, fit=fit, own_range=True)[..., :components])


def shares(grid: np.ndarray, fit: np.ndarray | None = None) -> np.ndarray:
    """Share (3,) of the variation of a grid (h, w, D) that each colour channel of its `picture` shows; what is missing to 1 is not shown."""
    flat = centred(grid[None]).reshape(-1, grid.shape[-1])
    shown = flat @ figures.components(grid if fit is None else fit).T
    return np.square(shown).sum(axis=0) / np.square(flat).sum()


def swapped(own: np.ndarray, other: np.ndarray) -> list[np.ndarray]:
    """A student's grid (h, w, D) with its own image and with another one in the same colours (PCA of the first), each less its mean."""
    own, other = centred(np.stack([own, other]))
    return [figures.grid_rgb(own), figures.grid_rgb(other, fit=own)]


# -------------------------------------------------------------------------------------------------------------- figures


def picture_table(rows: Mapping[str, Sequence[np.ndarray]], headings: Sequence[str], *, size: float = 1.15) -> Figure:
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
            axes.imshow(image, **({"cmap": "gray", "vmin": 0, "vmax": 1} if np.ndim(image) == 2 else {}))
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        axes_row[0].set_ylabel(name, fontsize="small", rotation=0, ha="right", va="center")
    for axes, heading in zip(grid[0], headings, strict=True):
        axes.set_title(heading, fontsize="small")
    return figure
