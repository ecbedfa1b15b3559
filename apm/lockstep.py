"""How students train side by side: their stacked weights and Adam, a CUDA graph of one update, a part per core, halves when memory ends.

Knows nothing of the APM: it is given a function from (weights, inputs) to the loss of every student. Weights are stacked on a
leading axis, no parameter is shared and Adam acts elementwise, so N students train exactly as each would alone.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Protocol

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
Step = Callable[[], tuple[Tensor, Tensor]]
Objective = Callable[..., tuple[Tensor, Tensor]]
WARM_UP = 3  # updates before the capture, in which libraries choose and allocate
SMALL = 200_000_000  # multiply-adds of one operation that a single core does in a few milliseconds


class Schedule(Protocol):
    """What it reads of `apm.ttt.TTTConfig`."""

    @property
    def learning_rate(self) -> float: ...
    @property
    def decay_every(self) -> int: ...
    @property
    def decay(self) -> float: ...
    @property
    def carried(self) -> bool: ...


class Lockstep:
    """n students in training: weights (n, ...), what they read, Adam, its rate.

    objective(weights, inputs) -> loss (n,), output (n, D). On a GPU an update is hundreds of kernels of microseconds each, so
    starting them takes longer than running them: after `WARM_UP` updates one is captured as a CUDA graph and replayed.
    """

    def __init__(self, objective: Objective, device: torch.device, config: Schedule, capture: bool = True) -> None:
        self.objective, self.device, self.config = objective, device, config
        self.capture = capture and not config.carried and _captures(device)
        # as released: its division of .grad in place is all that keeps gradients from adding up, so it has to be the same one
        self.scaler = torch.amp.GradScaler(device.type) if config.carried else None
        self.replay: Step | None = None
        self.weights: Tensors = {}
        self.inputs: Tensors = {}
        self.updates = 0

    def start(self, weights: Tensors, inputs: Tensors) -> None:
        """New students and images. By the released protocol Adam, schedule and scaler run on from those before."""
        rate = self.config.learning_rate
        if not self.weights:
            self.weights = {name: value.requires_grad_() for name, value in weights.items()}
            self.inputs = {name: value.clone() for name, value in inputs.items()}  # later ones are copied into them
            a_tensor = torch.tensor(rate, dtype=torch.float32, device=self.device)  # a graph reads it anew
            lr = a_tensor if self.capture else rate
            self.adam = torch.optim.Adam(list(self.weights.values()), lr=lr, fused=True, capturable=self.capture)
        else:  # in place: a graph reads and writes where it did when it was captured
            with torch.no_grad():
                for there, new in ((self.weights, weights), (self.inputs, inputs)):
                    for name, value in new.items():
                        there[name].copy_(value)
        if not self.config.carried:
            self.updates = 0
            for value in itertools.chain.from_iterable(s.values() for s in self.adam.state.values()):
                value.zero_()
            self._set_rate(rate)
        self.adam.zero_grad()

    def update(self, views: Tensors | None = None) -> tuple[Tensor, Tensor]:
        """One step of Adam; returns loss (n,) and output (n, D) before it. views: inputs that stand in for those looked at."""

        def step() -> tuple[Tensor, Tensor]:
            with torch.set_grad_enabled(views is None):
                loss, output = self.objective(self.weights, self.inputs)
            seen = loss.detach(), output.detach()
            if views is not None:
                loss, _ = self.objective(self.weights, {**self.inputs, **views})
            if self.scaler is None:
                self.adam.zero_grad()
                loss.sum().backward()  # each student gets the gradient of its own loss
                self.adam.step()
            else:  # gradients are zeroed by `start` only; what earlier steps left is divided with the new ones
                self.scaler.scale(loss.sum()).backward()
                self.scaler.unscale_(self.adam)
                self.scaler.step(self.adam)  # not one that is infinite
                self.scaler.update()
            return seen

        if self.capture and self.replay is None and self.updates == WARM_UP:
            self.adam.zero_grad()  # the gradients' memory has to be the graph's
            try:
                self.replay = _captured(step)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self.capture = False
                warnings.warn(f"no CUDA graph, training goes on without it, slower: {error}", stacklevel=2)
        result = self.replay() if self.replay else _aside(step) if self.capture else step()
        self.updates += 1
        if self.updates % self.config.decay_every == 0:
            self._set_rate(self.adam.param_groups[0]["lr"] * self.config.decay)
        return result

    @torch.no_grad()
    def look(self) -> tuple[Tensor, Tensor]:
        """Loss and output as they are."""
        return self.objective(self.weights, self.inputs)

    def _set_rate(self, rate: float | Tensor) -> None:
        (group,) = self.adam.param_groups
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def _captures(device: torch.device) -> bool:
    """Whether updates can be captured as CUDA graphs."""
    return device.type == "cuda" and torch.version.hip is None


def _aside(step: Step) -> tuple[Tensor, Tensor]:
    """step() on a stream of its own, as it has to be before a capture."""
    current, stream = torch.cuda.current_stream(), torch.cuda.Stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        result = step()
    current.wait_stream(stream)
    for value in result:
        value.record_stream(current)  # its memory is not given to others before this stream has read it
    return result


def _captured(step: Step) -> Step:
    """A function that replays what step() does on the GPU, its results in the same memory every time.

    The capture itself changes nothing. Raises RuntimeError where the step holds something that a graph cannot.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()

    def replay() -> tuple[Tensor, Tensor]:
        graph.replay()
        return result

    return replay


