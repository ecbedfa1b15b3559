"""The published numbers against each other and against their sources; everything is computed from data/published."""

from __future__ import annotations

import numpy as np
import pandas as pd

from apm.data import published

ROUNDING = 0.1  # points: a mean of numbers printed with one decimal, itself printed with one
_SHIFTS = ["ImageNet", "ImageNet-A", "ImageNet-v2", "ImageNet-R", "ImageNet-Sketch"]
_AVERAGES = ("Average", "OOD Average", "Average (printed)")
# table, its average, what it is over
_MEANS = (1, "OOD Average", "{} shifted sets"), (2, "Average (printed)", "{} columns"), (3, "Average", "{} columns")
# what open_clip publishes under which tag, the row of Table 1 that names that teacher, and that of its student
_TEACHERS = {
    "ViT-H-14-quickgelu / dfn5b": ("OpenCLIP-VIT-H/14", "OpenCLIP ViT-H/14"),
    "ViT-H-14-378-quickgelu / dfn5b": ("OpenCLIP-VIT-H/14", "OpenCLIP ViT-H/14"),
    "ViT-L-14 / openai": ("CLIP VIT-L/14", "CLIP ViT-L/14"),
    "ViT-B-16 / openai": ("Ensemble", "CLIP ViT-B/16"),
}


def _wide(name: str) -> pd.DataFrame:
    return published.wide(published.load(name))


def _sets(wide: pd.DataFrame, average: str = "Average") -> list[str]:
    """The columns that an average is over."""
    if _SHIFTS[0] in wide:
        return _SHIFTS[average == "OOD Average" :]
    return [column for column in wide if column not in _AVERAGES and not column.startswith("P (")]


def _agrees(differences: pd.Series) -> np.ndarray:
    return np.where(differences.abs().round(9) <= ROUNDING, "yes", "no")


def published_means() -> pd.DataFrame:
    """Printed averages against the mean of their printed rows; agrees: within 0.1, the rounding of one decimal."""
    parts = []
    for number, average, what in ((1, "Average", "{} sets"), *_MEANS):
        wide = _wide(f"table{number}")
        sets = _sets(wide, average)
        part = {"table": f"Table {number}", "row": wide.index.map(short), "mean of": what.format(len(sets))}
        parts.append(pd.DataFrame({**part, "computed": wide[sets].mean(axis=1), "printed": wide[average]}))
    means = pd.concat(parts, ignore_index=True)
    means["difference"] = (means["computed"] - means["printed"]).round(9)
    return means.assign(agrees=_agrees(means["difference"]))


def published_teachers() -> pd.DataFrame:
    """Teacher rows of Table 1 and the APM rows above them against open_clip's own zero-shot values of the same weights, in %."""
    one, source = _wide("table1"), _wide("teacher_zero_shot").rename(columns={"ImageNet-V2": "ImageNet-v2"})
    parts = {}
    for tag, (teacher, student) in _TEACHERS.items():
        own = {"open_clip": source.loc[tag], "printed teacher": one.loc[teacher]}
        own["printed APM"] = one.loc[f"APM (Ours) [teacher {student}]"]
        parts[tag] = pd.DataFrame(own).loc[_SHIFTS]
    table = pd.concat(parts, names=["teacher", "set"]).reset_index()
    table["printed - open_clip"] = table["printed teacher"] - table["open_clip"]
    table["APM - printed teacher"] = table["printed APM"] - table["printed teacher"]
    table["APM - open_clip"] = table["printed APM"] - table["open_clip"]
    return table


def published_steps() -> pd.DataFrame:
    """APM minus its teacher as printed, points: "step" over the columns shown, "printed" what the printed averages give.

    Table 2's printed averages are not the means of their rows, and Table 3's teacher averages over ten sets where the table shows nine.
    """
    rows = {}
    for name, (number, average, _) in zip(("natural shifts", "corruptions", "cross-dataset"), _MEANS, strict=True):
        wide = _wide(f"table{number}")
        columns, ours = _sets(wide, average), "APM (Ours) [teacher CLIP ViT-B/16]"
        teacher, ours = ("OpenCLIP ViT-L/14", "APM") if number == 2 else ("Ensemble", ours)
        (apm,) = (row for row in wide.index if row.startswith(ours))
        gap = wide.loc[apm] - wide.loc[teacher]
        step = {"step": gap[columns].mean(), "printed": gap[average], "over": f"{len(columns)} columns"}
        rows[f"{name} (Table {number})"] = step
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("benchmark")


