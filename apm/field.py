"""The field: one student with shared weights for all images, trained over a dataset (DESIGN's dataset scale; Figures 4 to 6, App. F).

    data = material.prepare(teacher, dataset, config.student)
    student = train(data, config, seed=0, checkpoint=path)
    look(student, data.batch([0, 3]).images).features      # every location of an image from one forward pass
    interpolate(student, one, other)    # walks on the trigger column T between two images

The loss is the mean squared error of the feature grid to the teacher's patch tokens, plus that of the decoded RGB to the
mean colour of each patch. By default each is in units of what the mean answer leaves (`balance`), teacher tokens are of unit length,
and AdamW's rate falls along a cosine. The authors' released training, with the student `five_layer`, differs: the plain
sum of the two losses (`balance: false`) on the teacher's tokens as they are (`unit_tokens: false`), Adam at a constant 1e-4, batches
of 64 images in BGR order, scaled between the least and the largest value of each. Its teacher, DINOv2 with four registers, gets raw
BGR values 0 to 255, and its tokens [CLS, 4 registers, patches] are cut as `[:-5]` instead of `[5:]`, which shifts the grid by five
cells: these two are not repeated here. Nothing here sees a label; labels only judge the features afterwards (`judge`, `clusters`).
"""

from __future__ import annotations

import functools
import inspect
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from safetensors import safe_open
from torch import Tensor

from apm import datasets, figures, methods, model, project, records, stats, teachers
from apm.datasets import Dataset
from apm.lockstep import caller_free
from apm.material import Batch, Material
from apm.model import APM, APMConfig, patches
from apm.progress import progress as progress_bar
from apm.stats import Interval
from apm.tables import Shown, percent
from apm.typed import checked

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Callback = Callable[[int, APM], None]
RESAMPLES = 2_000  # of the bootstrap: values that differ between images cost much more than counts of right and wrong
PSNR_LIMIT = 100.0  # dB; 8-bit images that differ in one value of one pixel of a million lie just above


@checked
@dataclass(frozen=True)
class FieldConfig:
    """Everything that determines a training over a dataset but the data, the teacher and the seed.

    Raises ValueError on construction for values that make no sense.
    """

    student: APMConfig = field(default_factory=APMConfig)
    epochs: int = 30
    batch: int = 32  # images per update
    learning_rate: float = 3e-3  # AdamW's, falling to zero along a cosine
    weight_decay: float = 0.0
    loss_grid: float = 1.0  # weight of L_grid: every location against the teacher's token there; 0: no teacher (App. F)
    loss_rgb: float = 1.0  # weight of L_rgb: decoded RGB against the mean colour of the patch
    unit_tokens: bool = True  # teacher tokens brought to unit length; False: as the teacher gives them
    # Each loss in units of what the mean answer leaves: predicting, at every location, the mean over the training images
    # has loss 1, whatever the teacher's scale. False: the plain sum of the paper.
    balance: bool = True
    init_std: float | None = None  # N(0, init_std); None: PyTorch's default for linear layers
    threads: int = 1  # of every operation on a CPU; they change the rounding, so they belong to the settings

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch, self.threads) < 1:
            raise ValueError(
                f"epochs, batch and threads must be at least 1, found {self.epochs}, {self.batch}, {self.threads}"
            )
        if not self.learning_rate > 0 or self.weight_decay < 0 or (self.init_std is not None and not self.init_std > 0):
            raise ValueError(
                "learning_rate and init_std must be positive and weight_decay not negative, found "
                f"{self.learning_rate}, {self.init_std}, {self.weight_decay}"
            )
        if min(self.loss_grid, self.loss_rgb) < 0 or self.loss_grid + self.loss_rgb == 0:
            raise ValueError(
                f"the loss weights (grid, rgb) must be >= 0 and not both zero, found {self.loss_grid}, {self.loss_rgb}"
            )
        if self.loss_rgb and not self.student.rgb_head:
            raise ValueError("loss_rgb > 0 needs a student with rgb_head=True")
        if self.student.column != "conv":
            raise ValueError(
                f"the field reads images through its trigger column: column='conv', found {self.student.column!r}"
            )


def settings(
    teacher: teachers.Teacher, student: Mapping[str, Any] | None = None, training: Mapping[str, Any] | None = None
) -> FieldConfig:
    """The settings of a training from a profile's plain values.

    student: fields of `apm.model.APMConfig` over a preset, as `apm.methods.training_config` takes them. training: fields of
    `FieldConfig`. Raises ValueError for an unknown field, with the list of known ones.
    """
    known = [f.name for f in fields(FieldConfig) if f.name != "student"]
    for name in training or {}:
        if name not in known:
            raise project.unknown("field of the training", name, known)
    return FieldConfig(methods.training_config(teacher, student).student, **(training or {}))


# ------------------------------------------------------------------------------------------------------------------ data


