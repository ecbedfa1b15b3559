"""The claims audit: what the paper says, what would have to be true, which figure tests it, and what that figure is.

Every verdict follows from a number by a rule that is written beside it; the numbers come from the tables that the other
notebooks left and from checks made here. Published numbers are held against each other and against their own sources.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from apm import methods, published, stats, tables, teachers, ttt
from apm.datasets import Dataset
from apm.model import APM, APMConfig, OnlineFold
from apm.project import unknown
from apm.teachers import Teacher

HOLDS, FAILS, UNTESTED = "holds", "does not hold", "cannot be tested in this profile"
ROUNDING = 0.1  # points: a mean of numbers printed with one decimal, itself printed with one
UNTRAINED_PART = 1024  # images at a time: 2.5 GB of pixels at paper scale
FLOAT32 = 1e-5  # largest difference, relative to the largest value, that float32's rounding explains

# --------------------------------------------------------------------------------------------------- reading our tables


class NoSuchRow(ValueError):
    """A results table has no row of that name: this profile did not run it."""


@dataclass(frozen=True)
class Cell:
    """A number of a results table with its interval, NaN where it has none, and where it stands."""

    value: float
    low: float
    high: float
    source: str

    def text(self, unit: str = "") -> str:
        """As tables show it."""
        shown = f"{self.value:.4g}" if np.isnan(self.low) else tables.percent((self.value, self.low, self.high))
        return f"{shown}{unit}"


_CELL = re.compile(r"^\s*(-?[\d.]+(?:e[+-]?\d+)?)(?:\s*\[(-?[\d.]+), (-?[\d.]+)\])?\s*$")


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
    return Cell(number, low, high, f"{table}.csv")


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
    """Holds when the number's interval lies above the limit."""
    bound = number.value if np.isnan(number.low) else number.low
    return Claim(claim, needs, number.text(unit), HOLDS if bound > limit else FAILS, number.source)


def below(claim: str, needs: str, number: Cell, limit: float, *, unit: str = "") -> Claim:
    """Holds when the number's interval lies below the limit."""
    bound = number.value if np.isnan(number.high) else number.high
    return Claim(claim, needs, number.text(unit), HOLDS if bound < limit else FAILS, number.source)


def around(claim: str, needs: str, number: Cell, limit: float, *, unit: str = "") -> Claim:
    """Holds when the number's interval covers the limit."""
    return Claim(claim, needs, number.text(unit), HOLDS if number.low <= limit <= number.high else FAILS, number.source)


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
            "holds when": [c.needs for c in claims],
            "figure": [c.figure for c in claims],
            "verdict": [c.verdict for c in claims],
            "from": [c.source for c in claims],
        }
    )


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


def encodings(
    teacher: Teacher, dataset: Dataset, config: ttt.TTTConfig, *, seed: int = 0
) -> tuple[float, ttt.TTTResult]:
    """(image encodings by the teacher per image, result) of test-time training on a small dataset, counted while it runs."""
    counted, original = [0], teacher.encode

    def counting(images: torch.Tensor, **options: Any) -> teachers.Encoding:
        counted[0] += len(images)
        return original(images, **options)

    teacher.encode = counting  # type: ignore[method-assign]
    try:
        pictures = [dataset.images[i] for i in range(len(dataset))]
        target = teacher.encode(teacher.transform(pictures)).feature
        seen = teachers.student_images(pictures, config.student.image_size[0]).to(target)
        text = teacher.text_features(dataset.classnames, dataset.templates)
        result = ttt.adapt(seen, target, config, text_features=text, generator=seed)
    finally:
        del teacher.encode  # the class's own shows again
    return counted[0] / len(dataset), result


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
    teacher: Teacher, dataset: Dataset, config: ttt.TTTConfig, *, seeds: Sequence[int] = (0,), source: str = ""
) -> Cell:
    """Accuracy in percent of students at random weights (k = 0), over all images and seeds; interval over images.

    Cheap, since nothing is trained: one update is run and not looked at. Memory does not grow with the number of images.
    """
    positions = np.arange(len(dataset))
    parts = np.split(positions, range(UNTRAINED_PART, len(positions), UNTRAINED_PART))
    first = replace(config, iterations=1)

    def said(part: np.ndarray, seed: int) -> np.ndarray:
        return methods.adapt_dataset(teacher, dataset, part, first, seed=seed).predictions()[:, 0].cpu().numpy()

    right = np.concatenate([said(part, seed) == dataset.labels[part] for seed in seeds for part in parts])
    value, low, high, _ = stats.bootstrap_mean(right, np.tile(positions, len(seeds)))
    return Cell(value, low, high, source)


