"""What the student, its teachers and a whole test-time training run cost: operations, memory, time (Table 4, Figure 2).

Conventions, since published figures mix them:

* an **operation** is one multiplication or one addition, so a multiply-add counts two. Counts here are operations of matrix
  products, convolutions and attention, as torch's FlopCounterMode counts them; activations, norms and other elementwise work
  are left out everywhere. `Cost.gmac` is the same count in multiply-adds, the unit in which published figures are given;
* **memory** is the bytes of live tensor storages, followed operation by operation. It repeats exactly, and holds neither the
  scratch space of single kernels nor what an allocator or a driver keeps for itself;
* **time** is measured on one device and differs from run to run.

Counting needs no weights and no arithmetic: it runs on torch's meta device, at full size, within seconds.
"""

from __future__ import annotations

import functools
import gc
import itertools
import logging
import math
import platform
import statistics
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from apm import figures, lockstep, project, ttt
from apm.model import (
    APMConfig,
    Parameters,
    Percept,
    activations,
    count_parameters,
    draw_parameters,
    fold,
    head,
    patches,
    perceive,
    positional_encoding,
    shared_products,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMULATIONS = ("plain", "factorised")
REFERENCE = "ViT-B-16"  # the tower that the paper compares with
ADAM_OPERATIONS = 12  # per parameter and step: two running averages, bias correction, root, division, update
ADAM_PASSES = 7  # over float32 arrays per step: read weight, gradient and both averages, write all but the gradient
META = torch.device("meta")


# ------------------------------------------------------------------------------------------------------------- operations


@dataclass(frozen=True)
class Cost:
    """What one network costs for one image (or one text)."""

    name: str
    parameters: int
    forward: int  # operations, two per multiply-add
    backward: int = 0  # operations of the gradient of all parameters; 0 where it was not counted
    columns: int = 0  # of the student's grid; 0 for other networks

    @property
    def gmac(self) -> float:
        """Forward pass in 1e9 multiply-adds."""
        return self.forward / 2e9

    @property
    def gflop(self) -> float:
        """Forward pass in 1e9 operations."""
        return self.forward / 1e9


def flops(fn: Callable[[], Any]) -> int:
    """Operations (2 per multiply-add) of matrix products, convolutions and attention in fn(), its backward passes included.

    Counted with gradients enabled: without them PyTorch may run a transformer block as one fused kernel, which the counter
    does not know (it finds 22.5 instead of 35.1 GFLOP in ViT-B/16).
    """
    with lockstep.caller_free(), FlopCounterMode(display=False) as counter:
        fn()
    return int(counter.get_total_flops())


@lockstep.caller_free()
def student_cost(
    config: APMConfig, columns: int | None = None, *, formulation: str = "plain", part: str = "all"
) -> Cost:
    """Parameters and operations of one forward and one backward pass of the student for one image (sections 3.2 to 3.6).

    columns: how many columns of the grid are evaluated; default all. formulation: "plain": every column is made and goes
    through the whole MLP and the head (paper, released code); "factorised": the identities of `apm.model`, same result. part:
    "all": from the image to the folded feature; "columns": from given columns to their features, MLP and head only (plain).
    The RGB head is not evaluated in test-time training: neither its operations nor its weights count.

    Raises ValueError for an unknown formulation or part, for more columns than the grid has, and for factorised columns alone or
    in part, since the shared products belong to the whole grid.
    """
    _known("formulation", formulation, FORMULATIONS)
    _known("part", part, ("all", "columns"))
    n = config.locations if columns is None else columns
    if not 1 <= n <= config.locations:
        raise ValueError(f"a grid of {config.grid} has {config.locations} columns, cannot evaluate {n}")
    if formulation == "factorised" and (part == "columns" or n < config.locations):
        raise ValueError(
            "the factorised formulation is counted for the whole network and all columns: leave columns out"
        )
    config = replace(config, rgb_head=False)
    weights = {name: value.requires_grad_() for name, value in draw_parameters(config, device=META).items()}
    image = torch.empty(1, 3, *config.image_size, device=META)
    places = torch.arange(n, device=META)

    def run() -> Tensor:
        if part == "columns":
            queries = torch.empty(n, config.query_width, device=META, requires_grad=True)
            return _plain_features(weights, queries, config)
        percept = perceive(weights, patches(image, config), config)
        if formulation == "factorised":
            return fold(weights, activations(weights, percept, config), config)
        queries = _queries(percept, _code(percept, config), places)
        return _plain_fold(weights, _plain_features(weights, queries, config), places, config)

    forward = flops(run)
    both = flops(lambda: run().sum().backward())
    name = f"student {config.grid[0]} x {config.grid[1]}, width {config.width}"
    return Cost(name, count_parameters(config), forward, both - forward, n)


def student_formula(
    config: APMConfig, columns: int | None = None, *, formulation: str = "plain", part: str = "all"
) -> int:
    """The operations of `student_cost(...).forward`, from the sizes of the layers: a second way to the same number.

    For column="conv" without local patches.
    """
    n = config.locations if columns is None else columns
    h, w = config.grid
    d, last = config.width, config.hidden[-1]
    widths = (config.query_width, *config.hidden)
    mlp = [a * b for a, b in itertools.pairwise(widths)]
    if part == "columns":
        return 2 * n * (sum(mlp) + last * d)
    column = config.locations * 3 * config.patch**2 * config.kernels
    if formulation == "plain":
        pooling = (
            0 if config.fold == "mean" else 2 * d * d + n * (2 * d * d + 2 * d)
        )  # in and out, keys and values, scores
        return 2 * (column + n * (sum(mlp) + last * d) + pooling)
    pooling = last * d
    if (
        config.fold == "attention"
    ):  # query, keys folded into it, values, out; scores and pooling before the head; places
        pooling = 4 * d * d + 2 * config.heads * (last * d + last * n) + 2 * config.heads * (d // 2) * (h + w)
    return 2 * (column + (1 + h + w) * mlp[0] + n * sum(mlp[1:]) + pooling)


def adam_cost(parameters: int, steps: int) -> tuple[float, float]:
    """(1e9 elementwise operations, 1e9 bytes read and written) of Adam in float32; no counter of matrix products sees them."""
    return ADAM_OPERATIONS * parameters * steps / 1e9, ADAM_PASSES * 4 * parameters * steps / 1e9


# ------------------------------------------------------------------------------------------------- the plain formulation


def _code(percept: Percept, config: APMConfig) -> Tensor:
    """P (h*w, positions)."""
    column = percept.column
    return positional_encoding(config.grid, config.positions, dtype=column.dtype, device=column.device).flatten(0, 1)


def _queries(percept: Percept, code: Tensor, places: Tensor) -> Tensor:
    """q (l, query_width) of one image at the given places."""
    column = percept.column
    trigger = column[0, places] if column.dim() == 3 else column.expand(len(places), -1)
    return torch.cat([trigger, code[places], *([] if percept.local is None else [percept.local[0, places]])], dim=-1)


def _plain_features(weights: Parameters, x: Tensor, config: APMConfig) -> Tensor:
    """Columns (l, query_width) -> features (l, D): the whole MLP and the head on every one."""
    for layer in range(len(config.hidden)):
        x = torch.addmm(weights[f"mlp{layer}_bias"], x, weights[f"mlp{layer}_weight"]).relu_()
    return torch.addmm(weights["head_bias"], x, weights["head_weight"])


def _plain_fold(weights: Parameters, features: Tensor, places: Tensor, config: APMConfig) -> Tensor:
    """Features (l, D) -> (D,): their mean, or multi-head attention of the learned query over f + P_out."""
    if config.fold == "mean":
        return features.mean(dim=0)
    d = config.width
    code = positional_encoding(config.grid, d, dtype=features.dtype, device=features.device).flatten(0, 1)
    weight, bias = weights["fold_in_weight"], weights["fold_in_bias"]
    query = torch.addmm(bias[:d], weights["fold_query"][None], weight[:, :d])
    keys = torch.addmm(bias[d:], features + code[places], weight[:, d:])
    split = [x.unflatten(-1, (config.heads, -1)).transpose(0, 1)[None] for x in (query, keys[:, :d], keys[:, d:])]
    pooled = F.scaled_dot_product_attention(*split)[0].transpose(0, 1).reshape(1, d)
    return torch.addmm(weights["fold_out_bias"], pooled, weights["fold_out_weight"])[0]


def column_chunks(
    weights: Parameters,
    percept: Percept,
    config: APMConfig,
    chunk: int,
    *,
    formulation: str = "plain",
    code: Tensor | None = None,
    shared: tuple[Tensor, Tensor] | None = None,
    most: int | None = None,
) -> Iterator[Tensor]:
    """Features (l, D) of one image's columns, row by row, `chunk` columns at a time, at most `most` times.

    code: P (h*w, positions) made beforehand, for "plain"; shared: `apm.model.shared_products`, for "factorised". "factorised" is what `apm.model.APM.stream` does. Raises ValueError for an
    unknown formulation and a chunk below 1.
    """
    _known("formulation", formulation, FORMULATIONS)
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1 column, found {chunk}")
    if formulation == "plain" and code is None:
        code = _code(percept, config)
    if formulation == "factorised" and shared is None:
        shared = shared_products(weights, percept, config)  # once, not once per chunk
    for places in torch.arange(config.locations, device=percept.column.device).split(chunk)[:most]:
        if code is not None and formulation == "plain":
            yield _plain_features(weights, _queries(percept, code, places), config)
        else:
            yield head(weights, activations(weights, percept, config, places, shared))[0]


def running_mean(chunks: Iterable[Tensor]) -> Tensor:
    """Mean (D,) of all columns' features, holding one chunk at a time (section 3.6). Raises ValueError for no chunk."""
    mean, count = None, 0
    for features in chunks:
        total = features.sum(dim=0)
        mean = total / len(features) if mean is None else (count * mean + total) / (count + len(features))
        count += len(features)
    if mean is None:
        raise ValueError("no columns: nothing to fold")
    return mean


# ----------------------------------------------------------------------------------------------------------------- towers


def clip_model(name: str) -> nn.Module:
    """An open_clip model in evaluation mode on the meta device: all shapes, no weights, hardly any time or memory.

    Raises ValueError with the known names for an unknown one.
    """
    import open_clip

    _known("open_clip model", name, open_clip.list_models())
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it warns that the model is untrained
    try:
        with torch.device("meta"):
            model = open_clip.create_model(name, device="meta", load_weights=False).eval()
    finally:
        logging.disable(level)
    return model


def image_tower(name: str, device: torch.device | str) -> nn.Module:
    """The image tower of an open_clip model with random weights, ready to be timed. Raises ValueError for an unknown name."""
    tower: Any = clip_model(name).visual
    tower = tower.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for weight in (*tower.parameters(), *tower.buffers()):
            if weight.is_floating_point():
                weight.normal_(0, 0.02, generator=generator)
    return tower


def feature_width(name: str) -> int:
    """D, the width of an open_clip model's image feature. Raises ValueError for an unknown name."""
    model: Any = clip_model(name)
    return int(model.visual.output_dim)


def image_size(name: str) -> int:
    """Side in pixels of the images that an open_clip model reads."""
    return _image_size(clip_model(name))


def _image_size(model: Any) -> int:
    size = model.visual.image_size
    return int(size[0] if isinstance(size, (tuple, list)) else size)


@functools.cache
def tower_cost(name: str, tower: str = "image") -> Cost:
    """Parameters and operations of an open_clip model's "image" tower, "text" tower (one text), or "both".

    Raises ValueError for an unknown model or tower.
    """
    _known("tower", tower, ("image", "text", "both"))
    model: Any = clip_model(name)
    size = _image_size(model)
    image = torch.empty(1, 3, size, size, device=META)
    text = torch.zeros(1, model.context_length, dtype=torch.long, device=META)
    images = sum(p.numel() for p in model.visual.parameters())
    everything = sum(p.numel() for p in model.parameters())
    parts = {
        "image": (images, lambda: model.encode_image(image)),
        "text": (everything - images, lambda: model.encode_text(text)),
        "both": (everything, lambda: (model.encode_image(image), model.encode_text(text))),
    }
    parameters, run = parts[tower]
    return Cost(f"{name} {tower}", parameters, flops(run))


@lockstep.caller_free()
def prompt_backward(name: str) -> int:
    """Operations of the gradient of one text's feature with respect to its input tokens, all weights frozen (prompt tuning)."""
    model: Any = clip_model(name)
    text = torch.zeros(1, model.context_length, dtype=torch.long, device=META)
    for weight in model.parameters():
        weight.requires_grad_(False)
    model.token_embedding.weight.requires_grad_()  # a look-up: its own gradient is no matrix product
    return flops(lambda: model.encode_text(text).sum().backward()) - flops(lambda: model.encode_text(text))


# ----------------------------------------------------------------------------------------------------------------- memory


@dataclass(frozen=True)
class Memory:
    """Bytes of live tensors."""

    held: int  # there before the run: weights and inputs
    peak: int  # most during the run, `held` included

    @property
    def added(self) -> int:
        """Bytes above what was held."""
        return self.peak - self.held


class MemoryTracker(TorchDispatchMode):
    """Follows the bytes of tensor storages alive in a block of code, operation by operation, backward passes included.

    A storage counts once however many views it has, from the operation that makes it until nothing refers to it. Works on any
    device, meta included. Threads that the block starts are not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known: dict[int, weakref.finalize] = {}

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors that exist already."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self._known:
                self._known[key] = weakref.finalize(storage, self._release, key, size)
                self.live += size
        self.peak = max(self.peak, self.live)

    def _release(self, key: int, size: int) -> None:
        self._known.pop(key, None)
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.hold(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return result


def memory(fn: Callable[[], Any], held: Iterable[Tensor] = ()) -> Memory:
    """Peak bytes of live tensors while fn() runs, on top of the tensors held before it."""
    collecting = gc.isenabled()
    gc.disable()  # when cycles are collected depends on what ran before
    try:
        tracker = MemoryTracker()
        tracker.hold(held)
        before = tracker.live
        with tracker:
            fn()
        return Memory(before, tracker.peak)
    finally:
        if collecting:
            gc.enable()


def chunk_cost(config: APMConfig, chunk: int, *, formulation: str = "plain") -> tuple[int, Memory]:
    """Operations, and memory, of all columns of one image, `chunk` at a time, folded by a running mean; no gradients.

    Held are the weights, the trigger column and, in the plain formulation, the positional code. Raises ValueError as
    `column_chunks`.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1 column, found {chunk}")
    config = replace(config, rgb_head=False)
    weights = draw_parameters(config, device=META)
    percept = perceive(weights, torch.empty(1, config.locations, 3 * config.patch**2, device=META), config)
    code = _code(percept, config) if formulation == "plain" else None

    def run(size: int, most: int) -> None:
        with torch.no_grad():
            chunks = column_chunks(weights, percept, config, size, formulation=formulation, code=code, most=most)
            running_mean(chunks)

    once = flops(lambda: shared_products(weights, percept, config)) if formulation == "factorised" else 0
    full, rest = divmod(config.locations, chunk)
    count = once + full * (flops(lambda: run(chunk, 1)) - once) if full else once
    count += flops(lambda: run(rest, 1)) - once if rest else 0
    held = [*weights.values(), percept.column, *([] if code is None else [code])]
    return count, memory(lambda: run(chunk, 3), held)  # from the second chunk on each finds the mean so far beside it


def tower_memory(name: str) -> Memory:
    """Memory of one image through an open_clip image tower on the CPU, without gradients; held are the weights and the image."""
    tower, size = image_tower(name, "cpu"), image_size(name)
    image = torch.zeros(1, 3, size, size)
    with torch.no_grad():
        return memory(lambda: tower(image), [*tower.parameters(), image])


def random_case(config: ttt.TTTConfig, device: torch.device | str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A random image (1, 3, H, W) and a random target (1, D): costs do not depend on what they show."""
    source = torch.Generator().manual_seed(seed)
    image = torch.randn(1, 3, *config.student.image_size, generator=source)
    return image.to(device), torch.randn(1, config.student.width, generator=source).to(device)


def ttt_run(config: ttt.TTTConfig) -> tuple[int, Memory]:
    """Operations and memory of `apm.ttt.adapt` itself for one random image on the CPU, from drawing the weights to the end.

    Two iterations reach the peak: Adam's averages exist from the first step on.
    """
    image, target = random_case(config, "cpu")
    found: list[Memory] = []
    count = flops(lambda: found.append(memory(lambda: ttt.adapt(image, target, config), [image, target])))
    return count, found[0]


# ------------------------------------------------------------------------------------------------------------------- time


@dataclass(frozen=True)
class Timing:
    """Seconds for one image: median, least and most over repeats."""

    name: str
    chunk: int | None
    seconds: float
    least: float
    most: float
    measured: float = 1.0  # share of the image's columns that was run; the seconds are for all of them
    cuda_peak: int | None = None  # bytes that CUDA's allocator reported, on a GPU


def hardware(device: torch.device | str) -> str:
    """The device that times were taken on, in words."""
    kind = torch.device(device).type
    threads = f"{torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"
    about = f"{_processor()}, {threads}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"
    return f"{torch.cuda.get_device_name(device)} with {about}" if kind == "cuda" else about


def _processor() -> str:
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _measure(fn: Callable[[], Any], device: torch.device, repeats: int) -> tuple[list[float], int | None]:
    """Seconds of fn() after one run to warm up, and the CUDA allocator's peak."""
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, found {repeats}")
    with torch.inference_mode():
        fn()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        seconds = []
        for _ in range(repeats):
            start = _clock(device)
            fn()
            seconds.append(_clock(device) - start)
    return seconds, torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def time_columns(
    config: APMConfig,
    chunk: int,
    *,
    formulation: str = "plain",
    device: torch.device | str = "cpu",
    repeats: int = 3,
    most: int = 8,
) -> Timing:
    """Time for all columns of one image, `chunk` at a time, folded by a running mean (Figure 2).

    At most `most` chunks are run per repeat, and their time is scaled to the whole grid.
    """
    device = torch.device(device)
    config = replace(config, rgb_head=False)
    weights = draw_parameters(config, torch.Generator(device).manual_seed(0), device=device)
    with torch.inference_mode():
        percept = perceive(weights, patches(torch.randn(1, 3, *config.image_size, device=device), config), config)
        code = _code(percept, config)
        shared = shared_products(weights, percept, config) if formulation == "factorised" else None
    run = min(config.locations, chunk * most)
    seconds, peak = _measure(
        lambda: running_mean(
            column_chunks(weights, percept, config, chunk, formulation=formulation, code=code, shared=shared, most=most)
        ),
        device,
        repeats,
    )
    once = [0.0] * repeats  # what is done once per image must not be scaled with the columns
    if shared is not None:
        once, _ = _measure(lambda: shared_products(weights, percept, config), device, repeats)
    middle, least, longest = _summary([o + s * config.locations / run for o, s in zip(once, seconds, strict=True)])
    return Timing(formulation, chunk, middle, least, longest, run / config.locations, peak)


def time_tower(name: str, *, device: torch.device | str = "cpu", repeats: int = 3) -> Timing:
    """Time for one image through an open_clip image tower."""
    device = torch.device(device)
    tower, size = image_tower(name, device), image_size(name)
    image = torch.randn(1, 3, size, size, device=device)
    seconds, peak = _measure(lambda: tower(image), device, repeats)
    return Timing(name, None, *_summary(seconds), cuda_peak=peak)


@dataclass(frozen=True)
class RunTiming:
    """Times of a test-time training run on one image."""

    precision: str
    start: float  # seconds until the first iteration: the weights are drawn
    iterations: tuple[
        float, ...
    ]  # seconds per iteration: forward, backward, Adam; one entry per stretch that was timed
    look: float  # seconds from the last update to the result: the forward pass with the final weights
    measured: int  # iterations in all stretches

    @property
    def iteration(self) -> float:
        """Median seconds per iteration."""
        return statistics.median(self.iterations)

    def extrapolated(self, iterations: int) -> float:
        """Seconds of a run of that many iterations, at the median time of those measured, without what warms up."""
        return self.start + iterations * self.iteration + self.look


def time_ttt(config: ttt.TTTConfig, *, device: torch.device | str = "cpu") -> RunTiming:
    """Time `apm.ttt.adapt` on one random image.

    On a CPU every iteration is timed, but for the first, which warms up: config.iterations must be 2 or more. On a GPU the first
    updates only choose kernels and capture the CUDA graph that all later ones replay, so the replayed ones are timed, together: a
    clock read after each would wait for the GPU every time. That takes `lockstep.WARM_UP` + 2 iterations or more, and an
    untimed run before, in which the libraries start. Raises ValueError for fewer iterations.
    """
    device = torch.device(device)
    marks = _marks(config.iterations, device.type)
    image, target = random_case(config, device)
    if device.type == "cuda":
        ttt.adapt(image, target, config)
    stamps = {-1: _clock(device)}

    def stamp(k: int, part: slice, weights: Mapping[str, Tensor]) -> None:  # before update k + 1
        if k == 0 or k in marks:
            stamps[k] = _clock(device)

    ttt.adapt(image, target, config, callback=stamp)
    end = _clock(device)
    steps = tuple((stamps[b] - stamps[a]) / (b - a) for a, b in itertools.pairwise(marks))
    return RunTiming(config.precision, stamps[0] - stamps[-1], steps, end - stamps[marks[-1]], marks[-1] - marks[0])


def _marks(iterations: int, kind: str) -> tuple[int, ...]:
    """After which numbers of updates the clock is read: from the first that is like all later ones to the last."""
    first = lockstep.WARM_UP + 1 if kind == "cuda" else 1
    if iterations <= first:
        raise ValueError(
            f"the first {first} iteration(s) on {kind} warm up: at least {first + 1} are needed, found {iterations}"
        )
    return (first, iterations) if kind == "cuda" else tuple(range(first, iterations + 1))


def _summary(seconds: Sequence[float]) -> tuple[float, float, float]:
    return statistics.median(seconds), min(seconds), max(seconds)


# ----------------------------------------------------------------------------------------------------------------- tables


def printed(published: pd.DataFrame, table: str, row: str, column: str) -> str:
    """A published cell as printed. Raises ValueError for a table, row or column that the file does not have."""
    part = published
    for name, value in (("table", table), ("row", row), ("column", column)):
        if value not in set(part[name]):
            raise project.unknown(f"published {name}", value, list(dict.fromkeys(part[name])))
        part = part[part[name] == value]
    return str(part.iloc[0]["text"])


def _known(kind: str, name: str, names: Iterable[str]) -> None:
    names = list(names)
    if name not in names:
        raise project.unknown(kind, name, names)


def conventions(students: Mapping[str, APMConfig], towers: Sequence[str], published: pd.DataFrame) -> pd.DataFrame:
    """One forward pass for one image under every convention, beside the published figure of the same network.

    students: name -> settings; the first is the one of the published figures. towers: open_clip models; REFERENCE must be among
    them. Numbers are text with two decimals. The first rows count what published figures count, the others are like for like:
    from the image to its feature, all columns, image tower only. "meets it in" names the unit in which a count is within
    3 % of the published figure, if any. Raises ValueError when there is no student, or REFERENCE is not among the towers.
    """
    if not students:
        raise ValueError("no student to count: name at least one preset")
    _known("tower", REFERENCE, towers)
    first, released = next(iter(students.items()))
    unit = tower_cost(REFERENCE)
    said = {
        first: printed(published, "Fig 2", "APM", "GFLOPs total, 224x224 image"),
        REFERENCE: printed(published, "Fig 2", "CLIP ViT-B/16", "GFLOPs, 224x224 image"),
    }
    rows = []

    def add(network: str, counted: str, cost: Cost) -> None:
        text = said.get(network, "")
        units = (("multiply-adds", cost.gmac), ("operations", cost.gflop))
        meets = [name for name, value in units if text and abs(value / float(text) - 1) < 0.03]
        rows.append(
            {
                "network": network,
                "counted": counted,
                "columns": str(cost.columns or ""),
                "parameters (M)": f"{cost.parameters / 1e6:.1f}",
                "multiply-adds (G)": f"{cost.gmac:.2f}",
                "operations (GFLOP)": f"{cost.gflop:.2f}",
                f"/ {REFERENCE} image": f"{cost.forward / unit.forward:.2f}",
                'published "GFLOPs"': text,
                "meets it in": meets[0] if meets else "neither" if text else "",
            }
        )

    smaller = math.prod(side // 2 for side in released.grid)
    add(first, "MLP + head, half the columns", student_cost(released, released.locations // 2, part="columns"))
    add(first, f"MLP + head, {released.image_size[0] // 2} px", student_cost(released, smaller, part="columns"))
    add(first, "MLP + head, all columns", student_cost(released, part="columns"))
    add(REFERENCE, "image + one text", tower_cost(REFERENCE, "both"))
    for name, config in students.items():
        for formulation in FORMULATIONS:
            add(name, f"image to feature, {formulation}", student_cost(config, formulation=formulation))
    for tower in towers:
        add(tower, "image to feature", tower_cost(tower))
    return pd.DataFrame(rows)


def ttt_costs(
    student: APMConfig, teachers: Sequence[str], iterations: int, tpt: Mapping[str, int], published: pd.DataFrame
) -> pd.DataFrame:
    """Multiply-adds of whole runs for one image: Table 4's counting first, then everything that a run computes.

    student: settings of the preset; its width follows the teacher. teachers: open_clip models; Table 4's is REFERENCE. tpt: views,
    classes, steps of test-time prompt tuning. Columns in GMAC count 1e9 multiply-adds, the last count 1e9 operations. A run of
    `apm.ttt` has one more forward pass than iterations, the one after the last update. Raises ValueError for fewer than 1
    iteration, missing keys of tpt, and unknown models.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, found {iterations}")
    for name in ("views", "classes", "steps"):
        _known("key of tpt", name, tpt)
    rows: list[dict[str, Any]] = []

    def add(
        run: str,
        counted: str,
        row: str | None,
        once: float,
        forward: tuple[float, int] = (0, 0),
        backward: tuple[float, int] = (0, 0),
    ) -> None:
        total = once + math.prod(forward) + math.prod(backward)
        said = [printed(published, "Table 4", row, c) if row else "" for c in ("GFlops_i (ideal)", "GFlops_meas")]
        rows.append(
            {
                "run": run,
                "counted": counted,
                "once (GMAC)": once,
                "forward (GMAC)": forward[0],
                "forward passes": forward[1],
                "backward (GMAC)": backward[0],
                "backward passes": backward[1],
                "total (GMAC)": total,
                'published "GFLOPs", ideal': said[0],
                'published "GFLOPs", measured': said[1],
                "total (GFLOP)": 2 * total,
            }
        )

    clip, image, text = (tower_cost(REFERENCE, tower).gmac for tower in ("both", "image", "text"))
    both = f"{REFERENCE} image and one text"
    for columns in (student.locations // 2, student.locations):
        cost = student_cost(student, columns, part="columns")
        counted = f"{both} once, then MLP + head on {columns} columns, forward only"
        add("APM", counted, "APM Peak Use", clip, (cost.gmac, iterations - 1))
    add("CLIP", f"{both} in every iteration, forward only", "CLIP ViT-B/16", 0, (clip, iterations))
    for teacher in teachers:
        config = replace(student, width=feature_width(teacher))
        row = "APM Peak Use" if teacher == REFERENCE else None
        for formulation in FORMULATIONS:
            cost = student_cost(config, formulation=formulation)
            counted = f"{teacher} image once, then the whole student, {formulation}, forward and backward"
            passes = (cost.gmac, iterations + 1), (cost.backward / 2e9, iterations)
            add("APM", counted, row, tower_cost(teacher).gmac, *passes)
    views, classes, steps = tpt["views"], tpt["classes"], tpt["steps"]
    add("TPT", f"{views} views through the {REFERENCE} image tower, forward only", "TPT [90]", views * image)
    counted = f"{views} views, {classes:,} texts forward and backward, {classes:,} texts again to classify"
    gradient = classes * prompt_backward(REFERENCE) / 2e9
    add("TPT", counted, "TPT [90]", views * image, (classes * text, steps + 1), (gradient, steps))
    return pd.DataFrame(rows)


def memory_table(
    student: APMConfig,
    chunks: Sequence[int],
    runs: Mapping[str, Memory],
    towers: Mapping[str, Memory],
    published: pd.DataFrame,
) -> pd.DataFrame:
    """Peak memory in MB (1e6 bytes): columns by chunk, training runs by precision, image towers; published figures with unit.

    runs: precision -> `ttt_run(...)[1]`. towers: open_clip model -> `tower_memory(model)`. Raises ValueError for no training run.
    """
    if not runs:
        raise ValueError("no training run: name at least one precision")
    rows: list[dict[str, Any]] = []

    def add(what: str, detail: str, found: Memory, *cell: str) -> None:
        rows.append(
            {
                "what": what,
                "detail": detail,
                "held before (MB)": found.held / 1e6,
                "above it (MB)": found.added / 1e6,
                "peak (MB)": found.peak / 1e6,
                "published": "; ".join(cell),
            }
        )

    def said(row: str) -> str:
        ideal, measured = (printed(published, "Table 4", row, column) for column in ("M_i (ideal)", "M_meas"))
        return f"{ideal} GB ideal, {measured} GB measured"

    for formulation in FORMULATIONS:
        for chunk in chunks:
            count = f"{chunk} column{'s' if chunk > 1 else ''} at a time"
            add(f"student forward, {formulation}", count, chunk_cost(student, chunk, formulation=formulation)[1])
    alone = printed(published, "Text sec.4", "APM", "memory of student alone")
    for precision, found in runs.items():
        add("student, test-time training", precision, found, f"{alone} MB")
    precision, found = next(iter(runs.items()))
    resident = 4 * tower_cost(REFERENCE, "both").parameters
    together = Memory(found.held + resident, found.peak + resident)
    add(f"the same with {REFERENCE} resident, both towers", precision, together, said("APM Peak Use"))
    for name, found in towers.items():
        cell = [said("CLIP ViT-B/16 (u) [90]")] if name == REFERENCE else []
        add(f"{name} image tower, forward", "float32", found, *cell)
    return pd.DataFrame(rows)


def timing_table(timings: Sequence[Timing]) -> pd.DataFrame:
    """Times for reading, never to be saved: they differ from run to run. With CUDA's own peak of memory where there is one."""
    table = pd.DataFrame(
        {
            "network": [f"student, {t.name}" if t.chunk else f"{t.name} image tower" for t in timings],
            "columns at a time": [str(t.chunk or "") for t in timings],
            "seconds": [f"{t.seconds:.4f}" for t in timings],
            "least to most": [f"{t.least:.4f} to {t.most:.4f}" for t in timings],
            "share of columns run": [f"{t.measured:.0%}" for t in timings],
        }
    )
    if any(t.cuda_peak for t in timings):
        table["CUDA peak (MB)"] = [(t.cuda_peak or 0) / 1e6 for t in timings]
    return table


# ---------------------------------------------------------------------------------------------------------------- figures


_FORMULATION_COLOURS = {"plain": "#0173b2", "factorised": "#029e73"}
_TOWER_COLOURS = ("#949494", "#ca9161", "#cc78bc", "#fbafe4")
_PUBLISHED = "#d55e00"


def cost_figure(costs: pd.DataFrame, towers: Mapping[str, tuple[float, Memory]]) -> tuple[Figure, str]:
    """Operations and memory of all columns of one image against the number of columns at a time, both axes logarithmic.

    costs: columns formulation, chunk, gflop, megabytes (above the weights). towers: open_clip model -> (GFLOP, memory), drawn as
    lines. Raises ValueError for an empty frame.
    """
    import matplotlib.pyplot as plt

    figures.style()
    if costs.empty:
        raise ValueError("no costs to draw: name at least one chunk")
    figure, (left, right) = plt.subplots(1, 2, figsize=(figures.WIDTH, 4.0), layout="constrained")
    for axes, value, label in (
        (left, "gflop", "operations (GFLOP)"),
        (right, "megabytes", "memory above the weights (MB)"),
    ):
        for formulation, part in costs.groupby("formulation", sort=False):
            axes.plot(
                part["chunk"],
                part[value],
                "o-",
                color=_FORMULATION_COLOURS[formulation],
                label=f"student, {formulation}",
            )
        for (name, (gflop, found)), colour in zip(towers.items(), _TOWER_COLOURS, strict=False):
            height = gflop if value == "gflop" else found.added / 1e6
            axes.axhline(height, color=colour, linestyle="--", linewidth=1.4, label=f"{name} image tower")
        axes.set(xscale="log", yscale="log", xlabel="columns at a time", ylabel=label)
        _chunk_ticks(axes, sorted(set(costs["chunk"])))
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4)
    return figure, (
        "One image, all columns of the student, against the number of columns at a time. Left: operations, two per multiply-add. Right: "
        "most bytes of tensors above weights and inputs, float32, no gradients. Dashed: image towers, one image."
    )


def time_figure(timings: Sequence[Timing], published: pd.DataFrame, repeats: int) -> tuple[Figure, str]:
    """Time per image against the number of columns at a time, both axes logarithmic, with the published points of Figure 2.

    repeats: passes behind every median, for the caption. Raises ValueError when no timing has a chunk.
    """
    import matplotlib.pyplot as plt

    figures.style()
    if not any(t.chunk for t in timings):
        raise ValueError("no times of the student to draw: name at least one chunk")
    figure, axes = plt.subplots(figsize=(figures.WIDTH * 0.85, 4.8), layout="constrained")
    for formulation in dict.fromkeys(t.name for t in timings if t.chunk):
        part = [t for t in timings if t.chunk and t.name == formulation]
        middle = [t.seconds for t in part]
        error = [[t.seconds - t.least for t in part], [t.most - t.seconds for t in part]]
        chunk = [t.chunk or 0 for t in part]
        colour = _FORMULATION_COLOURS[formulation]
        axes.errorbar(chunk, middle, yerr=error, fmt="o-", color=colour, capsize=2, label=f"student, {formulation}")
    for tower, colour in zip((t for t in timings if not t.chunk), _TOWER_COLOURS, strict=False):
        axes.axhline(tower.seconds, color=colour, linestyle="--", linewidth=1.4, label=f"{tower.name} image tower")
    chunks = sorted({t.chunk for t in timings if t.chunk is not None})
    seven, once, clip = (
        float(printed(published, "Fig 2", row, column))
        for row, column in (
            ("APM", "inference time, 7 patches at a time"),
            ("APM", "inference time, all patches at once"),
            ("CLIP ViT-B/16", "inference time"),
        )
    )
    axes.plot(
        [7, chunks[-1]],
        [seven, once],
        "D",
        color=_PUBLISHED,
        markerfacecolor="none",
        label="published: APM, 7 patches at a time and all at once",
    )
    axes.axhline(clip, color=_PUBLISHED, linestyle=":", linewidth=1.4, label="published: CLIP ViT-B/16")
    axes.set(xscale="log", yscale="log", xlabel="columns at a time", ylabel="seconds per image")
    _chunk_ticks(axes, chunks)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize="small")
    return figure, (
        f"Time per image against the number of columns at a time, float32: median and range of {repeats} repeats on the device named in the "
        "notebook, which changes from run to run. Published points: of a 224 px image, hardware not on record; all patches at once stand at the right end."
    )


def run_figure(costs: pd.DataFrame) -> tuple[Figure, str]:
    """Totals of whole runs (rows of `ttt_costs`) beside the published totals, on a logarithmic axis.

    Raises ValueError for an empty frame.
    """
    import matplotlib.pyplot as plt

    figures.style()
    if costs.empty:
        raise ValueError("no runs to draw")
    figure, axes = plt.subplots(figsize=(figures.WIDTH, 0.5 * len(costs) + 1.5), layout="constrained")
    y = list(range(len(costs)))
    total = costs["total (GMAC)"].to_numpy(dtype=float)
    axes.hlines(y, total.min() / 3, total, color="0.8", linewidth=1.2)
    axes.plot(total, y, "o", color="#0173b2", label="counted here")
    for column, marker, label in (
        ('published "GFLOPs", ideal', "D", "published, ideal"),
        ('published "GFLOPs", measured', "s", "published, measured"),
    ):
        value = pd.to_numeric(costs[column].str.split(" ").str[0], errors="coerce").to_numpy(dtype=float)
        axes.plot(value, y, marker, color=_PUBLISHED, markerfacecolor="none", linestyle="none", label=label)
    for place, value in zip(y, total, strict=True):
        axes.annotate(
            f"{value:,.0f}", (value, place), (0, 5), textcoords="offset points", ha="center", fontsize="small"
        )
    names = [f"{row['run']}: {row['counted']}" for _, row in costs.iterrows()]
    axes.set_yticks(y, [_wrapped(name) for name in names], fontsize="small")
    axes.set(xscale="log", xlabel="multiply-adds for one image (G)", ylim=(len(costs) - 0.5, -0.7))
    axes.set_xlim(total.min() / 3, total.max() * 2)
    axes.grid(visible=False, axis="y")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure, (
        "Multiply-adds of whole runs for one image, on a logarithmic axis, under every way of counting; beside them the totals that "
        "Table 4 prints for the method, drawn in its unit."
    )


def _wrapped(text: str, width: int = 46) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width))


def _chunk_ticks(axes: Any, chunks: Sequence[int]) -> None:
    from matplotlib.ticker import NullLocator

    axes.set_xticks(list(chunks), [str(chunk) for chunk in chunks], rotation=45 if len(chunks) > 5 else 0)
    axes.xaxis.set_minor_locator(NullLocator())
