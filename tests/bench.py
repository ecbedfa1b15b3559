"""Speed of test-time training as ratios within one run: `make bench`.

Scale `mini` compares `apm.ttt.adapt` with the plain formulation of tests/plain.py, looped image by image, on the same images,
targets and number of iterations, with all threads and with one. Scale `paper` (448 px, 32 x 32 columns, 22.8 M weights) compares one
iteration of it with the released form (every image 8 times in the batch, columns in chunks of 16) and with the plain formulation
without the repeats, each in float32 and under bfloat16 autocast, as the release runs; on a GPU too where there is one. A factor is taken
within one precision. Its share of the teacher: the released form encodes it in every iteration, ours once for `RUN` iterations. The
factor is split into what the repeats, the factorised form and the rest, efficiency, make of it.

Variants take turns, so that a machine that slows down slows all of them; a round in which a variant took more than `DISTURBED` times
its median is measured again, and a variant that stays unsteady is marked. Medians are reported. Matrix peak and memory bandwidth are
measured in the same run. Writes results/bench/<scale>.{csv,md}.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent))
import plain

from apm import ttt
from apm.experiments import compute
from apm.model import parameter_shapes, preset
from apm.project import atomic_write, root
from apm.ttt import TTTConfig

CPU = torch.device("cpu")
TEACHER = "ViT-L-14"  # of the released script
RUN = 20  # iterations of one image, over which one pass of the teacher is spread
DISTURBED = 1.25  # times a variant's median from which a round is taken to have met another process


def in_turn(variants: Mapping[str, Callable[[], float]], repeats: int) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds of every variant, in rounds in which they take turns after one to warm up; and which are unsteady.

    What another process disturbed is measured again, as often as there are rounds; where more than a quarter of the rounds are
    still disturbed, the variant is marked.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(repeats + 1):
        for name, function in variants.items():
            elapsed = function()
            if repeat:  # the first round warms up
                times[name].append(elapsed)
    for _ in range(repeats):
        disturbed = [name for name, own in times.items() if max(own) > DISTURBED * statistics.median(own)]
        for name in disturbed:
            worst = times[name].index(max(times[name]))
            times[name][worst] = min(times[name][worst], variants[name]())
    marks = {}
    for name, own in times.items():
        late = sum(t > DISTURBED * statistics.median(own) for t in own)
        marks[name] = f"unsteady: {min(own):.3g} to {max(own):.3g} s" if late > len(own) / 4 else ""
    return times, marks


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def matrix_peak(dtype: torch.dtype, size: int = 2048, repeats: int = 7, device: torch.device = CPU) -> float:
    """Measured GFLOP/s (operations, two per multiply-add) of square matrix products; on a GPU of some large ones in a row."""
    size, count = (size, 1) if device.type == "cpu" else (8192, 5)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    def product() -> None:
        for _ in range(count):
            a @ b
        _synchronised(device)

    product()
    return 2 * count * size**3 / min(seconds(product) for _ in range(repeats)) / 1e9


def adam_bandwidth(parameters: int = 4_000_000, repeats: int = 7, device: torch.device = CPU) -> float:
    """Measured GB/s of a fused Adam step: 7 passes of 4 bytes over the parameters (read w, g, m, v; write w, m, v)."""
    weight = torch.zeros(parameters, requires_grad=True, device=device)
    weight.grad = torch.randn(parameters, device=device)
    optimiser = torch.optim.Adam([weight], fused=True)

    def step() -> None:
        optimiser.step()
        _synchronised(device)

    step()
    return 28 * parameters / min(seconds(step) for _ in range(repeats)) / 1e9


def operations(images: torch.Tensor, targets: torch.Tensor, config: TTTConfig) -> float:
    """Matrix operations (two per multiply-add) of one image and iteration, forward and backward, as torch counts them."""

    def count(iterations: int) -> int:
        with FlopCounterMode(display=False) as counter:
            ttt.adapt(images, targets, replace(config, iterations=iterations))
        return counter.get_total_flops()

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the counter sees its own thread only
    try:
        counted = (count(3) - count(1)) / 2 / len(images)
    finally:
        torch.set_num_threads(threads)
    assert counted > 0, "no operation was counted"
    return counted


def measure(iterations: int, images: int, repeats: int) -> pd.DataFrame:
    """One row per variant at the scale of profile mini."""
    generator = torch.Generator().manual_seed(0)
    rows: list[dict[str, object]] = []
    counted: list[str] = []
    peaks = {"float32": matrix_peak(torch.float32), "bfloat16": matrix_peak(torch.bfloat16)}
    for fold in ("mean", "attention"):
        student = preset("mini", fold=fold, rgb_head=False)
        config = TTTConfig(student, iterations=iterations, learning_rate=1e-2)
        x = torch.randn(images, 3, *student.image_size, generator=generator)
        t = torch.randn(images, student.width, generator=generator)
        weights = ttt.initial_parameters(x, config)
        few = max(1, images // 16)  # the plain loop needs fewer images for a steady figure

        def plain_loop(few: int = few, x=x, t=t, config=config, weights=weights) -> None:
            for k in range(few):
                plain.adapt_one(x[k], t[k], config, {name: value[k] for name, value in weights.items()})

        def one_thread(plain_loop=plain_loop) -> None:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                plain_loop()
            finally:
                torch.set_num_threads(threads)

        variants: dict[str, tuple[Callable[[], object], int, str]] = {
            "plain loop": (plain_loop, few, "float32"),
            # many threads get in each other's way on small matrices
            "plain loop, one thread": (one_thread, few, "float32"),
        }
        for precision in ("float32", "bfloat16"):
            for width in (1, 32) if precision == "float32" else (32,):
                n = few if width == 1 else images
                chosen = replace(config, precision=precision, lockstep=width)
                init = {name: value[:n] for name, value in weights.items()}

                def ours(n: int = n, chosen=chosen, init=init, x=x, t=t) -> None:
                    ttt.adapt(x[:n], t[:n], chosen, init=init)

                label = f"apm, {width} in lockstep" + (", bfloat16" if precision == "bfloat16" else "")
                variants[label] = (ours, n, precision)
        rounds = {name: partial(seconds, function) for name, (function, _, _) in variants.items()}
        times, marks = in_turn(rounds, repeats)
        plain_loops = [statistics.median(times[name]) / few for name in ("plain loop", "plain loop, one thread")]
        work = operations(x[:16], t[:16], config)
        counted.append(f"{work / 1e6:.1f} MFLOP with {fold} fold")
        for name, (_, _, precision) in variants.items():
            per_image = statistics.median(times[name]) / variants[name][1]
            rate = work * (iterations + 1 / 3) / per_image / 1e9  # the last forward pass has no backward one
            ours_work = not name.startswith("plain")
            rows.append(
                {
                    "fold": fold,
                    "variant": name,
                    "ms per image and iteration": per_image * 1e3 / iterations,
                    "images/s": 1 / per_image,
                    "times faster": plain_loops[0] / per_image,
                    "than one thread": plain_loops[1] / per_image,
                    "GFLOP/s": rate if ours_work else float("nan"),
                    "of matrix peak": rate / peaks[precision] if ours_work else float("nan"),
                    "marked": marks[name],
                }
            )
    table = pd.DataFrame(rows)
    table.attrs["note"] = (
        f"{iterations} iterations an image, student preset mini ({', '.join(counted)}, per image and iteration), "
        f"{torch.get_num_threads()} threads, {platform.processor() or platform.machine()}, torch {torch.__version__}; "
        f"measured matrix peak {peaks['float32']:.0f} GFLOP/s float32, {peaks['bfloat16']:.0f} bfloat16, fused Adam "
        f"{adam_bandwidth():.0f} GB/s; medians of {repeats} rounds in which the variants take turns. GFLOP/s count the "
        "matrix products that apm needs; the plain loop needs more for the same result, so it has no such figure. times faster: than the "
        "plain loop with all threads; than one thread: than the same loop on one thread. marked: rounds that differ by more than "
        f"{DISTURBED:g} times even when measured again."
    )
    return table


# ------------------------------------------------------------------------------------------------------------ paper scale


def _synchronised(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def plain_iterations(
    config: TTTConfig, weights: dict[str, torch.Tensor], x: torch.Tensor, t: torch.Tensor, *, copies: int
) -> Callable[[], float]:
    """A function that does one more iteration of the plain (copies 1) or released (copies 8) form and returns its seconds."""
    student = plain.PlainStudent(config.student, weights).to(x.device)
    student.code, student.code_out = student.code.to(x.device), student.code_out.to(x.device)
    optimiser = torch.optim.Adam(student.parameters(), lr=config.learning_rate)

    low = config.precision == "bfloat16"

    def iteration() -> float:
        start = _synchronised(x.device)
        optimiser.zero_grad()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=low):
            folded = student(x)[0][None] if copies == 1 else student.released(x, copies)
        (folded.float() - t).square().mean().backward()
        optimiser.step()
        return _synchronised(x.device) - start

    return iteration


def our_iterations(config: TTTConfig, x: torch.Tensor, t: torch.Tensor) -> Callable[[], float]:
    """A function that runs `apm.ttt.adapt` and returns its seconds per image and iteration.

    On the CPU the median of three iterations, the first left out; on a GPU the whole of 20, with the draw of the weights and the
    capture of the graph in it, as a run has them.
    """
    gpu = x.device.type == "cuda"
    chosen = replace(config, iterations=20 if gpu else 4, lockstep=len(x))

    def run() -> float:
        marks: list[float] = [_synchronised(x.device)]
        # a mark stands before an iteration: differences are whole ones
        ttt.adapt(x, t, chosen, callback=None if gpu else lambda k, part, weights: marks.append(time.perf_counter()))
        if gpu:
            return (_synchronised(x.device) - marks[0]) / chosen.iterations / len(x)
        return statistics.median(b - a for a, b in itertools.pairwise(marks[2:])) / len(x)

    return run


def peak_memory(function: Callable[[], object], held: list[torch.Tensor]) -> float:
    """MB of live tensors at most."""
    return compute.memory(function, held).peak / 1e6


def measure_paper(repeats: int, *, teacher: bool, device: torch.device) -> pd.DataFrame:
    """One row per variant at paper scale, per image and iteration."""
    student = preset("released", rgb_head=False)
    config = TTTConfig(student, iterations=3)
    generator = torch.Generator().manual_seed(0)
    side_by_side = (1,) if device.type == "cpu" else (1, 8, 32)
    x = torch.randn(max(side_by_side), 3, *student.image_size, generator=generator).to(device)
    t = torch.nn.functional.normalize(torch.randn(len(x), student.width, generator=generator), dim=-1).to(device)
    weights = {name: value[0] for name, value in ttt.initial_parameters(x[:1], config).items()}
    count = compute.student_cost(student, formulation="plain")
    factorised = compute.student_cost(student, formulation="factorised")
    work = {8: 8 * (count.forward + count.backward), 1: count.forward + count.backward}
    work[0] = factorised.forward + factorised.backward
    forms: dict[tuple[str, str, int], tuple[Callable[[], float], float]] = {}
    released, whole = "released: 8 identical rows, chunks of 16", "plain: 1 row, all columns at once"
    precisions = ("float32", "bfloat16") if device.type == "cpu" else ("float32", "tf32", "bfloat16")
    for precision in precisions:
        chosen = replace(config, precision=precision)
        if precision != "tf32":
            for name, copies in ((released, 8), (whole, 1)):
                forms[name, precision, 1] = (
                    plain_iterations(chosen, weights, x[0], t[:1], copies=copies),
                    work[copies],
                )
        for n in side_by_side:
            forms["apm", precision, n] = (our_iterations(chosen, x[:n], t[:n]), work[0])
    peaks, widths = dict.fromkeys(precisions, 0.0), [0.0]

    def best_of(name: str) -> float:
        torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
        dtype = torch.bfloat16 if name == "bfloat16" else torch.float32
        peaks[name] = max(peaks[name], matrix_peak(dtype, device=device, repeats=3))
        torch.set_float32_matmul_precision("highest")
        widths[0] = max(widths[0], adam_bandwidth(parameters=20_000_000, repeats=3, device=device))
        return 1.0  # no time of a variant: the best of a busy machine is the machine

    asked = ["float32", "bfloat16"] if teacher else []
    encoders = {(f"teacher {TEACHER}, 8 rows", p, 8): teacher_pass(device, p, rows=8) for p in asked}
    encoders |= {(f"teacher {TEACHER}, 1 row", p, 1): teacher_pass(device, p, rows=1) for p in asked}
    named: dict[Any, Callable[[], float]] = {name: form for name, (form, _) in forms.items()}
    times, marks = in_turn({**{("peak", p): partial(best_of, p) for p in peaks}, **named, **encoders}, repeats)
    bandwidth = widths[0]
    middle = {name: statistics.median(own) for name, own in times.items()}
    numbers = sum(math.prod(shape) for shape in parameter_shapes(student).values())
    rows = []
    for (label, precision, n), (_, flop) in forms.items():
        each = middle[label, precision, n]
        base = (
            "float32" if precision == "tf32" else precision
        )  # the release is measured in both, and each factor is within one
        first = middle[released, base, 1]
        factor: dict[str, float] = {}
        again, once = (
            middle.get((f"teacher {TEACHER}, {what}", base, k), math.nan) for what, k in (("8 rows", 8), ("1 row", 1))
        )
        with_teacher = each + (again if label == released else once / RUN)
        if label == "apm":
            factor = {
                "of it repeats": work[8] / work[1],
                "of it factorised form": work[1] / work[0],
                "of it efficiency": first / each / (work[8] / work[0]),
            }
        rows.append(
            {
                "device": device.type,
                "variant": label,
                "precision": precision,
                "images side by side": n,
                "s per image and iteration": each,
                "times faster": first / each,
                "with its teacher": (first + again) / with_teacher,
                "of it repeats": math.nan,
                "of it factorised form": math.nan,
                "of it efficiency": math.nan,
                **factor,
                "GFLOP": flop / 1e9,
                "GFLOP/s": flop / each / 1e9,
                "of matrix peak": flop / each / 1e9 / peaks[precision],
                "Adam's share at measured bandwidth": 28 * numbers / bandwidth / 1e9 / each,
                "times the floor": each / (flop / peaks[precision] + 28 * numbers / bandwidth) * 1e9,
                "marked": marks[label, precision, n],
            }
        )
    rows += [
        {
            "device": device.type,
            "variant": label,
            "precision": precision,
            "images side by side": n,
            "s per image and iteration": middle[label, precision, n],
            "marked": marks[label, precision, n],
        }
        for label, precision, n in encoders
    ]
    table = pd.DataFrame(rows)
    held = [*weights.values(), x[0], t[:1]]
    memories = {
        "released": peak_memory(plain_iterations(config, weights, x[0], t[:1], copies=8), held),
        "plain": peak_memory(plain_iterations(config, weights, x[0], t[:1], copies=1), held),
        **{
            f"apm, {precision}": peak_memory(
                lambda precision=precision: ttt.adapt(x[:1], t[:1], replace(config, iterations=2, precision=precision)),
                [x[0], t],
            )
            for precision in ("float32", "bfloat16")
        },
    }
    table.attrs["note"] = (
        f"Released student ({numbers / 1e6:.1f} M weights without RGB head), 448 px, 32 x 32 columns, attention fold; one image "
        f"unless said otherwise; {compute.hardware(device)}. Measured "
        f"matrix peak {', '.join(f'{peak:,.0f} GFLOP/s {name}' for name, peak in peaks.items())}; fused Adam {bandwidth:,.0f} GB/s. "
        f"Medians of {repeats} rounds in which the variants take turns, the teacher among them; GFLOP are those of the variant's own "
        "formulation, forward and backward; times faster: than the released form in the same precision (tf32: than float32); with its "
        f"teacher: the same with {TEACHER} encoded in every iteration on 8 rows, as released, against once in {RUN} iterations on one "
        "row; of it: the factor as a product of repeats, factorised form (both counted) and efficiency (the rest). "
        f"marked: rounds that differ by more than {DISTURBED:g} times even when measured again. "
        "The floor: those operations at the measured peak and seven passes of Adam over the weights at the measured bandwidth. "
        f"Where the time of apm goes, by operation: {where_time_goes(config, x[:1], t[:1])}. "
        "Peak memory of tensors: " + ", ".join(f"{name} {value:,.0f} MB" for name, value in memories.items()) + "."
    )
    return table


def where_time_goes(config: TTTConfig, x: torch.Tensor, t: torch.Tensor, top: int = 8) -> str:
    """The operations of three iterations with the largest shares of the time, as text."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if x.device.type == "cuda" else []
    texts = []
    for precision in ("float32", "bfloat16"):
        with torch.profiler.profile(activities=activities) as profiler:
            ttt.adapt(x, t, replace(config, iterations=3, precision=precision))
        name = "self_device_time_total" if x.device.type == "cuda" else "self_cpu_time_total"
        rows = sorted(profiler.key_averages(), key=lambda row: getattr(row, name), reverse=True)
        total = sum(getattr(row, name) for row in rows)
        shares = ", ".join(f"{row.key.removeprefix('aten::')} {getattr(row, name) / total:.0%}" for row in rows[:top])
        texts.append(f"{precision}: {shares}")
    return "; ".join(texts)


