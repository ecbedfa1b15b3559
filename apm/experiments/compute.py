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
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from apm import lockstep, project, ttt
from apm.analysis.numbers import Number
from apm.data.published import number
from apm.model import (
    APMConfig,
    OnlineFold,
    Parameters,
    activations,
    count_parameters,
    draw_parameters,
    fold,
    head,
    output_code,
    patches,
    perceive,
    positional_encoding,
    shared_products,
    unfold,
)

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

    def run() -> Tensor:
        if part == "columns":
            queries = torch.empty(n, config.query_width, device=META, requires_grad=True)
            return _plain_features(weights, queries, config)
        x = patches(image, config)
        if formulation == "factorised":
            return fold(weights, activations(weights, perceive(weights, x, config), config), config)
        return image_to_feature(weights, x, config, n, most=1)

    forward = flops(run)
    both = flops(lambda: run().sum().backward())
    name = f"student {config.grid[0]} x {config.grid[1]}, width {config.width}"
    return Cost(name, count_parameters(config), forward, both - forward, n)


def adam_cost(parameters: int, steps: int) -> tuple[float, float]:
    """(1e9 elementwise operations, 1e9 bytes read and written) of Adam in float32; no counter of matrix products sees them."""
    return ADAM_OPERATIONS * parameters * steps / 1e9, ADAM_PASSES * 4 * parameters * steps / 1e9


# ------------------------------------------------------------------------------------------ the whole student, in chunks


def _plain_features(weights: Parameters, x: Tensor, config: APMConfig) -> Tensor:
    """Columns (l, query_width) -> features (l, D): the whole MLP and the head on every one."""
    for layer in range(len(config.hidden)):
        x = torch.addmm(weights[f"mlp{layer}_bias"], x, weights[f"mlp{layer}_weight"]).relu_()
    return torch.addmm(weights["head_bias"], x, weights["head_weight"])


class _PlainAttention:
    """The released fold, a chunk of columns at a time: keys and values of every column's f + P_out, one learned query."""

    def __init__(self, weights: Parameters, config: APMConfig, code: Tensor) -> None:
        self.weights, self.config, self.code = weights, config, code
        d = config.width
        query = torch.addmm(weights["fold_in_bias"][:d], weights["fold_query"][None], weights["fold_in_weight"][:, :d])
        self.query = self._heads(query) / math.sqrt(d // config.heads)  # (heads, 1, D / heads)
        self.seen: tuple[Tensor, Tensor, Tensor] | None = None  # largest score, weight, weighted values

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.config.heads, -1)).transpose(0, 1)

    def update(self, features: Tensor, places: Tensor) -> None:
        d, weights = self.config.width, self.weights
        inputs = features[0] + self.code[places]
        both = torch.addmm(weights["fold_in_bias"][d:], inputs, weights["fold_in_weight"][:, d:])  # (l, 2 D)
        keys, values = self._heads(both[:, :d]), self._heads(both[:, d:])
        scores = self.query @ keys.mT  # (heads, 1, l)
        top = scores.amax(dim=-1, keepdim=True)
        if self.seen is None:
            share = (scores - top).exp()
            self.seen = top, share.sum(dim=-1, keepdim=True), share @ values
            return
        before, weight, pooled = self.seen
        top = torch.maximum(before, top)
        kept, share = (before - top).exp(), (scores - top).exp()
        self.seen = top, weight * kept + share.sum(dim=-1, keepdim=True), pooled * kept + share @ values

    def result(self) -> Tensor:
        assert self.seen is not None
        _, weight, pooled = self.seen
        return torch.addmm(
            self.weights["fold_out_bias"], (pooled / weight).flatten()[None], self.weights["fold_out_weight"]
        )


def constants(config: APMConfig, like: Tensor, formulation: str) -> dict[str, Tensor]:
    """What a student keeps beside its weights: P (h*w, positions) where every column is made, P_out (h*w, D) for attention."""
    found = {}
    if formulation == "plain":
        code = positional_encoding(config.grid, config.positions, dtype=like.dtype, device=like.device)
        found["code"] = code.flatten(0, 1)
    if config.fold == "attention":
        found["code_out"] = output_code(config, like)
    return found


