"""Test-time training of the APM: one image, one random student, K steps towards the teacher's feature.

The whole method (Modi & Rawat, NeurIPS 2024, sections 3.6 and 4), for every image by itself:

    t      = teacher's feature of the image, encoded once
    theta ~ N(0, 0.01)                                     new weights, new optimiser, new schedule
    repeat K times:
        loss  = mean((fold(MLP(unfold(T(image; theta)))) - t)^2)
        theta = Adam(theta, gradient of loss)              gradients zeroed every step
    predict the class whose text feature has the largest cosine similarity to the folded feature

Labels are no argument of anything here: they cannot influence a prediction.

Many images are adapted in lockstep. Their students are stacked on a leading axis and the losses are summed; the summands
share no parameter, so every student receives exactly the gradient of its own loss, and Adam acts elementwise: each image
is trained as if it were alone.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from apm.model import (
    APMConfig,
    activations,
    draw_parameters,
    fold,
    head,
    parameter_shapes,
    patches,
    perceive,
    rgb,
    stack,
)

Callback = Callable[[int, slice, Mapping[str, Tensor]], None]
AUGMENTATIONS = ("none", "crop-flip")
PROTOCOLS = ("corrected", "accumulated", "carried", "as_released")
PRECISIONS = ("float32", "tf32", "bfloat16", "float64")


@dataclass(frozen=True)
class TTTConfig:
    """Everything that determines a test-time training run but the images, the teacher and the seed.

    Defaults follow section 2.2 of the method as published: 20 iterations, Adam at 1e-4, a tenfold cut every 200 steps.
    Raises ValueError on construction for values that make no sense.
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
    # the released script's two departures, apart and together. "accumulated": gradients add up over an image's updates; "carried":
    # Adam and schedule are never reset; "as_released": both
    protocol: str = "corrected"
    # "float32"; "tf32": float32 with a GPU's rounded matrix products; "bfloat16": autocast, weights and Adam stay float32; "float64"
    precision: str = "float32"
    lockstep: int = 32  # images trained side by side; changes speed and memory only

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.lockstep < 1 or self.decay_every < 1:
            raise ValueError(
                f"iterations, lockstep and decay_every must be at least 1, found {self.iterations}, {self.lockstep}, {self.decay_every}"
            )
        if not (self.learning_rate > 0 and self.init_std > 0 and self.decay > 0):
            raise ValueError(
                f"learning_rate, init_std and decay must be positive, found {self.learning_rate}, {self.init_std}, {self.decay}"
            )
        for name, value, known in (
            ("precision", self.precision, PRECISIONS),
            ("augmentation", self.augmentation, AUGMENTATIONS),
            ("protocol", self.protocol, PROTOCOLS),
        ):
            if value not in known:
                raise ValueError(f"unknown {name} {value!r}. Known: {', '.join(known)}")
        losses = (self.loss_cls, self.loss_grid, self.loss_rgb)
        if min(losses) < 0 or max(losses) == 0:
            raise ValueError(f"the loss weights (cls, grid, rgb) must be >= 0 and not all zero, found {losses}")
        if self.loss_rgb and not self.student.rgb_head:
            raise ValueError("loss_rgb > 0 needs a student with rgb_head=True")

    @property
    def carried(self) -> bool:
        """Whether what one image leaves behind (Adam's moments, the learning rate) reaches the next: then their order matters."""
        return self.protocol in ("carried", "as_released")

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights, optimiser state and loss."""
        return torch.float64 if self.precision == "float64" else torch.float32


@dataclass(frozen=True)
class TTTResult:
    """What test-time training leaves behind. Entry k of the iteration axis is the state after k updates; entry 0 is the
    student at random weights."""

    losses: Tensor  # (N, K + 1) total loss
    features: Tensor | None  # (N, K + 1, D) folded feature; None when text features were given
    scores: Tensor | None  # (N, K + 1, C) cosine similarity to every class's text feature; None without text features
    status: list[str]  # "ok", or "non-finite loss at iteration k": that image stopped there, its later entries are NaN
    parameters: dict[str, Tensor] | None  # final weights, stacked (N, ...), when asked for

    def predictions(self) -> Tensor:
        """(N, K + 1) int64: class after every iteration; -1 where the image had failed. Raises ValueError without scores."""
        if self.scores is None:
            raise ValueError("no class scores: pass text_features to adapt")
        best = self.scores.nan_to_num(-math.inf).argmax(dim=-1)
        return torch.where(self.scores.isnan().any(dim=-1), -1, best)


def cosine_scores(features: Tensor, text_features: Tensor) -> Tensor:
    """Cosine similarity (..., C) of features (..., D) to unit-length text features (C, D)."""
    return F.normalize(features, dim=-1) @ text_features.T


def image_seed(seed: int, image: Tensor) -> int:
    """Seed of one image's random weights: a hash of the run's seed and the image's pixels.

    So the draw is new for every image, and depends neither on the other images of a batch nor on their order.
    """
    pixels = image.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()
    return int.from_bytes(hashlib.blake2b(pixels, digest_size=8, key=str(seed).encode()).digest(), "little") >> 1


def initial_parameters(
    images: Tensor, config: TTTConfig, generator: torch.Generator | int | None = None
) -> dict[str, Tensor]:
    """Random students for images (N, 3, H, W): stacked weights (N, ...), one independent draw per image.

    generator: only its initial seed is used, and its state is left alone, so that the draw of an image does not depend on
    what was drawn before it.
    """
    seed = _seed(generator)
    device = images.device
    draws = []
    for image in images:
        source = torch.Generator(device).manual_seed(image_seed(seed, image))
        draws.append(
            draw_parameters(trained_student(config), source, std=config.init_std, dtype=config.dtype, device=device)
        )
    return stack(draws)


def adapt(
    images: Tensor,
    targets: Tensor,
    config: TTTConfig,
    *,
    text_features: Tensor | None = None,
    init: Mapping[str, Tensor] | None = None,
    generator: torch.Generator | int | None = None,
    tokens: Tensor | None = None,
    colours: Tensor | None = None,
    keep_parameters: bool = False,
    callback: Callback | None = None,
) -> TTTResult:
    """Train one student per image to equal the teacher's feature; no image sees another (section 3.6).

    images: (N, 3, H, W) float, normalised, of the size that the student's grid needs.
    targets: (N, D) teacher features, D = config.student.width; brought to unit length if config.normalise_target.
    text_features: (C, D) unit-length class features. With them the result holds class scores instead of features.
    init: stacked weights (N, ...) to start from; default: a random draw per image (`initial_parameters`).
    generator: torch.Generator or int, the seed of the random draws (default 0). Its state is neither read nor advanced.
    tokens: (N, h*w, D') teacher tokens: target of L_grid, each of unit length there if config.normalise_target; and the
        routed tokens of column="tokens", as they are.
    colours: (N, h*w, 3) mean colour of every patch in [0, 1], the target of L_rgb.
    callback(k, images, parameters): called after k = 0..K updates with the slice of images and their stacked weights, for
        several slices at the same time where images train in several parts.

    With config.protocol "as_released" images are trained one after the other in the given order, and what one leaves behind
    reaches the next: weights are drawn anew, but Adam's moments and the learning rate's schedule run on, and gradients are
    zeroed once per image instead of before every update (the released script). "carried" and "accumulated" do one of the two.

    Raises ValueError for wrong shapes, non-finite inputs, missing targets, and tf32 without a GPU.
    """
    student = trained_student(config)
    _check(images, targets, config, text_features, tokens, colours)
    n, steps = images.shape[0], config.iterations + 1
    device, dtype = images.device, config.dtype
    targets = F.normalize(targets.to(dtype), dim=-1) if config.normalise_target else targets.to(dtype)
    if text_features is not None:
        text_features = text_features.to(device=device, dtype=dtype)

    losses = torch.full((n, steps), math.nan, dtype=dtype, device=device)
    width = student.width if text_features is None else text_features.shape[0]
    outputs = torch.full((n, steps, width), math.nan, dtype=dtype, device=device)
    reused: dict[int, _Students] = {}  # of one size only: two would need the memory of both

    def train(part: slice) -> dict[str, Tensor]:
        if init is None:
            weights = initial_parameters(images[part], config, generator)
        else:
            weights = {name: init[name][part].to(dtype).clone() for name in _names(student, init, n)}
        inputs = {"x": patches(images[part].to(dtype), student), "target": targets[part]}
        inputs |= {"tokens": tokens[part].to(dtype)} if tokens is not None else {}
        inputs |= {"colours": colours[part].to(dtype)} if colours is not None else {}
        views = None if config.augmentation == "none" else _Views(images[part].to(dtype), generator)
        students = reused.pop(part.stop - part.start, None)
        reused.clear()  # and none is kept while in use, so that where memory ends all goes
        students = students or _Students(config, text_features, device)
        students.start(weights, inputs)

        for k in range(steps):
            if callback is not None:
                callback(k, part, {name: value.detach() for name, value in students.weights.items()})
            if k == config.iterations:
                losses[part, k], outputs[part, k] = students.look()
            else:
                losses[part, k], outputs[part, k] = students.update(views)
        last = {name: value.detach().clone() for name, value in students.weights.items()} if keep_parameters else {}
        if students.graphs or config.carried:
            reused[part.stop - part.start] = students
        return last

    with _on_device(config, device):
        if config.carried:
            kept = [train(slice(i, i + 1)) for i in range(n)]
        else:
            count = math.ceil(n / config.lockstep)
            if device.type == "cpu":  # some parts for some cores, however many there are; of 8 images or more
                count = max(count, min(4, n // 8))
            bounds = [i * n // max(count, 1) for i in range(count + 1)]  # of equal size: no core waits for a longer one
            product = (
                n * student.locations * math.prod(sorted(student.hidden)[-2:])
            )  # of the widest layer, multiply-adds
            kept = side_by_side(train, [slice(a, b) for a, b in itertools.pairwise(bounds)], device, product)
    status = _stop_non_finite(losses, outputs)
    return TTTResult(
        losses=losses,
        features=outputs if text_features is None else None,
        scores=None if text_features is None else outputs,
        status=status,
        parameters={name: torch.cat([k[name] for k in kept]) for name in kept[0]} if keep_parameters else None,
    )


def objective(
    weights: Mapping[str, Tensor],
    x: Tensor,
    target: Tensor,
    config: TTTConfig,
    tokens: Tensor | None = None,
    colours: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Loss (n,) and folded feature (n, D) of n students for their images' patches x (n, L, 3*p*p).

    Heads whose loss is off are not evaluated.
    """
    student = trained_student(config)
    low = config.precision == "bfloat16"
    # a CUDA graph cannot hold autocast's cache of weights, and every weight is used once
    with torch.autocast(x.device.type, torch.bfloat16, enabled=low, cache_enabled=x.device.type != "cuda"):
        percept = perceive(weights, x, student, tokens if student.column == "tokens" else None)
        a = activations(weights, percept, student)
        feature = fold(weights, a, student)
        loss = config.loss_cls * (feature.to(target.dtype) - target).square().mean(dim=-1)
        if config.loss_grid or config.loss_rgb:
            f = head(weights, a)
            if config.loss_grid:
                assert tokens is not None
                grid = F.normalize(tokens, dim=-1) if config.normalise_target else tokens
                loss = loss + config.loss_grid * (f.to(target.dtype) - grid).square().mean(dim=(1, 2))
            if config.loss_rgb:
                assert colours is not None
                decoded = rgb(weights, f, percept, student).to(target.dtype)
                loss = loss + config.loss_rgb * (decoded - colours).square().mean(dim=(1, 2))
    return loss, feature


class _Students:
    """The students of one part in training: their weights, what they read, Adam and its learning rate.

    By the corrected protocol `start` makes all of it new. By the released one Adam's moments and the learning rate's schedule
    run on ("carried"), and gradients are zeroed in `start` only ("accumulated").

    On a GPU an update is hundreds of kernels that each take microseconds, so starting them takes longer than running them. There
    the update is captured once as a CUDA graph, and replayed for every later update of every part of this size.
    """

    WARM_UP = 3  # updates before the capture, in which libraries choose and allocate

    def __init__(self, config: TTTConfig, text_features: Tensor | None, device: torch.device) -> None:
        self.config, self.text_features, self.device = config, text_features, device
        self.accumulates = config.protocol in ("accumulated", "as_released")
        self.graphs = _captures(device) and config.protocol == "corrected" and config.augmentation == "none"
        self.replay: Callable[[], tuple[Tensor, Tensor]] | None = None
        self.weights: dict[str, Tensor] = {}
        self.inputs: dict[str, Tensor] = {}
        self.updates = 0

    def start(self, weights: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> None:
        """Students at the given weights (n, ...), for images given as the arguments of `objective`."""
        rate = self.config.learning_rate
        if not self.weights:
            self.weights = {name: value.requires_grad_() for name, value in weights.items()}
            self.inputs = {name: value.clone() for name, value in inputs.items()}  # later ones are copied into them
            self.optimiser = torch.optim.Adam(
                list(self.weights.values()),
                lr=torch.tensor(rate, device=self.device) if self.graphs else rate,  # a graph reads a tensor anew
                fused=True,
                capturable=self.graphs,
            )
        else:  # in place: a graph reads and writes where it did when it was captured
            with torch.no_grad():
                for there, new in ((self.weights, weights), (self.inputs, inputs)):
                    for name, value in new.items():
                        there[name].copy_(value)
        if not self.config.carried:
            self.updates = 0
            for state in self.optimiser.state.values():
                for value in state.values():
                    value.zero_()
            self._set_rate(rate)
        self.optimiser.zero_grad()

    def update(self, views: _Views | None) -> tuple[Tensor, Tensor]:
        """One iteration of Adam on a view of the images or the images themselves; loss (n,) and output (n, D or C) before it."""
        if self.graphs and self.replay is None and self.updates == self.WARM_UP:
            try:
                self.optimiser.zero_grad()  # the gradients' memory has to be the graph's
                self.replay = _captured(self._step)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self.graphs = False
                warnings.warn(f"no CUDA graph, training goes on without it, slower: {error}", stacklevel=2)
        if not self.graphs:
            result = self._step(views)
        elif self.replay is None:
            result = _aside(self._step)
        else:
            result = self.replay()
        self.updates += 1
        if self.updates % self.config.decay_every == 0:
            self._set_rate(self.optimiser.param_groups[0]["lr"] * self.config.decay)
        return result

    @torch.no_grad()
    def look(self) -> tuple[Tensor, Tensor]:
        """Loss and output as they are."""
        return self._seen(*objective(self.weights, config=self.config, **self.inputs))

    def _step(self, views: _Views | None = None) -> tuple[Tensor, Tensor]:
        with torch.set_grad_enabled(views is None):
            loss, feature = objective(self.weights, config=self.config, **self.inputs)
        seen = self._seen(loss, feature)
        if views is not None:
            x = patches(views.draw(), trained_student(self.config))
            loss, _ = objective(self.weights, config=self.config, **{**self.inputs, "x": x})
        if not self.accumulates:
            self.optimiser.zero_grad()
        loss.sum().backward()  # no parameter is shared between images: each gets the gradient of its own loss
        self.optimiser.step()
        return seen

    def _seen(self, loss: Tensor, feature: Tensor) -> tuple[Tensor, Tensor]:
        feature = feature.detach().to(self.config.dtype)
        return loss.detach(), feature if self.text_features is None else cosine_scores(feature, self.text_features)

    def _set_rate(self, rate: float | Tensor) -> None:
        for group in self.optimiser.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate


def _captures(device: torch.device) -> bool:
    """Whether updates are captured as CUDA graphs."""
    return device.type == "cuda" and torch.version.hip is None


def _aside(step: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """step() on a stream of its own, as it has to be before a capture."""
    current, stream = torch.cuda.current_stream(), torch.cuda.Stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        result = step()
    current.wait_stream(stream)
    for value in result:
        value.record_stream(current)  # its memory is not given to others before this stream has read it
    return result


def _captured(step: Callable[[], tuple[Tensor, Tensor]]) -> Callable[[], tuple[Tensor, Tensor]]:
    """A function that replays what step() does on the GPU, with its results in the same memory every time.

    The capture itself changes nothing. Raises RuntimeError where the step holds something that a graph cannot.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()

    def replay() -> tuple[Tensor, Tensor]:
        graph.replay()
        return result

    return replay


@contextmanager
def _on_device(config: TTTConfig, device: torch.device) -> Iterator[None]:
    """The GPU in question as the current one, and its float32 products rounded to TF32 for that precision and no other."""
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if config.precision == "tf32" else "highest")
    try:
        with torch.cuda.device(device):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


class _Views:
    """Augmented views of images (n, 3, H, W): a random crop of 8 to 100 % of the area and 3/4 to 4/3 in aspect, enlarged to
    the full size, mirrored every other time. The usual augmentation of ImageNet training (torchvision's RandomResizedCrop
    and RandomHorizontalFlip). Each image has its own stream of draws, so its views do not depend on the others.
    """

    def __init__(self, images: Tensor, generator: torch.Generator | int | None) -> None:
        seed = _seed(generator)
        self.images = images
        # the weights' draw has the image's seed itself
        self.streams = [torch.Generator().manual_seed(image_seed(seed, image) ^ 0x5EED) for image in images]

    def draw(self) -> Tensor:
        """The next view of every image (n, 3, H, W)."""
        area, aspect, x, y, mirror = torch.stack([torch.rand(5, generator=s) for s in self.streams]).unbind(1)  # (n,)
        area, aspect = 0.08 + 0.92 * area, torch.exp((2 * aspect - 1) * math.log(4 / 3))
        width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
        zero, side = torch.zeros_like(x), 1 - 2 * (mirror < 0.5).float()
        rows = [[side * width, zero, (2 * x - 1) * (1 - width)], [zero, height, (2 * y - 1) * (1 - height)]]
        matrix = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=1).to(self.images)  # (n, 2, 3)
        grid = F.affine_grid(matrix, list(self.images.shape), align_corners=False)
        return F.grid_sample(self.images, grid, align_corners=False, padding_mode="border")


def _seed(generator: torch.Generator | int | None) -> int:
    return generator.initial_seed() if isinstance(generator, torch.Generator) else int(generator or 0)


SMALL = 200_000_000  # multiply-adds of one operation that a single core does in a few milliseconds


def side_by_side(
    train: Callable[[slice], dict[str, Tensor]], parts: list[slice], device: torch.device, product: float = math.inf
) -> list[dict[str, Tensor]]:
    """train(part) for all parts; on a CPU one part per core at a time, each with single-threaded operations.

    Cores then meet once per part and not in every operation. That is a little faster on an idle machine and many times
    faster on a busy one, and makes rounding independent of the number of cores. A single part gets all cores when its
    operations are large (product: multiply-adds of the largest), else one.
    """
    if device.type != "cpu" or (len(parts) == 1 and product > SMALL):
        return [result for part in parts for result in _or_halves(train, part)]
    if not parts:
        return []
    cores = torch.get_num_threads()
    workers = min(cores, len(parts))
    try:
        if workers == 1:  # in this thread, where a FlopCounterMode or a profiler of the caller sees the operations
            torch.set_num_threads(1)
            return [train(part) for part in parts]
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(train, parts))
    finally:
        torch.set_num_threads(cores)  # the number also serves as the default of threads that start later


def _or_halves(train: Callable[[slice], dict[str, Tensor]], part: slice) -> list[dict[str, Tensor]]:
    """train(part); where a GPU's memory does not hold it, its halves one after the other, down to a single image."""
    n = part.stop - part.start
    try:
        return [train(part)]
    except torch.OutOfMemoryError:
        if n == 1:
            raise
    torch.cuda.empty_cache()
    warnings.warn(
        f"{n} students side by side do not fit into the GPU's memory: going on with {n // 2}. Set lockstep: {n // 2} to save the try",
        stacklevel=2,
    )
    middle = part.start + n // 2
    return [*_or_halves(train, slice(part.start, middle)), *_or_halves(train, slice(middle, part.stop))]


def trained_student(config: TTTConfig) -> APMConfig:
    """The student that is trained: without the RGB head where no loss trains it."""
    student = config.student
    return replace(student, rgb_head=False) if student.rgb_head and not config.loss_rgb else student


def _names(student: APMConfig, init: Mapping[str, Tensor], n: int) -> list[str]:
    shapes = parameter_shapes(student)
    wrong = {
        name: ((n, *shape), tuple(init[name].shape) if name in init else None)
        for name, shape in shapes.items()
        if name not in init or tuple(init[name].shape) != (n, *shape)
    }
    if wrong:
        raise ValueError(f"init must hold stacked weights for {n} images; {{name: (expected, found)}} = {wrong}")
    return list(shapes)


def _check(
    images: Tensor,
    targets: Tensor,
    config: TTTConfig,
    text: Tensor | None,
    tokens: Tensor | None,
    colours: Tensor | None,
) -> None:
    student = config.student
    n = images.shape[0]
    if config.precision == "tf32" and images.device.type != "cuda":
        raise ValueError(
            f"precision tf32 is a GPU's, found images on {images.device.type}: choose float32, bfloat16 or float64"
        )
    if images.dim() != 4 or tuple(images.shape[1:]) != (3, *student.image_size):
        raise ValueError(
            f"images must have shape (N, 3, {student.image_size[0]}, {student.image_size[1]}) for a grid of "
            f"{student.grid[0]} x {student.grid[1]} columns of {student.patch} px, found {tuple(images.shape)}"
        )
    if tuple(targets.shape) != (n, student.width):
        raise ValueError(
            f"targets must have shape ({n}, {student.width}) for {n} images and a student of width {student.width}, found "
            f"{tuple(targets.shape)}: set the student's width to the teacher's"
        )
    if text is not None and (text.dim() != 2 or text.shape[1] != student.width):
        raise ValueError(f"text_features must have shape (C, {student.width}), found {tuple(text.shape)}")
    needed = {"tokens": (tokens, bool(config.loss_grid)), "colours": (colours, bool(config.loss_rgb))}
    widths = {"tokens": student.width, "colours": 3}
    for name, (value, used) in needed.items():
        expected = (n, student.locations, widths[name])
        if used and (value is None or tuple(value.shape) != expected):
            raise ValueError(
                f"{name} must have shape {expected} for its loss, found {None if value is None else tuple(value.shape)}"
            )
    for name, value in {
        "images": images,
        "targets": targets,
        "text_features": text,
        "tokens": tokens,
        "colours": colours,
    }.items():
        if value is not None and not bool(value.isfinite().all()):
            bad = (~value.isfinite()).flatten(1).any(dim=1).nonzero().flatten().tolist()
            raise ValueError(f"{name} of shape {tuple(value.shape)} has NaN or infinite values in row(s) {bad[:10]}")


def _stop_non_finite(losses: Tensor, outputs: Tensor) -> list[str]:
    """Status of every image; entries from the first non-finite loss on become NaN."""
    finite = losses.isfinite() & outputs.isfinite().all(dim=-1)
    status = []
    for row, good in enumerate(finite.cpu().tolist()):
        if all(good):
            status.append("ok")
        else:
            first = good.index(False)
            losses[row, first:] = outputs[row, first:] = math.nan
            status.append(f"non-finite loss at iteration {first}")
    return status
