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
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

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
EACH = "s per image and iteration"
FORMATS = {"ms per image and iteration": ".3f", EACH: ".4f", "images/s": ".1f"}
FORMATS |= dict.fromkeys(("times faster", "than one thread", "with its teacher", "of it repeats"), ".1f")
FORMATS |= {"of it factorised form": ".2f", "of it efficiency": ".2f", "GFLOP": ".0f", "GFLOP/s": ".0f"}
FORMATS |= {"of matrix peak": ".0%", "Adam's share at measured bandwidth": ".0%", "times the floor": ".1f"}


def in_turn(variants: Mapping[Any, Callable[[], float]], repeats: int) -> tuple[dict[Any, list[float]], dict[Any, str]]:
    """Seconds of every variant, in rounds in which they take turns after one to warm up; and which are unsteady.

    What another process disturbed is measured again, as often as there are rounds; where more than a quarter of the rounds are
    still disturbed, the variant is marked.
    """
    rounds = [{name: function() for name, function in variants.items()} for _ in range(repeats + 1)]
    times = {name: [one[name] for one in rounds[1:]] for name in variants}

    def disturbed(own: list[float]) -> int:
        return sum(t > DISTURBED * statistics.median(own) for t in own)

    for _ in range(repeats):
        for name, own in times.items():
            if disturbed(own):
                own[own.index(max(own))] = min(max(own), variants[name]())
    unsteady = {name: own for name, own in times.items() if disturbed(own) > len(own) / 4}
    return times, {name: f"unsteady: {min(own):.3g} to {max(own):.3g} s" for name, own in unsteady.items()}


