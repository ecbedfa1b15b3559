"""Speed of test-time training as ratios within one run: `make bench`.

Scale `mini` compares `apm.ttt.adapt` with the plain formulation of tests/plain.py, looped image by image, on the same images,
targets and number of iterations. Scale `paper` (448 px, 32 x 32 columns, 22.8 M weights) compares one iteration of it with the
released form (every image 8 times in the batch, columns in chunks of 16, and, in a row of its own, the teacher encoded again in
every iteration) and with the plain formulation without the repeats; on a GPU too where there is one. Variants take turns,
so that a machine that slows down slows all of them; medians are reported. Matrix peak and memory bandwidth are measured
in the same run. Writes results/bench/<scale>.{csv,md}.
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
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent))
import plain

from apm import compute, ttt
from apm.model import parameter_shapes, preset
from apm.project import atomic_write, root
from apm.ttt import TTTConfig

CPU = torch.device("cpu")


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

        variants: dict[str, tuple[Callable[[], object], int, str]] = {"plain loop": (plain_loop, few, "float32")}
        for precision in ("float32", "bfloat16"):
            for width in (1, 32) if precision == "float32" else (32,):
                n = few if width == 1 else images
                chosen = replace(config, precision=precision, lockstep=width)
                init = {name: value[:n] for name, value in weights.items()}

                def ours(n: int = n, chosen=chosen, init=init, x=x, t=t) -> None:
                    ttt.adapt(x[:n], t[:n], chosen, init=init)

                label = f"apm, {width} in lockstep" + (", bfloat16" if precision == "bfloat16" else "")
                variants[label] = (ours, n, precision)
        times: dict[str, list[float]] = {name: [] for name in variants}
        for repeat in range(repeats + 1):
            for name, (function, n, _) in variants.items():
                elapsed = seconds(function)
                if repeat:  # the first round warms up
                    times[name].append(elapsed / n)
        reference = statistics.median(times["plain loop"])
        work = operations(x[:16], t[:16], config)
        counted.append(f"{work / 1e6:.1f} MFLOP with {fold} fold")
        for name, (_, _, precision) in variants.items():
            per_image = statistics.median(times[name])
            rate = work * (iterations + 1 / 3) / per_image / 1e9  # the last forward pass has no backward one
            ours_work = name != "plain loop"
            rows.append(
                {
                    "fold": fold,
                    "variant": name,
                    "ms per image and iteration": per_image * 1e3 / iterations,
                    "images/s": 1 / per_image,
                    "times faster": reference / per_image,
                    "GFLOP/s": rate if ours_work else float("nan"),
                    "of matrix peak": rate / peaks[precision] if ours_work else float("nan"),
                }
            )
    table = pd.DataFrame(rows)
    table.attrs["note"] = (
        f"{iterations} iterations an image, student preset mini ({', '.join(counted)}, per image and iteration), "
        f"{torch.get_num_threads()} threads, {platform.processor() or platform.machine()}, torch {torch.__version__}; "
        f"measured matrix peak {peaks['float32']:.0f} GFLOP/s float32, {peaks['bfloat16']:.0f} bfloat16, fused Adam "
        f"{adam_bandwidth():.0f} GB/s; medians of {repeats} rounds in which the variants take turns. GFLOP/s count the "
        "matrix products that apm needs; the plain loop needs more for the same result, so it has no such figure."
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

    def iteration() -> float:
        start = _synchronised(x.device)
        optimiser.zero_grad()
        folded = student(x)[0][None] if copies == 1 else student.released(x, copies)
        (folded - t).square().mean().backward()
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
    forms: dict[tuple[str, str, int], tuple[Callable[[], float], float]] = {
        ("released: 8 identical rows, chunks of 16", "float32", 1): (plain_iterations(config, weights, x[0], t[:1], copies=8), work[8]),
        ("plain: 1 row, all columns at once", "float32", 1): (plain_iterations(config, weights, x[0], t[:1], copies=1), work[1]),
    }  # fmt: skip
    for precision in ("float32", "bfloat16") if device.type == "cpu" else ("float32", "tf32", "bfloat16"):
        for n in side_by_side:
            run = our_iterations(replace(config, precision=precision), x[:n], t[:n])
            forms[("apm", precision, n)] = (run, work[0])
    times: dict[tuple[str, str, int], list[float]] = {name: [] for name in forms}
    peaks = dict.fromkeys(dict.fromkeys(precision for _, precision, _ in forms), 0.0)
    bandwidth = 0.0
    for repeat in range(repeats + 1):
        for name in peaks:  # in turn with the variants: the best of a busy machine is the machine
            torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
            dtype = torch.bfloat16 if name == "bfloat16" else torch.float32
            peaks[name] = max(peaks[name], matrix_peak(dtype, device=device, repeats=3))
            torch.set_float32_matmul_precision("highest")
        bandwidth = max(bandwidth, adam_bandwidth(parameters=20_000_000, repeats=3, device=device))
        for name, (function, _) in forms.items():
            elapsed = function()
            if repeat:  # the first round warms up
                times[name].append(elapsed)
    encode = teacher_seconds(device) if teacher else float("nan")
    first = statistics.median(times[next(iter(forms))])
    numbers = sum(math.prod(shape) for shape in parameter_shapes(student).values())
    rows = []
    if teacher:
        rows.append(
            ("released, teacher ViT-L-14 encoded in every iteration", "float32", 1, first + encode, float("nan"))
        )
    rows += [(*name, statistics.median(times[name]), forms[name][1]) for name in forms]
    table = pd.DataFrame(
        [
            {
                "device": device.type,
                "variant": label,
                "precision": precision,
                "images side by side": n,
                "s per image and iteration": seconds_each,
                "times faster": first / seconds_each,
                "with its teacher": (first + encode) / seconds_each,
                "GFLOP": flop / 1e9,
                "GFLOP/s": flop / seconds_each / 1e9,
                "of matrix peak": flop / seconds_each / 1e9 / peaks[precision],
                "Adam's share at measured bandwidth": 28 * numbers / bandwidth / 1e9 / seconds_each,
                "times the floor": seconds_each / (flop / peaks[precision] + 28 * numbers / bandwidth) * 1e9,
            }
            for label, precision, n, seconds_each, flop in rows
        ]
    )
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
        f"Medians of {repeats} rounds in which the variants take turns; GFLOP are those of the variant's own formulation, forward "
        "and backward; times faster: than the released form, and than it with its teacher encoded in every iteration, as released; "
        "the floor: those operations at the measured peak and seven passes of Adam over the weights at the measured bandwidth. "
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


def teacher_seconds(device: torch.device) -> float:
    """Seconds of ViT-L-14's image tower, random weights, on the 8 identical rows of the released form."""
    tower, size = compute.image_tower("ViT-L-14", device), compute.image_size("ViT-L-14")
    images = torch.zeros(8, 3, size, size, device=device)
    with torch.no_grad():
        tower(images[:1])
        start = _synchronised(device)
        tower(images)
        return _synchronised(device) - start


FORMATS = {
    "ms per image and iteration": ".3f",
    "s per image and iteration": ".4f",
    "images/s": ".1f",
    "times faster": ".1f",
    "with its teacher": ".1f",
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
    parser.add_argument(
        "--no-teacher", action="store_true", help="leave out the row with the teacher in every iteration"
    )
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
