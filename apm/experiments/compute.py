"""What the student, its teachers and a whole test-time training run cost: operations, memory, time (Table 4, Figure 2).

A multiply-add of a matrix product, convolution or attention counts two operations; elementwise work is left out. Memory is the bytes of
live tensor storages, which repeat exactly. Counting needs no arithmetic: it runs on torch's meta device, at full size. Time is measured.
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
from unittest.mock import patch

import open_clip
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from apm import lockstep, model, project, ttt
from apm.analysis import numbers
from apm.model import APMConfig, Parameters

# "plain": every column is made and goes through the whole MLP, the head and the fold, as in paper and released code;
# "factorised": the identities of `apm.model`, same result
FORMULATIONS = ("plain", "factorised")
META = torch.device("meta")


class Cost(NamedTuple):
    """What one network costs for one image (or one text)."""

    parameters: int
    forward: int  # operations, two per multiply-add
    backward: int  # operations of the gradient of all parameters
    columns: int = 0  # of the student's grid; 0 for other networks

    @property
    def gmac(self) -> float:
        """Forward pass in 1e9 multiply-adds."""
        return self.forward / 2e9


def flops(fn: Callable[[], Any]) -> int:
    """Operations (2 per multiply-add) of matrix products, convolutions and attention in fn(), its backward passes included."""
    # with gradients: without, PyTorch may run a transformer block as one fused kernel, which the counter does not know
    with lockstep.caller_free(), FlopCounterMode(display=False) as counter:
        fn()
    return int(counter.get_total_flops())


def _passes(run: Callable[[], Tensor], inputs: Iterable[Tensor]) -> tuple[int, int]:
    """Operations of run(), and of the gradient of its sum with respect to inputs."""
    forward = flops(run)
    return forward, flops(lambda: torch.autograd.grad(run().sum(), tuple(inputs), allow_unused=True)) - forward


@dataclass
class Student:
    """A student without RGB head, and the patches x (1, L, 3*p*p) of one image."""

    config: APMConfig
    weights: Parameters
    x: Tensor
    formulation: str = "plain"

    def __post_init__(self) -> None:
        config, x, self.plain = self.config, self.x, self.formulation == "plain"
        # what it keeps beside its weights: P (h*w, positions) where every column is made, P_out (h*w, D) for attention
        code = model.positional_encoding(config.grid, config.positions, dtype=x.dtype, device=x.device)
        self.code: Any = code.flatten(0, 1) if self.plain else None
        self.code_out: Any = model.output_code(config, x) if config.fold == "attention" else None

    @classmethod
    def random(cls, config: APMConfig, formulation: str, device: torch.device | str = META) -> Student:
        """One with random weights, and a random image."""
        config, device = replace(config, rgb_head=False), torch.device(device)
        weights = model.draw_parameters(config, torch.Generator(device) if device != META else None, device=device)
        x = model.patches(torch.randn(1, 3, *config.image_size, device=device), config)
        return cls(config, weights, x, formulation)

    @property
    def held(self) -> list[Tensor]:
        """Its weights, patches and positional codes."""
        codes = [code for code in (self.code, self.code_out) if code is not None]
        return [*self.weights.values(), self.x, *codes]

    def features(self, queries: Tensor) -> Tensor:
        """Columns (l, query_width) -> features (l, D): the whole MLP and the head on every one."""
        weights = self.weights
        for layer in range(len(self.config.hidden)):
            queries = torch.addmm(weights[f"mlp{layer}_bias"], queries, weights[f"mlp{layer}_weight"]).relu_()
        return torch.addmm(weights["head_bias"], queries, weights["head_weight"])

    def stages(self, chunk: int, most: int | None = None) -> Iterator[Any]:
        """From the patches to the folded feature (D,), `chunk` columns at a time, at most `most` times, folded as they come.

        Yields None when the trigger column is there, None when all columns are done, and the feature. Raises ValueError for a chunk below 1.
        """
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1 column, found {chunk}")
        config, weights = self.config, self.weights
        percept = model.perceive(weights, self.x, config)
        shared = None if self.plain else model.shared_products(weights, percept, config)
        released = self.plain and config.fold == "attention"
        fold: Any = (_PlainAttention if released else model.OnlineFold)(weights, config, self.code_out)
        yield None
        for places in torch.arange(config.locations, device=self.x.device).split(chunk)[:most]:
            # nothing here has a name: it is freed once it has been read
            fold.update(
                self.features(model.unfold(percept, config, places, self.code)[0])[None]
                if self.plain
                else model.head(weights, model.activations(weights, percept, config, places, shared)),
                places,
            )
        yield None
        yield fold.result()[0]


class _PlainAttention:
    """The released fold, a chunk of columns at a time: keys and values of every column's f + P_out, one learned query."""

    def __init__(self, weights: Parameters, config: APMConfig, code: Tensor) -> None:
        self.weights, self.heads, self.code = weights, config.heads, code
        d = config.width
        w_q, self.w_kv = weights["fold_in_weight"].split([d, 2 * d], dim=1)
        b_q, self.b_kv = weights["fold_in_bias"].split([d, 2 * d])
        query = self._by_head(torch.addmm(b_q, weights["fold_query"][None], w_q))
        self.query = query / math.sqrt(d // config.heads)  # (heads, 1, D / heads)
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


@lockstep.caller_free()
def student_cost(
    config: APMConfig, columns: int | None = None, *, formulation: str = "plain", part: str = "all"
) -> Cost:
    """Parameters and operations of one forward and one backward pass of the student, without RGB head, for one image (sections 3.2 to 3.6).

    Of the plain formulation, columns: how many are evaluated; part: "all", or "columns": from given columns, MLP and head only.
    """
    student = Student.random(config, formulation)
    config, weights, n = student.config, student.weights, columns or config.locations
    queries = torch.empty(n, config.query_width, device=META, requires_grad=True)

    def run() -> Tensor:
        if part == "columns":
            return student.features(queries)
        if student.plain:
            return [*student.stages(n, most=1)][-1]
        percept = model.perceive(weights, student.x, config)
        return model.fold(weights, model.activations(weights, percept, config), config)

    trained = [weight.requires_grad_() for weight in weights.values()]
    return Cost(model.count_parameters(config), *_passes(run, [*trained, queries]), n)


@functools.cache
def clip_model(name: str) -> Any:
    """An open_clip model in evaluation mode on the meta device: shapes, no weights. Raises ValueError for an unknown name."""
    if name not in open_clip.list_models():
        raise project.unknown("open_clip model", name, open_clip.list_models())
    with META, patch.object(logging.root, "disabled", True):  # it warns that the model is untrained
        return open_clip.create_model(name, device="meta", load_weights=False).eval()


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
    """D, the width of an open_clip model's image feature."""
    return int(clip_model(name).visual.output_dim)


def image_size(name: str) -> int:
    """Side in pixels of the images that an open_clip model reads."""
    size = clip_model(name).visual.image_size
    return int(size[0] if isinstance(size, (tuple, list)) else size)


@functools.cache
@lockstep.caller_free()
def tower_cost(name: str, tower: str = "image") -> Cost:
    """Parameters and operations of an open_clip model's "image" tower, "text" tower (one text), or both."""
    if tower == "both":
        return Cost(*map(sum, zip(tower_cost(name), tower_cost(name, "text"), strict=True)))
    clip = clip_model(name)
    own = list(clip.visual.parameters())
    run = functools.partial(clip.encode_image, torch.empty(1, 3, *[image_size(name)] * 2, device=META))
    if tower == "text":
        run, of_image = _one_text(clip), {id(weight) for weight in own}
        own = [weight for weight in clip.parameters() if id(weight) not in of_image]
    return Cost(sum(weight.numel() for weight in own), *_passes(run, own))


def _one_text(clip: Any) -> functools.partial[Tensor]:
    return functools.partial(clip.encode_text, torch.zeros(1, clip.context_length, dtype=torch.long, device=META))


def prompt_backward(name: str) -> int:
    """Operations of the gradient of one text's feature with respect to its input tokens, all weights frozen (prompt tuning)."""
    clip = clip_model(name)  # tokens are looked up: no matrix product
    return _passes(_one_text(clip), [clip.token_embedding.weight])[1]


class Memory(NamedTuple):
    """Bytes of live tensors."""

    held: int  # there before the run: weights and inputs
    peak: int  # most during the run, `held` included

    @property
    def added(self) -> int:
        """Bytes above what was held."""
        return self.peak - self.held


class _Tracker(TorchDispatchMode):
    """Follows the bytes of tensor storages, views counted once, from the operation that makes them until nothing refers to them."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: dict[int, weakref.finalize] = {}

    def hold(self, tensors: Iterable[Tensor]) -> None:
        for storage in (tensor.untyped_storage() for tensor in tensors):
            key, size = storage._cdata, storage.nbytes()
            if key not in self.known:
                self.known[key] = weakref.finalize(storage, self.release, key, size)
                self.live += size
        self.peak = max(self.peak, self.live)

    def release(self, key: int, size: int) -> None:
        self.known.pop(key, None)
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.hold(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return result


def memory(fn: Callable[[], Any], held: Iterable[Tensor] = ()) -> Memory:
    """Peak bytes of live tensors while fn() runs, on top of the tensors held before it; on any device, in this thread."""
    for made in (model.position_codes, model._code_rows):  # those that an earlier run made would not be counted
        made.cache_clear()
    tracker = _Tracker()
    tracker.hold(held)
    before, collecting = tracker.live, gc.isenabled()
    gc.disable()  # when cycles are collected depends on what ran before
    try:
        with tracker:
            fn()
    finally:
        if collecting:
            gc.enable()
    return Memory(before, tracker.peak)


def chunk_cost(config: APMConfig, chunk: int, *, formulation: str = "plain") -> tuple[int, Memory]:
    """Operations, and memory, of the whole student for one image, `chunk` columns at a time; no gradients. Raises as `Student.stages`."""
    student = Student.random(config, formulation)

    def run(most: int) -> None:
        with torch.no_grad():
            list(student.stages(chunk, most))

    one, two = (flops(functools.partial(run, most)) for most in (1, 2))  # every further column costs the same
    count = one + round((two - one) * (config.locations / chunk - 1))
    # from the second chunk on each finds what was folded so far beside it
    return count, memory(lambda: run(3), student.held)


def tower_memory(name: str) -> Memory:
    """Memory of one image through an open_clip image tower on the CPU, without gradients; held are the weights and the image."""
    tower, size = image_tower(name, "cpu"), image_size(name)
    image = torch.zeros(1, 3, size, size)
    with torch.no_grad():
        return memory(lambda: tower(image), [*tower.parameters(), image])


def _random_case(config: ttt.TTTConfig, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """A random image (1, 3, H, W) and a random target (1, D): costs do not depend on what they show."""
    source = torch.Generator().manual_seed(0)
    sizes = (1, 3, *config.student.image_size), (1, config.student.width)
    image, target = (torch.randn(size, generator=source).to(device) for size in sizes)
    return image, target


class _Uncomputed(TorchDispatchMode):
    """What `flops` counts gives zeros instead of being computed: costs depend on sizes only, and some CPUs but emulate bfloat16."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._overloadpacket not in flop_registry:
            return func(*args, **(kwargs or {}))
        sizes = func(*tree_map_only(Tensor, lambda value: value.to(META), args), **(kwargs or {}))
        return tree_map_only(Tensor, lambda value: torch.zeros_like(value, device="cpu"), sizes)


def ttt_run(config: ttt.TTTConfig) -> tuple[int, Memory]:
    """Operations and memory of `apm.ttt.adapt` itself for one random image on the CPU, its matrix products not computed."""
    image, target = _random_case(config, "cpu")
    found: list[Memory] = []
    with _Uncomputed():
        count = flops(lambda: found.append(memory(lambda: ttt.adapt(image, target, config), [image, target])))
    return count, found[0]


def hardware(device: torch.device | str) -> str:
    """The device that times were taken on, in words."""
    found, n = numbers.machine(), torch.get_num_threads()
    cpu = f"{found['cpu']}, {n} thread{'s' * (n > 1)}, {found['capability']}, torch {found['torch']}"
    return f"{torch.cuda.get_device_name(device)} with {cpu}" if torch.device(device).type == "cuda" else cpu


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _timed(
    network: str, chunk: str, passes: Callable[[], Iterator[Any]], device: torch.device, repeats: int, share: float = 1
) -> dict[str, Any]:
    """A row of times of passes(), after one to warm up. Of three stages the second was run for a share of the columns: it is scaled."""
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, found {repeats}")
    seconds, cuda = [], device.type == "cuda"
    with torch.inference_mode():
        for repeat in range(repeats + 1):
            if repeat == 1 and cuda:
                torch.cuda.reset_peak_memory_stats(device)
            marks = [_clock(device), *(_clock(device) for _ in passes())]
            parts = [b - a for a, b in itertools.pairwise(marks)]
            seconds.append(sum(parts) + sum(parts[1:2]) * (1 / share - 1))
    own = seconds[1:]
    row = {"network": network, "columns at a time": chunk, "seconds": statistics.median(own)}
    row |= {"least": min(own), "most": max(own), "columns run (%)": 100 * share}
    return row | ({"CUDA peak (MB)": torch.cuda.max_memory_allocated(device) / 1e6} if cuda else {})


def time_columns(
    config: APMConfig, chunk: int, *, formulation: str = "plain", device: Any = "cpu", repeats: int = 3, most: int = 8
) -> dict[str, Any]:
    """Seconds of the whole student for one image, `chunk` columns at a time (Figure 2); at most `most` chunks are run, and their time is
    scaled to the whole grid."""
    device = torch.device(device)
    run = functools.partial(Student.random(config, formulation, device).stages, chunk, most)
    share = min(config.locations, chunk * most) / config.locations
    return _timed(f"student, {formulation}", f"{chunk} at a time", run, device, repeats, share)


def time_tower(name: str, *, device: torch.device | str = "cpu", repeats: int = 3) -> dict[str, Any]:
    """Seconds for one image through an open_clip image tower, as `time_columns`."""
    device = torch.device(device)
    tower, size = image_tower(name, device), image_size(name)
    image = torch.randn(1, 3, size, size, device=device)
    return _timed(f"{name} image tower", "", lambda: map(tower, [image]), device, repeats)


def emulated(precision: str, device: torch.device | str) -> bool:
    """Whether a device has no bfloat16 arithmetic: emulated by a CPU, it takes tens of times as long as float32."""
    if precision != "bfloat16":
        return False
    if torch.device(device).type == "cuda":
        return not torch.cuda.is_bf16_supported(including_emulation=False)
    return not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def time_ttt(config: ttt.TTTConfig, *, device: torch.device | str = "cpu") -> dict[str, float]:
    """Seconds of `apm.ttt.adapt` on one random image; NaN, and no iteration timed, where its precision is `emulated`.

    The first iteration warms up, on a GPU also those in which the CUDA graph is captured. ValueError where none is left.
    """
    device, iterations = torch.device(device), config.iterations
    first = lockstep.WARM_UP + 1 if device.type == "cuda" else 1
    if iterations <= first:
        needed = f"at least {first + 1} are needed, found {iterations}"
        raise ValueError(f"the first {first} iteration(s) on {device.type} warm up: {needed}")
    names = ("start (s)", "iteration (s)", "iterations timed", "last look (s)")
    if emulated(config.precision, device):
        return dict(zip(names, (math.nan, math.nan, 0, math.nan), strict=True))
    image, target = _random_case(config, device)
    if device.type == "cuda":
        ttt.adapt(image, target, config)
    stamps: dict[int, float] = {}

    def stamp(k: int, part: slice, weights: Mapping[str, Tensor]) -> None:  # before update k + 1
        if k in (0, first, iterations):
            stamps[k] = _clock(device)

    begin = _clock(device)
    ttt.adapt(image, target, config, callback=stamp)
    end, last, timed = _clock(device), stamps[iterations], iterations - first
    return dict(zip(names, (stamps[0] - begin, (last - stamps[first]) / timed, timed, end - last), strict=True))
