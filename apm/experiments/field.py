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
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from safetensors import safe_open
from torch import Tensor

from apm import methods, model, project, teachers
from apm.analysis import figures, stats
from apm.analysis.numbers import Number
from apm.analysis.tables import percent
from apm.data import datasets
from apm.data.datasets import Dataset
from apm.experiments.material import Batch, Material
from apm.lockstep import caller_free
from apm.model import APM, APMConfig, Percept, patches
from apm.project.identity import code_of, code_version
from apm.project.progress import progress as progress_bar
from apm.typed import checked

Callback = Callable[[int, APM], None]
PRECISIONS = ("float32", "float64")  # of a training
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
    # Processors round differently, and a training makes a rounding larger by many orders of magnitude: what is 1e-7 in float32
    # shows in the numbers, what is 1e-16 in float64 does not. It takes less than twice the time.
    precision: str = "float32"

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
        if self.precision not in PRECISIONS:
            raise project.unknown("precision", self.precision, PRECISIONS)
        if self.student.column != "conv":
            raise ValueError(
                f"the field reads images through its trigger column: column='conv', found {self.student.column!r}"
            )

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights, optimiser state, inputs and targets."""
        return torch.float64 if self.precision == "float64" else torch.float32


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
    """A dataset by name, or a stratified part of it with so many images; raises as `apm.data.datasets.load` and `Dataset.subset` do."""
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
    `apm.data.datasets.UnreadableImage` for one that cannot be read.
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

    @property
    def device(self) -> torch.device:
        """Where its weights lie."""
        return next(self.model.parameters()).device

    def perceive(self, images: Tensor) -> Percept:
        """What it reads off images (n, 3, H, W) of any device and precision."""
        return self.model.perceive(images.to(self.device, self.config.dtype))


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

    data: images, teacher tokens and colours (`apm.experiments.material.prepare`), read a batch at a time; with loss_grid = 0 the tokens are not
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
        self.model = APM(config.student, self.generator, std=config.init_std, dtype=config.dtype).to(data.device)
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

    def advance(self, done: Callable[[int], object]) -> None:
        """One pass over the images in a new order."""
        config, n = self.config, len(self.data)
        self.order[:] = [x.tolist() for x in torch.randperm(n, generator=self.generator).split(config.batch)]
        sums = torch.zeros(2, dtype=torch.float64)
        for i, batch in enumerate(self.loader):
            share = (self.epoch * len(self.order) + i) / (config.epochs * len(self.order))
            for group in self.optimiser.param_groups:
                group["lr"] = config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * share))
            parts = self._losses(batch.to(self.data.device, config.dtype))
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
                batch.images.new_zeros(())
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
            "code": code_version(("model",)),
            "torch": str(torch.__version__),
        }
    )


@functools.cache
def _recipe() -> str:
    """Hash of the code that trains."""
    return code_of(_State, _outputs)


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
    differs = [name for name, value in made_by.items() if found.get(name) != value]
    if differs:
        raise ValueError(
            f"the checkpoint {path} is of another training, with another {', '.join(differs)}: choose another path, or delete the file"
        )
    return tensors


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
    net = APM(config.student, generator, std=config.init_std, dtype=config.dtype).requires_grad_(False)
    return Field(net.to(device), config, np.empty((0, 2)), 0)


# --------------------------------------------------------------------------------------------------------------- looking


class Look(NamedTuple):
    """What a field makes of N images in one forward pass, as float32 tensors on the CPU."""

    features: Tensor  # (N, h, w, D)
    colours: Tensor | None  # (N, h, w, 3) decoded RGB, cut to 0..1; None for a student without RGB head
    folded: Tensor  # (N, D)
    columns: Tensor  # (N, column_width) the trigger column T


def look(trained: Field, images: Tensor, *, batch: int = 256) -> Look:
    """One forward pass over images (N, 3, H, W), all locations, some images at a time."""
    net = trained.model
    parts: list[tuple[Tensor, ...]] = []
    with torch.no_grad(), _threads(trained.config.threads, trained.device):
        for some in images.split(batch):
            percept = trained.perceive(some)
            a = model.activations(net.parameters_dict, percept, net.config)
            features = model.head(net.parameters_dict, a)
            decoded = net.rgb(percept, features).clamp(0, 1) if net.config.rgb_head else features[..., :0]
            folded = model.fold(net.parameters_dict, a, net.config)
            parts.append((features, decoded, folded, percept.column))
    features, decoded, folded, columns = (torch.cat(some).float().cpu() for some in zip(*parts, strict=True))
    features, decoded = (x.unflatten(1, net.config.grid) for x in (features, decoded))
    return Look(features, decoded if net.config.rgb_head else None, folded, columns)


class Summary(NamedTuple):
    """One vector per image of a material, (N, D) each, float32."""

    folded: np.ndarray
    columns: np.ndarray  # the trigger column T


def summaries(trained: Field, data: Material) -> Summary:
    """Folded feature and trigger column of every image, in batches: no grid of features is kept."""
    parts = [look(trained, batch.images) for batch in data.batches()]
    return Summary(*(torch.cat(values).numpy() for values in zip(*((p.folded, p.columns) for p in parts), strict=True)))


def pixels(batch: Batch, side: int = 32) -> Tensor:
    """(n, 3 * S * S) the images as they are; those of more than `side` px are averaged down to side x side."""
    return F.adaptive_avg_pool2d(batch.images, min(side, *batch.images.shape[2:])).flatten(1)


def patch_means(batch: Batch) -> Tensor:
    """(n, h * w * 3) mean colours of the patches."""
    return batch.colours.flatten(1)


def column(trained: Field) -> Reader:
    """The reader of a field's trigger column: a batch -> (n, column_width) float32."""

    def read(batch: Batch) -> Tensor:
        with torch.no_grad():
            return trained.perceive(batch.images).column.float()

    return read