def at_end(records: pd.DataFrame, rule: str, source: str) -> Cell:
    """Accuracy under a counting rule, percent."""
    right = stats.correct(records, rule)
    if right is None:
        raise ValueError(f"the records do not hold what the counting rule {rule!r} needs")
    value, low, high, _ = stats.bootstrap_mean(right, records["sample"].to_numpy())
    return Cell(value, low, high, source)


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


def published_arithmetic() -> pd.DataFrame:
    """Other printed numbers against each other: Table 4's sums, Table 3's ten sets, Table 2's counts, CIFAR-10's values.

    Columns: table, check, computed, printed, agrees ("" where there is nothing printed to agree with).
    """
    four, appendix, tpt = (published.load(name) for name in ("table4", "table5", "tpt"))
    two, three = (published.wide(published.load(name)) for name in ("table2", "table3"))

    def value(frame: pd.DataFrame, row: str, column: str) -> float:
        found = frame[(frame["row"] == row) & (frame["column"] == column)]
        if len(found) != 1:
            raise ValueError(f"expected one published value for {row} / {column}, found {len(found)}")
        number = found.iloc[0]["value"]
        if not np.isnan(number):
            return float(number)
        return float(found.iloc[0]["text"].split()[0])  # "241.7 (s+u)", "10 (s)"

    once, student = value(four, "APM (s), t=1", "GFlops_i (ideal)"), value(four, "APM (s), t=2", "GFlops_i (ideal)")
    tower = value(four, "CLIP ViT-B/16 (u) [90]", "GFlops_i (ideal)")
    rows: list[tuple[str, str, float, float]] = [
        ("Table 4", "teacher once + 19 x student, GFLOPs", once + 19 * student, value(four, "APM Peak Use", "GFlops_i (ideal)")),
        ("Table 4", "20 x CLIP ViT-B/16, GFLOPs", 20 * tower, value(four, "CLIP ViT-B/16", "GFlops_i (ideal)")),
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
        printed = value(appendix, row, column)
        rows.append(
            ("CIFAR-10", f"{what}: printed beside open_clip's zero-shot of ViT-L-14 openai", float(zero_shot), printed)
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
    chance: float  # percent
    orders: pd.DataFrame  # `invariances`, of all scales that were tried
    encodings: float  # teacher's image encodings per image
    labels_matter: bool
    midpoint: float  # `midpoint`: T of a blend of two images against the blend of their T


def abstract(folder: Path | str, live: Live) -> list[Claim]:
    """Every claim of the abstract with the figure that tests it; untested where a profile does not run what would test it."""
    return [
        *_or_untested("Computationally efficient (Table 4, Figure 2)", lambda: _efficiency(folder)),
        *_asynchrony(live),
        *_or_untested("One patch at a time needs less memory than all at once", lambda: _memory(folder)),
        *_learning(live),
        *(claim for name, *place in _BENCHMARKS for claim in _or_untested(f"Competitive on {name}", _accuracy, folder, name, *place)),
        *(claim for name, table, _ in _BENCHMARKS for claim in _or_untested(f"Competitive with other test-time methods: {name}", _others, folder, name, table)),
        *_or_untested("Features of single locations are semantic; islands emerge (GLOM)", lambda: _semantics(folder)),
        *_midpoint(live),
        *_or_untested("Semantic clusters in a single forward pass; the input percept is a field", lambda: _field(folder)),
    ]  # fmt: skip


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

    def total(counted: str) -> Cell:
        return cell(folder, "04_ttt_cost", {"counted": counted}, "total (GFLOP)")

    run = total("ViT-B-16 image once, then the whole student, plain, forward and backward")
    exact = total("ViT-B-16 image once, then the whole student, factorised, forward and backward")
    clip = total("ViT-B-16 image and one text in every iteration, forward only")
    tuned = (
        text for text in read(folder, "04_ttt_cost")["counted"] if re.match(r"\d+ views, .* texts forward and", text)
    )
    tpt = total(next(tuned, "views, texts forward and backward"))
    return [
        decided(
            "A forward pass costs half of CLIP ViT-B/16's (Figure 2: 10 against 20.5)",
            "same unit, all 1024 columns, image tower only: ratio as written in the paper at most 0.75",
            f"{plain.value:.2f} as written, {factorised.value:.2f} in the exact factorised form",
            plain.value <= 0.75,
            plain.source,
        ),
        decided(
            "Test-time training of 20 iterations costs half of CLIP ViT-B/16 run 20 times (Table 4: 241.7 against 462)",
            "with the backward pass counted: ratio at most 0.75",
            f"{run.value / clip.value:.2f} as written, {exact.value / clip.value:.2f} factorised",
            run.value / clip.value <= 0.75,
            run.source,
        ),
        decided(
            "It costs less than test-time prompt tuning (Table 4)",
            "operations of 20 iterations below those of TPT in its authors' setting (64 views, 1,000 classes)",
            f"{run.value:,.0f} against {tpt.value:,.0f} GFLOP",
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
    one, whole = (
        cell(folder, "04_memory", {"what": "student forward, plain", "detail": detail}, "above it (MB)")
        for detail in ("1 column at a time", most)
    )
    return [
        decided(
            "One patch at a time needs less memory than all at once",
            "peak memory above the weights is lower",
            f"{one.value:.1f} against {whole.value:.1f} MB",
            one.value < whole.value,
            one.source,
        ),
    ]


def _learning(live: Live) -> list[Claim]:
    end = at_end(live.records, "final", "08_start.csv")
    final, teacher = live.records["prediction"].to_numpy(), live.records["teacher_prediction"].to_numpy(dtype=np.int64)
    same = stats.accuracy((final == teacher) & (final >= 0))
    return [
        around(
            "No pre-training: every image starts from a student that knows nothing",
            f"accuracy at random weights is chance ({live.chance:.1f} %)",
            live.start,
            live.chance,
            unit=" %",
        ),
        above(
            "It learns from a single image's representation",
            f"accuracy after the last iteration above chance ({live.chance:.1f} %)",
            end,
            live.chance,
            unit=" %",
        ),
        decided(
            "The test image's representation is distilled once",
            "the teacher encodes every image exactly once, counted during a run",
            f"{live.encodings:g} encodings per image",
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


_BENCHMARKS = (
    ("natural shifts (Table 1)", "01_natural_shifts", "OOD Average"),
    ("corruptions (Table 2)", "02_corruptions", "Mean"),
    ("cross-dataset (Table 3)", "03_cross_dataset", "Average"),
)


def _accuracy(folder: Path | str, name: str, where: str, column: str) -> list[Claim]:
    def row(rule: str, method: str = "APM") -> Cell:
        return cell(folder, where, {"method": method, "counting rule": rule}, column)

    step = row(tables.DIFFERENCE)
    teacher, upper = row("zero-shot", "teacher"), row(tables.HEADERS["any"])
    return [
        above(f"Competitive on {name}", "final no more than 1 point below its teacher (paired)", step, -1.0),
        above(f"Better than its teacher on {name}", "final above its teacher (paired)", step),
        Claim(
            f"The gain could be a matter of counting: {name}",
            "the paper does not state its counting rule; any uses the labels and is an upper bound, never a score",
            f"any {upper.text()} against teacher {teacher.text()}",
            UNTESTED,
            upper.source,
        ),
    ]


def _others(folder: Path | str, name: str, where: str) -> list[Claim]:
    table = f"{where.split('_')[0]}_methods"
    rows = [row for row in read(folder, table)["method"] if not row.startswith(("APM", "zero-shot"))]
    claim = f"Competitive with other test-time methods: {name}"
    rule = (
        "no other method, on the same teacher and images, above APM beyond its 95 % interval (paired, each by itself)"
    )
    if not rows:
        return [Claim(claim, rule, "no other method in this profile", UNTESTED, f"{table}.csv")]
    found = {row: cell(folder, table, {"method": row}, "difference from APM") for row in rows}
    ahead = [row for row, difference in found.items() if difference.low > 0]
    best = max(found, key=lambda row: found[row].value)
    which = "; ".join(f"{row} by {found[row].text()} points" for row in ahead)
    text = (
        f"{len(ahead)} of {len(found)} methods: {which}"
        if ahead
        else f"none of {len(found)}; the highest, {best}, by {found[best].text()} points"
    )
    return [Claim(claim, rule, text, FAILS if ahead else HOLDS, f"{table}.csv")]


def _semantics(folder: Path | str) -> list[Claim]:
    measures = read(folder, "06_measures")
    trained = next(s for s in measures["source"].unique() if s.startswith("student, k ="))

    def number(source: str, measure: str) -> Cell:
        row = measures[(measures["source"] == source) & (measures["measure"] == measure)].iloc[0]
        return Cell(float(row["value"]), float(row["low"]), float(row["high"]), "06_measures.csv")

    gain = number(trained, "ari_two_gain")
    before, after = (number(source, "neighbour_minus_far") for source in ("student, random weights", trained))
    swapped = cell(folder, "06_alike", {"compared": "student: own image and another, same weights"}, "CKA")
    return [
        Claim(
            "Features of single locations are aware of what is there",
            "clusters of the grid fit the image's own foreground better than other images' foregrounds (adjusted Rand index, difference above 0)",
            " ".join((f"{gain.value + 0.0:.3f}", f"[{gain.low:.3f}, {gain.high:.3f}]")).replace("-0.000", "0.000"),
            HOLDS if gain.low > 0 else FAILS,
            gain.source,
        ),
        Claim(
            "Islands of agreement emerge during test-time training (GLOM)",
            "neighbouring columns agree more than distant ones by a wider margin than at random weights",
            f"margin {after.value:.2f} [{after.low:.2f}, {after.high:.2f}] after, {before.value:.2f} [{before.low:.2f}, {before.high:.2f}] before",
            HOLDS if after.low > before.high else FAILS,
            after.source,
        ),
        decided(
            "The islands show the image",
            "another image in the trigger column gives another map (linear CKA with its own below 0.9)",
            f"CKA {swapped.text()}",
            (swapped.value if np.isnan(swapped.high) else swapped.high) < 0.9,
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
        heading = {"07_clusters": "features", "07_features": "features", "07_crossing": "picture"}[table]
        return cell(folder, table, {heading: row}, column)

    column = "images: NMI with class"
    ours, pixels, teacher = (
        number("07_clusters", row, column) for row in ("field: teacher + RGB", "raw pixels", "teacher")
    )
    nearest = next((name for name in read(folder, "07_features") if name.endswith("-NN")), "5-NN")
    folded = number("07_features", "field: teacher + RGB, folded", nearest)
    untrained = number("07_features", "student before training, folded", nearest)
    walk, blend = (
        number("07_crossing", row, "halfway - ends") for row in ("T interpolated, decoded", "pixels interpolated")
    )
    return [
        decided(
            "Trained over a dataset it clusters semantics in a single forward pass",
            "clusters of held-out images agree better with the classes than clusters of raw pixels (normalised mutual information, %)",
            f"{ours.value:.1f}, raw pixels {pixels.value:.1f}, teacher {teacher.value:.1f}",
            ours.value > pixels.value,
            ours.source,
        ),
        decided(
            "Its features carry the class of images it never saw",
            f"{nearest} accuracy of the folded feature above that of an untrained student, intervals apart",
            f"{folded.text()} against {untrained.text()} %",
            folded.low > untrained.high,
            folded.source,
        ),
        decided(
            "The input percept is a field: images between two images look like images",
            "halfway, decoded images move away from the nearest real image less than blends of pixels do, intervals apart",
            f"{walk.value:.3f} [{walk.low:.3f}, {walk.high:.3f}] against {blend.value:.3f} [{blend.low:.3f}, {blend.high:.3f}]",
            walk.high < blend.low,
            walk.source,
        ),
    ]


def text(folder: Path | str) -> list[Claim]:
    """What the paper's sections 4 and 6 and Appendix E say of its ablations, tested by the rows of notebook 05."""
    return _or_untested("The ablations of sections 4 and 6 (Tables 5, 8, 9)", lambda: _ablations(folder))


def _ablations(folder: Path | str) -> list[Claim]:
    read(
        folder, "05_ablations"
    )  # one claim that all is untested, not one for every row, where the notebook has not run

    def number(variant: str, column: str = "final - base") -> Cell:
        return cell(folder, "05_ablations", {"variant": variant}, column)

    def against(higher: str, lower: str, claim: str, needs: str) -> Claim:
        a, b = number(higher, "final"), number(lower, "final")
        holds = True if a.low > b.high else False if a.high < b.low else None
        figure = f"{a.text()} against {b.text()} %"
        return decided(claim, needs, figure, holds, a.source)

    def mlp(claim: str) -> Claim:
        final, agrees = number("MLP", "final"), number("MLP", "as teacher")
        figure = f"final {final.text()} %, as its teacher on {agrees.text()} %"
        needs = "its decision is not its teacher's: same class on fewer than half of the images"
        return decided(claim, needs, figure, agrees.value < 50, final.source)

    def peak(claim: str) -> Claim:
        longest = read(folder, "05_iterations").iloc[-1]
        at, last = cell(folder, "05_iterations", {"k": "25"}, "final"), float(longest["final"])
        needs = f"final after 25 iterations more than 1 point above that after {longest['k']}"
        return decided(claim, needs, f"{at.value:.1f} against {last:.1f} %", at.value - last > 1, at.source)

    def larger(claim: str) -> Claim:
        sizes = {v: int(m[1]) for v in read(folder, "05_ablations")["variant"] if (m := re.search(r"\((\d+) M\)$", v))}
        largest = max(sizes, key=lambda variant: sizes[variant], default="")
        best = next((variant for variant, millions in sizes.items() if millions == 53), "")
        if best and sizes[largest] > 53:
            needs = "final below that of 53 M, intervals apart"
            return against(best, largest, f"{claim}: {sizes[largest]} M against 53 M", needs)
        return below(f"{claim}: ten times the width", "final below the base (paired)", number("width x 10"), 0.0)

    lower, higher = "final below the base (paired)", "final above the base (paired)"
    claims: list[tuple[str, Callable[[str], Claim]]] = [
        ("Augmentation during test-time training lowers accuracy (98.6 to 76.7 on CIFAR-10)", lambda c: below(c, lower, number("crop and mirror"), 0.0)),
        ("L_rgb beside L_cls lowers accuracy (94.2 to 91.0)", lambda c: below(c, lower, number("L_cls + L_rgb"), 0.0)),
        ("L_grid beside L_cls raises accuracy (94.2 to 96.1)", lambda c: above(c, higher, number("L_cls + L_grid"))),
        ("All losses raise accuracy (94.2 to 96.5)", lambda c: above(c, higher, number("L_cls + L_grid + L_rgb"))),
        ("The local patch raises accuracy (96.5 to 96.8)", lambda c: above(c, higher, number("all losses, I_xy"))),
        ("Three kernels are better than one (96.08 to 97.67)", lambda c: above(c, higher, number("3 conv kernels"))),
        ("A plain MLP as student stays at chance (9.0 on CIFAR-10)", mlp),
        ("ResNet-18 is a better student than ResNet-34", lambda c: against("ResNet-18", "ResNet-34", c, "intervals of the two accuracies apart")),
        ("Accuracy peaks at about 25 iterations (Table 8)", peak),
        ("A larger student than 53 M loses accuracy (Table 9)", larger),
    ]  # fmt: skip
    return [found for claim, tested in claims for found in _or_untested(claim, lambda c=claim, t=tested: [t(c)])]