def published_arithmetic() -> pd.DataFrame:
    """Other printed numbers against each other; agrees: "" where there is nothing printed to agree with."""
    ideal, measured = (_column("table4", f"GFlops_{kind}") for kind in ("i (ideal)", "meas"))
    two, three, tpt = _wide("table2"), _wide("table3"), published.load("tpt")
    ten = published.wide(tpt, "TPT paper ViT-B/16 cross-dataset").drop(columns="Average (10 sets)").mean(axis=1)
    nine, average = three[_sets(three)].mean(axis=1), three["Average"]
    (apm,) = (row for row in two.index if row.startswith("APM"))
    higher = int((two.loc[apm] > two.loc["TTT-MAE"])[_sets(two)].sum())
    once, factor = ideal["APM (s), t=1"] + 19 * ideal["APM (s), t=2"], 100 * measured / ideal
    summed, mean = "teacher once + 19 x student", "mean over the"
    against = f"{summed}, against the measured GFLOPs of APM: not reconstructable"
    rows = [
        ("Table 4", f"{summed}, GFLOPs", once, ideal["APM Peak Use"]),
        ("Table 4", "20 x CLIP ViT-B/16, GFLOPs", 20 * ideal["CLIP ViT-B/16 (u) [90]"], ideal["CLIP ViT-B/16"]),
        ("Table 4", against, once, measured["APM Peak Use"]),
    ]
    for name, row in (("APM", "APM Peak Use"), ("CLIP ViT-B/16", "CLIP ViT-B/16"), ("TPT", "TPT [90]")):
        rows.append(("Table 4", f"measured over ideal GFLOPs, {name}, %: no common factor", factor[row], None))
    rows.append(("Table 2", "corruptions (of 15) in which APM is above TTT-MAE", higher, None))
    for ours, theirs in (("CLIP-ViT-B/16", "CLIP ViT-B/16"), ("TPT", "TPT")):
        rows.append(
            ("Table 3", f"{theirs}: {mean} ten sets of the TPT paper, Cars included", ten[theirs], average[ours])
        )
        rows.append(("Table 3", f"{theirs}: {mean} nine sets that the table shows", nine[ours], average[ours]))
    zero_shot = _wide("teacher_zero_shot").loc["ViT-L-14 / openai", "CIFAR-10"]
    for row, column, what in (
        ("APM without augmentation", "CIFAR-10 test", "section 4, no augmentation"),
        ("Lcls only", "CIFAR-10", "Table 5b, L_cls"),
        ("1 conv kernel in T", "accuracy (data set not named; presumably CIFAR-10)", "section 6, one kernel"),
    ):
        check = f"{what}: printed beside open_clip's zero-shot of ViT-L-14 openai"
        rows.append(("CIFAR-10", check, zero_shot, _column("table5", column)[row]))
    frame = pd.DataFrame(rows, columns=["table", "check", "computed", "printed"])
    # a student and its teacher need not agree
    nothing = frame["printed"].isna() | (frame["table"] == "CIFAR-10")
    return frame.assign(agrees=np.where(nothing, "", _agrees(frame["computed"] - frame["printed"])))


def _column(name: str, column: str) -> pd.Series:
    """The values of a published column by row: the numbers that the texts begin with, such as "241.7 (s+u)" or "10 (s)"."""
    frame = published.load(name)
    return frame[frame["column"] == column].set_index("row")["text"].map(published.number)


def short(row: str) -> str:
    """A published row's name without the remarks in brackets that tell rows apart where the teacher is named in it."""
    name = row.replace("APM (Ours) [teacher", "APM [").replace("[ ", "[")
    return name if len(name) < 40 else name.split(" [")[0] + " [...]"
