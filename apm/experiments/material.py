"""What a field is trained on and held against: images read when a batch needs them, teacher tokens and colours in files.

Memory does not grow with the number of images: teacher tokens and patch colours lie in memory-mapped files of the cache, and images on
disk are decoded by worker processes. The names of what is kept carry the hash of this module's code.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from apm import project, teachers
from apm.data import Dataset
from apm.model import APMConfig
from apm.project.identity import code_version

BATCH = 64  # images that are encoded at a time
BLOCK = 2**22  # numbers of which a statistic is taken at a time


class Batch(NamedTuple):
    """Some images of a material, as tensors; NumPy arrays before `to`."""

    images: Tensor  # (n, 3, H, W) float32, normalised
    tokens: Tensor | None  # (n, h*w, D) the teacher's patch tokens, in the type in which they are kept
    colours: Tensor  # (n, h*w, 3) float32: mean colour of every patch, 0..1

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Batch:
        """The same on a device, all of one type."""
        moved = (None if x is None else torch.as_tensor(x).to(device, non_blocking=True).to(dtype) for x in self)
        return Batch(*moved)  # type: ignore[arg-type]

    def target(self, what: str) -> Tensor:
        """(n, h*w, C) what is learned: "tokens" of unit length, or "colours"."""
        if what == "colours":
            return self.colours
        if self.tokens is None:
            raise ValueError("there are no teacher tokens: the images were prepared without a teacher")
        return F.normalize(self.tokens, dim=-1)


class Spread(NamedTuple):
    """Mean of a target over the images, and what that answer leaves."""

    mean: Tensor  # (h*w, C) float32
    left: float  # mean squared difference from it


@dataclass(frozen=True, eq=False)
class Material:
    """N images of a dataset, all of which can be read, on a student's grid, with the teacher's patch tokens where there is a teacher."""

    dataset: Dataset
    tokens: np.ndarray | None = field(repr=False)  # (M, h*w, D), memory-mapped; None: no teacher
    colours: np.ndarray = field(repr=False)  # (M, h*w, 3), memory-mapped
    rows: np.ndarray = field(repr=False)  # (N,) the row of each image in the two above
    student: APMConfig
    made_of: Mapping[str, Any]  # what determines images and colours
    taught_by: Mapping[str, Any]  # what determines the tokens besides
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _spreads: dict[str, Spread] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def identity(self) -> dict[str, Any]:
        """All that determines what a training on this reads: for the name of a checkpoint."""
        return {**self.made_of, **(self.taught_by if self.tokens is not None else {})}

    @property
    def left_out(self) -> str:
        """How many images cannot be read, as a sentence for a footer; empty where all can."""
        if len(self.rows) == (n := len(self.colours)):
            return ""
        return f" {n - len(self.rows)} of {n} images of {self.dataset.name} cannot be read and are left out."

    def without_tokens(self) -> Material:
        """The same without a teacher."""
        return replace(self, tokens=None)

    def __getitems__(self, positions: Sequence[int]) -> Batch:
        """The images at these positions, NumPy arrays until `Batch.to` (torch's DataLoader asks so)."""
        pictures = [self.dataset.images[int(i)] for i in positions]
        rows = self.rows[np.asarray(positions)]
        parts = (
            teachers.student_images(pictures, self.student.image_size[0]).numpy(),
            None if self.tokens is None else np.array(self.tokens[rows]),
            np.array(self.colours[rows]),
        )
        return Batch._make(parts)

    def batch(self, positions: Iterable[int]) -> Batch:
        """The images at these positions, on the teacher's device."""
        return self.__getitems__([int(i) for i in positions]).to(self.device)

    def batches(self, size: int = BATCH) -> Iterator[Batch]:
        """All images in order, `size` at a time, on the teacher's device."""
        for batch in self.loader([x.tolist() for x in torch.arange(len(self)).split(size)]):
            yield batch.to(self.device)

    def each(self, read: Callable[[Batch], Tensor]) -> np.ndarray:
        """(N, ...) what `read` makes of every image, in batches."""
        return torch.cat([read(batch).cpu() for batch in self.batches()]).numpy()

    def loader(self, order: list[list[int]]) -> Iterable[Batch]:
        """The batches of positions in `order`, before `Batch.to`; the list may change between two passes."""
        return teachers.reading(self, self.dataset, BATCH, batch_sampler=order, collate_fn=_as_it_is)

    def spread(self, what: str) -> Spread:
        """Mean over the images of "tokens" of unit length, or "colours", and what it leaves; ValueError for values that are not finite."""
        if what not in self._spreads:
            values = self.tokens if what == "tokens" else self.colours
            if values is None:
                raise ValueError(f"there are no {what} of {self.dataset.name}: it was prepared without a teacher")
            step = max(1, BLOCK // math.prod(values.shape[1:]))
            total: Any = 0.0
            squares = 0.0
            for start in range(0, len(self), step):
                block = torch.from_numpy(np.array(values[self.rows[start : start + step]])).float()
                finite = block.isfinite().flatten(1).all(dim=1)
                if not bool(finite.all()):
                    bad = self.dataset.indices[start : start + step][~finite.numpy()]
                    raise ValueError(
                        f"{what} of {self.dataset.name} have NaN or infinite values in image(s) {bad[:10].tolist()}: another "
                        "precision of the teacher, or token_dtype float32, may do"
                    )
                block = (F.normalize(block, dim=-1) if what == "tokens" else block).double()
                total = total + block.sum(dim=0)
                squares += float(block.square().sum())
            mean = total / len(self)
            left = squares / len(self) / mean.numel() - float(mean.square().mean())
            self._spreads[what] = Spread(mean.float(), max(left, 0.0))
        return self._spreads[what]


def prepare(
    teacher: teachers.Teacher,
    dataset: Dataset,
    student: APMConfig,
    *,
    tokens: bool = True,
    token_dtype: str = "float32",
    on_error: str = "raise",
    folder: Path | str | None = None,
) -> Material:
    """A dataset on a student's grid. At first use the teacher encodes it; the files are kept, default in `field` of the project's cache.

    tokens: False for a training without a teacher. token_dtype: "float32" or "float16" (half the disk, cosines change by about 1e-3).
    on_error: at an image that cannot be read: "raise", or "record": it is left out, and `left_out` says so. Raises ValueError for a
    student, tower, type or on_error that does not fit, and where no image can be read; `apm.data.UnreadableImage`, which names the file.
    """
    h, w = student.image_size
    if h != w:
        raise ValueError(f"datasets are read at square sizes, found a student of {h} x {w} px: use a square grid")
    if student.width != teacher.width:
        raise ValueError(
            f"the student's width {student.width} must be the width {teacher.width} of teacher {teacher.name}: set width in the profile"
        )
    for kind, value, known in (
        ("token_dtype", token_dtype, ("float32", "float16")),
        ("on_error", on_error, ("raise", "record")),
    ):
        project.among(kind, [value], known)
    if tokens and teacher.grid is None:
        raise ValueError(f"teacher {teacher.name} has no patch tokens: choose one with them, or loss_grid: 0.0")
    images = teachers.identity(teacher, dataset) | {
        "grid": list(student.grid),
        "material": code_version(("experiments.material",)),
    }
    made_of = {**images, "patch": student.patch}
    taught_by = {"teacher": teacher.hash, "precision": teacher.precision, "token_dtype": token_dtype, "batch": BATCH}
    where = project.cache_dir() / "field" if folder is None else Path(folder)
    colours_file = where / f"colours-{project.sha256_of(made_of)[:24]}.npy"
    colours = teachers.stored(
        colours_file,
        dataset,
        (student.locations, 3),
        "float32",
        lambda image: teachers.patch_colours(teachers.student_images([image], h), student.patch)[0],
        lambda found: found,
        what=f"colours of {dataset.name}",
        batch_size=BATCH,
        on_error=on_error,
    )
    stored = None
    if tokens:
        stored = teachers.stored(
            where / f"tokens-{project.sha256_of(images | taught_by)[:24]}.npy",
            dataset,
            (student.locations, teacher.width),
            token_dtype,
            lambda image: torch.from_numpy(teachers.fitted(image, teacher.preprocess_config)),
            lambda found: teachers.token_grid(teacher, found.numpy(), student.grid),
            what=f"{teacher.name} tokens of {dataset.name}",
            batch_size=BATCH,
            on_error=on_error,
        )
    readable = np.isfinite(colours[:, 0, 0])
    rows = np.flatnonzero(readable)
    if len(rows) < len(dataset) and on_error == "raise":  # the file was made by "record"
        dataset.images[int(readable.argmin())]
        raise ValueError(f"an image of {dataset.name} could not be read and can be now: delete {colours_file}")
    if not len(rows):
        raise ValueError(f"dataset {dataset.name}: none of the {len(dataset)} images can be read")
    return Material(
        dataset if readable.all() else dataset.subset(rows),
        stored,
        colours,
        rows,
        student,
        made_of | {"rows": hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()},
        taught_by,
        teacher.device,
    )


def _as_it_is(found: Any) -> Any:
    return found