def tokens_of(batch: Batch) -> Tensor:
    """(n, L, D) the teacher's tokens. Raises ValueError for a material that was prepared without a teacher."""
    if batch.tokens is None:
        raise ValueError("there are no teacher tokens: the images were prepared without a teacher")
    return batch.tokens


# ------------------------------------------------------------------------------------------------- answers of other kinds


Reader = Callable[[Batch], Tensor]
PENALTIES = tuple(10.0**power for power in range(-6, 1))  # of a ridge, in units of an input's mean variance
CHOOSING = 64  # locations by which a ridge chooses its penalty, at most


class Linear(NamedTuple):
    """A linear map with a constant from numbers read off an image, (n, d), to every location, (n, L, C)."""

    read: Reader
    weights: Tensor  # (d + 1, L * C); the last row belongs to the constant
    mean: Tensor  # (L, C) of the training images, to which it is added
    penalty: float

    def __call__(self, batch: Batch) -> Tensor:
        return self.of(self.read(batch))

    def of(self, numbers: Tensor) -> Tensor:
        """(n, d) -> (n, L, C) float32."""
        return self.mean + (F.pad(numbers, (0, 1), value=1.0) @ self.weights).unflatten(1, self.mean.shape)


def ridge(read: Reader, data: Material, what: str, *, unit: bool = False) -> Linear:
    """Ridge regression in closed form from what `read` sees of an image to all its "tokens" or "colours": a control.

    unit: towards tokens of unit length. The penalty is the one of `PENALTIES` with the smallest error on every fifth image after a fit
    to the others, at up to `CHOOSING` locations; the weights are then fitted to all images. Only d x d and d x (L * C) numbers are
    held, whatever the number of images. Raises ValueError for fewer than 10 images.
    """
    if len(data) < 10:
        raise ValueError(
            f"a ridge with a penalty chosen on held-back images needs at least 10 images, found {len(data)}"
        )
    mean = data.spread(what, unit=unit).mean.to(data.device).double()  # (L, C)
    some = torch.linspace(0, len(mean) - 1, min(CHOOSING, len(mean)), device=data.device).long()
    d = read(data.batch([0])).shape[1]
    sums = {
        name: torch.zeros(d + 1, width, dtype=torch.float64, device=data.device)
        for name, width in (("xx", d + 1), ("xy", mean.numel()), ("xx back", d + 1), ("xy back", mean[some].numel()))
    }
    squares, first = 0.0, 0
    for batch in data.batches():
        x = F.pad(read(batch).double(), (0, 1), value=1.0)
        y = (tokens_of(batch) if what == "tokens" else batch.colours).double()
        y = (F.normalize(y, dim=-1) if unit else y) - mean
        back = torch.arange(first, first + len(x), device=x.device) % 5 == 0
        x_back, y_back = x[back], y[back][:, some].flatten(1)
        pairs = {"xx": (x, x), "xy": (x, y.flatten(1)), "xx back": (x_back, x_back), "xy back": (x_back, y_back)}
        for name, (left, right) in pairs.items():
            sums[name].addmm_(left.T, right)
        squares += float(y_back.square().sum())
        first += len(x)
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
    weights = torch.cat([part.float() for part in parts], dim=1)
    return Linear(read, weights, mean.float(), penalty)


