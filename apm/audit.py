"""The claims audit: what the paper says, what would have to be true, which figure tests it, and what that figure is.

Every verdict follows from a number by a rule that is written beside it; the numbers come from the tables that the other
notebooks left and from checks made here. Published numbers are held against each other and against their own sources.
"""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open

from apm import compute, corruptions, field, methods, published, stats, tables, teachers, ttt
from apm.datasets import Dataset, UnreadableImage
from apm.model import APM, APMConfig, OnlineFold
from apm.project import unknown
from apm.teachers import Teacher
from apm.text import FAILS, HOLDS, UNTESTED

ROUNDING = 0.1  # points: a mean of numbers printed with one decimal, itself printed with one
UNTRAINED_PART = 1024  # images at a time: 2.5 GB of pixels at paper scale
MARGIN = 1.0  # points: what "competitive" allows, and the least step of a claim whose published size is not known
LABELLED = "CoOp"  # in the name of methods whose prompts were learned from labelled images: no test-time methods
FLOAT32 = 1e-5  # largest difference, relative to the largest value, that float32's rounding explains

# --------------------------------------------------------------------------------------------------- reading our tables


class NoSuchRow(ValueError):
    """A results table has no row of that name: this profile did not run it."""


@dataclass(frozen=True)
class Cell:
    """A number with its interval, NaN where it has none, and where it stands.

    rounding: half a unit of the last digit where it was read from a text, 0 where it is exact. n: images behind it, where known.
    """

    value: float
    low: float
    high: float
    source: str
    rounding: float = 0.0
    n: int | None = None
    shown: str = ""  # as its table prints it

    def text(self, unit: str = "") -> str:
        """As tables show it."""
        exact = f"{self.value:.4g}" if np.isnan(self.low) else tables.percent((self.value, self.low, self.high))
        return f"{self.shown or exact}{unit}"

    @property
    def bounds(self) -> tuple[float, float]:
        """The interval, or the value twice where it has none."""
        return (self.value, self.value) if np.isnan(self.low) else (self.low, self.high)

    @property
    def resolution(self) -> float:
        """Half the width of the interval; where it has none because no image differs, 3 of 100 n in percent (rule of three)."""
        half = (self.high - self.low) / 2
        if half <= self.rounding and self.n:
            half = max(half, 300.0 / self.n)
        return half + self.rounding


_NUMBER = r"-?[\d.]+(?:e[+-]?\d+)?"
_CELL = re.compile(rf"^\s*({_NUMBER})(?:\s*\[({_NUMBER}), ({_NUMBER})\])?\s*$")


def read(folder: Path | str, table: str) -> pd.DataFrame:
    """A table of a results folder as text. Raises FileNotFoundError, with the notebook to run, when it is not there."""
    path = Path(folder) / "tables" / f"{table}.csv"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: run the notebook that begins with {table.split('_')[0]}_ first (`make reproduce` runs all)"
        )
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def cell(folder: Path | str, table: str, where: Mapping[str, str], column: str) -> Cell:
    """One number of a results table: the row whose columns have the values of `where`, and its column.

    Raises FileNotFoundError as `read`; NoSuchRow (a ValueError) for no such row; ValueError for an unknown column, for several
    rows, and for a text that is no number.
    """
    frame = read(folder, table)
    for name in (*where, column):
        if name not in frame:
            raise ValueError(f"{table}.csv: {unknown('column', name, list(frame.columns))}")
    rows = frame
    for name, value in where.items():
        rows = rows[rows[name] == value]
    if len(rows) != 1:
        have = frame[list(where)].drop_duplicates().to_dict("records")[:20]
        kind = ValueError if len(rows) else NoSuchRow
        raise kind(f"{table}.csv: expected one row with {dict(where)}, found {len(rows)}. Rows there: {have}")
    text = str(rows.iloc[0][column])
    found = _CELL.match(text)
    if found is None:
        raise ValueError(f"{table}.csv, {dict(where)}, {column}: expected a number, found {text!r}")
    number, low, high = (float(part) if part else float("nan") for part in found.groups())
    decimals = [len(part.partition(".")[2]) for part in found.groups() if part]
    rounding = (
        0.5 * 10.0 ** -min(decimals) if found[2] else 0.0
    )  # columns of plain numbers are saved with all their digits
    return Cell(number, low, high, f"{table}.csv", rounding, shown=text.strip() if found[2] else "")


# ----------------------------------------------------------------------------------------------------------------- claims


@dataclass(frozen=True)
class Claim:
    """One row of the audit."""

    claim: str  # in our words, with the section
    needs: str  # what would have to be true, and the rule of the verdict
    figure: str  # the number that tests it, with interval
    verdict: str
    source: str  # the table or check it comes from


def above(claim: str, needs: str, number: Cell, limit: float = 0.0, *, unit: str = "") -> Claim:
    """Holds when the number's interval lies above the limit; untested when its printed digits do not decide that."""
    bound, rounding = number.bounds[0], number.rounding
    below = bound + rounding <= limit or rounding == 0
    verdict = HOLDS if bound - rounding > limit else FAILS if below else UNTESTED
    return Claim(claim, needs, number.text(unit), verdict, number.source)


def around(claim: str, needs: str, number: Cell, limit: float, *, unit: str = "") -> Claim:
    """Holds when the number's interval covers the limit."""
    return Claim(claim, needs, number.text(unit), HOLDS if number.low <= limit <= number.high else FAILS, number.source)


def step(claim: str, needs: str, number: Cell, expected: float, *, size: float | None = None) -> Claim:
    """A paired difference that should be positive (expected > 0) or negative, by a published step.

    Holds when its interval lies on that side of 0. Does not hold when the interval excludes a step of that size, which it does
    wherever it lies on the other side; it reaches at least as far as `Cell.resolution`, since no image that differs is no proof
    that none would. Between the two it cannot be tested. size: the step's size where only its direction is published.
    """
    size = abs(expected) if size is None else size
    low, high = number.bounds
    near, far = (low, high) if expected > 0 else (-high, -low)
    toward = number.value if expected > 0 else -number.value
    far += number.rounding
    if high - low <= 2 * number.rounding:
        far = max(far, toward + number.resolution)
    verdict = HOLDS if near - number.rounding > 0 else FAILS if far < size else UNTESTED
    tested = f"step tested {'+' if expected > 0 else '-'}{size:.1f}"
    return Claim(claim, needs, f"{number.text()}; {tested}", verdict, number.source)


def within(claim: str, needs: str, number: Cell, margin: float = MARGIN) -> Claim:
    """A difference to a reference: holds when it is above -margin, does not hold when it is below, untested when it may be either."""
    low, high = number.bounds
    verdict = HOLDS if low - number.rounding > -margin else FAILS if high + number.rounding < -margin else UNTESTED
    return Claim(claim, needs, number.text(" points"), verdict, number.source)