def halves(dataset: Dataset, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Two disjoint halves of a dataset, stratified by class: to train on and to hold out. Raises ValueError below two images."""
    if len(dataset) < 2:
        raise ValueError(f"dataset {dataset.name}: two halves need at least 2 images, found {len(dataset)}")
    first = dataset.subset(len(dataset) // 2, seed=seed)
    rest = np.flatnonzero(~np.isin(dataset.indices, first.indices))
    return first, dataset.subset(rest)


def part(name: str, samples: int | str = "all") -> Dataset:
    """A dataset by name, or a stratified part of it with so many images; raises as `apm.datasets.load` and `Dataset.subset` do."""
    dataset = datasets.load(name)
    return dataset if samples == "all" else dataset.subset(samples, seed=0)  # type: ignore[arg-type]


def positions(dataset: Dataset, n: int | str) -> np.ndarray:
    """(n,) positions of a stratified choice among a dataset's images; "all", or more than there are: all of them."""
    if n == "all" or int(n) >= len(dataset):
        return np.arange(len(dataset))
    return np.flatnonzero(np.isin(dataset.indices, dataset.subset(int(n), seed=0).indices))


def chosen_pair(dataset: Dataset, positions: Sequence[int]) -> Dataset:
    """The two images of an interpolation, as a Dataset.

    Raises ValueError for anything but two different positions in the dataset and for images of different sizes;
    `apm.datasets.UnreadableImage` for one that cannot be read.
    """
    if len(positions) != 2:
        raise ValueError(f"pair: expected the positions of two images, found {list(positions)}")
    found = dataset.subset(positions)
    _same_size(*found.images)
    return found


def classes_needed(dataset: Dataset) -> Dataset:
    """The dataset, if its labels can judge features. Raises ValueError for one of a single class, such as images without labels."""
    if len(np.unique(dataset.labels)) < 2:
        raise ValueError(
            f"dataset {dataset.name} has images of one class only: sections 4 to 6 judge the features by classes. Set "
            "labelled_train and labelled to a dataset with labels"
        )
    return dataset


# -------------------------------------------------------------------------------------------------------------- training


@dataclass(frozen=True, eq=False)
class Field:
    """A trained field."""

    model: APM
    config: FieldConfig
    losses: (
        np.ndarray
    )  # (epochs, 2) mean over each epoch of L_grid and L_rgb, in units of the mean answer if config.balance
    resumed: int  # how many of the epochs were read from a checkpoint


@caller_free()
def train(
    data: Material,
    config: FieldConfig,
    *,
    seed: int = 0,
    checkpoint: Path | str | None = None,
    every: int = 5,
    progress: str = "training the field",
    callback: Callback | None = None,
) -> Field:
    """Train one student over all images (dataset-scale training; App. E.1 and F of the paper).

    data: images, teacher tokens and colours (`apm.material.prepare`), read a batch at a time; with loss_grid = 0 the tokens are not
    read. seed: of the weights and of the order of images. progress: what the progress bar says.
    checkpoint: a .safetensors file, written whole after every `every` epochs and at the end. If it exists, training goes on
        from it, and the weights are bit for bit those of a run without a break. callback(epoch, model): called after every epoch.

    The biases of both outputs start at the mean over the training set: the RGB head ends in a ReLU, which has no gradient
    below zero, so that a channel which happens to start there would stay black.

    Raises ValueError for another grid or width than the student's, non-finite targets and a checkpoint of another training (it
    names what differs); RuntimeError for a loss that is not finite. A checkpoint that cannot be read is said on standard output
    and made anew.
    """
    data = _fitting(data, config)
    path = None if checkpoint is None else Path(checkpoint)
    made_by = determined_by(config, data.identity, seed)
    saved = None if path is None else _read(path, made_by)
    with _threads(config.threads, data.device):
        state = _State(data, config, seed)
        if saved is not None:
            state.restore(saved)
        resumed = state.epoch
        with progress_bar(total=(config.epochs - resumed) * len(data), desc=progress, unit="image") as bar:
            while state.epoch < config.epochs:
                state.advance(bar.update)
                if callback is not None:
                    callback(state.epoch, state.model)
                if path is not None and (state.epoch % every == 0 or state.epoch == config.epochs):
                    teachers.save(state.tensors(), path, made_by)
    return Field(state.model.requires_grad_(False), config, state.losses.numpy(), resumed)


class _State:
    """A training between two epochs: all that a checkpoint has to hold."""

    def __init__(self, data: Material, config: FieldConfig, seed: int) -> None:
        self.config, self.data = config, data
        spreads = (
            data.spread("tokens", unit=config.unit_tokens) if config.loss_grid else None,
            data.spread("colours") if config.loss_rgb else None,
        )
        self.scales = [1.0 if s is None or not config.balance else max(s.left, 1e-12) for s in spreads]
        self.generator = torch.Generator().manual_seed(seed)  # on the CPU for every device
        self.model = APM(config.student, self.generator, std=config.init_std).to(data.device)
        last = f"rgb{len(config.student.rgb_hidden)}_bias"
        with torch.no_grad():
            for name, spread in zip(("head_bias", last), spreads, strict=True):
                if spread is not None:
                    self.model.weights[name].copy_(spread.mean.mean(dim=0))
        self.optimiser = torch.optim.AdamW(
            list(self.model.parameters()), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.order: list[list[int]] = []  # positions of each batch of an epoch
        self.loader = data.loader(self.order)
        self.epoch = 0
        self.losses = torch.full((config.epochs, 2), math.nan, dtype=torch.float64)

    def advance(self, done: Callable[[int], None]) -> None:
        """One pass over the images in a new order."""
        config, n = self.config, len(self.data)
        self.order[:] = [x.tolist() for x in torch.randperm(n, generator=self.generator).split(config.batch)]
        sums = torch.zeros(2, dtype=torch.float64)
        for i, batch in enumerate(self.loader):
            share = (self.epoch * len(self.order) + i) / (config.epochs * len(self.order))
            for group in self.optimiser.param_groups:
                group["lr"] = config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * share))
            parts = self._losses(batch.to(self.data.device))
            loss = config.loss_grid * parts[0] + config.loss_rgb * parts[1]
            if not bool(loss.isfinite()):
                raise RuntimeError(
                    f"the field's loss is {loss.item()} in epoch {self.epoch + 1}, batch {i + 1}: lower the learning rate"
                )
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
            sums += parts.detach().cpu().double() * len(batch.images)
            done(len(batch.images))
        self.losses[self.epoch] = sums / n
        self.epoch += 1

    def _losses(self, batch: Batch) -> Tensor:
        """(2,) L_grid and L_rgb of some images, each divided by its scale; 0 where off."""
        config, tokens = self.config, batch.tokens
        if tokens is not None and config.unit_tokens:
            tokens = F.normalize(tokens, dim=-1)
        targets = (tokens if config.loss_grid else None, batch.colours if config.loss_rgb else None)
        outputs = _outputs(self.model, patches(batch.images, config.student), rgb=targets[1] is not None)
        return torch.stack(
            [
                torch.zeros((), device=batch.images.device)
                if target is None or output is None
                else (output - target).square().mean() / scale
                for output, target, scale in zip(outputs, targets, self.scales, strict=True)
            ]
        )

    def tensors(self) -> dict[str, Tensor]:
        """The state as a flat dictionary of tensors, on the CPU."""
        found = {f"weights.{name}": value for name, value in self.model.weights.items()}
        moments = self.optimiser.state_dict()["state"]
        for i, name in enumerate(self.model.weights):
            found |= {f"adam.{key}.{name}": value for key, value in moments[i].items()}
        found |= {"losses": self.losses, "epoch": torch.tensor(self.epoch), "generator": self.generator.get_state()}
        return {key: value.detach().cpu().contiguous().clone() for key, value in found.items()}

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Continue from `tensors`."""
        with torch.no_grad():
            for name, value in self.model.weights.items():
                value.copy_(saved[f"weights.{name}"])
        state = self.optimiser.state_dict()
        state["state"] = {
            i: {key: saved[f"adam.{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
            for i, name in enumerate(self.model.weights)
        }
        self.optimiser.load_state_dict(state)
        self.losses = saved["losses"].clone()
        self.epoch = int(saved["epoch"])
        self.generator.set_state(saved["generator"])


def _outputs(net: APM, image_patches: Tensor, *, rgb: bool) -> tuple[Tensor, Tensor | None]:
    """Features (n, L, D) and, where wanted, RGB (n, L, 3) of images given as patches (n, L, 3*p*p)."""
    percept = model.perceive(net.parameters_dict, image_patches, net.config)
    features = net.columns(percept)
    return features, net.rgb(percept, features) if rgb else None


def _fitting(data: Material, config: FieldConfig) -> Material:
    """The data without what the losses do not need. Raises ValueError where they do not fit the student."""
    made, student = data.student, config.student
    if (made.grid, made.patch) != (student.grid, student.patch):
        raise ValueError(
            f"{data.dataset.name} was prepared for a grid {made.grid} of patches of {made.patch} px, this student has "
            f"{student.grid} of {student.patch} px"
        )
    if not config.loss_grid:
        return data.without_tokens()
    if data.tokens is None or data.tokens.shape[-1] != student.width:
        found = "none" if data.tokens is None else f"tokens of width {data.tokens.shape[-1]}"
        raise ValueError(f"L_grid needs teacher tokens of the student's width {student.width}, found {found}")
    return data


@contextmanager
def _threads(number: int, device: torch.device) -> Iterator[None]:
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ----------------------------------------------------------------------------------------------------------- checkpoints


def determined_by(config: FieldConfig, of: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Everything that determines the weights of a field, as plain data; of: what it is trained on (`Material.identity`)."""
    return project.plain(
        {
            "config": asdict(config),
            "seed": seed,
            "of": dict(of),
            "recipe": _recipe(),
            "code": records.code_version(("model",)),
            "torch": str(torch.__version__),
        }
    )


@functools.cache
def _recipe() -> str:
    """Hash of the code that trains."""
    return project.sha256_of([inspect.getsource(part) for part in (_State, _outputs)])


def checkpoint_path(config: FieldConfig, of: Mapping[str, Any], seed: int, folder: Path | str | None = None) -> Path:
    """Where the checkpoint of this training belongs: its name carries the hash of all that determines the weights.

    folder: default `field` in the project's cache.
    """
    where = project.cache_dir() / "field" if folder is None else Path(folder)
    return where / f"field-{project.sha256_of(determined_by(config, of, seed))[:24]}.safetensors"