def parts(n: int, size: int, device: torch.device) -> list[slice]:
    """n images in parts of at most `size`; on a CPU in four or more of 8 images each, of equal length: no core waits."""
    count = math.ceil(n / size)
    if device.type == "cpu":
        count = max(count, min(4, n // 8))
    bounds = [i * n // max(count, 1) for i in range(count + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(bounds)]


def side_by_side(
    train: Callable[[slice], Tensors], chosen: list[slice], device: torch.device, product: float = math.inf
) -> list[Tensors]:
    """train(part) for all parts; on a CPU one part per core at a time, each with single-threaded operations.

    Cores then meet once per part and not in every operation: a little faster on an idle machine, many times on a busy one, and
    rounding does not depend on the number of cores. A single part gets all cores when its operations are large (product).
    """
    if device.type != "cpu" or (len(chosen) == 1 and product > SMALL):
        return [result for part in chosen for result in _or_halves(train, part)]
    cores = torch.get_num_threads()
    try:
        if min(cores, len(chosen)) <= 1:  # in this thread, where a FlopCounterMode or a profiler of the caller sees it
            torch.set_num_threads(1)
            return [train(part) for part in chosen]
        with ThreadPoolExecutor(min(cores, len(chosen)), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(train, chosen))
    finally:
        torch.set_num_threads(cores)  # the number also serves as the default of threads that start later


def _or_halves(train: Callable[[slice], Tensors], part: slice) -> list[Tensors]:
    """train(part); where a GPU's memory does not hold it, its halves one after the other, down to a single image."""
    n = part.stop - part.start
    try:
        return [train(part)]
    except torch.OutOfMemoryError:
        if n == 1:
            raise
    torch.cuda.empty_cache()
    warnings.warn(
        f"{n} students side by side do not fit into the GPU's memory: going on with {n // 2} (lockstep: {n // 2})",
        stacklevel=2,
    )
    middle = part.start + n // 2
    return [*_or_halves(train, slice(part.start, middle)), *_or_halves(train, slice(middle, part.stop))]


@contextmanager
def caller_free() -> Iterator[None]:
    """Gradients on and autocast off, whatever the caller's mode: for all that trains. Also a decorator.

    Tensors that were made in inference mode have to be copied inside before anything is trained on them.
    """
    with ExitStack() as modes:
        modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.enable_grad())
        for kind in filter(torch.is_autocast_enabled, ("cpu", "cuda")):
            # without its cache, also for what enters autocast inside: it would keep rounded weights from before a step
            modes.enter_context(torch.autocast(kind, enabled=False, cache_enabled=False))
        yield


@contextmanager
def on_device(device: torch.device, precision: str) -> Iterator[None]:
    """The GPU in question as the current one, its float32 products rounded to TF32 for that precision and no other."""
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        with torch.cuda.device(device):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def stop_non_finite(losses: Tensor, outputs: Tensor) -> list[str]:
    """Status of every image; entries from the first non-finite loss on become NaN."""
    status = []
    for row, good in enumerate((losses.isfinite() & outputs.isfinite().all(dim=-1)).tolist()):
        first = good.index(False) if False in good else len(good)
        losses[row, first:] = outputs[row, first:] = math.nan
        status.append("ok" if first == len(good) else f"non-finite loss at iteration {first}")
    return status
