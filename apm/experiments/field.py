"""The field: one student with shared weights for all images, trained over a dataset (DESIGN's dataset scale; Figures 4 to 6, App. F).

    data = material.prepare(teacher, dataset, config.student)
    student = train(data, config, seed=0, folder=path)
    look(student, data.batch([0, 3]).images).features      # every location of an image from one forward pass

The loss is the mean squared error of the feature grid to the teacher's patch tokens of unit length, plus that of the decoded RGB to the
mean colour of each patch. The authors' released training, with the student `five_layer`, differs: the plain sum (`balance: false`) on
tokens as they are, Adam at a constant 1e-4, batches of 64 images in BGR order, scaled between the least and the largest value of each.
Its teacher, DINOv2 with four registers, gets raw BGR values 0 to 255, and its tokens [CLS, 4 registers, patches] are cut as `[:-5]`
instead of `[5:]`, which shifts the grid by five cells. Nothing here sees a label.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from apm import model, project, teachers
from apm.experiments.material import Batch, Material
from apm.lockstep import caller_free
from apm.model import APM, APMConfig, Percept
from apm.project.identity import code_of, code_version
from apm.project.progress import progress
from apm.typed import checked

PRECISIONS = ("float32", "float64")  # of a training
LOSSES = ("L_grid", "L_rgb")
EVERY = 5  # epochs between two checkpoints


@checked
@dataclass(frozen=True)
class FieldConfig:
    """Everything that determines a training over a dataset but the data, the teacher and the seed."""

    student: APMConfig = field(default_factory=APMConfig)
    epochs: int = 30
    batch: int = 32  # images per update
    learning_rate: float = 3e-3  # AdamW's, falling to zero along a cosine
    loss_grid: float = 1.0  # weight of L_grid: every location against the teacher's token there; 0: no teacher (App. F)
    loss_rgb: float = 1.0  # weight of L_rgb: decoded RGB against the mean colour of the patch
    balance: bool = True  # each loss in units of what the mean training image leaves; False: the paper's plain sum
    # A training makes roundings, which differ between processors, larger by many orders of magnitude: 1e-7 of float32 shows in the
    # numbers, 1e-16 of float64 does not. It takes less than twice the time.
    precision: str = "float32"

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch) < 1 or not self.learning_rate > 0:
            found = f"{self.epochs}, {self.batch}, {self.learning_rate}"
            raise ValueError(f"epochs and batch must be at least 1 and learning_rate must be positive, found {found}")
        if min(self.loss_grid, self.loss_rgb) < 0 or self.loss_grid + self.loss_rgb == 0:
            found = f"{self.loss_grid}, {self.loss_rgb}"
            raise ValueError(f"the loss weights (grid, rgb) must be >= 0 and not both zero, found {found}")
        if self.loss_rgb and not self.student.rgb_head:
            raise ValueError("loss_rgb > 0 needs a student with rgb_head=True")
        project.among("precision", [self.precision], PRECISIONS)
        if (column := self.student.column) != "conv":
            raise ValueError(f"the field reads images through its trigger column: column='conv', found {column!r}")

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights, optimiser state, inputs and targets."""
        return getattr(torch, self.precision)


@dataclass(frozen=True, eq=False)
class Field:
    """A trained field."""

    model: APM
    config: FieldConfig
    losses: pd.DataFrame  # by epoch: mean of L_grid and L_rgb, in units of the mean answer if balanced; NaN where off
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
    data: Material, config: FieldConfig, *, seed: int = 0, folder: Path | str | None = None, name: str = "training"
) -> Field:
    """Train one student over all images (dataset-scale training; App. E.1 and F of the paper).

    seed: of the weights and of the order of images. folder: where the checkpoint lies, under a name with the hash of all that determines
    the weights, written every `EVERY` epochs. Training goes on from it to weights that are bit for bit those of a run without a break; one
    that is damaged is made anew, with a warning. None: no checkpoint. name: for the progress bar.

    The biases of both outputs start at the mean over the training set: the RGB head ends in a ReLU, which has no gradient below zero, so
    that a channel which starts there would stay black. One thread on a CPU: their number changes the rounding.

    Raises ValueError for missing tokens and non-finite targets; RuntimeError for a loss that is not finite.
    """
    data = data if config.loss_grid else data.without_tokens()
    made_by = project.plain({"config": asdict(config), "seed": seed, "of": data.identity, **RECIPE})
    path = None if folder is None else Path(folder) / f"field-{project.sha256_of(made_by)[:24]}.safetensors"
    with one_thread(data.device):
        state = _State(data, config, seed)
        if path is not None:
            state.restore(path)
        resumed = state.epoch
        with progress(total=(config.epochs - resumed) * len(data), desc=f"field: {name}", unit="image") as bar:
            while state.epoch < config.epochs:
                state.advance(bar.update)
                if path is not None and (state.epoch % EVERY == 0 or state.epoch == config.epochs):
                    teachers.save(state.tensors(), path, made_by)
    epochs = range(1, config.epochs + 1)
    losses = pd.DataFrame(state.losses.numpy(), pd.Index(epochs, name="epoch"), LOSSES).replace(0.0, math.nan)
    return Field(state.model.requires_grad_(False), config, losses, resumed)