def _read(path: Path, made_by: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """A checkpoint's tensors; None where there is none, or none that can be read."""
    if not path.is_file():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            found = json.loads((file.metadata() or {})["apm"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except Exception as error:  # safetensors raises types of its own for a cut or foreign file
        print(f"the checkpoint {path.name} cannot be read ({type(error).__name__}): training from the start")
        return None
    differs = _differences(dict(made_by), found)
    if differs:
        raise ValueError(
            f"the checkpoint {path} is of another training: {'; '.join(differs[:6])}. Choose another path, or delete the file"
        )
    return tensors


def _differences(expected: Any, found: Any, name: str = "") -> list[str]:
    """Which entries of two nested dictionaries differ, in words."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return [
            line
            for key in dict.fromkeys([*expected, *found])
            for line in _differences(expected.get(key), found.get(key), f"{name}.{key}" if name else str(key))
        ]
    return [] if expected == found else [f"{name}: expected {_brief(expected)}, found {_brief(found)}"]


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:16]}…"


@dataclass(frozen=True)
class Job:
    """One training of several: what it is called, its data and its settings."""

    name: str
    config: FieldConfig
    data: Material


def train_all(jobs: Sequence[Job], *, seed: int = 0, folder: Path | str | None = None) -> dict[str, Field]:
    """Train several fields, each with its own checkpoint (`checkpoint_path`).

    On a CPU, with images in memory, as many at a time as there are cores; images on disk are read by processes of their own, so that one
    training at a time keeps the cores busy. Each has the weights that it would have alone. Raises ValueError for a name given twice or settings with different numbers of
    threads, and as `train` does.
    """
    if len({job.name for job in jobs}) != len(jobs):
        raise ValueError(f"expected every name once, found {[job.name for job in jobs]}")
    threads = {job.config.threads for job in jobs}
    if len(threads) != 1:
        raise ValueError(f"trainings side by side need one number of threads, found {sorted(threads)}")
    (each,) = threads

    # here and not in the threads: Python's parser, which reads the training's own code, is not made for several at once
    paths = {
        job.name: checkpoint_path(job.config, _fitting(job.data, job.config).identity, seed, folder) for job in jobs
    }

    def one(job: Job) -> Field:
        path = paths[job.name]
        return train(job.data, job.config, seed=seed, checkpoint=path, progress=f"field: {job.name}")

    cores = torch.get_num_threads()
    together = all(job.data.device.type == "cpu" and job.data.in_memory for job in jobs)
    workers = max(1, min(cores // each, len(jobs))) if together else 1
    try:
        # every worker starts with the number that `train` sets and restores: some libraries keep one number for all threads,
        # and a training that ends must not change the rounding of one that goes on
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(each,)) as pool:
            return dict(zip([job.name for job in jobs], pool.map(one, jobs), strict=True))
    finally:
        torch.set_num_threads(cores)


def untrained(config: FieldConfig, seed: int = 0, device: str | torch.device = "cpu") -> Field:
    """The same student with the weights that it starts from, outputs not centred: a control. No losses."""
    generator = torch.Generator().manual_seed(seed)
    net = APM(config.student, generator, std=config.init_std).requires_grad_(False)
    return Field(net.to(device), config, np.empty((0, 2)), 0)


# --------------------------------------------------------------------------------------------------------------- looking


class Look(NamedTuple):
    """What a field makes of N images in one forward pass, as float32 arrays."""

    features: np.ndarray  # (N, h, w, D)
    colours: np.ndarray | None  # (N, h, w, 3) decoded RGB, cut to 0..1; None for a student without RGB head
    folded: np.ndarray  # (N, D)
    columns: np.ndarray  # (N, column_width) the trigger column T


def look(trained: Field, images: Tensor, *, batch: int = 256) -> Look:
    """One forward pass over images (N, 3, H, W), all locations, some images at a time."""
    net = trained.model
    device = next(net.parameters()).device
    parts: list[tuple[Tensor, ...]] = []
    with torch.no_grad(), _threads(trained.config.threads, device):
        for some in images.split(batch):
            percept = net.perceive(some.to(device))
            a = model.activations(net.parameters_dict, percept, net.config)
            features = model.head(net.parameters_dict, a)
            decoded = net.rgb(percept, features).clamp(0, 1) if net.config.rgb_head else features[..., :0]
            folded = model.fold(net.parameters_dict, a, net.config)
            parts.append((features, decoded, folded, percept.column))
    features, decoded, folded, columns = (torch.cat(some).float().cpu() for some in zip(*parts, strict=True))
    grid = net.config.grid
    return Look(
        features.unflatten(1, grid).numpy(),
        decoded.unflatten(1, grid).numpy() if net.config.rgb_head else None,
        folded.numpy(),
        columns.numpy(),
    )


class Summary(NamedTuple):
    """One vector per image of a material, (N, D) each, float32: what a field or another source says of a whole image."""

    folded: np.ndarray
    columns: np.ndarray  # the trigger column T


def summaries(trained: Field, data: Material) -> Summary:
    """Folded feature and trigger column of every image, in batches: no grid of features is kept."""
    parts = [look(trained, batch.images) for batch in data.batches()]
    return Summary(np.concatenate([p.folded for p in parts]), np.concatenate([p.columns for p in parts]))


def mean_tokens(data: Material) -> np.ndarray:
    """(N, D) mean over the grid of the teacher's tokens of every image, in batches. Raises ValueError without a teacher."""
    return np.concatenate([_tokens(batch, data).mean(dim=1).cpu().numpy() for batch in data.batches()])


def pixels(data: Material, side: int = 32) -> np.ndarray:
    """(N, 3 * S * S) the images as they are, in batches; those of more than `side` px are averaged down to side x side."""
    found = []
    for batch in data.batches():
        few = min(side, *batch.images.shape[2:])
        found.append(F.adaptive_avg_pool2d(batch.images, few).flatten(1).cpu().numpy())
    return np.concatenate(found)


def _tokens(batch: Batch, data: Material) -> Tensor:
    if batch.tokens is None:
        raise ValueError(f"there are no teacher tokens of {data.dataset.name}: it was prepared without a teacher")
    return batch.tokens


def as_grid(values: Tensor, student: APMConfig) -> np.ndarray:
    """(N, h*w, C) -> float32 array (N, h, w, C)."""
    return values.unflatten(1, student.grid).float().cpu().numpy()


def colours_of(data: Material) -> np.ndarray:
    """(N, h, w, 3) mean colours of the patches of all images."""
    return np.asarray(data.colours[data.rows]).reshape(len(data), *data.student.grid, 3)


def mean_answer(data: Material) -> tuple[np.ndarray, np.ndarray]:
    """Feature grid (h, w, D) and image (h, w, 3) that are the means over a material: the answers that ignore the image.

    The grid is the mean of unit tokens, the best single answer in cosine. Without a teacher it has no numbers, D = 0.
    """
    grid = data.student.grid
    image = data.spread("colours").mean.numpy().reshape(*grid, 3)
    if data.tokens is None:
        return np.empty((*grid, 0), dtype=np.float32), image
    return data.spread("tokens", unit=True).mean.numpy().reshape(*grid, -1), image


def cosines(features: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Cosine similarity (...,) of features (..., D) to targets (..., D) at every location; 0 for a feature of length 0.

    targets may be one grid for all images. The error maps show 1 minus it.
    """
    features, targets = np.asarray(features, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    lengths = np.linalg.norm(features, axis=-1) * np.linalg.norm(targets, axis=-1)
    return (features * targets).sum(axis=-1) / np.where(lengths > 0, lengths, 1.0)


def squared_errors(decoded: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Mean squared error (N,) of each decoded image (N, h, w, 3) against the true one, or one image for all; values 0..1."""
    decoded, truth = np.asarray(decoded, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    return np.square(decoded - truth).mean(axis=(1, 2, 3))


def psnr(decoded: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio (N,) in dB of each image (N, h, w, 3) with values 0..1: -10 log10 of its mean squared error.

    At most PSNR_LIMIT: an image without any error has no finite ratio, and a mean over images needs one.
    """
    with np.errstate(divide="ignore"):
        return np.minimum(-10.0 * np.log10(squared_errors(decoded, truth)), PSNR_LIMIT)


def mean(values: np.ndarray) -> Interval:
    """Mean over images of values (N,), in their own unit, with the 95 % bootstrap interval over images.

    Raises ValueError for fewer than `stats.MINIMUM_SAMPLES` images.
    """
    found = stats.bootstrap_mean(values, resamples=RESAMPLES)
    return Interval(found.value / 100.0, found.low / 100.0, found.high / 100.0, found.n)


def shown(interval: Interval, digits: int = 3) -> str:
    """An interval in a table's cell: "0.934 [0.932, 0.936]"."""
    return f"{interval.value:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


class Measured(NamedTuple):
    """How near an answer comes to the truth, one value per image (N,)."""

    cosine: np.ndarray | None  # mean cosine of the feature grid to the teacher's; None without features
    squared: np.ndarray | None  # mean squared error of the decoded RGB; None without colours
    psnr: np.ndarray | None  # dB
    chroma: np.ndarray | None  # mean squared error of the colour: of RGB without its mean over the three channels


Source = Field | np.ndarray | None
NOTHING = Measured(None, None, None, None)


def measure(answers: Mapping[str, tuple[Source, Source]], data: Material) -> dict[str, Measured]:
    """Answers for every image against the teacher's grid and the patch means, in batches: only numbers per image are kept.

    answers: name -> (who gives the features, who gives the colours): a field, one grid (h, w, D) or image (h, w, 3) for all images
    (a control), or None. Raises ValueError for features where there are no teacher tokens, or colours of a student without RGB
    head.
    """
    parts: dict[str, list[Measured]] = {name: [] for name in answers}
    for batch in data.batches():
        truth = as_grid(batch.colours, data.student)
        looks: dict[int, Look] = {}

        def given(source: Field | np.ndarray, what: str, batch: Batch = batch, looks: dict = looks) -> np.ndarray:
            if not isinstance(source, Field):
                return source
            if id(source) not in looks:
                looks[id(source)] = look(source, batch.images)
            found = looks[id(source)]._asdict()[what]
            if found is None:
                raise ValueError("a student without an RGB head decodes no colours")
            return found

        for name, (features, colours) in answers.items():
            one = NOTHING
            if features is not None:
                tokens = as_grid(_tokens(batch, data), data.student)
                one = one._replace(cosine=cosines(given(features, "features"), tokens).mean(axis=(1, 2)))
            if colours is not None:
                rgb = given(colours, "colours")
                error = np.asarray(rgb, dtype=np.float64) - truth
                error -= error.mean(axis=-1, keepdims=True)
                one = one._replace(
                    squared=squared_errors(rgb, truth),
                    psnr=psnr(rgb, truth),
                    chroma=np.square(error).mean(axis=(1, 2, 3)),
                )
            parts[name].append(one)
    return {name: Measured(*(_joined(values) for values in zip(*found, strict=True))) for name, found in parts.items()}


def _joined(values: Sequence[np.ndarray | None]) -> np.ndarray | None:
    found = [v for v in values if v is not None]
    return np.concatenate(found) if found else None


def colour_share(chroma: np.ndarray, of_mean: np.ndarray) -> float:
    """Share in percent of the colour (what is left of RGB without its mean over the three channels) that is decoded.

    chroma: (N,) of the answer, of_mean: (N,) of the mean training image (`Measured`), which is worth 0 %. The truth itself is worth
    100 %; the right grey picture without colour about 0 % or less. NaN for images without colour beyond their mean.
    """
    left = float(of_mean.mean())
    return 100.0 * (1.0 - float(chroma.mean()) / left) if left > 1e-12 else math.nan


def quality(measured: Mapping[str, Measured]) -> pd.DataFrame:
    """One row per answer for held-out images (`measure`): cosine to the teacher's grid, MSE and PSNR of the decoded RGB.

    Intervals: 95 %, bootstrap over images.
    """
    return pd.DataFrame(
        {
            "answer": name,
            "n": len(next(values for values in one if values is not None)),
            "cosine to the teacher's grid": "" if one.cosine is None else shown(mean(one.cosine)),
            "MSE of the RGB": "" if one.squared is None else shown(mean(one.squared), 4),
            "PSNR (dB)": "" if one.psnr is None else shown(mean(one.psnr), 1),
        }
        for name, one in measured.items()
    )


def colour_table(
    rows: Mapping[str, tuple[Field, Material, Material]],
    *,
    published: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """RGB decoding of several fields, each on held-out images of its own set, beside a published value.

    rows: name -> (field, training data, held-out data). The mean training image is each row's control. published: row, images, mse
    as text. Intervals: 95 %, bootstrap over images.
    """
    lines: list[dict[str, Any]] = []
    for name, (trained, known, data) in rows.items():
        ours, control = measure({"field": (None, trained), "mean": (None, mean_answer(known)[1])}, data).values()
        assert ours.squared is not None
        assert ours.psnr is not None
        assert ours.chroma is not None
        assert control.squared is not None
        assert control.chroma is not None
        colour = colour_share(ours.chroma, control.chroma)
        lines.append(
            {
                "row": name,
                "held-out images": data.dataset.name,
                "n": str(len(data)),
                "numbers in T": str(trained.config.student.column_width),
                "MSE": shown(mean(ours.squared), 4),
                "MSE of the mean image": shown(mean(control.squared), 4),
                "PSNR (dB)": shown(mean(ours.psnr), 1),
                "colour decoded (%)": "grey images" if math.isnan(colour) else f"{colour:.1f}",
            }
        )
    if published is not None:
        line = dict.fromkeys(lines[0], "")
        lines.append(line | {"row": published["row"], "held-out images": published["images"], "MSE": published["mse"]})
    return pd.DataFrame(lines)


# --------------------------------------------------------------------------------------------------- what the features hold


def nearest(features: np.ndarray, labels: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """k-nearest-neighbour classes (M,) of queries (M, D) among features (N, D) with labels (N,), by cosine similarity.

    Every neighbour has one vote; of equal counts the class of the nearest neighbour among them wins. Raises ValueError for
    k outside 1..N.
    """
    if not 1 <= k <= len(features):
        raise ValueError(f"k must lie in 1..{len(features)}, the number of training images, found {k}")
    known, asked = (unit(np.asarray(x, dtype=np.float64)) for x in (features, queries))
    order = np.argsort(-(asked @ known.T), axis=1, kind="stable")[:, :k]  # (M, k)
    votes = np.zeros((len(asked), int(labels.max()) + 1))
    rows = np.arange(len(asked))
    for rank in range(k):
        votes[rows, labels[order[:, rank]]] += 1.0
    tied = votes == votes.max(axis=1, keepdims=True)
    answer = np.full(len(asked), -1)
    for rank in range(k):
        candidate = labels[order[:, rank]]
        wins = (answer < 0) & tied[rows, candidate]
        answer[wins] = candidate[wins]
    return answer


def unit(x: np.ndarray) -> np.ndarray:
    """Vectors (..., D) brought to unit length; a vector of length 0 stays."""
    lengths = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.where(lengths > 0, lengths, 1.0)


def probe(features: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Classes (M,) of queries (M, D) by a linear probe: logistic regression on standardised features (N, D)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    with threadpool_limits(1):  # one thread: the same rounding on every number of cores
        classifier.fit(np.asarray(features, dtype=np.float64), labels)
        return np.asarray(classifier.predict(np.asarray(queries, dtype=np.float64)))


def judge(
    features: Mapping[str, tuple[np.ndarray, np.ndarray]],
    labels: tuple[np.ndarray, np.ndarray],
    *,
    k: int,
) -> pd.DataFrame:
    """Accuracy of k-NN and of a linear probe on features, one row per kind of feature.

    features: name -> (training (N, D), held out (M, D)). labels: (training (N,), held out (M,)). Columns: features, width, knn,
    knn_low, knn_high, probe, probe_low, probe_high (percent; 95 % Wilson intervals), n.
    """
    lines = []
    for name, (known, asked) in features.items():
        known, asked = (np.asarray(x).reshape(len(x), -1) for x in (known, asked))
        line: dict[str, Any] = {"features": name, "width": known.shape[1], "n": len(asked)}
        for rule, answer in (
            ("knn", nearest(known, labels[0], asked, k)),
            ("probe", probe(known, labels[0], asked)),
        ):
            found = stats.accuracy(answer == labels[1])
            line |= {rule: found.value, f"{rule}_low": found.low, f"{rule}_high": found.high}
        lines.append(line)
    return pd.DataFrame(lines)


def compact(table: pd.DataFrame, k: int) -> pd.DataFrame:
    """`judge` for reading: each accuracy with its interval in one cell."""

    def cells(rule: str) -> list[str]:
        return [percent(cell) for cell in zip(table[rule], table[f"{rule}_low"], table[f"{rule}_high"], strict=True)]

    found = {
        "features": table["features"],
        "width": table["width"],
        f"{k}-NN": cells("knn"),
        "linear probe": cells("probe"),
    }
    return pd.DataFrame(found)


# -------------------------------------------------------------------------------------------------------------- clusters


def cluster(rows: np.ndarray, k: int, seed: int = 0) -> np.ndarray:
    """k-means clusters (n,) of rows (n, D), by direction: rows brought to unit length, after their mean was taken off.

    Raises ValueError for k outside 2..n.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    rows = np.asarray(rows, dtype=np.float64)
    if not 2 <= k <= len(rows):
        raise ValueError(f"k must lie in 2..{len(rows)}, the number of rows, found {k}")
    with threadpool_limits(1):  # several threads add in an order that changes from run to run
        means = KMeans(k, n_init=2, random_state=seed)
        return np.asarray(means.fit_predict(unit(rows - rows.mean(axis=0))))


def purity(clusters: np.ndarray, classes: np.ndarray) -> float:
    """Share in percent of rows that belong to the most frequent class of their cluster. clusters, classes: (n,)."""
    table = np.zeros((int(clusters.max()) + 1, int(classes.max()) + 1), dtype=np.int64)
    np.add.at(table, (clusters, classes), 1)
    return 100.0 * float(table.max(axis=1).sum() / len(clusters))


def shared(clusters: np.ndarray, classes: np.ndarray) -> float:
    """Normalised mutual information in percent of two labellings (n,): 0 independent, 100 the same up to names."""
    from sklearn.metrics import normalized_mutual_info_score

    return 100.0 * float(normalized_mutual_info_score(classes, clusters))


def ink(colours: np.ndarray) -> np.ndarray:
    """Which locations (N, h, w) belong to the foreground: brighter than Otsu's threshold over all images (N, h, w, 3)."""
    from skimage.filters import threshold_otsu

    grey = np.asarray(colours, dtype=np.float64).mean(axis=-1)
    return grey > threshold_otsu(grey.ravel())


def clusters(
    kinds: Mapping[str, tuple[np.ndarray | None, np.ndarray]],
    labels: np.ndarray,
    foreground: np.ndarray,
    *,
    k: int,
    seed: int = 0,
    where: np.ndarray | None = None,
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """k-means of images and of locations, and what the clusters agree with.

    kinds: name -> (one vector per image (N, D) or None, one per location of n images (n, h, w, D')). labels: (N,). where: (n,)
    positions of those n among the N, default all. foreground: (n, h, w) bool. Images get as many clusters as there are classes,
    locations k. Columns: features; purity, NMI with class of the images' clusters; NMI of the locations' clusters with
    foreground, place, class (percent, one decimal). Also returns the locations' clusters (n, h, w).
    """
    n, h, w = foreground.shape
    own = labels if where is None else labels[where]
    place = np.tile(np.arange(h * w), n)
    lines, maps = [], {}
    for name, (whole, grid) in kinds.items():
        images = (
            None if whole is None else cluster(np.asarray(whole).reshape(len(labels), -1), len(np.unique(labels)), seed)
        )
        rows = cluster(np.asarray(grid).reshape(n * h * w, -1), k, seed)
        maps[name] = rows.reshape(n, h, w)
        lines.append(
            {
                "features": name,
                "images: purity": None if images is None else purity(images, labels),
                "images: NMI with class": None if images is None else shared(images, labels),
                "locations: NMI with foreground": shared(rows, foreground.ravel().astype(int)),
                "locations: NMI with place": shared(rows, place),
                "locations: NMI with class": shared(rows, np.repeat(own, h * w)),
            }
        )
    return pd.DataFrame(lines).round(1), maps


def embed(rows: np.ndarray, seed: int = 0) -> np.ndarray:
    """t-SNE (n, 2) of rows (n, D) by cosine distance, started from their principal components. Raises ValueError below 10 rows."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    if len(rows) < 10:
        raise ValueError(f"a t-SNE needs at least 10 rows, found {len(rows)}")
    perplexity = min(30.0, (len(rows) - 1) / 3)
    with threadpool_limits(1):
        flat = unit(np.asarray(rows, dtype=np.float64).reshape(len(rows), -1))
        return np.asarray(
            TSNE(perplexity=perplexity, init="pca", random_state=seed, metric="euclidean").fit_transform(flat)
        )


# --------------------------------------------------------------------------------------------------------- interpolation


class Walk(NamedTuple):
    """From one image to another in steps, three ways. S steps, h x w locations."""

    shares: np.ndarray  # (S,) share of the second image, 0 to 1
    decoded: np.ndarray  # (S, h, w, 3) RGB decoded from the interpolated trigger column
    features: np.ndarray  # (S, h, w, D) feature grid unfolded from it
    blend: np.ndarray  # (S, h, w, 3) the control: patch means of the interpolated pixels
    difference: float  # largest |interpolated T - T of the interpolated pixels|, in units of T's largest absolute value


def interpolate(trained: Field, one: np.ndarray, other: np.ndarray, steps: int = 9) -> Walk:
    """Walk on the trigger column from one image to another (Figure 5).

    one, other: uint8 RGB (H, W, 3) of the same size. The column is an affine map of the pixels (one convolution and a bias),
    so the column halfway is exactly the column of the blend of the pixels: walking on T is feeding blended images to the
    network. `difference` measures it.

    Raises ValueError for images of different sizes, fewer than 2 steps, or a student without RGB head.
    """
    one, other = np.asarray(one), np.asarray(other)
    _same_size(one, other)
    if steps < 2:
        raise ValueError(f"an interpolation needs at least 2 steps, its two ends, found {steps}")
    pixels = teachers.student_images([one, other], trained.config.student.image_size[0])
    return _walks(trained, pixels[:1], pixels[1:], steps)[0]


def _same_size(one: np.ndarray, other: np.ndarray) -> None:
    if np.shape(one) != np.shape(other):
        sizes = [" x ".join(map(str, np.shape(x)[:2])) for x in (one, other)]
        raise ValueError(
            f"the two images must have the same size (height x width), found {sizes[0]} and {sizes[1]} px: "
            "resize or crop one of them, or choose another pair"
        )


def _walks(trained: Field, ones: Tensor, others: Tensor, steps: int) -> list[Walk]:
    """Walks between images (n, 3, H, W) in pairs."""
    net, student = trained.model, trained.config.student
    if not student.rgb_head:
        raise ValueError("this student has no RGB head to decode with: train it with rgb_head: true and loss_rgb > 0")
    shares = torch.linspace(0, 1, steps)
    device = next(net.parameters()).device
    walks = []
    with torch.no_grad(), _threads(trained.config.threads, device):
        for one, other in zip(ones.to(device), others.to(device), strict=True):
            share = shares.to(device)
            ends = net.perceive(torch.stack([one, other])).column  # (2, column_width)
            columns = ends[0] + share[:, None] * (ends[1] - ends[0])
            images = one + share[:, None, None, None] * (other - one)  # (S, 3, H, W)
            percept = net.perceive(images)
            between = model.Percept(columns, percept.local)
            features = net.columns(between)
            decoded = net.rgb(between, features)
            difference = float((percept.column - columns).abs().max() / ends.abs().max().clamp(min=1e-12))
            blend = teachers.patch_colours(images, student.patch)
            walks.append(
                Walk(
                    shares.numpy(),
                    as_grid(decoded.clamp(0, 1), student),
                    as_grid(features, student),
                    as_grid(blend, student),
                    difference,
                )
            )
    return walks


def pairs(labels: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """n pairs of positions (n, 2) of images of different classes, drawn at random; no image is drawn twice.

    Raises ValueError where one walk through the images in random order does not find n: n up to a third of the images is safe
    unless one class prevails.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    found: list[tuple[int, int]] = []
    waiting: list[int] = []
    for i in order:
        partner = next((j for j in waiting if labels[j] != labels[i]), None)
        if partner is None:
            waiting.append(int(i))
        else:
            waiting.remove(partner)
            found.append((partner, int(i)))
        if len(found) == n:
            return np.array(found)
    raise ValueError(
        f"expected {n} pairs of images of different classes, found {len(found)} among {len(labels)} images"
    )


class Crossing(NamedTuple):
    """Walks between many pairs of held-out images, in numbers. P pairs, S steps."""

    shares: np.ndarray  # (S,)
    decoded: np.ndarray  # (P, S) distance of the decoded picture to the nearest training image
    blend: np.ndarray  # (P, S) distance of the blended pixels to it
    decoded_contrast: (
        np.ndarray
    )  # (P, S) standard deviation of the picture, in units of the mean of its walk's two ends
    blend_contrast: np.ndarray  # (P, S)
    difference: float  # the largest of the walks' differences


def cross(trained: Field, data: Material, which: np.ndarray, known: Material, *, steps: int = 9) -> Crossing:
    """Are the pictures between two images nearer to real images when T is interpolated than when pixels are?

    data: held-out images. which: (P, 2) positions among them (`pairs`). known: training images, as patch means. A distance is the
    root mean squared difference (RGB in 0..1) to the nearest training image. The training images are read a block at a time.
    """
    decoded, blend, differences = [], [], []
    for start in range(0, len(which), 32):
        some = which[start : start + 32]
        ends = data.batch(some.T.ravel()).images
        for walk in _walks(trained, ends[: len(some)], ends[len(some) :], steps):
            decoded.append(walk.decoded)
            blend.append(walk.blend)
            differences.append(walk.difference)

    def distances(pictures: list[np.ndarray]) -> np.ndarray:
        asked = np.stack(pictures).astype(np.float64).reshape(len(pictures) * steps, -1)
        nearest = np.full(len(asked), np.inf)
        for start in range(0, len(known), 1024):
            block = known.colours[known.rows[start : start + 1024]].astype(np.float64).reshape(-1, asked.shape[1])
            squared = np.square(asked).sum(1)[:, None] - 2 * asked @ block.T + np.square(block).sum(1)
            nearest = np.minimum(nearest, squared.min(axis=1))
        return np.sqrt(np.maximum(nearest, 0) / asked.shape[1]).reshape(len(pictures), -1)

    def contrast(pictures: list[np.ndarray]) -> np.ndarray:
        deviation = np.stack(pictures).astype(np.float64).std(axis=(2, 3, 4))  # (P, S)
        return deviation / deviation[:, [0, -1]].mean(axis=1, keepdims=True)

    return Crossing(
        np.linspace(0, 1, steps, dtype=np.float32),
        distances(decoded),
        distances(blend),
        contrast(decoded),
        contrast(blend),
        max(differences),
    )


def crossing_table(crossing: Crossing) -> pd.DataFrame:
    """Distance to the nearest training image and contrast, at the ends and halfway, and the paired difference of the two ways.

    Intervals: 95 %, bootstrap over pairs.
    """
    middle, ends = len(crossing.shares) // 2, [0, -1]

    def measured(distance: np.ndarray, contrast: np.ndarray) -> dict[str, np.ndarray]:
        at_ends = distance[:, ends].mean(axis=1)
        return {
            "distance at the ends": at_ends,
            "distance halfway": distance[:, middle],
            "halfway - ends": distance[:, middle] - at_ends,
            "contrast halfway": contrast[:, middle],
        }

    decoded = measured(crossing.decoded, crossing.decoded_contrast)
    blend = measured(crossing.blend, crossing.blend_contrast)
    rows = {
        "T interpolated, decoded": decoded,
        "pixels interpolated": blend,
        "decoded - pixels, paired": {name: decoded[name] - blend[name] for name in decoded},
    }
    return pd.DataFrame(
        {"picture": name, "pairs": len(crossing.decoded), **{what: shown(mean(values)) for what, values in row.items()}}
        for name, row in rows.items()
    )


def training_table(trained: Mapping[str, Field]) -> pd.DataFrame:
    """Losses of the last epoch, and how much the whole loss fell over the last fifth of the epochs.

    Columns: field, epochs, L_grid, L_rgb (in the loss's units; NaN for a loss without weight), `FELL` (percent; NaN for
    fewer than two epochs). The learning rate ends at zero, so a loss ends flat wherever it is: a large fall says that the training
    was cut short, a small one does not prove that more epochs would bring nothing.
    """
    rows = []
    for name, one in trained.items():
        weights = np.array([one.config.loss_grid, one.config.loss_rgb])
        whole = np.where(weights > 0, one.losses * weights, 0.0).sum(axis=1)
        before = len(whole) - 1 - max(1, len(whole) // 5)
        grid, rgb = (float(one.losses[-1, i]) if weights[i] else float("nan") for i in (0, 1))
        fell = 100.0 * float(1 - whole[-1] / whole[before]) if before >= 0 else float("nan")
        rows.append({"field": name, "epochs": len(whole), "L_grid": grid, "L_rgb": rgb, FELL: fell})
    return pd.DataFrame(rows)


FELL = "fell over the last fifth (%)"
SHORT = 5.0  # percent: a training whose loss fell by more was cut short


def cut_short(progress: pd.DataFrame, name: str = "teacher + RGB") -> bool:
    """Whether a training of `training_table` still fell by more than `SHORT` over its last fifth, or was too short to tell."""
    fell = float(progress.set_index("field").loc[name, FELL])
    return not fell <= SHORT


# --------------------------------------------------------------------------------------------------------------- figures


def training_curves(trained: Mapping[str, Field]) -> tuple[Figure, str]:
    """Loss per epoch of several fields, one panel per loss, on a log axis.

    Raises ValueError for no field, or fields of which only some are balanced: their losses have different units.
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    figures.style()
    balanced = {one.config.balance for one in trained.values()}
    if len(balanced) != 1:
        raise ValueError("expected fields whose losses have one unit: all with balance, or all without")
    panels = [
        (name, column)
        for column, name in enumerate(("L_grid", "L_rgb"))
        if any((one.config.loss_grid, one.config.loss_rgb)[column] for one in trained.values())
    ]
    figure, grid = plt.subplots(1, len(panels), figsize=(figures.WIDTH, 3.9), squeeze=False, layout="constrained")
    for axes, (title, column) in zip(grid[0], panels, strict=True):
        for number, (name, one) in enumerate(trained.items()):
            if (one.config.loss_grid, one.config.loss_rgb)[column]:
                epochs = np.arange(1, len(one.losses) + 1)
                axes.plot(epochs, one.losses[:, column], label=name, color=f"C{number}", linewidth=1.6)
        if balanced == {True}:
            axes.axhline(1.0, color="0.3", linestyle=":", linewidth=1.2, label="the mean answer")
        axes.set(title=title, xlabel="epoch", yscale="log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    found = {label: line for axes in grid[0] for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=3, fontsize="small")
    grid[0, 0].set_ylabel("loss / loss of the mean answer" if balanced == {True} else "mean squared error")
    unit = ", in units of what the mean over the training images leaves" if balanced == {True} else ""
    return figure, f"Training loss, mean over each epoch{unit}. One run each."


def picture_table(
    columns: Mapping[str, Sequence[np.ndarray]], *, errors: Sequence[str] = (), size: float = 1.15
) -> tuple[Figure, str]:
    """Pictures in a table, one image per row, one heading per column: (h, w, 3) in 0..1 or uint8, or (h, w) maps.

    errors: the columns whose maps (1 - cosine) get a colour bar from 0 to 1; other maps are grey from 0 to 1. Raises
    ValueError for no columns or columns of different lengths.
    """
    import matplotlib.pyplot as plt

    figures.style()
    counts = {len(pictures) for pictures in columns.values()}
    if len(counts) != 1 or counts == {0}:
        raise ValueError(f"expected columns of one length, at least 1, found {sorted(counts) or 'no columns'}")
    (rows,) = counts
    figure, grid = plt.subplots(
        rows,
        len(columns),
        figsize=(size * len(columns) + (0.6 if errors else 0), size * rows + 0.35),
        squeeze=False,
        layout="constrained",
    )
    shown_errors = None
    for place, (title, pictures) in enumerate(columns.items()):
        for row, picture in enumerate(pictures):
            axes = grid[row, place]
            axes.set_axis_off()
            if title in errors:
                shown_errors = axes.imshow(picture, cmap="magma", vmin=0, vmax=1)
            elif np.ndim(picture) == 2:
                axes.imshow(picture, cmap="gray", vmin=0, vmax=1)
            else:
                axes.imshow(picture)
            if row == 0:
                axes.set_title(title, fontsize="small")
    if shown_errors is not None:
        bar = figure.colorbar(shown_errors, ax=grid, fraction=0.03, pad=0.01)
        bar.ax.tick_params(labelsize="small")
        bar.set_label("error: 1 - cosine", fontsize="small")
    return figure, f"{rows} image{'s' if rows > 1 else ''}, one per row."


def conclusion(
    measured: Mapping[str, Measured],
    judged: pd.DataFrame,
    grouped: pd.DataFrame,
    crossing: Crossing,
    k: int,
    progress: pd.DataFrame,
) -> str:
    """What the numbers say, each claim beside its controls, as Markdown.

    measured: with rows "field: teacher + RGB" and "control: mean of the training images". judged, grouped: the tables of `judge` and
    `clusters`. Two accuracies are apart where their intervals do not overlap. progress: `training_table`.
    """
    ours, control = (measured[name] for name in ("field: teacher + RGB", "control: mean of the training images"))
    assert ours.cosine is not None
    assert control.cosine is not None
    rows = judged.set_index("features")
    field_row = rows.loc["field: teacher + RGB, folded"]

    def against(name: str, label: str) -> str:
        other = rows.loc[name]
        low, high = (field_row["knn_low"] - other["knn_high"], field_row["knn_high"] - other["knn_low"])
        relation = "above" if low > 0 else "below" if high < 0 else "not apart from"
        return f"{relation} {label} ({other['knn']:.1f})"

    classes = ", ".join(
        (
            against("raw pixels", "raw pixels"),
            against("field: RGB alone, folded", "the field without a teacher"),
            against("student before training, folded", "the student before training"),
            against("teacher: image feature", "its teacher"),
        )
    )
    nmi = grouped.set_index("features")["images: NMI with class"]
    middle = len(crossing.shares) // 2
    paired = mean((crossing.decoded - crossing.blend)[:, middle])
    fell = float(progress.set_index("field").loc["teacher + RGB", FELL])
    return "\n".join(
        (
            f"- The training of {int(progress['epochs'].iloc[0])} epochs was "
            + (
                f"cut short: its loss fell by {fell:.1f} % over the last fifth."
                if cut_short(progress)
                else f"at its end: its loss fell by {fell:.1f} % over the last fifth."
            ),
            f"- On images it was not trained on, the field's grid has cosine {ours.cosine.mean():.3f} to the teacher's, the mean grid, "
            f"the same for every image, {control.cosine.mean():.3f}: the field goes {way(ours, control):.0f} % of the way between the two.",
            f"- The class of unseen images in its folded feature ({k}-NN, {field_row['knn']:.1f} %): {classes}.",
            f"- Clusters of images in one pass agree with the classes to {nmi['field: teacher + RGB']:.1f} % (NMI), those of raw pixels "
            f"to {nmi['raw pixels']:.1f} %, of the field without a teacher to {nmi['field: RGB alone']:.1f} %, of the teacher to "
            f"{nmi['teacher']:.1f} %.",
            f"- Interpolated T is T of the interpolated pixels (largest relative difference {crossing.difference:.0e}). Halfway between two "
            f"images, the distance of the decoded picture to the nearest training image minus that of blended pixels is {shown(paired)}.",
        )
    )


def way(ours: Measured, control: Measured) -> float:
    """How much of the way from a control's cosine to the teacher (1) an answer goes, in percent."""
    assert ours.cosine is not None
    assert control.cosine is not None
    return 100.0 * float((ours.cosine - control.cosine).mean() / (1.0 - control.cosine.mean()))


def cluster_pictures(maps: np.ndarray) -> np.ndarray:
    """Cluster maps (N, h, w) as colours (N, h, w, 3): one colour per cluster, the same in all images."""
    return np.asarray(np.array(_palette(int(maps.max()) + 1))[maps])


def _palette(n: int) -> list[tuple[float, float, float]]:
    """n colours: seaborn's colour-blind-safe ten, then the same lighter, then darker, and so on from the start."""
    import seaborn as sns

    base = np.array(sns.color_palette("colorblind", 10))
    shades = [base, 0.5 + 0.5 * base, 0.5 * base]
    return [(float(r), float(g), float(b)) for r, g, b in (shades[i // 10 % 3][i % 10] for i in range(n))]


def scatters(points: Mapping[str, np.ndarray], labels: np.ndarray, classnames: Sequence[str]) -> tuple[Figure, str]:
    """Embedded features (n, 2) of the same images side by side, coloured by class. Raises ValueError for no panel."""
    import matplotlib.pyplot as plt
    from matplotlib import patheffects

    figures.style()
    if not points:
        raise ValueError("expected at least one kind of features, found none")
    palette = _palette(len(classnames))
    figure, grid = plt.subplots(
        1, len(points), figsize=(figures.WIDTH, figures.WIDTH / len(points) + 0.3), squeeze=False, layout="constrained"
    )
    halo = [patheffects.withStroke(linewidth=2.5, foreground="white")]
    there = np.unique(labels)
    for axes, (title, rows) in zip(grid[0], points.items(), strict=True):
        for c in there:
            axes.scatter(*rows[labels == c].T, s=7, color=palette[c], linewidths=0)
        if len(there) <= 20:  # the name at the point nearest to the middle of its class
            owns = [rows[labels == c] for c in there]
            middles = [own[np.square(own - np.median(own, axis=0)).sum(axis=1).argmin()] for own in owns]
            places = _apart(np.array(middles), [len(classnames[c]) for c in there], np.ptp(rows, axis=0), len(points))
            for c, place in zip(there, places, strict=True):
                axes.text(
                    *place,
                    classnames[c],
                    ha="center",
                    va="center",
                    fontsize="x-small",
                    weight="bold",
                    color=0.6 * np.array(palette[c]),
                    path_effects=halo,
                )
        axes.set(title=title, xticks=[], yticks=[])
        axes.set_box_aspect(1)
        for spine in axes.spines.values():
            spine.set(visible=True, color="0.8", linewidth=0.8)
    n = len(labels)
    return figure, f"t-SNE of the features of {n} held-out images, coloured by class; the classes were not given to it."


def _apart(places: np.ndarray, letters: Sequence[int], extent: np.ndarray, panels: int) -> np.ndarray:
    """Places (n, 2) of names moved up and down until none overlaps another. extent: (2,) of the points; letters: of each name."""
    inches = figures.WIDTH / panels  # of a panel; a small bold letter takes about 0.07 x 0.14 of them
    size = np.stack([0.07 * np.asarray(letters), np.full(len(letters), 0.14)], axis=1) / inches
    extent = np.where(extent > 0, extent, 1.0)  # points that all lie on one line
    moved = places / extent
    for _ in range(200):
        still = True
        for i in range(len(moved)):
            for j in range(i):
                dx, dy = moved[i] - moved[j]
                if abs(dx) < (size[i, 0] + size[j, 0]) / 2 and abs(dy) < size[i, 1]:
                    push = 0.5 * (size[i, 1] - abs(dy)) + 1e-3
                    up = 1.0 if dy >= 0 else -1.0
                    moved[i, 1] += up * push
                    moved[j, 1] -= up * push
                    still = False
        if still:
            break
    return np.asarray(moved * extent)


def walk_strip(walk: Walk, ends: tuple[np.ndarray, np.ndarray], *, fit: np.ndarray | None = None) -> tuple[Figure, str]:
    """A walk as a strip: the images of its two ends and, per step, decoded RGB, feature grid and blended pixels.

    ends: the two images (H, W, 3). fit: features from which the colours of the grids are taken (`apm.figures.grid_rgb`).
    """
    import matplotlib.pyplot as plt

    figures.style()
    steps = len(walk.shares)
    rows = (
        ("T interpolated:\ndecoded RGB", walk.decoded),
        ("T interpolated:\nfeature grid", figures.grid_rgb(walk.features, fit=fit)),
        ("control: pixels\ninterpolated", walk.blend),
    )
    size = figures.WIDTH * 1.15 / (steps + 2)
    figure, grid = plt.subplots(3, steps + 2, figsize=(figures.WIDTH * 1.15, 3 * size + 0.5), layout="constrained")
    for row, (title, pictures) in enumerate(rows):
        for column, axes in enumerate(grid[row]):
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set_visible(False)
            if 1 <= column <= steps:
                axes.imshow(pictures[column - 1])
                if row == 0:
                    axes.set_title(f"{walk.shares[column - 1]:.2f}", fontsize="small")
            elif row == 1:
                axes.imshow(ends[0 if column == 0 else 1])
                axes.set_title("image" if column == 0 else "other image", fontsize="small")
        # the first column's axes are empty in the other rows
        grid[row, 1].set_ylabel(title, rotation=0, ha="right", va="center", fontsize="small", labelpad=4)
    return figure, f"From one held-out image to another in {steps} steps; above: the share of the other image."


def crossing_curves(crossing: Crossing) -> tuple[Figure, str]:
    """Distance to the nearest training image, and contrast, along walks: mean over pairs with 95 % bootstrap bands."""
    import matplotlib.pyplot as plt

    figures.style()
    figure, grid = plt.subplots(1, 2, figsize=(figures.WIDTH, 3.4), layout="constrained")
    panels = (
        ("distance to the nearest training image (RMS)", crossing.decoded, crossing.blend),
        ("contrast (1: mean of the two ends)", crossing.decoded_contrast, crossing.blend_contrast),
    )
    for axes, (title, decoded, blend) in zip(grid, panels, strict=True):
        for name, values, colour, style in (
            ("T interpolated, decoded", decoded, "C0", "-"),
            ("pixels interpolated", blend, "0.45", "--"),
        ):
            found = [mean(values[:, step]) for step in range(values.shape[1])]
            axes.plot(crossing.shares, [f.value for f in found], style, color=colour, label=name)
            axes.fill_between(
                crossing.shares, [f.low for f in found], [f.high for f in found], color=colour, alpha=0.2, linewidth=0
            )
        axes.set(title=title, xlabel="share of the other image", xlim=(0, 1))
    grid[0].legend(fontsize="small")
    return figure, (
        f"Along the way between held-out images of different classes, mean over {len(crossing.decoded)} pairs; bands: 95 % "
        "bootstrap intervals over pairs."
    )


def animation(walk: Walk, *, fit: np.ndarray | None = None, side: int = 128, milliseconds: int = 150) -> bytes:
    """A walk there and back as an animated GIF: decoded RGB, feature grid and blended pixels side by side.

    side: of one panel, in pixels. The same walk gives the same bytes: one palette for all frames, no dithering.
    """
    import matplotlib

    font = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), 12)
    gap, top, bottom = 10, 38, 18
    rows = (
        ("T interpolated,\nRGB", walk.decoded),
        ("T interpolated,\nfeatures", figures.grid_rgb(walk.features, fit=fit)),
        ("pixels\ninterpolated", walk.blend),
    )
    frames = []
    for step, share in enumerate(walk.shares):
        frame = Image.new("RGB", (3 * side + 4 * gap, side + top + bottom), "white")
        draw = ImageDraw.Draw(frame)
        for place, (title, pictures) in enumerate(rows):
            left = gap + place * (side + gap)
            draw.text((left + side / 2, top / 2), title, fill="black", font=font, anchor="mm", align="center")
            picture = Image.fromarray(np.rint(255 * np.clip(pictures[step], 0, 1)).astype(np.uint8))
            frame.paste(picture.resize((side, side), Image.Resampling.NEAREST), (left, top))
        length = 3 * side + 2 * gap
        y = top + side + bottom // 2
        draw.line((gap, y, gap + length, y), fill="#cccccc", width=2)
        x = gap + float(share) * length
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill="#0173b2")
        frames.append(frame)
    frames += frames[-2:0:-1]
    together = Image.new("RGB", (frames[0].width, frames[0].height * len(frames)))
    for i, frame in enumerate(frames):
        together.paste(frame, (0, i * frame.height))
    palette = together.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    indexed = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    buffer = io.BytesIO()
    indexed[0].save(
        buffer,
        "GIF",
        save_all=True,
        append_images=indexed[1:],
        duration=milliseconds,
        loop=0,
        optimize=False,
        disposal=1,
    )
    return buffer.getvalue()


def save_animation(gif: bytes, name: str, folder: Path | str, caption: str) -> Shown:
    """Write <name>.gif and its caption <name>.txt, each whole; returns it for the end of a notebook cell.

    The cell's output carries the animation itself, so that the exported page needs no other file. Raises ValueError for a name that
    is no plain file name, OSError for a folder that cannot be written.
    """
    import base64
    import html

    if not name or name != Path(name).name:
        raise ValueError(f"expected a plain file name for an animation, found {name!r}")
    project.atomic_write(Path(folder) / f"{name}.gif", gif)
    project.atomic_write(Path(folder) / f"{name}.txt", caption.strip() + "\n")
    data = base64.b64encode(gif).decode()
    return Shown(
        f'<img src="data:image/gif;base64,{data}" alt="{html.escape(caption)}" style="max-width: 100%">', caption
    )