def stages(
    weights: Parameters,
    x: Tensor,
    config: APMConfig,
    chunk: int,
    *,
    formulation: str = "plain",
    codes: Mapping[str, Tensor] | None = None,
    most: int | None = None,
    tokens: Tensor | None = None,
) -> Iterator[Tensor | None]:
    """One image from its patches x (1, L, 3*p*p) to its feature, `chunk` columns at a time, at most `most` times, folded as they come.

    Yields None when the trigger column is there, None when all columns are done, and the folded feature (D,). "plain": every
    column is made and goes through MLP, head and fold as in paper and released code; "factorised": as `apm.model.APM.stream` and
    `OnlineFold`, where columns that come one by one each need the head. codes: `constants` made beforehand.

    Raises ValueError for an unknown formulation and a chunk below 1.
    """
    _known("formulation", formulation, FORMULATIONS)
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1 column, found {chunk}")
    codes = constants(config, x, formulation) if codes is None else codes
    percept = perceive(weights, x, config, tokens)
    shared = shared_products(weights, percept, config) if formulation == "factorised" else None
    folded: OnlineFold | _PlainAttention
    if formulation == "plain" and config.fold == "attention":
        folded = _PlainAttention(weights, config, codes["code_out"])
    else:
        folded = OnlineFold(weights, config, codes.get("code_out"))
    yield None
    for places in torch.arange(config.locations, device=x.device).split(chunk)[:most]:
        if shared is None:
            # no name for the columns: they are freed once the first layer has read them
            folded.update(
                _plain_features(weights, unfold(percept, config, places, codes["code"])[0], config)[None], places
            )
        else:
            folded.update(head(weights, activations(weights, percept, config, places, shared)), places)
    yield None
    yield folded.result()[0]


def image_to_feature(weights: Parameters, x: Tensor, config: APMConfig, chunk: int, **options: Any) -> Tensor:
    """The feature (D,) at the end of `stages`."""
    *_, feature = stages(weights, x, config, chunk, **options)
    assert feature is not None
    return feature


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
def tower_backward(name: str) -> int:
    """Operations of the gradient of all weights of an open_clip model, for one image and one text: what fine-tuning both costs."""
    model: Any = clip_model(name)
    size = _image_size(model)
    image = torch.empty(1, 3, size, size, device=META)
    text = torch.zeros(1, model.context_length, dtype=torch.long, device=META)

    def run() -> Tensor:
        return model.encode_image(image).sum() + model.encode_text(text).sum()

    return flops(lambda: run().backward()) - flops(run)


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
    """Operations, and memory, of the whole student for one image, `chunk` columns at a time; no gradients.

    Held are weights, patches and positional codes. Raises ValueError as `stages`.
    """
    config = replace(config, rgb_head=False)
    weights = draw_parameters(config, device=META)
    x = torch.empty(1, config.locations, 3 * config.patch**2, device=META)
    codes = constants(config, x, formulation)

    def run(most: int) -> None:
        with torch.no_grad():
            image_to_feature(weights, x, config, chunk, formulation=formulation, codes=codes, most=most)

    one, two = (flops(functools.partial(run, most)) for most in (1, 2))  # every further column costs the same
    count = one + round((two - one) * (config.locations / chunk - 1))
    # from the second chunk on each finds what was folded so far beside it
    return count, memory(lambda: run(3), [*weights.values(), x, *codes.values()])


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


