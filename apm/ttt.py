"""Test-time training of the APM: one image, one random student, K steps towards the teacher's feature.

The whole method (Modi & Rawat, NeurIPS 2024, sections 3.6 and 4), for every image by itself:

    t      = teacher's feature of the image, encoded once
    theta ~ N(0, 0.01)                                     new weights, new optimiser, new schedule
    repeat K times:
        loss  = mean((fold(MLP(unfold(T(image; theta)))) - t)^2)
        theta = Adam(theta, gradient of loss)              gradients zeroed every step
    predict the class whose text feature has the largest cosine similarity to the folded feature

Labels are no argument of anything here. Many images train in lockstep (`lockstep.py`), each exactly as if alone.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from apm import model
from apm.lockstep import Lockstep, caller_free, on_device, parts, side_by_side, stop_non_finite
from apm.model import APMConfig, CropFlip, image_seed
from apm.typed import checked

Look = Callable[[int, slice, Mapping[str, Tensor]], None]
KNOWN = {
    "precision": ("float32", "tf32", "bfloat16", "float64"),
    "augmentation": ("none", "crop-flip"),
    "protocol": ("corrected", "as_released"),
}


@checked
@dataclass(frozen=True)
class TTTConfig:
    """All that determines a run but images, teacher and seed; defaults as published (sections 3.6 and 4, App. E.1, released code).

    Raises ValueError for values of another type than their field's and for those that make no sense.
    """

    student: APMConfig = field(default_factory=APMConfig)
    iterations: int = 20  # K, fixed beforehand
    learning_rate: float = 1e-4
    decay_every: int = 200  # StepLR, counted in iterations of one image
    decay: float = 0.1
    init_std: float = 0.01  # every parameter ~ N(0, init_std)
    normalise_target: bool = True  # target of unit length; the published losses (1e-3 at the start, D = 768) fit this
    loss_cls: float = 1.0  # weight of L_cls: folded feature against the teacher's feature
    loss_grid: float = 0.0  # weight of L_grid: every column against the teacher's token at its place
    loss_rgb: float = 0.0  # weight of L_rgb: decoded RGB against the mean colour of the patch
    augmentation: str = "none"  # "crop-flip": every update sees another view of the image, predictions the image itself
    # "as_released": Adam's moments and the schedule run on from image to image. The release zeroes gradients once per image only,
    # but its GradScaler divides them by 65,536 in place at every step: what earlier steps left vanishes
    protocol: str = "corrected"
    precision: str = "float32"  # "tf32": a GPU's rounded products; "bfloat16": autocast, weights and Adam stay float32
    lockstep: int = 32  # images trained side by side; changes speed and memory only

    def __post_init__(self) -> None:
        counts = (self.iterations, self.lockstep, self.decay_every)
        rates = (self.learning_rate, self.init_std, self.decay)
        if min(counts) < 1 or min(rates) <= 0:
            raise ValueError(f"counts must be at least 1, rates and init_std positive, found {counts} and {rates}")
        for name, known in KNOWN.items():
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}. Known: {', '.join(known)}")
        if min(losses := (self.loss_cls, self.loss_grid, self.loss_rgb)) < 0 or max(losses) == 0:
            raise ValueError(f"the loss weights (cls, grid, rgb) must be >= 0 and not all zero, found {losses}")
        if self.loss_rgb and not self.student.rgb_head:
            raise ValueError("loss_rgb > 0 needs a student with rgb_head=True")

    @property
    def carried(self) -> bool:
        """Whether what one image leaves behind reaches the next: then their order matters."""
        return self.protocol == "as_released"

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights, optimiser state and loss."""
        return torch.float64 if self.precision == "float64" else torch.float32

    @property
    def trained(self) -> APMConfig:
        """The student that is trained: without the RGB head where no loss trains it."""
        return self.student if self.loss_rgb else replace(self.student, rgb_head=False)