def nearest_image(pictures: Tensor, known: Material) -> tuple[Tensor, Tensor]:
    """Root mean square distance (n,) of pictures (n, h * w * 3) to the nearest image of a material, as patch means, and its position.

    The material is read a block at a time.
    """
    asked = pictures.double()
    distance = torch.full((len(asked),), math.inf, dtype=torch.float64, device=asked.device)
    place = torch.zeros(len(asked), dtype=torch.long, device=asked.device)
    for start in range(0, len(known), 1024):
        block = torch.from_numpy(known.colours[known.rows[start : start + 1024]]).to(asked).flatten(1)
        found, where = torch.cdist(asked, block).min(dim=1)
        place = torch.where(found < distance, where + start, place)
        distance = torch.minimum(found, distance)
    return distance / asked.shape[1] ** 0.5, place


def of_nearest(known: Material) -> tuple[Reader, Reader]:
    """Unit tokens and colours of the training image that is nearest to each image: a control that only remembers."""

    def read(batch: Batch) -> Batch:
        return known.batch(nearest_image(patch_means(batch), known)[1].tolist())

    return lambda batch: F.normalize(tokens_of(read(batch)), dim=-1), lambda batch: read(batch).colours


def mean_answer(data: Material) -> tuple[Tensor | None, Tensor]:
    """Feature grid (L, D) and image (L, 3) that are the means over a material: the answers that ignore the image.

    The grid is the mean of unit tokens, the best single answer in cosine; None without a teacher.
    """
    tokens = None if data.tokens is None else data.spread("tokens", unit=True).mean
    return tokens, data.spread("colours").mean


# --------------------------------------------------------------------------------------------------------------- measuring


Source = Field | Tensor | Reader | None


def measure(answers: Mapping[str, tuple[Source, Source]], data: Material) -> dict[str, pd.DataFrame]:
    """Answers for every image against the teacher's grid and the patch means, in batches: only numbers per image are kept.

    answers: name -> (who gives the features, who gives the colours): a field, one grid (L, D) or image (L, 3) for all images, a
    function of a batch such as `Linear`, or None. Per answer one row an image, with the columns that it has: cosine (mean over
    the locations), grid (mean squared error to unit tokens), mse (of the RGB in 0..1), psnr (dB), chroma (mean squared error of
    the colour: of RGB without its mean over the three channels).

    Raises ValueError for features where there are no teacher tokens, or colours of a student without RGB head.
    """
    parts: dict[str, dict[str, list[np.ndarray]]] = {name: {} for name in answers}
    for batch in data.batches():
        looks: dict[int, Look] = {}

        def given(source: Field | Tensor | Reader, what: str, batch: Batch = batch, looks: dict = looks) -> Tensor:
            if isinstance(source, Field):
                if id(source) not in looks:
                    looks[id(source)] = look(source, batch.images)
                found = looks[id(source)]._asdict()[what]
                if found is None:
                    raise ValueError("a student without an RGB head decodes no colours")
                return found.flatten(1, 2).double()
            return (source if isinstance(source, Tensor) else source(batch).cpu()).double()

        for name, (features, colours) in answers.items():
            found = {}
            if features is not None:
                tokens, own = tokens_of(batch).cpu().double(), given(features, "features")
                found["cosine"] = F.cosine_similarity(own, tokens, dim=-1).mean(dim=1)
                found["grid"] = (own - F.normalize(tokens, dim=-1)).square().mean(dim=(1, 2))
            if colours is not None:
                error = given(colours, "colours").clamp(0, 1) - batch.colours.cpu().double()
                found["mse"] = error.square().mean(dim=(1, 2))
                found["psnr"] = psnr(found["mse"])
                found["chroma"] = (error - error.mean(dim=-1, keepdim=True)).square().mean(dim=(1, 2))
            for key, value in found.items():
                parts[name].setdefault(key, []).append(value.numpy())
    return {name: pd.DataFrame({key: np.concatenate(v) for key, v in found.items()}) for name, found in parts.items()}


