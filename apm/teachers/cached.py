"""What is made of every image of a dataset, kept in memory-mapped files of the cache: a teacher's features, and the like."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apm.data import Dataset, UnreadableImage
from apm.project import atomic_path, cache_dir, sha256_of
from apm.project.identity import RUN_MODULES, code_version, libraries
from apm.project.progress import progress
from apm.teachers.teacher import Teacher

# the code that reads and encodes images
CODE = tuple(module for module in RUN_MODULES if module.startswith(("data.", "teachers.")))
BATCH = 256  # images that are encoded at a time
LIBRARIES = ("torch", "open_clip_torch", "timm", "pillow", "numpy", "scipy", "scikit-image")


def stored(
    path: Path,
    dataset: Dataset,
    shape: tuple[int, ...],
    dtype: str,
    change: Callable[[np.ndarray], Tensor],
    encode: Callable[[Tensor], Tensor],
    *,
    what: str,
    batch_size: int,
    on_error: str = "record",
) -> np.ndarray:
    """(N, *shape) of every image of a dataset, a read-only memory map of a file (.npy) that is made where it is not there.

    change: an image uint8 (H, W, 3) -> a tensor, where it is read: by worker processes, one per core and at most 8, or by the caller
    for images in memory and for few. encode: a stack of those of the images that can be read -> (n, *shape). dtype: in which it is
    kept, "float32" or "float16". what: for the progress bar. on_error: "record": the row of an image that cannot be read is NaN;
    "raise": UnreadableImage. Memory does not grow with N. A file that is damaged or of another shape or type is made again, with a
    warning; it has another name until it is whole.
    """
    expected = (len(dataset), *shape)
    if path.is_file():
        try:
            found = np.load(path, mmap_mode="r", allow_pickle=False)
            if found.shape == expected and found.dtype == dtype:
                return found
            reason = f"it holds {found.dtype} {found.shape}, expected {dtype} {expected}"
        except (OSError, ValueError, EOFError) as error:
            reason = str(error)
        warnings.warn(f"the cached file {path} cannot be used ({reason}): making it again", stacklevel=3)
    few = isinstance(dataset.images, np.ndarray) or len(dataset) < 4 * batch_size
    workers = 0 if few else min(8, os.cpu_count() or 1)
    loader = torch.utils.data.DataLoader(
        _Changed(dataset, change),
        batch_size=batch_size,
        collate_fn=list,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,  # `change` need not be picklable
        generator=torch.Generator(),  # its own: else it would draw from the global one
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, progress(total=len(dataset), desc=what, unit="image") as bar:
        result = np.lib.format.open_memmap(temporary, "w+", np.dtype(dtype), expected)
        for start, items in zip(range(0, len(dataset), batch_size), loader, strict=True):
            readable = np.array([item is not None for item in items])
            if on_error == "raise" and not readable.all():
                dataset.images[start + int(readable.argmin())]  # an image that cannot be read says so
            rows = np.full((len(items), *shape), np.nan, dtype=np.float32)
            if readable.any():
                rows[readable] = encode(torch.stack([item for item in items if item is not None])).cpu().numpy()
            with np.errstate(over="ignore"):  # beyond float16: infinite, which a reader refuses by name
                result[start : start + len(rows)] = rows
            bar.update(len(rows))
        result.flush()
        del result
    return np.load(path, mmap_mode="r", allow_pickle=False)


class _Changed(torch.utils.data.Dataset):
    """Images of a dataset, each changed; None for one that cannot be read."""

    def __init__(self, dataset: Dataset, change: Callable[[np.ndarray], Tensor]) -> None:
        self.images, self.change = dataset.images, change

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor | None:
        try:
            return self.change(np.asarray(self.images[i]))
        except UnreadableImage:
            return None


def identity(teacher: Teacher, dataset: Dataset) -> dict[str, Any]:
    """All that determines what is made of a dataset's images on a teacher's device, the teacher itself and the batch aside."""
    return {
        "device": teacher.device.type,
        "code": code_version(CODE),
        "libraries": libraries(LIBRARIES),
        "data": dataset.fingerprint,
        "indices": hashlib.sha256(np.ascontiguousarray(dataset.indices, dtype="<i8").tobytes()).hexdigest(),
        "corruption": [dataset.corruption, dataset.severity],
    }


def features(teacher: Teacher, dataset: Dataset) -> np.ndarray:
    """(N, D) image features of a dataset, a read-only memory map of a file in the project's cache.

    float32 or float16, as the teacher was loaded with; not normalised. The file's name carries a hash of the teacher and `identity`. The
    row of an image that cannot be read is NaN; `features_at` names it.
    """
    key = sha256_of({"teacher": teacher.hash, "batch": BATCH, **identity(teacher, dataset)})
    names = [re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")[-48:] for name in (dataset.name, teacher.name)]
    return stored(
        cache_dir() / "features" / f"{'-'.join([*names, key[:24]])}.npy",
        dataset,
        (teacher.width,),
        teacher.feature_dtype,
        lambda image: teacher.transform([image])[0],
        lambda batch: teacher.encode(batch).feature,
        what=f"{teacher.name} features of {dataset.name}",
        batch_size=BATCH,
    )


def features_at(teacher: Teacher, dataset: Dataset, positions: np.ndarray) -> Tensor:
    """(n, D) float32 features of the images at `positions`, from the cached ones of the whole dataset. Raises `apm.data.UnreadableImage`
    for an image that cannot be read, and ValueError for a feature that is not finite."""
    rows = np.array(features(teacher, dataset)[positions])
    for row in np.flatnonzero(~np.isfinite(rows).all(axis=1)):
        image = dataset.images[int(positions[row])]  # an image that cannot be read says so
        # one that could not be read when the features were made, but can be now
        rows[row] = teacher.encode(teacher.transform([image])).feature[0].cpu().numpy()
        if not np.isfinite(rows[row]).all():
            raise ValueError(
                f"teacher {teacher.name} gives image {int(dataset.indices[positions[row]])} of {dataset.name} a feature that is "
                f"not finite: another precision than {teacher.precision} may do"
            )
    return torch.from_numpy(rows.astype(np.float32, copy=False))