class _State:
    """A training between two epochs: all that a checkpoint has to hold."""

    def __init__(self, data: Material, config: FieldConfig, seed: int) -> None:
        self.config, self.data = config, data
        wanted = {"tokens": config.loss_grid, "colours": config.loss_rgb}
        spreads = [data.spread(what) if weight else None for what, weight in wanted.items()]
        self.scales = [1.0 if s is None or not config.balance else max(s.left, 1e-12) for s in spreads]
        self.generator = torch.Generator().manual_seed(seed)  # on the CPU for every device
        self.model = APM(config.student, self.generator, std=None, dtype=config.dtype).to(data.device)
        last = f"rgb{len(config.student.rgb_hidden)}_bias"
        with torch.no_grad():
            for name, spread in zip(("head_bias", last), spreads, strict=True):
                if spread is not None:
                    self.model.weights[name].copy_(spread.mean.mean(dim=0))
        parameters = list(self.model.parameters())
        self.optimiser = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=0.0, fused=True)
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
        percept = self.model.perceive(batch.images)
        features = self.model.columns(percept)
        parts = [batch.images.new_zeros(())] * 2
        if self.config.loss_grid:
            parts[0] = (features - batch.target("tokens")).square().mean() / self.scales[0]
        if self.config.loss_rgb:
            parts[1] = (self.model.rgb(percept, features) - batch.colours).square().mean() / self.scales[1]
        return torch.stack(parts)

    def tensors(self) -> dict[str, Tensor]:
        """The state as a flat dictionary of tensors, on the CPU."""
        found = {f"weights.{name}": value for name, value in self.model.weights.items()}
        moments = self.optimiser.state_dict()["state"]
        for i, name in enumerate(self.model.weights):
            found |= {f"adam.{key}.{name}": value for key, value in moments[i].items()}
        found |= {"losses": self.losses, "epoch": torch.tensor(self.epoch), "generator": self.generator.get_state()}
        return {key: value.detach().cpu().contiguous().clone() for key, value in found.items()}

    def restore(self, path: Path) -> None:
        """Continue from `tensors` in a file, if it is whole."""
        if (saved := teachers.kept(path)) is None:
            return
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


# what determines the weights besides settings, seed and data
RECIPE = {"recipe": code_of(_State), "code": code_version(("model",)), "torch": str(torch.__version__)}


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Operations of torch on a CPU with one thread, for the same rounding on every number of cores."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def train_all(
    jobs: Mapping[str, tuple[Material, FieldConfig]], *, seed: int = 0, folder: Path | str | None = None
) -> dict[str, Field]:
    """`train` several fields in a folder, default `field` in the project's cache; each has the weights that it would have alone. On a CPU,
    with images in memory, as many at a time as there are cores."""
    where = project.cache_dir() / "field" if folder is None else folder
    cores = torch.get_num_threads()
    together = all(data.device.type == "cpu" and data.dataset.in_memory for data, _ in jobs.values())
    try:
        # every worker starts with the number that `train` sets and restores: some libraries keep one number for all threads,
        # and a training that ends must not change the rounding of one that goes on
        workers = min(cores, len(jobs)) if together else 1
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            made = pool.map(lambda name: train(*jobs[name], seed=seed, folder=where, name=name), jobs)
            return dict(zip(jobs, made, strict=True))
    finally:
        torch.set_num_threads(cores)


def untrained(config: FieldConfig, seed: int = 0, device: str | torch.device = "cpu") -> Field:
    """The same student with the weights that it starts from, outputs not centred: a control. No losses."""
    net = APM(config.student, torch.Generator().manual_seed(seed), std=None, dtype=config.dtype)
    return Field(net.requires_grad_(False).to(device), config, pd.DataFrame(columns=LOSSES, dtype=float), 0)


class Look(NamedTuple):
    """What a field makes of N images in one forward pass, as float32 tensors on the CPU."""

    features: Tensor  # (N, h, w, D)
    colours: Tensor  # (N, h, w, 3) decoded RGB, cut to 0..1; without channels for a student without RGB head
    folded: Tensor  # (N, D)
    columns: Tensor  # (N, column_width) the trigger column T


def look(trained: Field, images: Tensor, *, batch: int = 256) -> Look:
    """One forward pass over images (N, 3, H, W), all locations, some images at a time."""
    net = trained.model
    parts: list[tuple[Tensor, ...]] = []
    with torch.no_grad(), one_thread(trained.device):
        for some in images.split(batch):
            percept = trained.perceive(some)
            a = model.activations(net.parameters_dict, percept, net.config)
            features = model.head(net.parameters_dict, a)
            decoded = net.rgb(percept, features).clamp(0, 1) if net.config.rgb_head else features[..., :0]
            folded = model.fold(net.parameters_dict, a, net.config)
            parts.append((features, decoded, folded, percept.column))
    features, decoded, folded, columns = (torch.cat(some).float().cpu() for some in zip(*parts, strict=True))
    grid = net.config.grid
    return Look(features.unflatten(1, grid), decoded.unflatten(1, grid), folded, columns)