@dataclass(frozen=True)
class TTTResult:
    """What training leaves behind. Entry k of the iteration axis: after k updates; 0: random weights; NaN once an image has failed."""

    losses: Tensor  # (N, K + 1)
    features: Tensor | None  # (N, K + 1, D) folded feature; None when text features were given
    scores: Tensor | None  # (N, K + 1, C) cosine similarity to every class; None without text features
    status: list[str]  # "ok", or "non-finite loss at iteration k"
    parameters: dict[str, Tensor] | None  # final weights, stacked (N, ...), when asked for

    def __repr__(self) -> str:
        n, steps = self.losses.shape
        what = "features" if self.scores is None else f"scores of {self.scores.shape[-1]} classes"
        fall = " -> ".join(f"{self.losses[:, k].median():.1e}" for k in (0, -1))
        return f"TTTResult: {n} student{'s' * (n > 1)}, {steps - 1} updates, {what}; loss {fall} (median), {self.status.count('ok')} of {n} ok"

    def predictions(self) -> Tensor:
        """(N, K + 1) int64: class after every iteration; -1 where the image had failed. Needs scores."""
        if self.scores is None:
            raise ValueError("no class scores: pass text_features to adapt")
        best = self.scores.nan_to_num(-math.inf).argmax(dim=-1)
        return torch.where(self.scores.isnan().any(dim=-1), -1, best)


def cosine_scores(features: Tensor, text_features: Tensor) -> Tensor:
    """Cosine similarity (..., C) of features (..., D) to unit-length text features (C, D)."""
    return F.normalize(features, dim=-1) @ text_features.T


def initial_parameters(images: Tensor, config: TTTConfig, seed: int = 0) -> dict[str, Tensor]:
    """Random students for images (N, 3, H, W): stacked weights (N, ...), one independent draw per image."""
    device, std = images.device, config.init_std
    sources = [torch.Generator(device).manual_seed(image_seed(seed, image)) for image in images]
    draw = functools.partial(model.draw_parameters, config.trained, std=std, dtype=config.dtype, device=device)
    return model.stack([draw(source) for source in sources])


