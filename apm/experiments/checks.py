"""What the audit checks itself: orders and subsets, how often the teacher is asked, labels, random weights, times.

Each function returns plain numbers; `notebooks/08_claims_audit` publishes them, and data/claims.yaml judges them.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open

from apm import methods
from apm.data import Dataset
from apm.experiments import compute
from apm.model import APM, APMConfig, OnlineFold

FLOAT32 = 1e-5  # largest difference, relative to the largest value, that float32's rounding explains


def invariances(
    config: APMConfig, images: torch.Tensor, *, orders: int = 10, chunk: int = 1, std: float = 0.1, seed: int = 0
) -> pd.DataFrame:
    """Does the order, the number at a time or the choice of locations change any value? (sections 3.3, 3.6)

    A student with weights N(0, std) is evaluated on images (N, 3, H, W), the whole grid at once, then `orders` times in random order,
    `chunk` locations at a time, and on random halves of the grid. difference: over the largest value; holds: at most `FLOAT32`.
    """
    rng = np.random.default_rng(seed)
    student = APM(config, torch.Generator().manual_seed(seed), std=std)
    found = []
    with torch.no_grad():
        percept = student.perceive(images)
        whole = student.columns(percept)  # (N, L, D)
        folded = student(images)
        for _ in range(orders):
            order = rng.permutation(config.locations)
            features, online = torch.empty_like(whole), OnlineFold(student.parameters_dict, config)
            for where, part in student.stream(percept, order, chunk=chunk):
                features[:, where] = part
                online.update(part, where)
            half = torch.as_tensor(order[: config.locations // 2])
            for name, values, expected in (
                (f"features, random order, {chunk} at a time", features, whole),
                (f"{config.fold} fold, random order, {chunk} at a time", online.result(), folded),
                ("features, a random half of the locations", student.columns(percept, half), whole[:, half]),
            ):
                found.append((name, float((values - expected).abs().max() / expected.abs().max())))
    table = pd.DataFrame(found, columns=["check", "difference"]).groupby("check", sort=False).max().reset_index()
    table.insert(1, "repeats", orders)
    return table.assign(holds=table["difference"] <= FLOAT32)


def encodings(method: Any, dataset: Dataset, *, seed: int = 0) -> float:
    """Image encodings by a method's teacher per image, counted while it prepares and predicts with nothing stored from before."""
    with (
        tempfile.TemporaryDirectory() as empty,
        patch.dict(os.environ, APM_CACHE=empty),
        patch.object(method.teacher, "encode", wraps=method.teacher.encode) as encode,
    ):
        if hasattr(method, "prepare"):
            method.prepare(dataset)
        method.predict(dataset, np.arange(len(dataset)), seed)
    return sum(len(call.args[0]) for call in encode.call_args_list) / len(dataset)


def trained_here(name: str, pretrained: str | Path | None) -> bool:
    """Whether a teacher was trained by this package, on the training half of a data set that the profile is tested on."""
    if name == "mini" or pretrained is None or not Path(pretrained).is_file():
        return name == "mini"
    try:
        with safe_open(str(pretrained), framework="pt") as file:
            return "apm" in (file.metadata() or {})
    except SafetensorError:
        return False  # another format than `apm.teachers.save` writes


def departures(method: methods.APM, dataset: Dataset, *, seed: int = 0) -> list[str]:
    """How a method, by its settings and by `labels_matter`, departs from one loss, to the teacher's feature, on the image as it is."""
    config = method.config
    found = {
        f"augmentation {config.augmentation}": config.augmentation != "none",
        "a loss on the grid": config.loss_grid,
        "a pretext task: a loss on colours": config.loss_rgb,
        "no loss on the teacher's feature": not config.loss_cls,
        "labels change a prediction": labels_matter(method, dataset, seed=seed),
    }
    return [name for name, departs in found.items() if departs]


def labels_matter(method: Any, dataset: Dataset, *, seed: int = 0) -> bool:
    """Whether other labels change any prediction of a method."""
    shuffled = replace(dataset, labels=np.random.default_rng(seed).permutation(dataset.labels))
    first, second = (method.predict(data, np.arange(len(dataset)), seed) for data in (dataset, shuffled))
    return not np.array_equal(first.prediction, second.prediction)


def midpoint(config: APMConfig, first: torch.Tensor, second: torch.Tensor, *, std: float = 0.1, seed: int = 0) -> float:
    """Largest difference, relative to the largest value, between the trigger column of the blend of two images (3, H, W) and the blend of
    their trigger columns. The column is an affine map of the pixels, so this is rounding."""
    student = APM(config, torch.Generator().manual_seed(seed), std=std)
    with torch.no_grad():
        a, b, blend = student.perceive(torch.stack([first, second, (first + second) / 2])).column
    return float(((a + b) / 2 - blend).abs().max() / blend.abs().max())


def timed(config: APMConfig, device: torch.device | str = "cpu") -> dict[str, float]:
    """Seconds of one forward pass, the best of three: of a student "one", "seven" and "all" columns at a time, and of ViT-B/16's image
    tower, "tower"; on one CPU thread, where other work on the machine disturbs times least."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        sizes = {"one": 1, "seven": 7, "all": config.locations}
        found = {name: compute.time_columns(config, size, device=device) for name, size in sizes.items()}
        found["tower"] = compute.time_tower("ViT-B-16", device=device)
    finally:
        torch.set_num_threads(threads)
    return {name: row["least"] for name, row in found.items()}
