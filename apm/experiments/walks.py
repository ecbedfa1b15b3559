"""Walks on a field's trigger column T from one image to another (Figure 5), and whether the pictures on the way are near real images."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from PIL import Image
from sklearn.decomposition import PCA
from torch import Tensor

from apm import teachers
from apm.experiments.answers import Linear, nearest_image
from apm.experiments.field import Field, one_thread
from apm.experiments.judge import pictures as picture_table
from apm.experiments.material import Material
from apm.model import Percept

DECODED, BLEND = "T interpolated, decoded", "pixels interpolated"


class Walk(NamedTuple):
    """From one image to another in steps, three ways, as float32. S steps, h x w locations."""

    shares: np.ndarray  # (S,) share of the second image, 0 to 1
    decoded: np.ndarray  # (S, h, w, 3) RGB decoded from the interpolated trigger column
    features: np.ndarray  # (S, h, w, D) feature grid unfolded from it
    blend: np.ndarray  # (S, h, w, 3) the control: patch means of the interpolated pixels
    columns: np.ndarray  # (S, column_width) the interpolated trigger column
    difference: float  # largest |interpolated T - T of the interpolated pixels|, in units of T's largest absolute value


def interpolate(trained: Field, ends: Tensor, steps: int = 9) -> Walk:
    """Walk on the trigger column from one image to another, ends (2, 3, H, W), both as a student sees them (Figure 5).

    The column is an affine map of the pixels (one convolution and a bias), so walking on T is feeding blended images to the network:
    `difference` measures it. Raises ValueError for fewer than 2 steps.
    """
    net, student = trained.model, trained.config.student
    if steps < 2:
        raise ValueError(f"an interpolation needs at least 2 steps, its two ends, found {steps}")
    with torch.no_grad(), one_thread(trained.device):
        shares = torch.linspace(0, 1, steps, dtype=trained.config.dtype, device=trained.device)
        one, other = ends.to(shares)
        first, last = trained.perceive(torch.stack([one, other])).column  # (column_width,) each
        columns = first + shares[:, None] * (last - first)
        images = one + shares[:, None, None, None] * (other - one)  # (S, 3, H, W)
        percept = trained.perceive(images)
        between = Percept(columns, percept.local)
        features = net.columns(between)
        decoded = net.rgb(between, features).clamp(0, 1)
        blend = teachers.patch_colours(images, student.patch)
        apart = (percept.column - columns).abs().max() / torch.stack([first, last]).abs().max().clamp(min=1e-12)
    grids = (x.unflatten(1, student.grid) for x in (decoded, features, blend))
    return Walk._make([*(x.float().cpu().numpy() for x in (shares, *grids, columns)), float(apart)])


def pairs(labels: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """n pairs of positions (n, 2) of images of different classes, drawn at random, no image twice.

    Raises ValueError where it does not find n: up to a third of the images is safe unless one class prevails.
    """
    found: list[tuple[int, int]] = []
    waiting: list[int] = []
    for i in np.random.default_rng(seed).permutation(len(labels)).tolist():
        partner = next((j for j in waiting if labels[j] != labels[i]), None)
        if partner is None:
            waiting.append(i)
        else:
            waiting.remove(partner)
            found.append((partner, i))
        if len(found) == n:
            return np.array(found)
    there = f"found {len(found)} among {len(labels)} images"
    todo = "set labelled_train and labelled to datasets with labels, or fewer pairs"
    raise ValueError(f"expected {n} pairs of images of different classes, {there}: {todo}")


def decoders(known: Material) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Maps of pictures (n, h * w * 3) to pictures without any field, which may also bring a blend nearer to real images: controls."""
    colours = known.colours[known.rows].reshape(len(known), -1)
    middle = colours.mean(axis=0)

    def projection(components: int) -> Callable[[np.ndarray], np.ndarray]:
        pca = PCA(min(components, *colours.shape), svd_solver="covariance_eigh").fit(colours)
        return lambda x: pca.inverse_transform(pca.transform(x))

    return {
        "control: PCA-15 of the pixels": projection(15),
        "control: PCA-10 of the pixels": projection(10),
        "control: three tenths towards the mean": lambda x: x + 0.3 * (middle - x),
        "control: contrast curve": lambda x: x * x * (3.0 - 2.0 * x),
    }


def cross(
    trained: Field, data: Material, which: np.ndarray, known: Material, linear: Linear, steps: int = 9
) -> pd.DataFrame:
    """Are the pictures between two images nearer to real images when T is interpolated than when pixels are?

    data: held-out images. which: (P, 2) positions among them (`pairs`). known: training images. linear: a control that decodes colours
    from the interpolated column; others: `decoders` of the blend. One row a picture on the way: distance is the root mean square to the
    nearest training image as patch means, contrast the standard deviation in units of the mean of its walk's two ends.
    """
    parts: dict[str, list[np.ndarray]] = {DECODED: [], BLEND: [], "control: ridge from T": []}
    of_walk = []
    for i, pair in enumerate(which):
        walk = interpolate(trained, data.batch(pair).images, steps)
        parts[DECODED].append(walk.decoded)
        parts[BLEND].append(walk.blend)
        found = linear.of(torch.from_numpy(walk.columns).to(linear.weights.device)).clamp(0, 1)
        parts["control: ridge from T"].append(found.cpu().numpy())
        of_walk.append(pd.DataFrame({"pair": i, "share": walk.shares, "difference": walk.difference}))
    pictures = {name: np.concatenate(found).reshape(len(which) * steps, -1) for name, found in parts.items()}
    pictures |= {name: decode(pictures[BLEND]) for name, decode in decoders(known).items()}
    walks, frames = pd.concat(of_walk, ignore_index=True), {}
    for name, rows in pictures.items():
        deviation = rows.astype(np.float64).std(axis=1).reshape(-1, steps)
        contrast = deviation / deviation[:, [0, -1]].mean(axis=1, keepdims=True)
        distance = nearest_image(torch.from_numpy(rows), known)[0].numpy()
        frames[name] = walks.assign(distance=distance, contrast=contrast.ravel())
    return pd.concat(frames, names=["picture"]).reset_index("picture").reset_index(drop=True)


def animation(pictures: Mapping[str, Sequence[Any]], shares: np.ndarray, *, milliseconds: int = 150) -> bytes:
    """A walk there and back as an animated GIF: by heading, the pictures of each step. The same walk gives the same bytes."""
    frames = []
    for step in [*range(len(shares)), *range(len(shares) - 2, 0, -1)]:
        row = {f"{shares[step]:.2f}": [of_kind[step] for of_kind in pictures.values()]}
        figure = picture_table(row, list(pictures), size=1.3)
        figure.canvas.draw()
        frames.append(np.asarray(figure.canvas.buffer_rgba())[..., :3])  # type: ignore[attr-defined]
        plt.close(figure)
    height, width = frames[0].shape[:2]
    tall = Image.fromarray(np.concatenate(frames)).quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    first, *others = (tall.crop((0, i * height, width, (i + 1) * height)) for i in range(len(frames)))
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=others, duration=milliseconds, loop=0, optimize=True)
    return buffer.getvalue()