def psnr(mse: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of images in 0..1 with these mean squared errors, at most `PSNR_LIMIT`.

    An image without any error has no finite ratio, and a mean over images needs one.
    """
    return (-10.0 * mse.log10()).clamp(max=PSNR_LIMIT)


def number(values: np.ndarray | pd.Series, unit: str = "", kind: str = "measure") -> Number:
    """Mean over images of one value each (n,), with its 95 % interval over images (`apm.analysis.stats.mean`).

    Right or wrong (bool) and differences of two such (whole numbers) are in percent; others keep their unit. Raises ValueError
    for fewer than `stats.MINIMUM_SAMPLES` images and values that are not finite.
    """
    values = np.asarray(values)
    found = stats.mean(values)
    if values.dtype == bool or np.issubdtype(values.dtype, np.integer):
        return percent(found, kind="accuracy" if values.dtype == bool else "difference")
    return Number(found.value / 100, found.low / 100, found.high / 100, found.n, unit, kind)


def less(values: np.ndarray | pd.Series, others: np.ndarray | pd.Series) -> np.ndarray:
    """values - others, image by image; of right and wrong: -1, 0 or 1."""
    values, others = np.asarray(values), np.asarray(others)
    return values.astype(np.int8) - others.astype(np.int8) if values.dtype == bool else values - others


def against_best(
    ours: np.ndarray | pd.Series, controls: Mapping[str, np.ndarray | pd.Series], *, higher: bool = True, unit: str = ""
) -> dict[str, Number | str]:
    """The field beside the best of several controls on the same images: one row of a table.

    ours, controls: one value an image (n,). higher: whether a larger value is better. The best control is chosen on these very
    images, which is to the field's disadvantage. "field better": yes where the whole interval of the paired difference says so,
    no where all of it says the contrary, else undecided.
    """
    sign = 1 if higher else -1
    best = max(controls, key=lambda name: sign * float(np.mean(controls[name])))
    difference = number(less(ours, controls[best]), unit)
    low, high = sorted((sign * difference.low, sign * difference.high))
    return {
        "field": number(ours, unit),
        "best control": best,
        "control": number(controls[best], unit),
        "field - control": difference,
        "field better": "yes" if low > 0 else "no" if high < 0 else "undecided",
    }


def colour_share(chroma: np.ndarray | pd.Series, of_mean: np.ndarray | pd.Series) -> Number:
    """Share in percent of the colour (what is left of RGB without its mean over the three channels) that is decoded.

    chroma: (N,) of the answer, of_mean: (N,) of the mean training image (`measure`), which is worth 0 %. The truth itself is worth
    100 %; the right grey picture without colour about 0 % or less. The interval is that of a ratio of two means. Empty (NaN) for
    images without colour beyond their mean.
    """
    chroma, of_mean = np.asarray(chroma), np.asarray(of_mean)
    left = of_mean.mean()
    if left <= 1e-12:
        return Number(math.nan, n=len(chroma))
    ratio = chroma.mean() / left
    return number(100.0 * (1.0 - ratio - (chroma - ratio * of_mean) / left), "%")


def training_table(trained: Mapping[str, Field]) -> pd.DataFrame:
    """Losses of the last epoch, and how much the whole loss fell over the last fifth of the epochs; one row per field.

    The learning rate ends at zero, so a loss ends flat wherever it is: a large fall says that the training was cut short, a
    small one does not prove that more epochs would bring nothing. "cut short": by the limits `SHORT`.
    """
    rows = {}
    for name, one in trained.items():
        weights = np.array([one.config.loss_grid, one.config.loss_rgb])
        whole = np.where(weights > 0, one.losses * weights, 0.0).sum(axis=1)
        before = len(whole) - 1 - max(1, len(whole) // 5)
        fell = 100.0 * float(1 - whole[-1] / whole[before]) if before >= 0 else math.nan
        grid, rgb = (float(one.losses[-1, i]) if weights[i] else math.nan for i in (0, 1))
        rows[name] = {
            "epochs": len(whole),
            "losses in units of": "the mean answer's" if one.config.balance else "1 (plain sum)",
            "L_grid": Number(grid, unit="", kind="loss"),
            "L_rgb": Number(rgb, unit="", kind="loss"),
            "fell over the last fifth": Number(fell, unit="%", kind="loss"),
            "cut short": "yes" if fell > SHORT[1] else "nearly level" if fell < SHORT[0] else "undecided",
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("field")


SHORT = (4.0, 7.0)  # percent over the last fifth: below, a loss is nearly level; above, its training was cut short


# --------------------------------------------------------------------------------------------------- what the features hold


def judge(
    features: Mapping[str, tuple[np.ndarray, np.ndarray]], labels: tuple[np.ndarray, np.ndarray], *, k: int
) -> dict[str, pd.DataFrame]:
    """Which held-out images k nearest neighbours (by cosine) and a linear probe on features get right: a row each, columns knn, probe.

    features: name -> (training (N, D), held out (M, D)). labels: (training (N,), held out (M,)). The probe is a logistic regression
    on standardised features. Raises ValueError for k outside 1..N.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    if not 1 <= k <= len(labels[0]):
        raise ValueError(f"k must lie in 1..{len(labels[0])}, the number of training images, found {k}")
    found = {}
    for name, pair in features.items():
        known, asked = (np.asarray(x, dtype=np.float64).reshape(len(x), -1) for x in pair)
        answers = {}
        with threadpool_limits(1):  # one thread: the same rounding on every number of cores
            for rule, classifier in (
                ("knn", KNeighborsClassifier(k, metric="cosine", algorithm="brute")),
                ("probe", make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))),
            ):
                answers[rule] = classifier.fit(known, labels[0]).predict(asked) == labels[1]
        found[name] = pd.DataFrame(answers)
    return found


