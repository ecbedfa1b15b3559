"""What a field is held against, and how answers are measured: linear maps in closed form, the nearest and the mean training image.

An answer gives, for the images of a batch, the features (n, h*w, D) or the colours (n, h*w, 3) of every location. A reader makes
numbers of a batch: such an answer, or one vector an image, which a linear map or a classifier starts from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from apm.analysis.numbers import Number, verdict
from apm.experiments import judge
from apm.experiments.field import Field, look
from apm.experiments.material import Batch, Material

Reader = Callable[[Batch], Tensor]
Source = Field | Tensor | Reader | None
PENALTIES = tuple(10.0**power for power in range(-6, 1))  # of a ridge, in units of an input's mean variance
CHOOSING = 64  # locations by which a ridge chooses its penalty, at most
BLOCK = 1024  # images among which the nearest one is looked for at a time
PSNR_LIMIT = 100.0  # dB; 8-bit images that differ in one value of one pixel of a million lie just above


def pixels(batch: Batch, side: int = 32) -> Tensor:
    """(n, 3 * S * S) the images; those of more than `side` px are averaged down to side x side."""
    return F.adaptive_avg_pool2d(batch.images, min(side, *batch.images.shape[2:])).flatten(1)


def patch_means(batch: Batch) -> Tensor:
    """(n, h * w * 3) mean colours of the patches."""
    return batch.colours.flatten(1)


def column(trained: Field) -> Reader:
    """The reader of a field's trigger column: a batch -> (n, column_width) float32."""
    return torch.no_grad()(lambda batch: trained.perceive(batch.images).column.float())


def folded(trained: Field) -> Reader:
    """The reader of a field's folded feature: a batch -> (n, D) float32."""
    return lambda batch: look(trained, batch.images).folded


class Linear(NamedTuple):
    """A linear map with a constant from numbers read off an image, (n, d), to every location, (n, L, C)."""

    read: Reader
    weights: Tensor  # (d + 1, L * C); the last row belongs to the constant
    mean: Tensor  # (L, C) of the training images, to which it is added

    def __call__(self, batch: Batch) -> Tensor:
        return self.of(self.read(batch))

    def of(self, numbers: Tensor) -> Tensor:
        """(n, d) -> (n, L, C) float32."""
        return self.mean + (F.pad(numbers, (0, 1), value=1.0) @ self.weights).unflatten(1, self.mean.shape)


def ridge(read: Reader, data: Material, what: str) -> Linear:
    """Ridge regression in closed form from what `read` sees of an image to all its "tokens" (of unit length) or "colours": a control.

    Every fifth image chooses the penalty of `PENALTIES`, at up to `CHOOSING` locations. Raises ValueError for fewer than 10 images.
    """
    if len(data) < 10:
        raise ValueError(f"a ridge whose penalty held-back images choose needs at least 10 images, found {len(data)}")
    mean = data.spread(what).mean.to(data.device).double()  # (L, C)
    some = torch.linspace(0, len(mean) - 1, min(CHOOSING, len(mean)), device=data.device).long()
    sums: dict[str, Tensor] = {}
    squares, first = 0.0, 0
    for batch in data.batches():
        x = F.pad(read(batch).double(), (0, 1), value=1.0)
        y = batch.to(x.device, torch.float64).target(what) - mean
        back = torch.arange(first, first + len(x), device=x.device) % 5 == 0
        x_back, y_back = x[back], y[back][:, some].flatten(1)
        pairs = {"xx": (x, x), "xy": (x, y.flatten(1)), "xx back": (x_back, x_back), "xy back": (x_back, y_back)}
        for name, (left, right) in pairs.items():
            sums[name] = sums[name].addmm_(left.T, right) if name in sums else left.T @ right
        squares += float(y_back.square().sum())
        first += len(x)
    d = len(sums["xx"]) - 1
    n = float(sums["xx"][-1, -1])
    centre = sums["xx"][:-1, -1] / n
    scale = float(sums["xx"].diagonal()[:-1].sum() / n - centre.square().sum()) / d

    def solved(xx: Tensor, xy: Tensor, penalty: float) -> Tensor:
        each = torch.full((d + 1,), penalty * max(scale, 1e-12) * float(xx[-1, -1]), dtype=xx.dtype, device=xx.device)
        each[-1] = 0.0
        return torch.linalg.solve(xx + each.diag(), xy)

    at_some = sums["xy"].unflatten(1, mean.shape)[:, some].flatten(1)

    def error(penalty: float) -> float:
        w = solved(sums["xx"] - sums["xx back"], at_some - sums["xy back"], penalty)
        return float(squares - 2 * (w * sums["xy back"]).sum() + (w * (sums["xx back"] @ w)).sum())

    penalty = min(PENALTIES, key=error)
    parts = [solved(sums["xx"], part, penalty) for part in sums["xy"].split(2**16, dim=1)]
    return Linear(read, torch.cat([part.float() for part in parts], dim=1), mean.float())