def _synchronised(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(function: Callable[[], object], device: torch.device = CPU) -> float:
    """Wall time of one call."""
    start = _synchronised(device)
    function()
    return _synchronised(device) - start


def matrix_peak(dtype: torch.dtype, repeats: int = 3, device: torch.device = CPU) -> float:
    """Measured GFLOP/s (operations, two per multiply-add) of square matrix products; on a GPU of some large ones in a row."""
    size, count = (2048, 1) if device.type == "cpu" else (8192, 5)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = min(seconds(lambda: [a @ b for _ in range(count)], device) for _ in range(repeats + 1))
    return 2 * count * size**3 / best / 1e9


def adam_bandwidth(parameters: int = 20_000_000, repeats: int = 3, device: torch.device = CPU) -> float:
    """Measured GB/s of a fused Adam step: 7 passes of 4 bytes over the parameters (read w, g, m, v; write w, m, v)."""
    weight = torch.zeros(parameters, requires_grad=True, device=device)
    weight.grad = torch.randn(parameters, device=device)
    optimiser = torch.optim.Adam([weight], fused=True)
    return 28 * parameters / min(seconds(optimiser.step, device) for _ in range(repeats + 1)) / 1e9


class Variant(NamedTuple):
    labels: dict[str, Any]  # of its row, the precision among them
    seconds: Callable[[], float]  # of one image and iteration
    flop: float = math.nan  # the same


def compared(variants: Sequence[Variant], repeats: int, device: torch.device = CPU) -> tuple[pd.DataFrame, str, float]:
    """One row per variant in the order given; a note on machine and rounds; GB/s of memory."""
    peaks, bandwidths = dict.fromkeys((one.labels["precision"] for one in variants), 0.0), [0.0]

    def best_of(name: str) -> float:
        torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
        dtype = torch.bfloat16 if name == "bfloat16" else torch.float32
        peaks[name] = max(peaks[name], matrix_peak(dtype, device=device))
        torch.set_float32_matmul_precision("highest")
        bandwidths.append(adam_bandwidth(device=device))
        return 1.0  # no time of a variant: the best of a busy machine is the machine

    machine: dict[Any, Callable[[], float]] = {name: partial(best_of, name) for name in peaks}
    times, marks = in_turn({**machine, **{k: one.seconds for k, one in enumerate(variants)}}, repeats)
    table = pd.DataFrame([one.labels for one in variants])
    table[EACH] = [statistics.median(times[k]) for k in table.index]
    table["GFLOP"] = [one.flop / 1e9 for one in variants]
    table["GFLOP/s"] = table["GFLOP"] / table[EACH]
    table["of matrix peak"] = table["GFLOP/s"] / table["precision"].map(peaks)
    table["marked"] = [marks.get(k) for k in table.index]
    note = (
        f"{compute.hardware(device)}. Measured matrix peak {', '.join(f'{v:,.0f} GFLOP/s {name}' for name, v in peaks.items())}; "
        f"fused Adam {max(bandwidths):,.0f} GB/s. Medians of {repeats} rounds in which the variants take turns; marked: rounds that "
        f"differ by more than {DISTURBED:g} times even when measured again."
    )
    return table, note, max(bandwidths)


def ordered(table: pd.DataFrame, note: str) -> pd.DataFrame:
    order = ["device", "fold", "variant", "precision", "images side by side", *FORMATS, "marked"]
    table = table.reindex(columns=order).dropna(axis="columns", how="all")
    table.attrs["note"] = note
    return table


def profile(function: Callable[[], object], most: int = 6) -> str:
    """Where the time of a call on one core goes, by operation of torch, in words."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler writes lines of its own to the terminal
    with torch.autograd.profiler.profile() as seen:
        function()
    torch.set_num_threads(before)
    own = pd.Series({event.key: event.self_cpu_time_total for event in seen.key_averages()})
    shares = (100 * own / own.sum()).sort_values(ascending=False)
    return ", ".join(f"{name.removeprefix('aten::')} {share:.0f} %" for name, share in shares.head(most).items())


def measure(repeats: int, iterations: int = 50, images: int = 64) -> pd.DataFrame:
    """One row per variant at the scale of profile mini."""
    generator = torch.Generator().manual_seed(0)
    few = max(1, images // 16)  # the plain loop needs fewer images for a steady figure
    variants: list[Variant] = []

    def each(function: Callable[[], object], n: int) -> float:
        return seconds(function) / n / iterations

    def plain_loop(x, t, config, weights, threads: int) -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        for k in range(few):
            plain.adapt_one(x[k], t[k], config, {name: value[k] for name, value in weights.items()})
        torch.set_num_threads(before)

    for fold in ("mean", "attention"):
        student = preset("mini", fold=fold, rgb_head=False)
        config = TTTConfig(student, iterations=iterations, learning_rate=1e-2)
        x = torch.randn(images, 3, *student.image_size, generator=generator)
        t = torch.randn(images, student.width, generator=generator)
        weights = ttt.initial_parameters(x, config)
        if fold == "mean":
            spent = profile(partial(ttt.adapt, x, t, config, init=weights))
        # many threads get in each other's way on small matrices
        for name, most in (("plain loop", torch.get_num_threads()), ("plain loop, one thread", 1)):
            labels = {"fold": fold, "variant": name, "precision": "float32"}
            variants.append(Variant(labels, partial(each, partial(plain_loop, x, t, config, weights, most), few)))
        cost = compute.student_cost(student, formulation="factorised")
        work = cost.forward * (1 + 1 / iterations) + cost.backward  # the last forward pass has no backward one
        for width, n, precision in ((1, few, "float32"), (32, images, "float32"), (32, images, "bfloat16")):
            chosen = replace(config, precision=precision, lockstep=width)
            init = {name: value[:n] for name, value in weights.items()}
            labels = {"fold": fold, "variant": f"apm, {width} in lockstep", "precision": precision}
            ours = partial(ttt.adapt, x[:n], t[:n], chosen, init=init)
            variants.append(Variant(labels, partial(each, ours, n), work))
    table, note, _ = compared(variants, repeats)
    table["ms per image and iteration"] = 1e3 * table[EACH]
    table["images/s"] = 1 / table[EACH] / iterations
    for k, column in enumerate(("times faster", "than one thread")):
        table[column] = table.groupby("fold", sort=False)[EACH].transform(lambda own, k=k: own.iloc[k] / own)
    both = table[table["variant"].str.endswith("32 in lockstep")].groupby("fold", sort=False)[EACH]  # float32, bfloat16
    low = " and ".join(f"{100 * own.iloc[1] / own.iloc[0]:.0f} % ({fold})" for fold, own in both)
    return ordered(
        table.drop(columns=[EACH, "GFLOP"]),
        f"{iterations} iterations an image, student preset mini, {note} GFLOP/s count the matrix "
        "products that apm needs; the plain loop needs more for the same result, so it has no such figure. times faster: than the "
        f"plain loop with all threads; than one thread: than the same loop on one thread. bfloat16 takes {low} of float32's time here; "
        "profile mini trains in float32, whose numbers it keeps on every machine. Where a core's time goes, 32 in lockstep, "
        f"mean fold, float32: {spent}.",
    )


def plain_iterations(
    config: TTTConfig, weights: dict[str, torch.Tensor], x: torch.Tensor, t: torch.Tensor, *, copies: int
) -> Callable[[], float]:
    """A function that does one more iteration of the plain (copies 1) or released (copies 8) form and returns its seconds."""
    student = plain.PlainStudent(config.student, weights).to(x.device)
    student.code, student.code_out = student.code.to(x.device), student.code_out.to(x.device)
    optimiser = torch.optim.Adam(student.parameters(), lr=config.learning_rate)

    def iteration() -> None:
        optimiser.zero_grad()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            folded = student(x)[0][None] if copies == 1 else student.released(x, copies)
        (folded.float() - t).square().mean().backward()
        optimiser.step()

    return partial(seconds, iteration, x.device)


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


def measure_paper(repeats: int, device: torch.device) -> pd.DataFrame:
    """One row per variant at paper scale, per image and iteration."""
    student = preset("released", rgb_head=False)
    config = TTTConfig(student, iterations=3)
    generator = torch.Generator().manual_seed(0)
    gpu = device.type != "cpu"
    side_by_side = (1, 8, 32) if gpu else (1,)
    x = torch.randn(max(side_by_side), 3, *student.image_size, generator=generator).to(device)
    t = torch.nn.functional.normalize(torch.randn(len(x), student.width, generator=generator), dim=-1).to(device)
    weights = {name: value[0] for name, value in ttt.initial_parameters(x[:1], config).items()}
    once, ours = (compute.student_cost(student, formulation=form) for form in ("plain", "factorised"))
    full, work = once.forward + once.backward, ours.forward + ours.backward
    released = "released: 8 identical rows, chunks of 16"
    variants: list[Variant] = []

    def add(name: str, precision: str, n: int, function: Callable[[], float], flop: float = math.nan) -> None:
        labels = {"device": device.type, "variant": name, "precision": precision, "images side by side": n}
        variants.append(Variant(labels, function, flop))

    for precision in ("float32", "tf32", "bfloat16") if gpu else ("float32", "bfloat16"):
        chosen = replace(config, precision=precision)
        if precision != "tf32":
            for name, copies in ((released, 8), ("plain: 1 row, all columns at once", 1)):
                function = plain_iterations(chosen, weights, x[0], t[:1], copies=copies)
                add(name, precision, 1, function, copies * full)
        for n in side_by_side:
            add("apm", precision, n, our_iterations(chosen, x[:n], t[:n]), work)
    eight, one = f"teacher {TEACHER}, 8 rows", f"teacher {TEACHER}, 1 row"
    for name, n in ((eight, 8), (one, 1)):
        for precision in ("float32", "bfloat16"):
            add(name, precision, n, teacher_pass(device, precision, rows=n))
    table, note, bandwidth = compared(variants, repeats, device)
    # the release and the teacher are measured in both, and each factor is within one
    base = table["precision"].replace("tf32", "float32")
    measured = table.groupby(["variant", "precision"])[EACH].first()
    first, again, own = (base.map(measured[name]) for name in (released, eight, one))
    each, students, apm = table[EACH], table["GFLOP"].notna(), table["variant"] == "apm"
    numbers = sum(math.prod(shape) for shape in parameter_shapes(student).values())
    floor = 28 * numbers / bandwidth / 1e9
    own = again.where(table["variant"] == released, own / RUN)
    table["times faster"] = (first / each).where(students)
    table["with its teacher"] = ((first + again) / (each + own)).where(students)
    table["Adam's share at measured bandwidth"] = (floor / each).where(students)
    table["times the floor"] = each / (each * table["of matrix peak"] + floor)
    table.loc[apm, ["of it repeats", "of it factorised form"]] = 8.0, full / work
    table["of it efficiency"] = (first / each / (8 * full / work)).where(apm)
    return ordered(
        table,
        f"Released student ({numbers / 1e6:.1f} M weights without RGB head), 448 px, 32 x 32 columns, attention fold; one image "
        f"unless said otherwise; {note} GFLOP are those of the variant's own formulation, forward and backward; times faster: than the "
        "released form in the same precision (tf32: than float32); with its "
        f"teacher: the same with {TEACHER} encoded in every iteration on 8 rows, as released, against once in {RUN} iterations on one "
        "row; of it: the factor as a product of repeats, factorised form (both counted) and efficiency (the rest). "
        "The floor: those operations at the measured peak and seven passes of Adam over the weights at the measured bandwidth.",
    )


def teacher_pass(device: torch.device, precision: str, *, rows: int) -> Callable[[], float]:
    """A function that sends `rows` images through TEACHER's image tower, random weights, and returns its seconds."""
    tower, size = compute.image_tower(TEACHER, device), compute.image_size(TEACHER)
    images = torch.zeros(rows, 3, size, size, device=device)

    def encode() -> None:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            tower(images)

    return partial(seconds, encode, device)


def keep(table: pd.DataFrame, name: str) -> None:
    """Print a table and write results/bench/<name>.{csv,md}."""
    text = table.astype(object).where(table.notna(), "")
    for column in text.columns.intersection(FORMATS):
        text[column] = [format(v, FORMATS[column]) if v != "" else v for v in text[column]]
    align = ["right" if column in FORMATS else "left" for column in table]
    shown = text.to_markdown(index=False, disable_numparse=True, colalign=align) + f"\n\n{table.attrs['note']}\n"
    print(shown, flush=True)
    folder = root() / "results" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / f"{name}.csv", table.to_csv(index=False))
    atomic_write(folder / f"{name}.md", shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    keep(measure(repeats), "mini")
    keep(measure_paper(repeats, CPU), "paper")
    if torch.cuda.is_available():
        keep(measure_paper(repeats, torch.device("cuda")), "paper-gpu")


if __name__ == "__main__":
    main()
