"""The published numbers against each other and against their sources; everything is computed from data/published."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from apm.data import corruptions as corrupt
from apm.data import published

ROUNDING = 0.1  # points: a mean of numbers printed with one decimal, itself printed with one
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


def published_steps() -> pd.DataFrame:
    """APM minus its teacher as printed, points, over the columns that both rows have; index benchmark, columns step, printed, over.

    Table 2's printed averages are not the means of their rows, and Table 3's teacher averages over ten sets where the table shows
    nine: "step" is over the columns shown, "printed" what the printed averages give.
    """
    rows = {}
    for name, table, teacher, apm, average, columns in (
        ("natural shifts (Table 1)", "table1", "Ensemble", "APM (Ours) [teacher CLIP ViT-B/16]", "OOD Average", list(_SHIFTS[1:])),
        ("corruptions (Table 2)", "table2", "OpenCLIP ViT-L/14", "APM", "Average (printed)", list(corrupt.NAMES)),
        ("cross-dataset (Table 3)", "table3", "Ensemble", "APM (Ours) [teacher CLIP ViT-B/16]", "Average", []),
    ):  # fmt: skip
        wide = published.wide(published.load(table))
        (row,) = (r for r in wide.index if r.startswith(apm))
        columns = columns or [c for c in wide.columns if c != average and not c.startswith("P (")]
        gap = wide.loc[row] - wide.loc[teacher]
        rows[name] = {"step": gap[columns].mean(), "printed": gap[average], "over": f"{len(columns)} columns"}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("benchmark")


def printed(frame: pd.DataFrame, row: str, column: str) -> float:
    """A published value of `apm.data.published.load`'s frame: the number that its text begins with. Raises ValueError unless there is one."""
    found = frame[(frame["row"] == row) & (frame["column"] == column)]
    if len(found) != 1:
        raise ValueError(f"expected one published value for {row} / {column}, found {len(found)}")
    value = published.number(found.iloc[0]["text"])
    if math.isnan(value):
        raise ValueError(f"expected a published value for {row} / {column} that begins with a number")
    return value


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