def _measure(
    passes: Callable[[], Iterator[Any]], device: torch.device, repeats: int
) -> tuple[list[list[float]], int | None]:
    """Seconds of every stage of passes(), after one run to warm up, and the CUDA allocator's peak."""
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, found {repeats}")
    seconds = []
    with torch.inference_mode():
        for repeat in range(repeats + 1):
            if repeat == 1 and device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            marks = [_clock(device)]
            for _ in passes():
                marks.append(_clock(device))
            seconds.append([b - a for a, b in itertools.pairwise(marks)])
    return seconds[1:], torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def time_columns(
    config: APMConfig,
    chunk: int,
    *,
    formulation: str = "plain",
    device: torch.device | str = "cpu",
    repeats: int = 3,
    most: int = 8,
) -> Timing:
    """Time of the whole student for one image, `chunk` columns at a time: convolution, columns and fold (Figure 2).

    At most `most` chunks are run per repeat, and their time, not that of what is done once, is scaled to the whole grid.
    """
    device = torch.device(device)
    config = replace(config, rgb_head=False)
    weights = draw_parameters(config, torch.Generator(device).manual_seed(0), device=device)
    x = patches(torch.randn(1, 3, *config.image_size, device=device), config)
    codes = constants(config, x, formulation)
    seconds, peak = _measure(
        lambda: stages(weights, x, config, chunk, formulation=formulation, codes=codes, most=most), device, repeats
    )
    share = min(config.locations, chunk * most) / config.locations
    return Timing(formulation, chunk, *_summary([a + b / share + c for a, b, c in seconds]), share, peak)


