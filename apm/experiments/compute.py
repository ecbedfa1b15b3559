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

import copy
import functools
import gc
import itertools
import logging
import math
import statistics
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import open_clip
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from apm import lockstep, model, project, ttt
from apm.analysis import numbers
from apm.model import APMConfig, Parameters

# "plain": every column is made and goes through the whole MLP, the head and the fold, as in paper and released code;
# "factorised": the identities of `apm.model`, same result
FORMULATIONS = ("plain", "factorised")
META = torch.device("meta")


# ------------------------------------------------------------------------------------------------------------- operations


@dataclass(frozen=True)
class Cost:
    """What one network costs for one image (or one text)."""

    parameters: int
    forward: int  # operations, two per multiply-add
    backward: int  # operations of the gradient of all parameters
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

    columns: how many columns of the grid are evaluated; default all. part: "all": from the image to the folded feature;
    "columns": from given columns to their features, MLP and head only. Both are choices of the plain formulation.
    The RGB head is not evaluated in test-time training: neither its operations nor its weights count.
    """
    config = replace(config, rgb_head=False)
    n = columns or config.locations
    weights = {name: value.requires_grad_() for name, value in model.draw_parameters(config, device=META).items()}
    x = torch.empty(1, config.locations, 3 * config.patch**2, device=META)
    queries = torch.empty(n, config.query_width, device=META, requires_grad=True)

    def run() -> Tensor:
        if part == "columns":
            return _plain_features(weights, queries, config)
        if formulation == "factorised":
            return model.fold(weights, model.activations(weights, model.perceive(weights, x, config), config), config)
        return image_to_feature(weights, x, config, n, most=1)

    forward = flops(run)
    return Cost(model.count_parameters(config), forward, flops(lambda: run().sum().backward()) - forward, n)


# ------------------------------------------------------------------------------------------ the whole student, in chunks


def _plain_features(weights: Parameters, x: Tensor, config: APMConfig) -> Tensor:
    """Columns (l, query_width) -> features (l, D): the whole MLP and the head on every one."""
    for layer in range(len(config.hidden)):
        x = torch.addmm(weights[f"mlp{layer}_bias"], x, weights[f"mlp{layer}_weight"]).relu_()
    return torch.addmm(weights["head_bias"], x, weights["head_weight"])


class _PlainAttention:
    """The released fold, a chunk of columns at a time: keys and values of every column's f + P_out, one learned query."""

    def __init__(self, weights: Parameters, config: APMConfig, code: Tensor) -> None:
        self.weights, self.heads, self.code = weights, config.heads, code
        d = config.width
        self.w_q, self.w_kv = weights["fold_in_weight"].split([d, 2 * d], dim=1)
        self.b_q, self.b_kv = weights["fold_in_bias"].split([d, 2 * d])
        self.query = self._by_head(torch.addmm(self.b_q, weights["fold_query"][None], self.w_q))
        self.query = self.query / math.sqrt(d // config.heads)  # (heads, 1, D / heads)
        self.seen: Any = -math.inf, 0.0, 0.0  # largest score, weight, weighted values

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(0, 1)

    def update(self, features: Tensor, places: Tensor) -> None:
        both = torch.addmm(self.b_kv, features[0] + self.code[places], self.w_kv)  # (l, 2 D)
        keys, values = map(self._by_head, both.chunk(2, dim=1))
        scores = self.query @ keys.mT  # (heads, 1, l)
        before, weight, pooled = self.seen
        top = scores.amax(dim=-1, keepdim=True).clamp(min=before)
        kept, share = (before - top).exp(), (scores - top).exp()
        self.seen = top, weight * kept + share.sum(dim=-1, keepdim=True), pooled * kept + share @ values

    def result(self) -> Tensor:
        _, weight, pooled = self.seen
        values = (pooled / weight).flatten()[None]
        return torch.addmm(self.weights["fold_out_bias"], values, self.weights["fold_out_weight"])


def constants(config: APMConfig, like: Tensor, formulation: str) -> dict[str, Tensor]:
    """What a student keeps beside its weights: P (h*w, positions) where every column is made, P_out (h*w, D) for attention."""
    found = {}
    if formulation == "plain":
        code = model.positional_encoding(config.grid, config.positions, dtype=like.dtype, device=like.device)
        found["code"] = code.flatten(0, 1)
    if config.fold == "attention":
        found["code_out"] = model.output_code(config, like)
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

    Yields None when the trigger column is there, None when all columns are done, and the folded feature (D,). Factorised columns
    are those of `apm.model.APM.stream` and `OnlineFold`: they come one by one, so each needs the head. codes: `constants` made
    beforehand. Raises ValueError for a chunk below 1.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1 column, found {chunk}")
    plain = formulation == "plain"
    codes = constants(config, x, formulation) if codes is None else codes
    percept = model.perceive(weights, x, config, tokens)
    shared = None if plain else model.shared_products(weights, percept, config)
    if plain and config.fold == "attention":
        folded: Any = _PlainAttention(weights, config, codes["code_out"])
    else:
        folded = model.OnlineFold(weights, config, codes.get("code_out"))
    yield None
    for places in torch.arange(config.locations, device=x.device).split(chunk)[:most]:
        # nothing here has a name: it is freed once it has been read
        folded.update(
            _plain_features(weights, model.unfold(percept, config, places, codes["code"])[0], config)[None]
            if plain
            else model.head(weights, model.activations(weights, percept, config, places, shared)),
            places,
        )
    yield None
    yield folded.result()[0]


def image_to_feature(weights: Parameters, x: Tensor, config: APMConfig, chunk: int, **options: Any) -> Tensor:
    """The feature (D,) at the end of `stages`."""
    *_, feature = stages(weights, x, config, chunk, **options)
    assert feature is not None
    return feature


# ----------------------------------------------------------------------------------------------------------------- towers


@functools.cache
def clip_model(name: str) -> Any:
    """An open_clip model in evaluation mode on the meta device: all shapes, no weights, hardly any time or memory.

    Raises ValueError with the known names for an unknown one.
    """
    if name not in open_clip.list_models():
        raise project.unknown("open_clip model", name, open_clip.list_models())
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it warns that the model is untrained
    try:
        with META:
            return open_clip.create_model(name, device="meta", load_weights=False).eval()
    finally:
        logging.disable(level)


def image_tower(name: str, device: torch.device | str) -> nn.Module:
    """The image tower of an open_clip model with random weights, ready to be timed. Raises ValueError for an unknown name."""
    tower: nn.Module = copy.deepcopy(clip_model(name).visual).to_empty(device=torch.device(device))
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for weight in (*tower.parameters(), *tower.buffers()):
            if weight.is_floating_point():
                weight.normal_(0, 0.02, generator=generator)
    return tower


def feature_width(name: str) -> int:
    """D, the width of an open_clip model's image feature. Raises ValueError for an unknown name."""
    return int(clip_model(name).visual.output_dim)


def image_size(name: str) -> int:
    """Side in pixels of the images that an open_clip model reads."""
    size = clip_model(name).visual.image_size
    return int(size[0] if isinstance(size, (tuple, list)) else size)


@functools.cache
@lockstep.caller_free()
def tower_cost(name: str, tower: str = "image") -> Cost:
    """Parameters and operations of an open_clip model's "image" tower, "text" tower (one text), or "both".

    Raises ValueError for an unknown model.
    """
    clip = clip_model(name)
    if tower == "both":
        image, text = tower_cost(name), tower_cost(name, "text")
        return Cost(image.parameters + text.parameters, image.forward + text.forward, image.backward + text.backward)
    parameters = sum(p.numel() for p in clip.visual.parameters())
    if tower == "image":
        run = functools.partial(clip.encode_image, torch.empty(1, 3, *[image_size(name)] * 2, device=META))
    else:
        parameters = sum(p.numel() for p in clip.parameters()) - parameters
        run = functools.partial(clip.encode_text, _a_text(clip))
    forward = flops(run)
    return Cost(parameters, forward, flops(lambda: run().sum().backward()) - forward)


def _a_text(clip: Any) -> Tensor:
    return torch.zeros(1, clip.context_length, dtype=torch.long, device=META)


def prompt_backward(name: str) -> int:
    """Operations of the gradient of one text's feature with respect to its input tokens, all weights frozen (prompt tuning)."""
    clip = clip_model(name)
    inputs = clip.token_embedding.weight  # a look-up: its own gradient is no matrix product
    count = flops(lambda: torch.autograd.grad(clip.encode_text(_a_text(clip)).sum(), inputs))
    return count - tower_cost(name, "text").forward


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

    Held are weights, patches and positional codes. Raises ValueError for a chunk below 1.
    """
    config = replace(config, rgb_head=False)
    weights = model.draw_parameters(config, device=META)
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


class Timing(NamedTuple):
    """Seconds for one image: median, least and most over repeats."""

    network: str
    chunk: int | None  # columns at a time; None for a tower
    seconds: float
    least: float
    most: float
    share: float = 1.0  # of the image's columns that was run; the seconds are for all of them
    cuda_peak: int | None = None  # bytes that CUDA's allocator reported, on a GPU


def hardware(device: torch.device | str) -> str:
    """The device that times were taken on, in words."""
    machine, threads = numbers.machine(), torch.get_num_threads()
    about = (
        f"{machine['cpu']}, {threads} thread{'s' * (threads > 1)}, {machine['capability']}, torch {machine['torch']}"
    )
    return f"{torch.cuda.get_device_name(device)} with {about}" if torch.device(device).type == "cuda" else about


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _measure(
    network: str,
    chunk: int | None,
    passes: Callable[[], Iterator[Any]],
    device: torch.device,
    repeats: int,
    share: float = 1.0,
) -> Timing:
    """Time of passes(), after one run to warm up. Of three stages the second was run for a share of the columns: it is scaled."""
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, found {repeats}")
    seconds, cuda = [], device.type == "cuda"
    with torch.inference_mode():
        for repeat in range(repeats + 1):
            if repeat == 1 and cuda:
                torch.cuda.reset_peak_memory_stats(device)
            marks = [_clock(device)]
            marks += [_clock(device) for _ in passes()]
            stages = [b - a for a, b in itertools.pairwise(marks)]
            seconds.append(sum(stages) + sum(stages[1:2]) * (1 / share - 1))
    own = seconds[1:]
    peak = torch.cuda.max_memory_allocated(device) if cuda else None
    return Timing(network, chunk, statistics.median(own), min(own), max(own), share, peak)


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
    weights = model.draw_parameters(config, torch.Generator(device).manual_seed(0), device=device)
    x = model.patches(torch.randn(1, 3, *config.image_size, device=device), config)
    options: Any = {"formulation": formulation, "codes": constants(config, x, formulation), "most": most}
    share = min(config.locations, chunk * most) / config.locations
    return _measure(
        f"student, {formulation}", chunk, lambda: stages(weights, x, config, chunk, **options), device, repeats, share
    )


def time_tower(name: str, *, device: torch.device | str = "cpu", repeats: int = 3) -> Timing:
    """Time for one image through an open_clip image tower."""
    device = torch.device(device)
    tower, size = image_tower(name, device), image_size(name)
    image = torch.randn(1, 3, size, size, device=device)
    return _measure(f"{name} image tower", None, lambda: (tower(image) for _ in range(1)), device, repeats)


class RunTiming(NamedTuple):
    """Seconds of a test-time training run on one image."""

    start: float  # until the first iteration: the weights are drawn
    iteration: float  # mean of those measured: forward, backward, Adam
    look: float  # from the last update to the result: the forward pass with the final weights
    measured: int  # iterations

    def extrapolated(self, iterations: int) -> float:
        """Seconds of a run of that many iterations, without what warms up."""
        return self.start + iterations * self.iteration + self.look


def time_ttt(config: ttt.TTTConfig, *, device: torch.device | str = "cpu") -> RunTiming:
    """Time `apm.ttt.adapt` on one random image.

    All iterations are timed together, but for the first, which warms up. On a GPU the first updates choose kernels and capture the
    CUDA graph that all later ones replay: `lockstep.WARM_UP` + 1 warm up, after an untimed run in which the libraries start. Raises
    ValueError where no iteration is left.
    """
    device = torch.device(device)
    first = lockstep.WARM_UP + 1 if device.type == "cuda" else 1
    if config.iterations <= first:
        raise ValueError(
            f"the first {first} iteration(s) on {device.type} warm up: at least {first + 1} are needed, found {config.iterations}"
        )
    image, target = random_case(config, device)
    if device.type == "cuda":
        ttt.adapt(image, target, config)
    stamps: dict[int, float] = {}

    def stamp(k: int, part: slice, weights: Mapping[str, Tensor]) -> None:  # before update k + 1
        if k in (0, first, config.iterations):
            stamps[k] = _clock(device)

    begin = _clock(device)
    ttt.adapt(image, target, config, callback=stamp)
    end, last, measured = _clock(device), stamps[config.iterations], config.iterations - first
    return RunTiming(stamps[0] - begin, (last - stamps[first]) / measured, end - last, measured)