def decided(claim: str, needs: str, figure: str, holds: bool | None, source: str) -> Claim:
    """A verdict from a check; None: cannot be tested in this profile."""
    return Claim(claim, needs, figure, UNTESTED if holds is None else HOLDS if holds else FAILS, source)


def table(claims: Sequence[Claim]) -> pd.DataFrame:
    """The audit as a table. Raises ValueError for no claims."""
    if not claims:
        raise ValueError("no claims: nothing to audit")
    return pd.DataFrame(
        {
            "claim": [c.claim for c in claims],
            "verdict": [c.verdict for c in claims],
            "figure": [c.figure for c in claims],
            "holds when": [c.needs for c in claims],
            "from": [c.source for c in claims],
        }
    )


def counts(claims: pd.DataFrame) -> str:
    """ "5 hold, 2 do not hold, 1 cannot be tested in this profile" from a `table` of claims."""
    found = claims["verdict"].value_counts()
    names = ((HOLDS, "hold"), (FAILS, "do not hold"), (UNTESTED, UNTESTED))
    return ", ".join(f"{found.get(verdict, 0)} {name}" for verdict, name in names)


# ----------------------------------------------------------------------------------------------------- checks made here


def invariances(
    config: APMConfig, images: torch.Tensor, *, orders: int = 10, chunk: int = 1, std: float = 0.1, seed: int = 0
) -> pd.DataFrame:
    """Does the order, the number at a time or the choice of locations change any value? (sections 3.3, 3.6)

    images: (N, 3, H, W) of the student's size. A student with weights N(0, std) is evaluated on the whole grid at once, then
    `orders` times in random order, `chunk` locations at a time, and on random halves of the grid. Columns: check, repeats,
    difference (largest absolute one, divided by the largest absolute value), holds (at most 1e-5, float32's rounding).
    """
    rng = np.random.default_rng(seed)
    student = APM(config, torch.Generator().manual_seed(seed), std=std)
    differences: dict[str, float] = {}

    def compare(name: str, found: torch.Tensor, expected: torch.Tensor) -> None:
        difference = float((found - expected).abs().max() / expected.abs().max())
        differences[name] = max(differences.get(name, 0.0), difference)

    with torch.no_grad():
        percept = student.perceive(images)
        whole = student.columns(percept)  # (N, L, D)
        folded = student(images)
        for _ in range(orders):
            order = rng.permutation(config.locations)
            features, online = torch.empty_like(whole), OnlineFold(student.parameters_dict, config)
            for where, part in student.stream(percept, order, chunk=chunk):
                features[:, where] = part
                online.update(part, where)
            compare(f"features, random order, {chunk} at a time", features, whole)
            compare(f"{config.fold} fold, random order, {chunk} at a time", online.result(), folded)
            half = torch.as_tensor(order[: config.locations // 2])
            compare("features, a random half of the locations", student.columns(percept, half), whole[:, half])
    return pd.DataFrame(
        {
            "check": list(differences),
            "repeats": orders,
            "difference": list(differences.values()),
            "holds": [value <= FLOAT32 for value in differences.values()],
        }
    )


def encodings(method: Any, dataset: Dataset, *, seed: int = 0) -> float:
    """Image encodings by the teacher per image, counted while a method prepares and predicts with nothing stored from before.

    method: with a `teacher`, such as `apm.methods.APM`.
    """
    counted, teacher = [0], method.teacher
    original = teacher.encode

    def counting(images: torch.Tensor, **options: Any) -> teachers.Encoding:
        counted[0] += len(images)
        return original(images, **options)

    with tempfile.TemporaryDirectory() as empty, patch.dict(os.environ, APM_CACHE=empty):
        teacher.encode = counting
        try:
            if hasattr(method, "prepare"):
                method.prepare(dataset)
            method.predict(dataset, np.arange(len(dataset)), seed)
        finally:
            del teacher.encode  # the class's own shows again
    return counted[0] / len(dataset)


def readable(dataset: Dataset, on_error: str = "raise") -> Dataset:
    """The dataset without images that cannot be read, for on_error "record"; as it is for "raise", where they stop the run.

    Raises ValueError when none can be read, and for another on_error.
    """
    if on_error not in ("raise", "record"):
        raise unknown("on_error", on_error, ("raise", "record"))
    if on_error == "raise":
        return dataset
    positions, _ = methods.readable(dataset, np.arange(len(dataset)))
    if not len(positions):
        raise ValueError(f"none of the {len(dataset)} images of {dataset.name} can be read")
    return dataset.subset(positions) if len(positions) < len(dataset) else dataset


def trained_here(name: str, pretrained: str | Path | None) -> bool:
    """Whether a teacher was trained by this package, on the training half of a data set that the profile is tested on."""
    if name == "mini":
        return True
    if pretrained is None or not Path(pretrained).is_file():
        return False
    try:
        with safe_open(str(pretrained), framework="pt") as file:
            return "apm" in (file.metadata() or {})
    except SafetensorError:
        return False  # another format than `apm.teachers.save` writes


def labels_matter(method: Any, dataset: Dataset, *, seed: int = 0) -> bool:
    """Whether other labels change any prediction of a method."""
    positions = np.arange(len(dataset))
    shuffled = replace(dataset, labels=np.random.default_rng(seed).permutation(dataset.labels))
    first, second = (method.predict(data, positions, seed) for data in (dataset, shuffled))
    return not np.array_equal(first.prediction, second.prediction)


def midpoint(config: APMConfig, first: torch.Tensor, second: torch.Tensor, *, std: float = 0.1, seed: int = 0) -> float:
    """Largest difference between the trigger column of two images' blend and the blend of their trigger columns.

    first, second: (3, H, W). Relative to the largest value. The column is an affine map of the pixels, so this is rounding.
    Raises ValueError for images of different sizes.
    """
    if first.shape != second.shape:
        raise ValueError(
            f"the two images must have the same size to be blended, found {tuple(first.shape)} and {tuple(second.shape)}"
        )
    student = APM(config, torch.Generator().manual_seed(seed), std=std)
    with torch.no_grad():
        a, b, blend = (student.perceive(x[None]).column for x in (first, second, (first + second) / 2))
    return float(((a + b) / 2 - blend).abs().max() / blend.abs().max())


def untrained(
    teacher: Teacher,
    dataset: Dataset,
    config: ttt.TTTConfig,
    *,
    seeds: Sequence[int] = (0,),
    source: str = "",
    on_error: str = "raise",
) -> Cell:
    """Accuracy in percent of students at random weights (k = 0), over all images and seeds; interval over images.

    Cheap, since nothing is trained: one update is run and not looked at. Memory does not grow with the number of images.
    on_error: "raise" stops at an image that cannot be read; with "record" it counts as wrong, as everywhere.
    """
    positions = np.arange(len(dataset))
    parts = np.split(positions, range(UNTRAINED_PART, len(positions), UNTRAINED_PART))
    first = replace(config, iterations=1)

    def said(part: np.ndarray, seed: int) -> np.ndarray:
        try:
            return methods.adapt_dataset(teacher, dataset, part, first, seed=seed).predictions()[:, 0].cpu().numpy()
        except UnreadableImage:
            if on_error != "record":
                raise
        good, _ = methods.readable(dataset, part)
        every = np.full(len(part), -1, dtype=np.int64)
        if len(good):
            every[np.isin(part, good)] = said(good, seed)
        return every

    right = np.concatenate([said(part, seed) == dataset.labels[part] for seed in seeds for part in parts])
    value, low, high, n = stats.bootstrap_mean(right, np.tile(positions, len(seeds)))
    return Cell(value, low, high, source, n=n)


def timed(config: APMConfig, device: torch.device | str = "cpu") -> dict[str, compute.Timing]:
    """Times of one forward pass: of a student "one", "seven" and "all" columns at a time, and of ViT-B/16's image tower, "tower".

    On one CPU thread, where other work on the machine disturbs times least.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        sizes = {"one": 1, "seven": 7, "all": config.locations}
        found = {name: compute.time_columns(config, size, device=device) for name, size in sizes.items()}
        return found | {"tower": compute.time_tower("ViT-B-16", device=device)}
    finally:
        torch.set_num_threads(threads)


def at_end(records: pd.DataFrame, rule: str, source: str) -> Cell:
    """Accuracy under a counting rule, percent, of images that stand in the records once each: Wilson's interval."""
    right = stats.correct(records, rule)
    if right is None:
        raise ValueError(f"the records do not hold what the counting rule {rule!r} needs")
    if records["sample"].duplicated().any():
        raise ValueError("Wilson's interval is for independent images; these records hold some several times")
    return Cell(*stats.accuracy(right)[:3], source, n=len(right))


def final_step(records: pd.DataFrame, source: str) -> Cell:
    """final - teacher of the records, percentage points, paired."""
    value, low, high, n = stats.mean_difference(records)  # type: ignore[misc]
    return Cell(value, low, high, source, n=n)


# ------------------------------------------------------------------------------------------------------ published numbers

_SHIFTS = ("ImageNet", "ImageNet-A", "ImageNet-v2", "ImageNet-R", "ImageNet-Sketch")
# rows of Table 1 that name a teacher, and what open_clip publishes under which tag
_TEACHERS = {
    "OpenCLIP-VIT-H/14": ("ViT-H-14-quickgelu / dfn5b", "ViT-H-14-378-quickgelu / dfn5b"),
    "CLIP VIT-L/14": ("ViT-L-14 / openai",),
    "Ensemble": ("ViT-B-16 / openai",),
}


def published_means() -> pd.DataFrame:
    """Printed averages against the mean of their printed rows (Tables 1 to 3).

    Columns: table, row, mean of, computed, printed, difference, agrees (within 0.1, the rounding of one decimal).
    """
    rows = []

    def compare(name: str, row: str, what: str, values: pd.Series, printed: float) -> None:
        computed = float(values.mean())
        difference = round(computed - printed, 9)
        rows.append(
            {
                "table": name,
                "row": short(row),
                "mean of": what,
                "computed": computed,
                "printed": printed,
                "difference": difference,
                "agrees": "yes" if abs(difference) <= ROUNDING else "no",
            }
        )

    one, two, three = (published.wide(published.load(name)) for name in ("table1", "table2", "table3"))
    for row in one.index:
        compare("Table 1", row, "5 sets", one.loc[row, list(_SHIFTS)], one.loc[row, "Average"])
        compare("Table 1", row, "4 shifted sets", one.loc[row, list(_SHIFTS[1:])], one.loc[row, "OOD Average"])
    for name, frame, printed in (("Table 2", two, "Average (printed)"), ("Table 3", three, "Average")):
        cells = [c for c in frame.columns if c != printed and not c.startswith("P (")]
        for row in frame.index:
            compare(name, row, f"{len(cells)} columns", frame.loc[row, cells], frame.loc[row, printed])
    return pd.DataFrame(rows)


def published_teachers() -> pd.DataFrame:
    """Teacher rows of Table 1 and the APM rows above them against open_clip's own zero-shot values of the same weights.

    Columns: teacher (open_clip model and tag), set, open_clip (%), printed teacher, printed APM, printed - open_clip,
    APM - printed teacher, APM - open_clip.
    """
    printed = published.wide(published.load("table1"))
    source = published.wide(published.load("teacher_zero_shot"))
    source = source.rename(columns={"ImageNet-V2": "ImageNet-v2"})
    students = {
        "OpenCLIP-VIT-H/14": "APM (Ours) [teacher OpenCLIP ViT-H/14]",
        "CLIP VIT-L/14": "APM (Ours) [teacher CLIP ViT-L/14]",
        "Ensemble": "APM (Ours) [teacher CLIP ViT-B/16]",
    }
    rows = [
        {
            "teacher": tag,
            "set": column,
            "open_clip": source.loc[tag, column],
            "printed teacher": printed.loc[row, column],
            "printed APM": printed.loc[students[row], column],
            "printed - open_clip": printed.loc[row, column] - source.loc[tag, column],
            "APM - printed teacher": printed.loc[students[row], column] - printed.loc[row, column],
            "APM - open_clip": printed.loc[students[row], column] - source.loc[tag, column],
        }
        for row, tags in _TEACHERS.items()
        for tag in tags
        for column in _SHIFTS
    ]
    return pd.DataFrame(rows)


def printed(frame: pd.DataFrame, row: str, column: str) -> float:
    """A published value of `apm.published.load`'s frame: the number that its text begins with. Raises ValueError unless there is one."""
    found = frame[(frame["row"] == row) & (frame["column"] == column)]
    if len(found) != 1:
        raise ValueError(f"expected one published value for {row} / {column}, found {len(found)}")
    number = found.iloc[0]["value"]
    if not np.isnan(number):
        return float(number)
    return float(found.iloc[0]["text"].split()[0])  # "241.7 (s+u)", "10 (s)"


def published_arithmetic() -> pd.DataFrame:
    """Other printed numbers against each other: Table 4's sums, Table 3's ten sets, Table 2's counts, CIFAR-10's values.

    Columns: table, check, computed, printed, agrees ("" where there is nothing printed to agree with).
    """
    four, appendix, tpt = (published.load(name) for name in ("table4", "table5", "tpt"))
    two, three = (published.wide(published.load(name)) for name in ("table2", "table3"))
    value = printed
    once, student = value(four, "APM (s), t=1", "GFlops_i (ideal)"), value(four, "APM (s), t=2", "GFlops_i (ideal)")
    tower = value(four, "CLIP ViT-B/16 (u) [90]", "GFlops_i (ideal)")
    rows: list[tuple[str, str, float, float]] = [
        ("Table 4", "teacher once + 19 x student, GFLOPs", once + 19 * student, value(four, "APM Peak Use", "GFlops_i (ideal)")),
        ("Table 4", "20 x CLIP ViT-B/16, GFLOPs", 20 * tower, value(four, "CLIP ViT-B/16", "GFlops_i (ideal)")),
        ("Table 4", "teacher once + 19 x student, against the measured GFLOPs of APM: not reconstructable", once + 19 * student, value(four, "APM Peak Use", "GFlops_meas")),
        *(
            ("Table 4", f"measured over ideal GFLOPs, {name}, %: no common factor", 100 * value(four, row, "GFlops_meas") / value(four, row, "GFlops_i (ideal)"), float("nan"))
            for name, row in (("APM", "APM Peak Use"), ("CLIP ViT-B/16", "CLIP ViT-B/16"), ("TPT", "TPT [90]"))
        ),
    ]  # fmt: skip
    corruptions = [c for c in two.columns if c != "Average (printed)" and not c.startswith("P (")]
    (apm_row,) = (row for row in two.index if row.startswith("APM"))
    higher = int((two.loc[apm_row, corruptions] > two.loc["TTT-MAE", corruptions]).sum())
    rows.append(("Table 2", "corruptions (of 15) in which APM is above TTT-MAE", higher, float("nan")))
    nine = [c for c in three.columns if c != "Average" and not c.startswith("P (")]
    for ours, theirs in (("CLIP-ViT-B/16", "CLIP ViT-B/16"), ("TPT", "TPT")):
        sets = tpt[(tpt["table"] == "TPT paper ViT-B/16 cross-dataset") & (tpt["row"] == theirs)].set_index("column")
        ten = sets["value"].drop("Average (10 sets)")
        rows += [
            ("Table 3", f"{theirs}: mean over the ten sets of the TPT paper, Cars included", float(ten.mean()), three.loc[ours, "Average"]),
            ("Table 3", f"{theirs}: mean over the nine sets that the table shows", float(three.loc[ours, nine].mean()), three.loc[ours, "Average"]),
        ]  # fmt: skip
    zero_shot = published.wide(published.load("teacher_zero_shot")).loc["ViT-L-14 / openai", "CIFAR-10"]
    for row, column, what in (
        ("APM without augmentation", "CIFAR-10 test", "section 4, no augmentation"),
        ("Lcls only", "CIFAR-10", "Table 5b, L_cls"),
        ("1 conv kernel in T", "accuracy (data set not named; presumably CIFAR-10)", "section 6, one kernel"),
    ):
        rows.append(
            (
                "CIFAR-10",
                f"{what}: printed beside open_clip's zero-shot of ViT-L-14 openai",
                float(zero_shot),
                value(appendix, row, column),
            )
        )
    frame = pd.DataFrame(rows, columns=["table", "check", "computed", "printed"])
    gap = (frame["computed"] - frame["printed"]).abs()
    frame["agrees"] = np.where(frame["printed"].isna(), "", np.where(gap.round(9) <= ROUNDING, "yes", "no"))
    frame.loc[frame["table"] == "CIFAR-10", "agrees"] = ""  # a student and its teacher need not agree
    return frame


def short(row: str) -> str:
    """A published row's name without the remarks in brackets that tell rows apart where the teacher is named in it."""
    name = row.replace("APM (Ours) [teacher", "APM [").replace("[ ", "[")
    return name if len(name) < 40 else name.split(" [")[0] + " [...]"


# ------------------------------------------------------------------------------------------------------------ the claims


@dataclass(frozen=True)
class Live:
    """What the audit measures itself, besides what it reads."""

    records: pd.DataFrame  # of the APM on one dataset, with paths
    start: Cell  # `untrained`: accuracy of students at random weights
    chance: float  # percent: always answering the largest class
    orders: pd.DataFrame  # `invariances`, of all scales that were tried
    encodings: float  # teacher's image encodings per image
    labels_matter: bool
    midpoint: float  # `midpoint`: T of a blend of two images against the blend of their T
    teacher_trained_here: bool  # `trained_here`
    seconds: Mapping[
        str, float
    ]  # of one forward pass at paper scale: "one", "seven", "all" columns at a time; "tower": ViT-B/16


@dataclass(frozen=True)
class Benchmark:
    """One of the paper's tables of accuracies: our table and column, and the published step from teacher to APM."""

    name: str
    table: str
    column: str
    paper: str
    paper_column: str  # "": the mean of the corruptions' columns, which the printed average is not
    paper_teacher: str
    paper_apm: str

    @property
    def published_step(self) -> float:
        """APM minus its teacher as printed, points."""
        wide = published.wide(published.load(self.paper))
        (apm,) = (row for row in wide.index if row.startswith(self.paper_apm))
        columns = [self.paper_column] if self.paper_column else list(corruptions.NAMES)
        return float((wide.loc[apm, columns] - wide.loc[self.paper_teacher, columns]).mean())


_VIT_B = "APM (Ours) [teacher CLIP ViT-B/16]"
_BENCHMARKS = (
    Benchmark("natural shifts (Table 1)", "01_natural_shifts", "OOD Average", "table1", "OOD Average", "Ensemble", _VIT_B),
    Benchmark("corruptions (Table 2)", "02_corruptions", "Mean", "table2", "", "OpenCLIP ViT-L/14", "APM"),
    Benchmark("cross-dataset (Table 3)", "03_cross_dataset", "Average", "table3", "Average", "Ensemble", _VIT_B),
)  # fmt: skip


def abstract(folder: Path | str, live: Live) -> list[Claim]:
    """Every claim of the abstract with the figure that tests it; untested where a profile does not run what would test it."""
    return [
        *_or_untested("Computationally efficient (Table 4, Figure 2)", lambda: _efficiency(folder)),
        *_asynchrony(live),
        *_or_untested("One patch at a time needs less memory than all at once", lambda: _memory(folder)),
        *_speed(live),
        *_learning(live),
        *(claim for b in _BENCHMARKS for claim in _or_untested(f"Competitive on {b.name}", _accuracy, folder, b)),
        *(claim for b in _BENCHMARKS for claim in _or_untested(f"Competitive with other test-time methods: {b.name}", _others, folder, b.name, b.table)),
        *_or_untested("Features of single locations are semantic; islands emerge (GLOM)", lambda: _semantics(folder)),
        *_midpoint(live),
        *_or_untested("Semantic clusters in a single forward pass; the input percept is a field", lambda: _field(folder)),
    ]  # fmt: skip


def counting(folder: Path | str) -> pd.DataFrame:
    """What counting with labels would add: accuracy under `any` beside the teacher's and final, per benchmark that has run.

    No claim of the paper: it does not state its counting rule. Columns: benchmark, teacher, final, any.
    """
    lines = (
        ("teacher", "teacher", "zero-shot"),
        ("final", "APM", "final"),
        ("any (upper bound)", "APM", tables.HEADERS["any"]),
    )
    rows = []
    for b in _BENCHMARKS:
        try:
            found = {
                heading: cell(folder, b.table, {"method": method, "counting rule": rule}, b.column).text()
                for heading, method, rule in lines
            }
        except (FileNotFoundError, NoSuchRow):
            found = {heading: "not run in this profile" for heading, *_ in lines}
        rows.append({"benchmark": b.name, **found})
    return pd.DataFrame(rows)


def _or_untested(claim: str, rows: Callable[..., list[Claim]], *arguments: Any) -> list[Claim]:
    try:
        return rows(*arguments)
    except FileNotFoundError as error:
        table = Path(str(error).split(" does not exist")[0]).name
        return [Claim(claim, "the notebook that would test it has run", f"no {table}", UNTESTED, table)]
    except NoSuchRow as error:
        table = str(error).split(":")[0]
        return [Claim(claim, f"this profile has the row that would test it in {table}", "no such row", UNTESTED, table)]


def _efficiency(folder: Path | str) -> list[Claim]:
    plain, factorised = (
        cell(
            folder,
            "04_conventions",
            {"network": "released", "counted": f"image to feature, {form}"},
            "/ ViT-B-16 image",
        )
        for form in ("plain", "factorised")
    )

    def total(counted: str, column: str = "total (GFLOP)") -> Cell:
        return cell(folder, "04_ttt_cost", {"counted": counted}, column)

    whole = "ViT-B-16 image once, then the whole student, plain, forward and backward"
    run = total(whole)
    exact = total("ViT-B-16 image once, then the whole student, factorised, forward and backward")
    clip = total("ViT-B-16 image and one text in every iteration, forward only")
    counted = next(
        (text for text in read(folder, "04_ttt_cost")["counted"] if re.match(r"\d+ views, .* texts forward and", text)),
        "views, texts forward and backward",
    )
    tpt = total(counted)
    classes = int(re.search(r"([\d,]+) texts", counted)[1].replace(",", ""))  # type: ignore[index]
    views = counted.split(",")[0]
    # the views cost the same for any number of classes, the texts in proportion to it
    fixed, both, ours = total(counted, "once (GMAC)"), total(counted, "total (GMAC)"), total(whole, "total (GMAC)")
    even = (ours.value - fixed.value) / ((both.value - fixed.value) / classes)
    broken = f"{views} alone cost more" if even <= 0 else f"TPT costs less below {math.ceil(even):,} classes"
    four = published.load("table4")
    theirs = (
        printed(four, "APM", "GFLOPs total, 224x224 image"),
        printed(four, "CLIP ViT-B/16", "GFLOPs, 224x224 image"),
    )
    twenty = printed(four, "APM Peak Use", "GFlops_meas"), printed(four, "CLIP ViT-B/16", "GFlops_meas")
    prompt = printed(four, "TPT [90]", "GFlops_meas")
    return [
        decided(
            f"A forward pass costs half of CLIP ViT-B/16's (Figure 2: {theirs[0]:g} against {theirs[1]:g})",
            "operations from image to feature, all 1024 columns, against ViT-B/16's image tower: ratio as written in the paper at most 0.75",
            f"{plain.value:.2f} as written, {factorised.value:.2f} in the exact factorised form",
            plain.value <= 0.75,
            plain.source,
        ),
        decided(
            f"Test-time training of 20 iterations costs half of CLIP ViT-B/16 run 20 times (Table 4: {twenty[0]:g} against {twenty[1]:g})",
            "operations of teacher once and student forward and backward, against an image and a text forward in every iteration: ratio at most 0.75",
            f"{run.value / clip.value:.2f} as written, {exact.value / clip.value:.2f} factorised",
            run.value / clip.value <= 0.75,
            run.source,
        ),
        decided(
            f"It costs less than test-time prompt tuning (Table 4: {twenty[0]:g} against {prompt:g})",
            f"operations of 20 iterations, forward and backward, below one step of TPT in its authors' setting ({counted})",
            f"{run.value:,.0f} against {tpt.value:,.0f} GFLOP at {classes:,} classes; {broken}",
            run.value < tpt.value,
            run.source,
        ),
    ]


def _asynchrony(live: Live) -> list[Claim]:
    worst = float(live.orders["difference"].max())
    return [
        decided(
            "Patches can be processed one at a time, in any order and any subset",
            f"{int(live.orders['repeats'].max())} random orders and subsets change no feature and no folded feature by more than float32 rounds (1e-5)",
            f"largest relative difference {worst:.1e}",
            bool(live.orders["holds"].all()),
            "08_orders.csv",
        ),
    ]


def _memory(folder: Path | str) -> list[Claim]:
    columns = read(folder, "04_memory")
    rows = columns[columns["what"] == "student forward, plain"]
    most = max(rows["detail"], key=lambda text: int(text.split()[0]))
    (one, one_in_all), (whole, whole_in_all) = (
        [
            cell(folder, "04_memory", {"what": "student forward, plain", "detail": detail}, column).value
            for column in ("above it (MB)", "peak (MB)")
        ]
        for detail in ("1 column at a time", most)
    )
    return [
        decided(
            "One patch at a time needs less memory than all at once",
            "peak memory above the weights is lower",
            f"{one:.2g} against {whole:.3g} MB above the weights; in all {one_in_all:.4g} against {whole_in_all:.4g} MB",
            one < whole,
            "04_memory.csv",
        ),
    ]


def _times(ratio: float) -> str:
    """A ratio of two times to its order of magnitude: what repeats on one machine."""
    return f"more than {10.0 ** math.floor(math.log10(ratio)):g} times" if ratio >= 10 else "less than 10 times"


def _speed(live: Live) -> list[Claim]:
    four = published.load("table4")
    seven, every, clip = (
        printed(four, row, column)
        for row, column in (
            ("APM", "inference time, 7 patches at a time"),
            ("APM", "inference time, all patches at once"),
            ("CLIP ViT-B/16", "inference time"),
        )
    )
    seconds = live.seconds
    return [
        decided(
            "One patch at a time takes more time than all at once (the price of the memory)",
            "seconds of one forward pass at paper scale are more",
            f"{_times(seconds['one'] / seconds['all'])} as long",
            seconds["one"] > seconds["all"],
            "timed here",
        ),
        decided(
            f"All patches at once it is faster than CLIP ViT-B/16 (Figure 2: {every:g} s against {clip:g} s)",
            f"seconds of one forward pass at paper scale at most a tenth of the image tower's (published: 1/{clip / every:,.0f})",
            f"the tower takes {_times(seconds['tower'] / seconds['all'])} as long",
            10 * seconds["all"] <= seconds["tower"],
            "timed here",
        ),
        decided(
            f"Seven patches at a time it is still faster than CLIP ViT-B/16 (Figure 2: {seven:g} s against {clip:g} s)",
            "seconds of one forward pass at paper scale are fewer",
            "faster" if seconds["seven"] < seconds["tower"] else "slower",
            seconds["seven"] < seconds["tower"],
            "timed here",
        ),
    ]


def _learning(live: Live) -> list[Claim]:
    end = at_end(live.records, "final", "08_start.csv")
    final, teacher = live.records["prediction"].to_numpy(), live.records["teacher_prediction"].to_numpy(dtype=np.int64)
    same = stats.accuracy((final == teacher) & (final >= 0))
    asked = f"{live.encodings:g} encoding{'' if live.encodings == 1 else 's'} per image"
    return [
        around(
            "No pre-training: every image starts from a student that knows nothing",
            f"accuracy at random weights is that of always answering the largest class ({live.chance:.1f} %)",
            live.start,
            live.chance,
            unit=" %",
        ),
        decided(
            "Without pre-training on the data set that it is tested on",
            "neither student nor teacher has seen images of the data set; what a teacher made elsewhere has seen is not recorded with its weights",
            "the teacher was trained on the training half of this profile's data"
            if live.teacher_trained_here
            else "the student starts at random; what the teacher has seen is not known here",
            None,
            "checked here",
        ),
        above(
            "It learns from a single image's representation",
            f"accuracy after the last iteration above that of always answering the largest class ({live.chance:.1f} %)",
            end,
            live.chance,
            unit=" %",
        ),
        decided(
            "The test image's representation is distilled once",
            "the teacher encodes every image exactly once, counted while the method prepares and predicts with nothing stored",
            asked,
            live.encodings == 1.0,
            "counted here",
        ),
        decided(
            "No augmentation, no pretext task, no labels",
            "one loss, to the teacher's feature, on the image as it is; shuffled labels change no prediction",
            "some prediction changed" if live.labels_matter else "no prediction changed",
            not live.labels_matter,
            "checked here",
        ),
        above(
            "The student's decision becomes its teacher's",
            "same class on more than 95 % of the images",
            Cell(same.value, same.low, same.high, "08_start.csv"),
            95.0,
            unit=" %",
        ),
    ]


def _benchmark_step(folder: Path | str, b: Benchmark) -> Cell:
    return cell(folder, b.table, {"method": "APM", "counting rule": tables.DIFFERENCE}, b.column)


def _accuracy(folder: Path | str, b: Benchmark) -> list[Claim]:
    found = _benchmark_step(folder, b)
    return [
        within(f"Competitive on {b.name}", f"final no more than {MARGIN:g} point below its teacher (paired)", found),
        step(
            f"Better than its teacher on {b.name}",
            f"final above its teacher (paired; published step {b.published_step:.1f})",
            found,
            b.published_step,
        ),
    ]


def _others(folder: Path | str, name: str, where: str) -> list[Claim]:
    table = f"{where.split('_')[0]}_methods"
    every = [row for row in read(folder, table)["method"] if not row.startswith(("APM", "zero-shot"))]
    rows = [row for row in every if LABELLED not in row]
    claim = f"Competitive with other test-time methods: {name}"
    rule = (
        f"every method that learns from no labels (CoOp does), on the same teacher and images, at most {MARGIN:g} point above APM (95 % intervals, paired, each "
        "by itself); does not hold: one is further above; else it cannot be told"
    )
    if not rows:
        return [Claim(claim, rule, "no other method in this profile", UNTESTED, f"{table}.csv")]
    found = {row: cell(folder, table, {"method": row}, "difference from APM") for row in rows}
    ahead = [row for row, d in found.items() if d.low - d.rounding > MARGIN]
    maybe = [row for row, d in found.items() if d.high + d.rounding > MARGIN and row not in ahead]
    best = max(found, key=lambda row: found[row].value)
    if ahead:
        text = (
            f"{len(ahead)} of {len(found)} above: {'; '.join(f'{row} by {found[row].text()}' for row in ahead)} points"
        )
    elif maybe:
        text = f"{len(maybe)} of {len(found)} may be above: {'; '.join(f'{row} by {found[row].text()}' for row in maybe)} points"
    else:
        text = f"none of {len(found)}; the highest, {best}, by {found[best].text()} points"
    return [Claim(claim, rule, text, FAILS if ahead else UNTESTED if maybe else HOLDS, f"{table}.csv")]


def _measure(measures: pd.DataFrame, source: str, measure: str) -> Cell:
    row = measures[(measures["source"] == source) & (measures["measure"] == measure)]
    if len(row) != 1:
        raise NoSuchRow(f"06_measures.csv: expected one row of {source!r}, {measure!r}, found {len(row)}")
    value, low, high = (float(row.iloc[0][name]) for name in ("value", "low", "high"))
    shown = f"{value + 0.0:.3f} [{low:.3f}, {high:.3f}]".replace("-0.000", "0.000")
    return Cell(value, low, high, "06_measures.csv", shown=shown)


BEFORE = "student, random weights"


def emerged(measures: pd.DataFrame, source: str) -> Cell:
    """How much better a map's clusters fit the image's own foreground than other images', beyond those of random weights.

    measures: `apm.islands.summary`, with `ari_two_gain` (adjusted Rand index with the own mask minus the mean with the others',
    paired by image) of `source` and of the student at random weights. Returns their difference; its interval joins theirs as of
    independent numbers. A map of the place alone fits every mask alike and scores 0 however smooth it is; a map of the object
    does not.
    """
    after, before = (_measure(measures, name, "ari_two_gain") for name in (source, BEFORE))
    value = after.value - before.value
    low = value - math.hypot(after.value - after.low, before.high - before.value)
    high = value + math.hypot(after.high - after.value, before.value - before.low)
    return Cell(value, low, high, after.source, shown=f"{value:.3f} [{low:.3f}, {high:.3f}]".replace("-0.000", "0.000"))


def _semantics(folder: Path | str) -> list[Claim]:
    measures = read(folder, "06_measures")
    sources = list(measures["source"].unique())
    trained = next(s for s in sources if s.startswith("student, k ="))
    variants = [s for s in sources if s.startswith("student, ") and s not in (BEFORE, trained)]
    controls = [s for s in sources if not s.startswith("student, ")]
    gain, more = _measure(measures, trained, "ari_two_gain"), emerged(measures, trained)
    beside = "; ".join(f"{name} {_measure(measures, name, 'ari_two_gain').shown}" for name in variants)
    passed = "; ".join(f"{name} {emerged(measures, name).shown}" for name in controls)
    own = "student: own image and another, same weights"
    swapped = cell(folder, "06_alike", {"compared": own}, "CKA")
    photographs = read(folder, "06_photographs")
    another = photographs.set_index("photograph")["another T, student"].astype(float)
    different = another[another < 0.9]
    named = ", ".join(f"{name} {value:.2f}" for name, value in different.items()) or "none"
    shown = f"CKA {swapped.text()}; photographs below 0.9, single images: {len(different)} of {len(another)} ({named})"
    return [
        replace(
            above(
                "Features of single locations are aware of what is there",
                "clusters of the grid fit the image's own foreground better than other images' foregrounds (adjusted Rand index, difference above 0)",
                gain,
            ),
            figure=gain.text() + (f"; with more in the column: {beside}" if beside else ""),
        ),
        replace(
            above(
                "Islands of agreement emerge during test-time training (GLOM)",
                "that difference is larger after training than at random weights; a map of place scores 0, a map of the object more",
                more,
            ),
            figure=f"{more.text()}; by the same rule: {passed}",
        ),
        decided(
            "The islands show the image",
            "another image in the trigger column gives another map (linear CKA with its own below 0.9, on the profile's images)",
            shown,
            swapped.bounds[1] + swapped.rounding < 0.9,
            swapped.source,
        ),
    ]


def _midpoint(live: Live) -> list[Claim]:
    return [
        decided(
            "The input percept is a field: interpolating T is more than interpolating pixels",
            "T of a blend of two images differs from the blend of their T by more than rounding (1e-5)",
            f"largest relative difference {live.midpoint:.1e}",
            live.midpoint > FLOAT32,
            "checked here",
        ),
    ]


def _field(folder: Path | str) -> list[Claim]:
    def number(table: str, row: str, column: str) -> Cell:
        heading = {"07_clusters": "features", "07_features": "features", "07_crossing": "picture", "07_field": "answer"}
        return cell(folder, table, {heading[table]: row}, column)

    column = "images: NMI with class"
    ours, alone, pixels, teacher = (
        number("07_clusters", row, column).value
        for row in ("field: teacher + RGB", "field: RGB alone", "raw pixels", "teacher")
    )
    nearest = next((name for name in read(folder, "07_features") if name.endswith("-NN")), "5-NN")
    folded = number("07_features", "field: teacher + RGB, folded", nearest)
    controls = {
        name: number("07_features", row, nearest)
        for name, row in (
            ("raw pixels", "raw pixels"),
            ("field without teacher", "field: RGB alone, folded"),
            ("before training", "student before training, folded"),
        )
    }
    clear = all(folded.low - folded.rounding > c.high + c.rounding for c in controls.values())
    behind = any(folded.value <= c.value for c in controls.values())
    blend, gap = (
        number("07_crossing", row, "halfway - ends") for row in ("pixels interpolated", "decoded - pixels, paired")
    )
    progress = read(folder, "07_training").astype({"epochs": int, field.FELL: float})
    short = field.cut_short(progress)
    unfinished = (
        f"; the training was cut short (its loss still fell by more than {field.SHORT:g} % over the last fifth)"
        if short
        else ""
    )
    away = blend.low - blend.rounding > 0
    joint, without, mean = (
        number("07_field", row, "PSNR (dB)")
        for row in ("field: teacher + RGB", "field: RGB alone", "control: mean of the training images")
    )
    untrained = controls["before training"]
    return [
        decided(
            "Trained over a dataset it clusters semantics in a single forward pass",
            "clusters of held-out images agree better with the classes than those of raw pixels and of a field without a teacher (normalised mutual information, %)",
            f"{ours:.1f}; raw pixels {pixels:.1f}, field without teacher {alone:.1f}, teacher {teacher:.1f}{unfinished}",
            ours > max(pixels, alone) or (None if short else False),
            "07_clusters.csv",
        ),
        decided(
            "Its features carry the class of images it never saw",
            f"{nearest} accuracy of the folded feature above that of raw pixels, of a field without a teacher and of an untrained student, intervals apart; not above one of them: does not hold",
            f"{folded.text()} %; {'; '.join(f'{name} {c.text()}' for name, c in controls.items())}{unfinished}",
            True if clear else False if behind and not short else None,
            folded.source,
        ),
        decided(
            "One set of weights decodes pictures and perceives",
            f"pictures decoded by the field with a teacher are closer than the mean image (PSNR) and the {nearest} accuracy of its folded feature is above an untrained student's, intervals apart; whether it interpolates is the next row",
            f"{joint.text()} dB (mean image {mean.text()}, field without teacher {without.text()}); {folded.text()} % (untrained {untrained.text()}, field without teacher {controls['field without teacher'].text()})",
            joint.low > mean.high and folded.low > untrained.high,
            joint.source,
        ),
        decided(
            "The input percept is a field: images between two images look like images",
            "halfway, decoded images move away from the nearest real image less than blends of pixels do (paired difference below 0); cannot be tested where blends do not move away",
            f"{gap.text()}, {100 * abs(gap.value / blend.value):.0f} % of the {blend.value:.3f} that blends move away"
            if away
            else f"{gap.text()}; blends move {blend.text()}: on these images the distance says nothing of likeness",
            None if not away or gap.high - gap.rounding < 0 <= gap.high + gap.rounding else gap.high < 0,
            gap.source,
        ),
    ]


def text(folder: Path | str) -> list[Claim]:
    """What the paper's sections 4 and 6 and its appendix say of ablations and of RGB, tested by the rows of notebooks 05 and 07."""
    return [
        *_or_untested("The ablations of sections 4 and 6 (Tables 5, 8, 9)", lambda: _ablations(folder)),
        *_or_untested("RGB reconstruction without a teacher (App. E.1, F)", lambda: _reconstruction(folder)),
    ]


def _line(folder: Path | str, variant: str) -> pd.Series:
    frame = read(folder, "05_measures")
    found = frame[frame["variant"] == variant]
    if len(found) != 1:
        raise NoSuchRow(f"05_measures.csv: expected one row of {variant!r}, found {len(found)}")
    return found.iloc[0]


def _ablation(folder: Path | str, variant: str, against: str | None = None) -> Cell:
    """A variant's paired difference to the line that it is compared with, which must be `against` where that is given."""
    row = _line(folder, variant)
    if not row["step"] or (against is not None and row["against"] != against):
        raise NoSuchRow(f"05_measures.csv: {variant!r} is not compared with {against!r}")
    return Cell(float(row["step"]), float(row["step_low"]), float(row["step_high"]), "05_measures.csv", n=int(row["n"]))


def _ablations(folder: Path | str) -> list[Claim]:
    # one claim that all is untested, not one for every row, where the notebook has not run
    measures = read(folder, "05_measures")
    five = published.load("table5")
    kernels = "accuracy (data set not named; presumably CIFAR-10)"
    local, all_three = "Lcls + Lgrid + Lrgb, local patch I_xy in T_c", "Lcls + Lgrid + Lrgb"
    # claim, variant, the line it must be compared with, published values before and after
    pairs = (
        ("Augmentation during test-time training lowers accuracy", "crop and mirror", None, ("APM without augmentation", "APM with data augmentation", "CIFAR-10 test")),
        ("L_rgb beside L_cls lowers accuracy", "L_cls + L_rgb", None, ("Lcls only", "Lcls + Lrgb", "CIFAR-10")),
        ("L_grid beside L_cls raises accuracy", "L_cls + L_grid", None, ("Lcls only", "Lcls + Lgrid", "CIFAR-10")),
        ("All losses raise accuracy", "L_cls + L_grid + L_rgb", None, ("Lcls only", all_three, "CIFAR-10")),
        ("The local patch raises accuracy", "all losses, I_xy", "L_cls + L_grid + L_rgb", (all_three, local, "CIFAR-10")),
        ("Three kernels are better than one", "3 conv kernels", None, ("1 conv kernel in T", "3 conv kernels in T", kernels)),
    )  # fmt: skip
    claims: list[Claim] = []
    for claim, variant, against, (before, after, column) in pairs:
        first, second = printed(five, before, column), printed(five, after, column)
        named = f"{claim} ({first:g} to {second:g})"
        needs = f"final {'above' if second > first else 'below'} {against or 'the base'} (paired)"
        claims += _or_untested(
            named,
            lambda n=named, v=variant, a=against, w=needs, d=second - first: [step(n, w, _ablation(folder, v, a), d)],
        )

    def routed(claim: str) -> list[Claim]:
        needs = "final above all losses with I_xy (paired; the published value is not known)"
        return [step(claim, needs, _ablation(folder, "all losses, T_vit", "all losses, I_xy"), 1.0, size=MARGIN)]

    def mlp(claim: str) -> list[Claim]:
        row = _line(folder, "MLP")
        final = Cell(float(row["final"]), float(row["final_low"]), float(row["final_high"]), "05_measures.csv")
        agrees = float(row["agreement"])
        figure = f"final {final.text()} %, as its teacher on {agrees:.1f} %"
        needs = "its decision is not its teacher's: same class on fewer than half of the images"
        return [decided(claim, needs, figure, agrees < 50, final.source)]

    def resnets(claim: str) -> list[Claim]:
        needs = "final above ResNet-34's (paired; the published values are not known)"
        return [step(claim, needs, _ablation(folder, "ResNet-18", "ResNet-34"), 1.0, size=MARGIN)]

    def peak(claim: str) -> list[Claim]:
        frame = read(folder, "05_iterations")
        found = frame[frame["k"] == "25"]
        if len(found) != 1 or "step" not in frame:
            raise NoSuchRow("05_iterations.csv: no comparison of 25 iterations with the most")
        row = found.iloc[0]
        number = Cell(
            float(row["step"]), float(row["step_low"]), float(row["step_high"]), "05_iterations.csv", n=int(row["n"])
        )
        needs = f"final after 25 iterations above that after {frame['k'].iloc[-1]} (paired)"
        return [step(claim, needs, number, 1.0, size=MARGIN)]

    def larger(claim: str) -> list[Claim]:
        best = 1e6 * float(five[(five["row"] == "53M") & (five["column"] == "DTD")]["row"].iloc[0].removesuffix("M"))
        size = dict(zip(measures["variant"], measures["parameters"].astype(float), strict=True))
        above_it = [
            variant
            for variant, other in zip(measures["variant"], measures["against"], strict=True)
            if size[variant] > 1.1 * best and abs(size[other] / best - 1) < 0.1
        ]
        if not above_it:
            raise NoSuchRow("05_measures.csv: no student above 53 M weights compared with one of 53 M")
        largest = max(above_it, key=lambda variant: size[variant])
        needs = f"final of {size[largest] / 1e6:.0f} M weights below that of 53 M (paired; the published value is not known)"
        return [step(claim, needs, _ablation(folder, largest), -1.0, size=MARGIN)]

    def vector(claim: str) -> list[Claim]:
        bare = [v for v in measures["variant"] if v.startswith("bare vector")]
        if not bare:
            raise NoSuchRow("05_measures.csv: no bare vector")
        best = max(bare, key=lambda v: float(_line(folder, v)["final"]))
        needs = f"numbers trained towards the same target without seeing the image end below the base (paired; best: {best})"
        return [step(claim, needs, _ablation(folder, best), -1.0, size=MARGIN)]

    chance = printed(five, "MLP", "CIFAR-10")
    further: list[tuple[str, Callable[[str], list[Claim]]]] = [
        ("Routed tokens T_vit are better still", routed),
        (f"A plain MLP as student stays at chance ({chance:g} on CIFAR-10)", mlp),
        ("ResNet-18 is a better student than ResNet-34", resnets),
        ("Accuracy peaks at about 25 iterations (Table 8)", peak),
        ("A larger student than 53 M loses accuracy (Table 9)", larger),
        ("The score takes a network that sees the image (our control: a bare vector)", vector),
    ]
    return claims + [c for claim, test in further for c in _or_untested(claim, test, claim)]


def _reconstruction(folder: Path | str) -> list[Claim]:
    colour = read(folder, "07_colour")
    alone = "RGB alone, no teacher"

    def grey(claim: str) -> list[Claim]:
        one, three = (
            cell(folder, "07_colour", {"row": f"{alone}, kernels: {k}"}, "colour decoded (%)") for k in (1, 3)
        )
        figure = f"{one.value:.1f} % of the colour with 1 kernel, {three.value:.1f} % with 3"
        needs = "with one kernel less than half of the images' colour is decoded, with three more"
        return [decided(claim, needs, figure, one.value < 50 < three.value, one.source)]

    def error(claim: str) -> list[Claim]:
        row = colour[colour["row"] == alone]
        if len(row) != 1:
            raise NoSuchRow(f"07_colour.csv: no row {alone!r}")
        name = str(row.iloc[0]["held-out images"])
        mse = cell(folder, "07_colour", {"row": alone}, "MSE")
        needs = f"mean squared error on held-out COCO images at most {best:g}; other images are easier or harder"
        holds = mse.value <= best if name.lower().startswith("coco") else None
        return [decided(claim, needs, f"{mse.text()} on {name}", holds, mse.source)]

    best = printed(published.load("table5"), "APM without teacher, RGB reconstruction", "COCO-val L2 loss")
    named: list[tuple[str, Callable[[str], list[Claim]]]] = [
        ("With one kernel the reconstruction is grey, with as many as colours it is not (App. E.1)", grey),
        (f"Without a teacher it reconstructs RGB (App. F: L2 {best:g} on COCO)", error),
    ]
    return [c for claim, test in named for c in _or_untested(claim, test, claim)]


def result(folder: Path | str, live: Live, claims: pd.DataFrame, said: pd.DataFrame) -> list[str]:
    """The audit in sentences: how far the student is from its teacher, beside the published steps, and the verdicts."""
    own = final_step(live.records, "08_start.csv")
    half = own.resolution
    lines = [
        f"final equals the teacher within {max(abs(own.low), abs(own.high), half):.1f} points on the audit's own {own.n} images: "
        f"final - teacher {own.text()} points"
    ]
    for b in _BENCHMARKS:
        try:
            found = _benchmark_step(folder, b)
        except (FileNotFoundError, NoSuchRow):
            lines.append(f"{b.name}: not run in this profile")
            continue
        inside = found.low - found.rounding <= b.published_step <= found.high + found.rounding
        where = "inside" if inside else "outside"
        lines.append(
            f"{b.name}: final - teacher {found.text()} points; the published step of {b.published_step:.1f} lies {where} the interval"
        )
    lines.append(f"claims of the abstract: {counts(claims)}")
    lines.append(f"claims of the text and the appendix: {counts(said)}")
    return lines
