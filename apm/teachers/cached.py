"""What is made of every image of a dataset, kept in memory-mapped files of the cache: a teacher's features, and the like."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import cpu_count
from torch import Tensor

from apm.data import Dataset, UnreadableImage
from apm.project import atomic_path, cache_dir, sha256_of
from apm.project.identity import RUN_MODULES, code_version, libraries
from apm.project.paths import check_seal
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
    """(N, *shape) of every image of a dataset, a read-only memory map of a file (.npy) that is made where it is not there or damaged.

    change: an image uint8 (H, W, 3) -> a tensor, where it is read (`reading`). encode: a stack of those of the images that can be read
    -> (n, *shape). dtype: "float32" or "float16", as it is kept. what: for the progress bar. on_error: "record": the row of an image
    that cannot be read is NaN; "raise": UnreadableImage. Memory does not grow with N.
    """
    expected = (len(dataset), *shape)
    if path.is_file():
        try:
            check_seal(path)
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            warnings.warn(f"the cached file {path} cannot be used ({error}): making it again", stacklevel=3)
    loader = reading(_Changed(dataset, change), dataset, batch_size, batch_size=batch_size, collate_fn=list)
    with atomic_path(path, sealed=True) as temporary, progress(total=len(dataset), desc=what, unit="image") as bar:
        result = np.lib.format.open_memmap(temporary, "w+", np.dtype(dtype), expected)
        for start, items in zip(range(0, len(dataset), batch_size), loader, strict=True):
            readable = np.array([item is not None for item in items])
            if on_error == "raise" and not readable.all():
                dataset.images[start + int(readable.argmin())]  # an image that cannot be read says so
            rows = np.full((len(items), *shape), np.nan, dtype=np.float32)
            if readable.any():
                found = np.stack([item for item in items if item is not None])
                rows[readable] = encode(torch.from_numpy(found)).cpu().numpy()
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

    def __getitem__(self, i: int) -> np.ndarray | None:
        try:
            return self.change(np.asarray(self.images[i])).numpy()
        except UnreadableImage:
            return None


def reading(items: Any, dataset: Dataset, batch: int, **options: Any) -> torch.utils.data.DataLoader:
    """A DataLoader over what is made of a dataset's images, `batch` at a time, read by `_workers` processes or the caller. items give
    NumPy arrays, which come through a pipe: tensors would need shared memory, 64 MB in a usual container, and hang without."""
    if workers := _workers(dataset, batch):  # by fork: items need not be picklable, nor their mapped files be copied
        options |= {"num_workers": workers, "persistent_workers": True, "multiprocessing_context": "fork"}
    # without a generator it draws from the global one
    return torch.utils.data.DataLoader(items, generator=torch.Generator(), **options)


def _workers(dataset: Dataset, batch: int) -> int:
    """One for each core that this process may use, at most 8; none where starting them takes longer."""
    return 0 if dataset.in_memory or len(dataset) < 4 * batch else min(8, cpu_count())


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
    """(N, D) image features of a dataset, `stored` in the project's cache under a hash of the teacher and `identity`: float32 or float16,
    as the teacher was loaded with; not normalised. The row of an image that cannot be read is NaN; `features_at` names it."""
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
    """(n, D) float32 of `features` at `positions`. Raises UnreadableImage, and ValueError for a feature that is not finite."""
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