def teacher_pass(device: torch.device, precision: str, *, rows: int) -> Callable[[], float]:
    """A function that sends `rows` images through TEACHER's image tower, random weights, and returns its seconds."""
    tower, size = compute.image_tower(TEACHER, device), compute.image_size(TEACHER)
    images = torch.zeros(rows, 3, size, size, device=device)

    def encode() -> float:
        start = _synchronised(device)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            tower(images)
        return _synchronised(device) - start

    return encode


FORMATS = {
    "ms per image and iteration": ".3f",
    "s per image and iteration": ".4f",
    "images/s": ".1f",
    "times faster": ".1f",
    "than one thread": ".1f",
    "with its teacher": ".1f",
    "of it repeats": ".1f",
    "of it factorised form": ".2f",
    "of it efficiency": ".2f",
    "GFLOP": ".0f",
    "GFLOP/s": ".0f",
    "of matrix peak": ".0%",
    "Adam's share at measured bandwidth": ".0%",
    "times the floor": ".1f",
}


def keep(table: pd.DataFrame, name: str) -> None:
    """Print a table and write results/bench/<name>.{csv,md}."""
    formats = {column: form for column, form in FORMATS.items() if column in table}
    text = table.assign(
        **{name: ["" if pd.isna(v) else format(v, f) for v in table[name]] for name, f in formats.items()}
    )
    align = ["right" if column in formats else "left" for column in table.columns]
    shown = text.to_markdown(index=False, disable_numparse=True, colalign=align)
    print(shown, "", table.attrs["note"], sep="\n", flush=True)
    folder = root() / "results" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / f"{name}.csv", table.to_csv(index=False))
    atomic_write(folder / f"{name}.md", f"{shown}\n\n{table.attrs['note']}\n")


def main() -> None:
    """Measure, print, write results/bench/<scale>.{csv,md}."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=("mini", "paper", "all"), default="all")
    parser.add_argument("--iterations", type=int, default=50, help="of scale mini")
    parser.add_argument("--images", type=int, default=64, help="of scale mini")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-teacher", action="store_true", help="leave out the teacher, and what it adds")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    if options.scale in ("mini", "all"):
        keep(measure(options.iterations, options.images, options.repeats), "mini")
    if options.scale in ("paper", "all"):
        keep(measure_paper(options.repeats, teacher=not options.no_teacher, device=torch.device("cpu")), "paper")
        if torch.cuda.is_available():
            keep(
                measure_paper(options.repeats, teacher=not options.no_teacher, device=torch.device("cuda")), "paper-gpu"
            )


if __name__ == "__main__":
    main()