def nearest_image(pictures: Tensor, known: Material) -> tuple[Tensor, Tensor]:
    """Root mean square distance (n,) of pictures (n, h * w * 3) to the nearest image of a material, as patch means, and its position."""
    asked = pictures.double()
    found = []
    for start in range(0, len(known), BLOCK):
        block = torch.from_numpy(known.colours[known.rows[start : start + BLOCK]]).to(asked).flatten(1)
        found.append(torch.cdist(asked, block).min(dim=1))
    distances, places = (torch.stack(some) for some in zip(*found, strict=True))  # (blocks, n)
    distance, which = distances.min(dim=0)
    place = places.gather(0, which[None])[0] + BLOCK * which
    return distance / asked.shape[1] ** 0.5, place


def of_nearest(known: Material) -> tuple[Reader, Reader]:
    """Unit tokens and colours of the training image that is nearest to each image: a control that only remembers."""

    def nearest(batch: Batch) -> Batch:
        return known.batch(nearest_image(patch_means(batch), known)[1].tolist())

    return lambda batch: nearest(batch).target("tokens"), lambda batch: nearest(batch).colours


def measure(answers: Mapping[str, tuple[Source, Source]], data: Material) -> dict[str, pd.DataFrame]:
    """Answers for every image against the teacher's grid and the patch means, in batches: only numbers per image are kept.

    answers: name -> (who gives the features, who gives the colours): a field, one grid (L, D) or image (L, 3) for all images, a
    reader, or None. Per answer one row an image; RGB in 0..1, chroma: mean squared error of RGB without its mean over the three
    channels, L_grid + L_rgb: the plain sum, of unit tokens. Raises ValueError for features where there are no teacher tokens.
    """

    def given(source: Source, what: str, batch: Batch) -> Tensor:
        if isinstance(source, Field):
            return getattr(look(source, batch.images), what).flatten(1, 2).double()
        return (source if isinstance(source, Tensor) else source(batch).cpu()).double()  # type: ignore[misc]

    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in answers}
    for batch in data.batches():
        true = batch.to("cpu", torch.float64)
        for name, (features, colours) in answers.items():
            found = {}
            if features is not None:
                own, tokens = given(features, "features", batch), true.target("tokens")
                found["cosine to the teacher's grid"] = F.cosine_similarity(own, tokens, dim=-1).mean(dim=1)
                grid = (own - tokens).square().mean(dim=(1, 2))
            if colours is not None:
                error = given(colours, "colours", batch).clamp(0, 1) - true.colours
                mse = found["MSE of the RGB"] = error.square().mean(dim=(1, 2))
                found["PSNR"] = (-10.0 * mse.log10()).clamp(max=PSNR_LIMIT)
                found["chroma"] = (error - error.mean(dim=-1, keepdim=True)).square().mean(dim=(1, 2))
                if features is not None:
                    found["L_grid + L_rgb"] = grid + mse
            parts[name].append(pd.DataFrame({key: value.numpy() for key, value in found.items()}))
    return {name: pd.concat(found, ignore_index=True) for name, found in parts.items()}


def against_best(ours: Any, controls: Mapping[str, Any], *, higher: bool = True, unit: str = "") -> dict[str, Any]:
    """The field beside the best of several controls, one value an image (n,) each: one row of a table. The best control is chosen on these
    very images, to the field's disadvantage; "field better": whether the whole interval of the paired difference says so."""
    best = (max if higher else min)(controls, key=lambda name: float(np.mean(controls[name])))
    difference = judge.mean(ours, unit, less=controls[best])
    better, worse = ("above", "below") if higher else ("below", "above")
    return {
        "field": judge.mean(ours, unit),
        "best control": best,
        "control": judge.mean(controls[best], unit),
        "field - control": difference,
        "field better": {better: "yes", worse: "no"}.get(verdict(difference), "undecided"),
    }


def colour_share(chroma: np.ndarray | pd.Series, of_mean: np.ndarray | pd.Series) -> Number:
    """Share in percent of the colour that is decoded, with the interval of a ratio of means, from the chroma (N,) of the answer and of the
    mean training image (`measure`), which is worth 0 %. NaN for images without colour beyond their mean."""
    left = of_mean.mean()
    if left <= 1e-12:
        return Number(math.nan, n=len(chroma))
    ratio = chroma.mean() / left
    return judge.mean(100.0 * (1.0 - ratio - (chroma - ratio * of_mean) / left), "%")
