"""Looks into the student's grid while it learns: the features of every location, at chosen iterations, and what they are worth.

Places whose features agree form *islands* (section 3.5, Figures 3 and 7). A picture stretches whatever variation there is to full colour,
so numbers stand beside it. Grids are arrays (N, h, w, D). Measures raise ValueError for grids with NaN or infinite values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from skimage.filters import threshold_otsu
from sklearn.metrics import adjusted_rand_score, silhouette_score
from torch import Tensor

from apm import teachers
from apm.analysis import figures, numbers
from apm.experiments import judge
from apm.experiments.judge import one_thread
from apm.model import APMConfig, Parameters, activations, head, patches, perceive
from apm.project.identity import RUN_MODULES, code_of, code_version, libraries
from apm.ttt import TTTConfig, adapt

CLUSTER_COUNTS = (2, 3, 4, 5, 6)
OTHERS = 5  # masks of that many other images are the control of an image's own mask
MOST = 0.9  # from which R2 of P and the likeness to another image's map are those of a map of place
CHANGED = "larger where the whole interval of the change is above 0, smaller where it is below, else not decided"
Measures = Mapping[str, pd.DataFrame]  # rows of `measure` by source of the grids
WHOSE = (
    f"A map of place: R2 of P and the CKA with another image's map are at least {MOST} (yes where both whole intervals are, no where one "
    "whole interval is below). Shows its own image: own - other masks is above 0 (yes where the whole interval is, no where it is below), and "
    "larger than that of another image's map (the whole interval of the difference above 0)."
)


class Snapshots:
    """Callback for `apm.ttt.adapt` that keeps the grids of all images after chosen numbers of updates; training does not depend on it.

    student: `TTTConfig.trained`. images: (N, 3, H, W), and tokens (N, h*w, D') or None: those passed to `adapt`. `grids[k]`, (N, h, w, D)
    of `feature_grids`, is there after `adapt` has returned; `weights`, stacked, of the end and `losses` (N, K + 1) after `watch`.
    """

    weights: dict[str, Tensor]
    losses: Tensor

    def __init__(
        self, student: APMConfig, images: Tensor, iterations: Sequence[int], tokens: Tensor | None = None
    ) -> None:
        self.student, self.images, self.tokens = student, images, tokens
        self.iterations = sorted(set(iterations))
        self.grids = {k: np.full((len(images), *student.grid, student.width), np.nan) for k in self.iterations}

    def __call__(self, k: int, part: slice, parameters: Mapping[str, Tensor]) -> None:
        if k in self.grids:
            tokens = None if self.tokens is None else self.tokens[part]
            self.grids[k][part] = feature_grids(parameters, self.images[part], self.student, tokens)

    def maps(self, parameters: Parameters) -> tuple[np.ndarray, np.ndarray]:
        """Grids (N, h, w, D) of students with these weights: of each image, and of the image before it (the last before the first)."""
        rolled = None if self.tokens is None else self.tokens.roll(1, 0)
        own = feature_grids(parameters, self.images, self.student, self.tokens)
        return own, feature_grids(parameters, self.images.roll(1, 0), self.student, rolled)

    @property
    def last(self) -> np.ndarray:
        """The grids (N, h, w, D) of the last look."""
        return self.grids[self.iterations[-1]]

    def colours(self, image: int = 0) -> list[np.ndarray]:
        """One RGB picture (h, w, 3) in 0..1 per look, in the colours of the last."""
        return [picture(grids[image], fit=self.last[image]) for grids in self.grids.values()]


def feature_grids(
    parameters: Parameters, images: Tensor, student: APMConfig, tokens: Tensor | None = None
) -> np.ndarray:
    """Feature grids (N, h, w, D) of N students (stacked weights) on N images (N, 3, H, W), in float64: at small random weights the places
    differ by less than float32 resolves."""
    weights = {name: value.double() for name, value in parameters.items()}
    routed = None if tokens is None else tokens.double()
    with torch.no_grad():
        percept = perceive(weights, patches(images.double(), student), student, routed)
        return head(weights, activations(weights, percept, student)).unflatten(1, student.grid).cpu().numpy()


def watch(
    images: Tensor,
    targets: Tensor,
    config: TTTConfig,
    looks: Sequence[int],
    tokens: Tensor | None = None,
    seed: int = 0,
) -> Snapshots:
    """Train one student per image (`apm.ttt.adapt`) and look at the grids after the given numbers of updates; kept in the cache, so that
    another picture costs no training. Raises ValueError as `adapt`, and for a look after the last update."""
    if late := [k for k in looks if not 0 <= k <= config.iterations]:
        raise ValueError(f"expected looks after 0 to {config.iterations} iterations, found {late}: change either")
    shots = Snapshots(config.trained, images, looks, tokens)
    given = {"images": images, "targets": targets, **({} if tokens is None else {"tokens": tokens})}
    code = [code_version(RUN_MODULES), code_of(Snapshots, feature_grids, watch), libraries(("torch",))]
    read = [asdict(config), teachers.weights_sha256(given), images.device.type]

    def train() -> dict[str, Tensor]:
        result = adapt(images, targets, config, seed=seed, tokens=tokens, keep_parameters=True, callback=shots)
        assert result.parameters is not None
        grids = {f"grids {k}": torch.from_numpy(values) for k, values in shots.grids.items()}
        return {**result.parameters, **grids, "losses": result.losses}

    found = teachers.remembered("islands", [read, shots.iterations, seed, code], train)
    shots.grids = {k: found.pop(f"grids {k}").numpy() for k in shots.iterations}
    shots.losses = found.pop("losses")
    shots.weights = {name: value.to(images.device) for name, value in found.items()}
    return shots


def centred(grids: np.ndarray) -> np.ndarray:
    """Grids (N, h, w, D) less the mean of their places: what distinguishes the places of one image."""
    grids = np.asarray(grids, dtype=np.float64)
    if not np.isfinite(grids).all():
        bad = np.flatnonzero(~np.isfinite(grids).all(axis=(1, 2, 3))).tolist()
        raise ValueError(f"the grids of image(s) {bad[:10]} have NaN or infinite values")
    return grids - grids.mean(axis=(1, 2), keepdims=True)


def spread(grids: np.ndarray) -> np.ndarray:
    """How much places differ, per image (N,): root mean square distance from the mean feature, as a share of its length."""
    length = np.linalg.norm(np.asarray(grids, dtype=np.float64).mean(axis=(1, 2)), axis=-1)
    return np.sqrt(np.square(centred(grids)).sum(axis=-1).mean(axis=(1, 2))) / length


def cosines(grids: np.ndarray, *, centre: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Mean cosine similarity, per image (N,), of neighbouring places and of those at least half the grid's longer side apart.

    centre: of the features less the image's mean. A place with a feature of length zero is left out; NaN where no pair remains.
    """
    grids, difference = np.asarray(grids, dtype=np.float64), centred(grids)
    n, h, w, d = grids.shape
    row, column = np.divmod(np.arange(h * w), w)
    rows, columns = abs(row[:, None] - row), abs(column[:, None] - column)
    kinds = rows + columns == 1, np.maximum(rows, columns) >= max(h, w) / 2
    means = np.full((2, n), np.nan)
    for i, features in enumerate((difference if centre else grids).reshape(n, h * w, d)):
        length = np.linalg.norm(features, axis=-1)
        there = length > 1e-12 * np.sqrt(np.square(grids[i]).sum(axis=-1).mean())  # below, a difference is rounding
        unit = features / np.where(there, length, 1.0)[:, None]
        table = unit @ unit.T
        for kind, pairs in enumerate(kinds):
            known = pairs & there[:, None] & there
            means[kind, i] = table[known].mean() if known.any() else np.nan
    return means[0], means[1]


def first_component(grids: np.ndarray) -> np.ndarray:
    """Share (N,) of the variation over places that lies along one direction, the first principal component. NaN without any."""
    variance = np.square(np.linalg.svd(centred(grids).reshape(len(grids), -1, np.shape(grids)[-1]), compute_uv=False))
    with np.errstate(invalid="ignore"):
        return variance[:, 0] / variance.sum(axis=1)


def position_share(grids: np.ndarray) -> np.ndarray:
    """R2 (N,) of the features predicted linearly from the positional code: the share of variation that is a row's or a column's.

    P[i, j] = (Px[j], Py[i]) is separable, so the least squares fit is the sum of row means and column means. NaN without variation.
    """
    flat = centred(grids)
    h, w = flat.shape[1:3]
    explained = w * np.square(flat.mean(axis=2)).sum(axis=(1, 2)) + h * np.square(flat.mean(axis=1)).sum(axis=(1, 2))
    with np.errstate(invalid="ignore"):
        return explained / np.square(flat).sum(axis=(1, 2, 3))


@one_thread
def alike(grids: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How alike grids (N, h, w, D) and others (N, h, w, D') are as maps, pair by pair (N,): linear CKA (Kornblith et al. 2019), 0 to 1;
    NaN without variation."""
    values = np.empty(len(grids))
    for i, (x, y) in enumerate(zip(centred(grids), centred(others), strict=True)):
        x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        with np.errstate(invalid="ignore"):
            values[i] = np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    return values


def clusters(grid: np.ndarray, counts: Sequence[int] = CLUSTER_COUNTS, *, seed: int = 0) -> np.ndarray:
    """k-means groups (h, w) of one grid's features (h, w, D), with the number of groups (>= 2) of highest mean silhouette (Rousseeuw 1987).

    Raises ValueError for no possible number of groups, as for fewer different features than the smallest number.
    """
    rows = _unit_scale(grid)
    different = len(np.unique(rows.round(9), axis=0))
    possible = [k for k in counts if 2 <= k <= min(different, len(rows) - 1)]
    if not possible:
        places = f"{len(rows)} places with {different} different features"
        raise ValueError(f"cannot divide {places} into {list(counts)} groups: at least 2, no more than those")
    first, *others = [judge.kmeans(rows, k, starts=4, seed=seed) for k in possible]
    best = max([first, *others], key=lambda labels: silhouette_score(rows, labels)) if others else first
    return best.reshape(grid.shape[:2])


def _unit_scale(grid: np.ndarray) -> np.ndarray:
    """The places (h*w, D) of one grid (h, w, D), centred and of mean square 1, so that tolerances of the algorithms fit."""
    rows = centred(grid[None]).reshape(-1, grid.shape[-1])
    size = np.sqrt(np.square(rows).sum(axis=1).mean())
    return rows / size if size > 1e-12 * np.sqrt(np.square(grid).sum(axis=-1).mean()) else np.zeros_like(rows)


def foreground(images: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Which places (N, h, w) hold a bright object: the patch's mean brightness exceeds Otsu's threshold (1979) on the image's pixels.

    images: (N, H, W, 3) RGB with sides that are multiples of the grid. Raises ValueError for an image of one brightness.
    """
    bright = np.asarray(images, dtype=np.float64).mean(axis=-1)
    n, height, width = bright.shape
    if (flat := np.flatnonzero(np.ptp(bright, axis=(1, 2)) == 0)).size:
        raise ValueError(f"image(s) {flat.tolist()[:10]} have one brightness throughout: no foreground to tell apart")
    h, w = grid
    thresholds = np.array([threshold_otsu(image) for image in bright])
    return bright.reshape(n, h, height // h, w, width // w).mean(axis=(2, 4)) > thresholds[:, None, None]


def mask_agreement(labels: np.ndarray, masks: np.ndarray, others: int = OTHERS) -> tuple[np.ndarray, np.ndarray]:
    """Adjusted Rand index (N,) of each image's groups (N, h, w) with its own mask (N, h, w), and with the masks of the `others` images that
    follow (mean): objects often stand in the middle, and that alone agrees."""
    n = len(labels)
    found = np.empty((n, others + 1))
    for i, k in np.ndindex(found.shape):
        found[i, k] = adjusted_rand_score(masks[(i + k) % n].ravel(), labels[i].ravel())
    return found[:, 0], found[:, 1:].mean(axis=1)


@one_thread
def measure(
    grids: np.ndarray,
    masks: np.ndarray | None = None,
    *,
    another: np.ndarray | None = None,
    counts: Sequence[int] = CLUSTER_COUNTS,
    seed: int = 0,
) -> pd.DataFrame:
    """Every measure of N grids (N, h, w, D), one row per image, under the headings of the tables; kept in the cache.

    masks: (N, h, w) foreground. another: (N, h, w, D) the grids that another image gives in the same weights. counts: numbers of clusters
    to choose from. Raises ValueError as the single measures do.
    """
    given = {name: x for name, x in {"grids": grids, "masks": masks, "another": another}.items() if x is not None}
    read = teachers.weights_sha256({name: torch.from_numpy(np.array(x)) for name, x in given.items()})
    code = code_version(("experiments.islands", "experiments.judge"))
    identity = [read, list(counts), seed, code, libraries(("numpy", "scipy", "scikit-learn"))]

    def take() -> dict[str, Tensor]:
        found = _measures(grids, masks, another, counts, seed)
        return {f"{place:02} {name}": torch.from_numpy(values) for place, (name, values) in enumerate(found.items())}

    found = teachers.remembered("islands", identity, take)
    return pd.DataFrame({name[3:]: found[name].numpy() for name in sorted(found)})


def _measures(
    grids: np.ndarray, masks: np.ndarray | None, another: np.ndarray | None, counts: Sequence[int], seed: int
) -> dict[str, np.ndarray]:
    """The columns of `measure`."""
    found = {"spread (%)": 100 * spread(grids)}
    found["neighbours, raw"], found["far, raw"] = cosines(grids)
    found["first component"], found["R2 of P"] = first_component(grids), position_share(grids)
    found["neighbours"], found["far"] = near, far = cosines(grids, centre=True)
    found["neighbours - far"] = near - far
    if another is not None:
        found["CKA, another image"] = alike(grids, another)
    divided = _each(grids, counts, seed)
    found["clusters"] = np.array([len(np.unique(labels)) for labels in divided], dtype=np.float64)
    if masks is not None:
        found["ARI, chosen number"] = mask_agreement(divided, masks, 1)[0]
        own, other = mask_agreement(_each(grids, [2], seed), masks)
        found |= {"ARI, 2 clusters": own, "ARI, 2 clusters, other masks": other, "own - other masks": own - other}
        if another is not None:
            own, other = mask_agreement(_each(another, [2], seed), masks)
            found["own - other masks, another image's map"] = own - other
    return found


def _each(grids: np.ndarray, counts: Sequence[int], seed: int) -> np.ndarray:
    """The division (N, h, w) of each grid; one serves all where they are the same, as the positional code's are."""
    different = grids[:1] if (grids == grids[:1]).all() else grids
    divided = np.stack([clusters(grid, counts, seed=seed) for grid in different])
    return np.broadcast_to(divided, np.shape(grids)[:3])


def changes(before: Measures, after: Measures, names: Sequence[str]) -> pd.DataFrame:
    """What training changed, with a verdict (CHANGED): measures of the same students on the same images before and after it."""
    words = {"above": "larger", "below": "smaller", "undecided": "not decided"}
    pairs = {(name, student): (before[student][name], after[student][name]) for name in names for student in after}
    found = {what: [judge.mean(x), judge.mean(y), judge.mean(y - x)] for what, (x, y) in pairs.items()}
    frame = pd.DataFrame(found, ["random weights", "trained", "change"]).T.rename_axis(["measure", "student"])
    return frame.assign(**{"training made it": frame["change"].map(numbers.verdict).map(words)})


def whose(measures: Measures) -> pd.DataFrame:
    """Whose map the grid of each source is, by the rule WHOSE: place, the image, both or neither; with masks and other maps."""
    gain = "own - other masks"
    found = judge.table(measures, ["R2 of P", "CKA, another image", gain, f"{gain}, another image's map"])
    verdicts = {}
    for source, frame in measures.items():
        linear, same, own, _ = found.loc[source]
        more = judge.mean(frame[gain] - frame[f"{gain}, another image's map"])
        place, not_place = min(linear.low, same.low) >= MOST, min(linear.high, same.high) < MOST
        image, not_image = min(own.low, more.low) > 0, own.high < 0
        verdicts[source] = {
            "a map of place": "yes" if place else "no" if not_place else "not decided",
            "shows its own image": "yes" if image else "no" if not_image else "not decided",
        }
    return found.join(pd.DataFrame.from_dict(verdicts, orient="index"))


def picture(grid: np.ndarray, method: str = "pca", components: int = 3, *, fit: np.ndarray | None = None) -> np.ndarray:
    """One grid (h, w, D) as RGB (h, w, 3), reduced to 1 (viridis), 2 (orange, blue) or 3 components by "pca" or "tsne".

    fit: the look (h, w, D) whose principal components are the colours: one for all looks at a student, or colours flip from look to look.
    Each picture of t-SNE has colours of its own, stretched from the 1st to the 99th percentile; without variation: grey.
    """
    if method == "pca":
        found = figures.grid_rgb(grid, fit=fit, own_range=True)[..., :components]
    elif (rows := _unit_scale(grid)).any():
        found = judge.tsne(rows, components)
        low, high = np.percentile(found, [1, 99], axis=0)
        found = ((found - low) / (high - low)).clip(0, 1).reshape(*grid.shape[:2], components)
    else:
        found = np.full((*grid.shape[:2], components), 0.5)
    if components == 1:
        return np.asarray(mpl.colormaps["viridis"](found[..., 0]))[..., :3]
    return found if components == 3 else np.stack([found[..., 0], found.mean(axis=-1), found[..., 1]], axis=-1)


def shares(grids: np.ndarray, fits: np.ndarray) -> pd.DataFrame:
    """What the colours of N grids (N, h, w, D) hold, a row each, in percent: spread, and the share of the variation that each channel
    of the `picture` in the colours of fits (N, h, w, D) shows."""
    flat = centred(grids).reshape(len(grids), -1, grids.shape[-1])
    shown = np.stack([rows @ figures.components(fit).T for rows, fit in zip(flat, fits, strict=True)])
    held = np.square(shown).sum(axis=1) / np.square(flat).sum(axis=(1, 2))[:, None]
    found = pd.DataFrame(100 * held, columns=["red (%)", "green (%)", "blue (%)"])
    found.insert(0, "spread (%)", 100 * spread(grids))
    return found
