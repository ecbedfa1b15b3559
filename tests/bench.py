"""Speed of test-time training as ratios within one run: `make bench`.

Compares `apm.ttt.adapt` with the plain formulation of tests/plain.py, looped image by image, on the same images, targets
and number of iterations. Variants take turns, so that a machine that slows down slows all of them; medians are reported.
The matrix peak is measured in the same run. Writes results/bench/<scale>.{csv,md}.
"""

from __future__ import annotations

import argparse
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

from apm import ttt
from apm.model import preset
from apm.project import atomic_write, root
from apm.ttt import TTTConfig


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def matrix_peak(dtype: torch.dtype, size: int = 2048, repeats: int = 7) -> float:
    """Measured GFLOP/s (operations, two per multiply-add) of a square matrix product."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    a @ b
    return 2 * size**3 / min(seconds(lambda: a @ b) for _ in range(repeats)) / 1e9


def adam_bandwidth(parameters: int = 4_000_000, repeats: int = 7) -> float:
    """Measured GB/s of a fused Adam step: 7 passes of 4 bytes over the parameters (read w, g, m, v; write w, m, v)."""
    weight = torch.zeros(parameters, requires_grad=True)
    weight.grad = torch.randn(parameters)
    optimiser = torch.optim.Adam([weight], fused=True)
    optimiser.step()
    return 28 * parameters / min(seconds(optimiser.step) for _ in range(repeats)) / 1e9


def operations(images: torch.Tensor, targets: torch.Tensor, config: TTTConfig) -> float:
    """Matrix operations (two per multiply-add) of one image and iteration, forward and backward, as torch counts them."""

    def count(iterations: int) -> int:
        with FlopCounterMode(display=False) as counter:
            ttt.adapt(images, targets, replace(config, iterations=iterations))
        return counter.get_total_flops()

    return (count(3) - count(1)) / 2 / len(images)


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


def main() -> None:
    """Measure, print, write results/bench/mini.{csv,md}."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    table = measure(options.iterations, options.images, options.repeats)
    formats = {
        "ms per image and iteration": ".3f",
        "images/s": ".1f",
        "times faster": ".1f",
        "GFLOP/s": ".0f",
        "of matrix peak": ".0%",
    }
    text = table.assign(
        **{name: ["" if pd.isna(v) else format(v, f) for v in table[name]] for name, f in formats.items()}
    )
    shown = text.to_markdown(index=False, disable_numparse=True, colalign=("left", "left", *["right"] * len(formats)))
    print(shown, "", table.attrs["note"], sep="\n")
    folder = root() / "results" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "mini.csv", table.to_csv(index=False))
    atomic_write(folder / "mini.md", f"{shown}\n\n{table.attrs['note']}\n")


if __name__ == "__main__":
    main()