def time_tower(name: str, *, device: torch.device | str = "cpu", repeats: int = 3) -> Timing:
    """Time for one image through an open_clip image tower."""
    device = torch.device(device)
    tower, size = image_tower(name, device), image_size(name)
    image = torch.randn(1, 3, size, size, device=device)
    seconds, peak = _measure(lambda: (tower(image) for _ in range(1)), device, repeats)
    return Timing(name, None, *_summary([whole for (whole,) in seconds]), cuda_peak=peak)


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
    them. The first rows count what published figures count, the others are like for like: from the image to its feature, all
    columns, image tower only. "meets it in" names the unit in which a count is within 3 % of the published figure, if any.
    Raises ValueError when there is no student, or REFERENCE is not among the towers.
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
    rows: list[dict[str, Any]] = []

    def add(network: str, counted: str, cost: Cost) -> None:
        text = said.get(network)
        units = (("multiply-adds", cost.gmac), ("operations", cost.gflop))
        meets = [name for name, value in units if text and abs(value / float(text) - 1) < 0.03]
        rows.append(
            {
                "network": network,
                "counted": counted,
                "columns": cost.columns or None,
                "parameters (M)": cost.parameters / 1e6,
                "multiply-adds (G)": cost.gmac,
                "operations (GFLOP)": cost.gflop,
                f"/ {REFERENCE} image": cost.forward / unit.forward,
                'published "GFLOPs"': Number(float(text), unit="", kind="published") if text else None,
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
    return pd.DataFrame(rows).set_index(["network", "counted"])


def ratios(student: APMConfig, iterations: int, published: pd.DataFrame) -> pd.DataFrame:
    """The student's operations over CLIP's, by what is put beside what: "one pass" (Figure 2), and all `iterations` (Table 4).

    Columns: ratio, published (that of the figures which the paper prints), beside (what the student stands beside).
    """
    image, both = tower_cost(REFERENCE), tower_cost(REFERENCE, "both")
    gradient = tower_backward(REFERENCE)
    b, large = (replace(student, width=feature_width(name)) for name in (REFERENCE, "ViT-L-14"))
    once = tower_cost(REFERENCE).forward
    of = {f: (student_cost(b, formulation=f), student_cost(large, formulation=f)) for f in FORMULATIONS}
    quarter = student_cost(b, math.prod(side // 2 for side in b.grid))
    half = student_cost(large, large.locations // 2, part="columns")
    fig2 = float(printed(published, "Fig 2", "APM", "GFLOPs total, 224x224 image")) / float(
        printed(published, "Fig 2", "CLIP ViT-B/16", "GFLOPs, 224x224 image")
    )
    table4 = number(printed(published, "Table 4", "APM Peak Use", "GFlops_meas")) / number(
        printed(published, "Table 4", "CLIP ViT-B/16", "GFlops_meas")
    )
    rows: dict[tuple[str, str], tuple[float, float | None, str]] = {
        ("one pass", "as published: MLP + head, half the columns"): (half.forward / both.forward, fig2, f"{REFERENCE}, image and one text"),
        ("one pass", f"student of {REFERENCE}, a picture of half the side, plain"): (quarter.forward / image.forward, fig2, f"{REFERENCE} image tower"),
    }  # fmt: skip
    for f, (small, wide) in of.items():
        rows["one pass", f"student of {REFERENCE}, {f}"] = (
            small.forward / image.forward,
            fig2,
            f"{REFERENCE} image tower",
        )
        rows["one pass", f"student of ViT-L-14, {f}"] = (wide.forward / image.forward, fig2, f"{REFERENCE} image tower")
    name, forward = f"{iterations} iterations", iterations * both.forward
    every = f"{REFERENCE}, image and one text in every iteration"
    for f, (cost, _) in of.items():
        looks = once + (iterations + 1) * cost.forward
        trained = looks + iterations * cost.backward
        rows[name, f"forward and backward beside forward alone, {f}"] = (trained / forward, table4, f"{every}, forward")
        rows[name, f"forward, {f}"] = (looks / forward, table4, f"{every}, forward")
        rows[name, f"forward and backward, {f}"] = (
            trained / (forward + iterations * gradient),
            table4,
            f"{every}, forward and backward",
        )
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=["ratio", "published", "beside"])
    frame.index = pd.MultiIndex.from_tuples(rows, names=["scope", "student"])
    frame["ratio"] = [Number(value, unit="ratio", kind="exact") for value in frame["ratio"]]
    frame["published"] = [Number(value, unit="ratio", kind="published") for value in frame["published"]]
    return frame


def ttt_costs(
    student: APMConfig, teachers: Sequence[str], iterations: int, tpt: Mapping[str, int], published: pd.DataFrame
) -> pd.DataFrame:
    """Multiply-adds of whole runs for one image: Table 4's counting first, then everything that a run computes.

    student: settings of the preset; its width follows the teacher. teachers: open_clip models; Table 4's is REFERENCE. tpt: views,
    classes, steps of test-time prompt tuning. Index run, counted. Columns in GMAC count 1e9 multiply-adds, the last count 1e9 operations. A run of
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
    return pd.DataFrame(rows).set_index(["run", "counted"])


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
            count = f"{chunk} at a time"
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
    return pd.DataFrame(rows).set_index(["what", "detail"])


def timing_table(timings: Sequence[Timing]) -> pd.DataFrame:
    """Seconds by network and columns at a time, costs of this machine. With CUDA's own peak of memory where there is one."""
    table = pd.DataFrame(
        {
            "network": [f"student, {t.name}" if t.chunk else f"{t.name} image tower" for t in timings],
            "columns at a time": [f"{t.chunk} at a time" if t.chunk else "" for t in timings],
            "seconds": [t.seconds for t in timings],
            "least": [t.least for t in timings],
            "most": [t.most for t in timings],
            "columns run (%)": [100 * t.measured for t in timings],
        }
    )
    if any(t.cuda_peak for t in timings):
        table["CUDA peak (MB)"] = [(t.cuda_peak or 0) / 1e6 for t in timings]
    return table.set_index(["network", "columns at a time"])


def time_ratios(timings: Sequence[Timing]) -> pd.DataFrame:
    """How much longer the smallest chunk takes than the fastest, by formulation, and the fastest beside the towers: median times."""
    towers = {t.name: t for t in timings if not t.chunk}
    rows = {}
    for f in dict.fromkeys(t.name for t in timings if t.chunk):
        own = sorted((t for t in timings if t.chunk and t.name == f), key=lambda t: t.chunk or 0)
        best = min(own, key=lambda t: t.seconds)
        rows[f, f"{own[0].chunk} at a time / the fastest number at a time"] = own[0].seconds / best.seconds
        rows[f, f"{own[0].chunk} at a time / all at once"] = own[0].seconds / own[-1].seconds
        for name, tower in towers.items():
            rows[f, f"all at once / {name} image tower"] = own[-1].seconds / tower.seconds
    return pd.DataFrame({"times": rows}).rename_axis(["student", "compared"])