def cluster(rows: np.ndarray, k: int, seed: int = 0) -> np.ndarray:
    """k-means clusters (n,) of rows (n, D), by direction: rows brought to unit length, after their mean was taken off.

    Raises ValueError for k outside 2..n.
    """
    from sklearn.cluster import KMeans
    from sklearn.preprocessing import normalize
    from threadpoolctl import threadpool_limits

    rows = np.asarray(rows, dtype=np.float64)
    if not 2 <= k <= len(rows):
        raise ValueError(f"k must lie in 2..{len(rows)}, the number of rows, found {k}")
    with threadpool_limits(1):  # several threads add in an order that changes from run to run
        return np.asarray(KMeans(k, n_init=2, random_state=seed).fit_predict(normalize(rows - rows.mean(axis=0))))


def in_majority(clusters: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Which rows (n,) belong to the most frequent class of their cluster; their share is the clusters' purity."""
    from sklearn.metrics.cluster import contingency_matrix

    named, where = np.unique(clusters, return_inverse=True)
    majority = np.unique(classes)[contingency_matrix(classes, clusters).argmax(axis=0)]
    assert len(majority) == len(named)
    return np.asarray(majority[where] == classes)


def shared(
    clusters: np.ndarray, classes: np.ndarray, *, images: np.ndarray | None = None, least: bool = False
) -> np.ndarray:
    """Normalised mutual information in percent of two labellings (n,), as one value an image whose mean it is.

    The information over the mean of the two entropies, or, with `least`, over the smaller one: then as few clusters as there
    are can still reach 100, however many classes there are. images: (n,) image of each row, default each its own.
    The values are the measure plus the jackknife's share of every image (Efron and Tibshirani 1993, ch. 11), so that their
    spread over images gives the interval, and paired differences go like those of any other value.
    """
    from scipy.special import xlogy

    k, c = int(clusters.max()) + 1, int(classes.max()) + 1
    images = np.arange(len(clusters)) if images is None else images
    n = int(images.max()) + 1
    counts = np.bincount((images * k + clusters) * c + classes, minlength=n * k * c).reshape(n, k, c).astype(np.float64)

    def information(table: np.ndarray) -> np.ndarray:
        p = table / table.sum(axis=(-2, -1), keepdims=True)
        h_k, h_c, both = (
            -xlogy(q, q).sum(axis=-1) for q in (p.sum(axis=-1), p.sum(axis=-2), p.reshape(*p.shape[:-2], -1))
        )
        of = np.minimum(h_k, h_c) if least else (h_k + h_c) / 2
        return 100.0 * np.where(of > 0, (h_k + h_c - both) / np.where(of > 0, of, 1.0), 0.0)

    total = counts.sum(axis=0)
    without = information(total - counts)
    return np.asarray(np.round(float(information(total)) + (n - 1) * (without.mean() - without), 9))


def ink(colours: np.ndarray) -> np.ndarray:
    """Which locations (N, h, w) belong to the foreground: brighter than Otsu's threshold over all images (N, h, w, 3)."""
    from skimage.filters import threshold_otsu

    grey = np.asarray(colours, dtype=np.float64).mean(axis=-1)
    return grey > threshold_otsu(grey.ravel())


class Clusters(NamedTuple):
    """What the k-means clusters of images and of locations agree with, one value an image each; None where there are none."""

    purity: np.ndarray | None  # (N,) bool
    classes: np.ndarray | None  # (N,) NMI of the images' clusters with their classes
    places: dict[
        str, np.ndarray
    ]  # (n,) NMI of the locations' clusters with foreground, place and class, over the smaller entropy
    maps: np.ndarray  # (n, h, w) clusters of the locations


def clusters(
    whole: np.ndarray | None,
    grid: np.ndarray,
    labels: np.ndarray,
    foreground: np.ndarray,
    *,
    k: int,
    seed: int = 0,
    where: np.ndarray | None = None,
) -> Clusters:
    """k-means of images, as many clusters as there are classes, and of locations, k clusters, by their features.

    whole: one vector per image (N, D) or None; grid: one per location of n images (n, h, w, D'). labels: (N,). where: (n,) positions
    of those n among the N, default all. foreground: (n, h, w) bool.
    """
    n, h, w = foreground.shape
    own = labels if where is None else labels[where]
    purity = classes = None
    if whole is not None:
        found = cluster(np.asarray(whole).reshape(len(labels), -1), len(np.unique(labels)), seed)
        purity, classes = in_majority(found, labels), shared(found, labels)
    rows = cluster(np.asarray(grid).reshape(n * h * w, -1), k, seed)
    image = np.repeat(np.arange(n), h * w)
    truths = {"foreground": foreground.ravel().astype(int), "place": np.tile(np.arange(h * w), n), "class": own[image]}
    places = {name: shared(rows, truth, images=image, least=True) for name, truth in truths.items()}
    return Clusters(purity, classes, places, rows.reshape(n, h, w))


def embed(rows: np.ndarray, seed: int = 0) -> np.ndarray:
    """t-SNE (n, 2) of rows (n, D) by cosine distance, started from their principal components. Raises ValueError below 10 rows."""
    from sklearn.manifold import TSNE
    from sklearn.preprocessing import normalize
    from threadpoolctl import threadpool_limits

    if len(rows) < 10:
        raise ValueError(f"a t-SNE needs at least 10 rows, found {len(rows)}")
    with threadpool_limits(1):
        flat = normalize(np.asarray(rows, dtype=np.float64).reshape(len(rows), -1))
        return np.asarray(TSNE(perplexity=min(30.0, (len(rows) - 1) / 3), random_state=seed).fit_transform(flat))


# --------------------------------------------------------------------------------------------------------- interpolation


class Walk(NamedTuple):
    """From one image to another in steps, three ways. S steps, h x w locations."""

    shares: np.ndarray  # (S,) share of the second image, 0 to 1
    decoded: np.ndarray  # (S, h, w, 3) RGB decoded from the interpolated trigger column
    features: np.ndarray  # (S, h, w, D) feature grid unfolded from it
    blend: np.ndarray  # (S, h, w, 3) the control: patch means of the interpolated pixels
    difference: float  # largest |interpolated T - T of the interpolated pixels|, in units of T's largest absolute value
    columns: np.ndarray  # (S, column_width) the interpolated trigger column


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
    shares = torch.linspace(0, 1, steps, dtype=trained.config.dtype, device=trained.device)

    def grid(values: Tensor) -> np.ndarray:
        return values.unflatten(1, student.grid).float().cpu().numpy()

    walks = []
    with torch.no_grad(), _threads(trained.config.threads, trained.device):
        for one, other in zip(ones.to(shares), others.to(shares), strict=True):
            ends = trained.perceive(torch.stack([one, other])).column  # (2, column_width)
            columns = ends[0] + shares[:, None] * (ends[1] - ends[0])
            images = one + shares[:, None, None, None] * (other - one)  # (S, 3, H, W)
            percept = trained.perceive(images)
            between = model.Percept(columns, percept.local)
            features = net.columns(between)
            decoded = net.rgb(between, features).clamp(0, 1)
            difference = float((percept.column - columns).abs().max() / ends.abs().max().clamp(min=1e-12))
            blend = teachers.patch_colours(images, student.patch)
            pictures = (grid(decoded), grid(features), grid(blend))
            walks.append(Walk(shares.float().cpu().numpy(), *pictures, difference, columns.float().cpu().numpy()))
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


DECODED, BLEND = "T interpolated, decoded", "pixels interpolated"
Decoder = Callable[[np.ndarray], np.ndarray]


def decoders(known: Material) -> dict[str, Decoder]:
    """Maps of pictures (n, h * w * 3) to pictures without any field, which may also bring a blend nearer to real images: controls.

    A projection on the first 15 and 10 principal components of the training images, three tenths of the way to their mean, and more contrast.
    """
    from sklearn.decomposition import PCA

    colours = known.colours[known.rows].reshape(len(known), -1)
    middle = colours.mean(axis=0)

    def projection(components: int) -> Decoder:
        pca = PCA(min(components, *colours.shape), svd_solver="covariance_eigh").fit(colours)
        return lambda x: pca.inverse_transform(pca.transform(x))

    return {
        "control: PCA-15 of the pixels": projection(15),
        "control: PCA-10 of the pixels": projection(10),
        "control: three tenths towards the mean": lambda x: x + 0.3 * (middle - x),
        "control: contrast curve": lambda x: x * x * (3.0 - 2.0 * x),
    }


class Crossing(NamedTuple):
    """Walks between many pairs of held-out images, in numbers. P pairs, S steps; one entry per kind of picture."""

    shares: np.ndarray  # (S,)
    distance: dict[str, np.ndarray]  # (P, S) to the nearest training image
    contrast: dict[str, np.ndarray]  # (P, S) standard deviation, in units of the mean of its walk's two ends
    difference: float  # the largest of the walks' differences

    def away(self, name: str) -> np.ndarray:
        """(P,) how much farther the picture halfway is from real images than those at the two ends are."""
        distance = self.distance[name]
        return np.asarray(distance[:, len(self.shares) // 2] - distance[:, [0, -1]].mean(axis=1))


def cross(
    trained: Field, data: Material, which: np.ndarray, known: Material, *, linear: Linear | None = None, steps: int = 9
) -> Crossing:
    """Are the pictures between two images nearer to real images when T is interpolated than when pixels are?

    data: held-out images. which: (P, 2) positions among them (`pairs`). known: training images, as patch means. linear: a control that
    decodes colours from the interpolated column. A distance is the root mean squared difference (RGB in 0..1) to the nearest training
    image. Beside field and blend: `decoders` of the blend.
    """
    parts: dict[str, list[np.ndarray]] = {DECODED: [], BLEND: []}
    differences = []
    for start in range(0, len(which), 32):
        some = which[start : start + 32]
        ends = data.batch(some.T.ravel()).images
        for walk in _walks(trained, ends[: len(some)], ends[len(some) :], steps):
            parts[DECODED].append(walk.decoded)
            parts[BLEND].append(walk.blend)
            differences.append(walk.difference)
            if linear is not None:
                numbers = torch.from_numpy(walk.columns).to(linear.weights.device)
                parts.setdefault("control: ridge from T", []).append(linear.of(numbers).clamp(0, 1).cpu().numpy())
    pictures = {name: np.stack(found).reshape(len(which) * steps, -1) for name, found in parts.items()}
    pictures |= {name: decode(pictures[BLEND]) for name, decode in decoders(known).items()}

    def contrast(rows: np.ndarray) -> np.ndarray:
        deviation = rows.astype(np.float64).std(axis=1).reshape(len(which), steps)
        return np.asarray(deviation / deviation[:, [0, -1]].mean(axis=1, keepdims=True))

    return Crossing(
        np.linspace(0, 1, steps, dtype=np.float32),
        {
            name: nearest_image(torch.from_numpy(rows), known)[0].numpy().reshape(len(which), steps)
            for name, rows in pictures.items()
        },
        {name: contrast(rows) for name, rows in pictures.items()},
        max(differences),
    )


def crossing_table(crossing: Crossing) -> pd.DataFrame:
    """Distance to the nearest training image and contrast, at the ends and halfway, and paired with the blend; one row per kind."""
    middle = len(crossing.shares) // 2
    rows = {}
    for name, distance in crossing.distance.items():
        away = crossing.away(name)
        rows[name] = {
            "distance at the ends": number(distance[:, [0, -1]].mean(axis=1)),
            "distance halfway": number(distance[:, middle]),
            "halfway - ends": number(away),
            "halfway - ends, less the blend's": None if name == BLEND else number(away - crossing.away(BLEND)),
            "contrast halfway": number(crossing.contrast[name][:, middle]),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("picture")


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
    width, height = 3 * side + 4 * gap, side + top + bottom
    there = range(len(walk.shares))
    steps = [*there, *there[-2:0:-1]]
    together = Image.new("RGB", (width, height * len(steps)), "white")  # one picture, for one palette
    draw = ImageDraw.Draw(together)
    for place, step in enumerate(steps):
        y = place * height
        for panel, (title, pictures) in enumerate(rows):
            left = gap + panel * (side + gap)
            draw.text((left + side / 2, y + top / 2), title, fill="black", font=font, anchor="mm", align="center")
            picture = Image.fromarray(np.rint(255 * np.clip(pictures[step], 0, 1)).astype(np.uint8))
            together.paste(picture.resize((side, side), Image.Resampling.NEAREST), (left, y + top))
        line = y + top + side + bottom // 2
        draw.line((gap, line, width - gap, line), fill="#cccccc", width=2)
        x = gap + float(walk.shares[step]) * (width - 2 * gap)
        draw.ellipse((x - 4, line - 4, x + 4, line + 4), fill="#0173b2")
    indexed = together.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    frames = [indexed.crop((0, place * height, width, (place + 1) * height)) for place in range(len(steps))]
    buffer = io.BytesIO()
    options: dict[str, Any] = {"duration": milliseconds, "loop": 0, "optimize": True, "disposal": 1}
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], **options)
    return buffer.getvalue()