def objective(config: TTTConfig, weights: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Loss (n,) and folded feature (n, D) of n students. inputs: x (n, L, 3*p*p) patches, target (n, D), tokens, colours.

    Heads whose loss is off are not evaluated.
    """
    student, x, target = config.trained, inputs["x"], inputs["target"]
    low = config.precision == "bfloat16"  # no cache: it could outlive a step, or a graph
    with torch.autocast(x.device.type, torch.bfloat16, enabled=low, cache_enabled=False):
        percept = model.perceive(weights, x, student, inputs["tokens"] if student.column == "tokens" else None)
        a = model.activations(weights, percept, student)  # (n, L, hidden)
        feature = model.fold(weights, a, student).to(target.dtype)  # (n, D)
        loss = config.loss_cls * (feature - target).square().mean(dim=-1)
        if config.loss_grid or config.loss_rgb:
            f = model.head(weights, a)  # (n, L, D)
        if config.loss_grid:
            grid = F.normalize(inputs["tokens"], dim=-1) if config.normalise_target else inputs["tokens"]
            loss = loss + config.loss_grid * (f.to(target.dtype) - grid).square().mean(dim=(1, 2))
        if config.loss_rgb:
            decoded = model.rgb(weights, f, percept, student).to(target.dtype)
            loss = loss + config.loss_rgb * (decoded - inputs["colours"]).square().mean(dim=(1, 2))
    return loss, feature


@caller_free()
def adapt(
    images: Tensor,
    targets: Tensor,
    config: TTTConfig,
    *,
    text_features: Tensor | None = None,
    tokens: Tensor | None = None,
    colours: Tensor | None = None,
    init: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    keep_parameters: bool = False,
    callback: Look | None = None,
) -> TTTResult:
    """Train one student per image to equal the teacher's feature; no image sees another (section 3.6).

    images: (N, 3, H, W) normalised, of the grid's size. targets: (N, D) teacher features. text_features: (C, D) unit-length; with
    them the result holds scores instead of features. tokens: (N, h*w, D') teacher tokens, target of L_grid and routed tokens.
    colours: (N, h*w, 3) in [0, 1], target of L_rgb. init: stacked weights to start from (default: `initial_parameters`).
    callback(k, part, weights): called after k = 0..K updates, for several parts at the same time where they train side by side.
    It trains in any mode of the caller (no_grad, inference_mode, autocast), and no gradient reaches what it is given.
    Raises ValueError for wrong shapes and types, values not finite, directions of length zero, and tf32 without a GPU.
    """
    both = {"tokens": tokens, "colours": colours}
    _check(config, init, images=images, targets=targets, text_features=text_features, **both)
    n, steps, device, student = len(images), config.iterations + 1, images.device, config.trained
    kept: dict[int, Lockstep] = {}  # of one size only: two would need the memory of both

    def own(value: Tensor) -> Tensor:  # a copy: what is given may have a graph, or be of inference mode
        return value.detach().to(device, config.dtype, copy=True)

    def train(part: slice) -> dict[str, Tensor]:
        pictures = own(images[part])
        draw = initial_parameters(images[part], config, seed) if init is None else {k: init[k][part] for k in shapes}
        inputs = {"x": model.patches(pictures, student), **{k: v[part] for k, v in given.items()}}
        views = None if config.augmentation == "none" else CropFlip(pictures, seed)
        students = kept.pop(part.stop - part.start, None)
        kept.clear()  # and none is kept while in use, so that where memory ends all goes
        students = students or Lockstep(functools.partial(objective, config), device, config, views is None)
        students.start({k: own(v) for k, v in draw.items()}, inputs)
        for k in range(steps):
            if callback is not None:
                callback(k, part, {name: value.detach() for name, value in students.weights.items()})
            if k == config.iterations:
                loss, feature = students.look()
            else:
                loss, feature = students.update(None if views is None else {"x": model.patches(views.draw(), student)})
            losses[part, k], outputs[part, k] = loss, feature if text is None else cosine_scores(feature, text)
        if students.capture or config.carried:
            kept[part.stop - part.start] = students
        return {name: value.detach().clone() for name, value in students.weights.items()} if keep_parameters else {}

    with on_device(device, config.precision):
        shapes = model.parameter_shapes(student)
        given = {k: own(v) for k, v in {"target": targets, **both}.items() if v is not None}
        if config.normalise_target:
            given["target"] = F.normalize(given["target"], dim=-1)
        text = None if text_features is None else own(text_features)
        losses = torch.full((n, steps), math.nan, dtype=config.dtype, device=device)
        outputs = losses.new_full((n, steps, student.width if text is None else len(text)), math.nan)
        if config.carried:  # one after the other, in the given order
            last = [train(slice(i, i + 1)) for i in range(n)]
        else:
            product = n * student.locations * math.prod(sorted(student.hidden)[-2:])
            last = side_by_side(train, parts(n, config.lockstep, device), device, product)
        status = stop_non_finite(losses, outputs)
        weights = {k: torch.cat([one[k] for one in last]) for k in shapes} if keep_parameters and last else None
    features, scores = (outputs, None) if text is None else (None, outputs)
    return TTTResult(losses, features, scores, status, weights)


def _check(config: TTTConfig, init: Mapping[str, Tensor] | None, **every: Tensor | None) -> None:
    """Types and shapes, {name: (expected, found)} of those that are wrong; then values not finite, and directions of length 0."""
    given = {name: value for name, value in every.items() if value is not None}
    student, n, device = config.trained, len(given["images"]), given["images"].device.type
    if config.precision == "tf32" and device != "cuda":
        raise ValueError(f"precision tf32 is a GPU's, found images on {device}: choose another")
    if wrong := {name: str(value.dtype) for name, value in given.items() if not value.is_floating_point()}:
        raise ValueError(f"expected floating-point values, found {wrong}: images are normalised, not of 0 to 255")
    expected = {"images": (n, 3, *student.image_size), "targets": (n, student.width)}
    expected |= {"text_features": (len(given["text_features"]), student.width)} if "text_features" in given else {}
    routed = student.width if config.loss_grid else student.column_width
    expected |= {"tokens": (n, student.locations, routed)} if config.loss_grid or student.column == "tokens" else {}
    expected |= {"colours": (n, student.locations, 3)} if config.loss_rgb else {}
    expected |= {} if init is None else {k: (n, *shape) for k, shape in model.parameter_shapes(student).items()}
    found = {name: tuple(value.shape) for name, value in {**given, **(init or {})}.items()}
    if bad := {name: (shape, found.get(name)) for name, shape in expected.items() if found.get(name) != shape}:
        raise ValueError(f"{n} images, a student of {student.grid}: {{name: (expected, found)}} = {bad}")
    for name, value in given.items():
        _rows(~value.isfinite(), f"{name} {tuple(value.shape)} has NaN or infinite values")
    unit = {"text_features"} | ({"targets"} if config.normalise_target else set())
    unit |= {"tokens"} if config.normalise_target and config.loss_grid else set()
    for name, value in given.items():
        if name in unit:
            _rows(value.norm(dim=-1) == 0, f"{name} of length 0, which have no direction: leave them out")


def _rows(bad: Tensor, message: str) -> None:
    if bool(bad.any()):
        raise ValueError(
            f"{message} in row(s) {bad.reshape(len(bad), -1).any(dim=1).nonzero().flatten().tolist()[:10]}"
        )
