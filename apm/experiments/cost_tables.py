"""The tables of costs beside the published figures (Table 4, Figure 2).

`said`: published cells as printed, by (table, row, column).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from apm.analysis.numbers import Number
from apm.data.published import number
from apm.experiments.compute import FORMULATIONS, feature_width, prompt_backward, student_cost, tower_cost
from apm.model import APMConfig

REFERENCE = "ViT-B-16"  # the tower that the paper compares with
Said = Mapping[tuple[str, str, str], str]


def conventions(students: Mapping[str, APMConfig], towers: Sequence[str], said: Said) -> pd.DataFrame:
    """One forward pass for one image under every convention, beside the published figure of the same network.

    students: by name; the first is that of the published figures. The first rows count what those count, the others are like for like.
    "meets it in": the unit in which a count is within 3 % of the published figure.
    """
    first, released = next(iter(students.items()))
    published = {first: float(said["Fig 2", "APM", "GFLOPs total, 224x224 image"])}
    published[REFERENCE] = float(said["Fig 2", "CLIP ViT-B/16", "GFLOPs, 224x224 image"])
    half, pixels = released.locations // 2, released.image_size[0] // 2
    rows = [
        (first, "MLP + head, half the columns", student_cost(released, half, part="columns")),
        (first, f"MLP + head, {pixels} px", student_cost(released, _quarter(released), part="columns")),
        (first, "MLP + head, all columns", student_cost(released, part="columns")),
        (REFERENCE, "image + one text", tower_cost(REFERENCE, "both")),
    ]
    for name, config in students.items():
        rows += [(name, f"image to feature, {f}", student_cost(config, formulation=f)) for f in FORMULATIONS]
    rows += [(tower, "image to feature", tower_cost(tower)) for tower in towers]
    table = pd.DataFrame(rows, columns=["network", "counted", "cost"]).set_index(["network", "counted"])
    costs = table.pop("cost")
    printed = table.index.get_level_values("network").map(published)  # NaN where there is none
    table["columns"] = [cost.columns or None for cost in costs]
    table["parameters (M)"] = [cost.parameters / 1e6 for cost in costs]
    table["multiply-adds (G)"] = [cost.gmac for cost in costs]
    table["operations (GFLOP)"] = 2 * table["multiply-adds (G)"]
    table[f"/ {REFERENCE} image"] = table["multiply-adds (G)"] / tower_cost(REFERENCE).gmac
    table['published "GFLOPs"'] = [Number(value, unit="", kind="published") for value in printed]
    table["meets it in"] = np.where(np.isnan(printed), "", "neither")
    for unit in ("operations (GFLOP)", "multiply-adds (G)"):
        table.loc[np.abs(table[unit] / printed - 1) < 0.03, "meets it in"] = unit.split(" (")[0]
    return table


def _quarter(student: APMConfig) -> int:
    """Columns of a picture of half the side."""
    return math.prod(side // 2 for side in student.grid)


def ratios(student: APMConfig, iterations: int, said: Said) -> pd.DataFrame:
    """The student's operations over CLIP's: "one pass" (Figure 2), and all `iterations` (Table 4); beside: what it stands beside."""
    image, both = tower_cost(REFERENCE), tower_cost(REFERENCE, "both")
    small, large = (replace(student, width=feature_width(name)) for name in (REFERENCE, "ViT-L-14"))
    quarter = student_cost(small, _quarter(small)).forward
    half = student_cost(large, large.locations // 2, part="columns").forward
    tower, towers = f"{REFERENCE} image tower", f"{REFERENCE}, image and one text"
    one, every, run = "one pass", f"{iterations} iterations", f"{towers} in every iteration, forward"
    rows = [
        (one, "as published: MLP + head, half the columns", half / both.forward, towers),
        (one, f"student of {REFERENCE}, a picture of half the side, plain", quarter / image.forward, tower),
    ]
    forward, whole = iterations * both.forward, iterations * (both.forward + both.backward)
    for f in FORMULATIONS:
        cost, of_large = student_cost(small, formulation=f), student_cost(large, formulation=f)
        looks = image.forward + (iterations + 1) * cost.forward
        trained = looks + iterations * cost.backward
        rows += [
            (one, f"student of {REFERENCE}, {f}", cost.forward / image.forward, tower),
            (one, f"student of ViT-L-14, {f}", of_large.forward / image.forward, tower),
            (every, f"forward and backward beside forward alone, {f}", trained / forward, run),
            (every, f"forward, {f}", looks / forward, run),
            (every, f"forward and backward, {f}", trained / whole, f"{run} and backward"),
        ]
    rows.sort(key=lambda row: row[0] == every)
    figure = number(said["Fig 2", "APM", "GFLOPs total, 224x224 image"])
    clip = number(said["Fig 2", "CLIP ViT-B/16", "GFLOPs, 224x224 image"])
    ours, theirs = (number(said["Table 4", row, "GFlops_meas"]) for row in ("APM Peak Use", "CLIP ViT-B/16"))
    published = {one: figure / clip, every: ours / theirs}
    table = pd.DataFrame(rows, columns=["scope", "student", "ratio", "beside"])
    table["ratio"] = [Number(value, unit="ratio", kind="exact") for value in table["ratio"]]
    table.insert(3, "published", [Number(published[scope], unit="ratio", kind="published") for scope in table["scope"]])
    return table.set_index(["scope", "student"])


def ttt_costs(
    student: APMConfig, teachers: Sequence[str], iterations: int, said: Said, *, views: int, classes: int, steps: int
) -> pd.DataFrame:
    """Multiply-adds of whole runs for one image: Table 4's counting first, then everything that a run computes.

    student: its width follows the teacher. views, classes, steps: of test-time prompt tuning. A run of `apm.ttt` has one more forward
    pass than iterations. Raises ValueError for fewer than 1 iteration, and for unknown models.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, found {iterations}")
    image, text, clip = (tower_cost(REFERENCE, tower).gmac for tower in ("image", "text", "both"))
    both, peak, tpt, none = f"{REFERENCE} image and one text", "APM Peak Use", "TPT [90]", (0.0, 0)
    # run, row of Table 4, counted, once, (GMAC, number) of forward and of backward passes
    rows: list[tuple[Any, ...]] = []
    for columns in (student.locations // 2, student.locations):
        counted = f"{both} once, then MLP + head on {columns} columns, forward only"
        passes = student_cost(student, columns, part="columns").gmac, iterations - 1
        rows.append(("APM", peak, counted, clip, *passes, *none))
    counted = f"{both} in every iteration, forward only"
    rows.append(("CLIP", "CLIP ViT-B/16", counted, 0.0, clip, iterations, *none))
    for teacher, f in itertools.product(teachers, FORMULATIONS):
        cost = student_cost(replace(student, width=feature_width(teacher)), formulation=f)
        counted = f"{teacher} image once, then the whole student, {f}, forward and backward"
        passes, row = (cost.gmac, iterations + 1), peak if teacher == REFERENCE else ""
        rows.append(("APM", row, counted, tower_cost(teacher).gmac, *passes, cost.backward / 2e9, iterations))
    counted = f"{views} views through the {REFERENCE} image tower, forward only"
    rows.append(("TPT", tpt, counted, views * image, *none, *none))
    counted = f"{views} views, {classes:,} texts forward and backward, {classes:,} texts again to classify"
    gradient = classes * prompt_backward(REFERENCE) / 2e9
    rows.append(("TPT", tpt, counted, views * image, classes * text, steps + 1, gradient, steps))
    kinds = [f"{way} {what}" for way in ("forward", "backward") for what in ("(GMAC)", "passes")]
    table = pd.DataFrame(rows, columns=["run", "row", "counted", "once (GMAC)", *kinds])
    products = [table[f"{way} (GMAC)"] * table[f"{way} passes"] for way in ("forward", "backward")]
    table["total (GMAC)"] = table["once (GMAC)"] + sum(products)
    for what, column in (("ideal", "GFlops_i (ideal)"), ("measured", "GFlops_meas")):
        table[f'published "GFLOPs", {what}'] = [said.get(("Table 4", row, column), "") for row in table["row"]]
    table["total (GFLOP)"] = 2 * table["total (GMAC)"]
    return table.drop(columns="row").set_index(["run", "counted"])
