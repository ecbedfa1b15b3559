"""The APM beside other ways to use the same teacher at test time: which of them a profile runs, and what they gain and cost.

A profile names them in its list `baselines`, one line each:

    baselines:
      - {method: zero, samples: 64, flip: false}             # a name that apm.baselines knows, and its options
      - {method: tda, samples: 64, orders: [0, 1, 2]}        # online: the images once in each of three orders
      - {method: zero, name: "ZERO, 16 views", views: 16}    # another row of the same method

samples: images per set (a part of those that the other rows see; "all" for the same ones), orders: seeds of the order of the
images, for methods that carry state from one to the next. All see the same images, prompts and views, so differences are paired.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from apm import baselines, project, records, stats, tables
from apm.datasets import Dataset
from apm.teachers import Teacher
from apm.ttt import TTTConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ONE_PROMPT = "one prompt"  # heading of that reference
TARGET = "target, no student"  # what the distilled feature alone predicts: row of methods that say it
CALIBRATION_NOTE = f"ECE: expected calibration error over all images of the row, {stats.CALIBRATION_BINS} bins; small samples bias it upwards."
COST_NOTE = (
    "Teacher passes: forward passes of the image tower per image. Episodic: nothing is kept from one image to the next; online: it "
    "is, so the order of the images matters."
)
NOTES = (CALIBRATION_NOTE, COST_NOTE)
KEYS = ("method", "name", "samples", "orders")  # of a line; every other one is an option of the method


@dataclass(frozen=True)
class Entry:
    """One row of a comparison: a method, or the same one for several orders of the images."""

    name: str
    runs: tuple[tuple[Any, int | None], ...]  # (method, seed of the order; None where there is none)
    samples: int | None  # images per set; None: all that the other rows see


def parse(lines: Sequence[Mapping[str, Any]], teacher: Teacher, config: TTTConfig) -> list[Entry]:
    """The entries of a profile's list `baselines`.

    config: of the student, for methods that train one. Raises ValueError, naming the line, for a line that is no mapping or has no
    method, unknown methods and options, two rows of one name, too few samples for an interval, and orders of a method that
    has none.
    """
    entries: list[Entry] = []
    for place, line in enumerate(lines, start=1):
        where = f"baselines, line {place}"
        if not isinstance(line, Mapping) or "method" not in line:
            raise ValueError(
                f"{where}: expected {{method: NAME, ...}} with one of {', '.join(sorted(baselines.REGISTRY))}; found {line!r}"
            )
        options = {key: value for key, value in line.items() if key not in KEYS}
        try:
            entries.append(_entry(line, options, teacher, config))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{where}: {error}") from error
        if entries[-1].name in [entry.name for entry in entries[:-1]]:
            raise ValueError(f"{where}: there is a row {entries[-1].name!r} already: give this one another name")
    return entries


def _entry(line: Mapping[str, Any], options: dict[str, Any], teacher: Teacher, config: TTTConfig) -> Entry:
    samples = line.get("samples", "all")
    if samples != "all" and (isinstance(samples, str) or int(samples) < stats.MINIMUM_SAMPLES):
        raise ValueError(
            f'samples must be "all" or at least {stats.MINIMUM_SAMPLES} images (for an interval), found {samples!r}'
        )
    if "name" in line:
        options["name"] = str(line["name"])
    if _takes(line["method"], "config"):
        options["config"] = config
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    first = baselines.create(str(line["method"]), teacher, **options)
    runs: tuple[tuple[Any, int | None], ...] = ((first, None),)
    if "orders" in line:
        orders = list(line["orders"])
        if not _takes(line["method"], "order_seed"):
            raise ValueError(f"{line['method']} is episodic: the order of the images has no effect; remove orders:")
        if not orders or len(set(orders)) < len(orders):
            raise ValueError(f"orders must be different seeds, found {orders}")
        made = (baselines.create(str(line["method"]), teacher, **options, order_seed=int(seed)) for seed in orders)
        runs = tuple(zip(made, (int(seed) for seed in orders), strict=True))
    return Entry(first.name, runs, None if samples == "all" else int(samples))


def _takes(method: Any, option: str) -> bool:
    constructor = baselines.REGISTRY.get(str(method))
    return option in getattr(constructor, "__dataclass_fields__", {})


def run(entries: Sequence[Entry], sets: Sequence[Dataset], *, folder: Path | str, seed: int = 0) -> pd.DataFrame:
    """The records of every entry on every set, with a column `state` ("episodic" or "online").

    An image on which a method fails is recorded as failed there. A method that says what its target alone predicts gets a second
    row for that, "NAME: target, no student". Returns an empty frame for no entries. Raises as `apm.records.run`.
    """
    if entries and not sets:
        raise ValueError("nothing to compare on: expected at least one dataset")
    found: dict[tuple[str, int], list[pd.DataFrame]] = {}
    for whole in sets:  # set by set: methods share an image's views in memory, which holds those of one set, not of all
        for entry in entries:
            part = entry.samples is not None and entry.samples < len(whole)
            chosen = whole.subset(int(entry.samples or 0), seed=0) if part else whole
            for place, (method, order) in enumerate(entry.runs):
                # the order stands in the records as the seed: views are drawn from it too
                made = records.run_all(
                    [method], [chosen], folder=folder, seed=seed if order is None else order, on_error="record"
                )
                state = "online" if getattr(method, "online", False) else "episodic"
                found.setdefault((entry.name, place), []).append(made.assign(state=state))
    frames = []
    for entry in entries:
        own = pd.concat(
            [rows for place in range(len(entry.runs)) for rows in found[entry.name, place]], ignore_index=True
        )
        frames.append(own)
        if "target_prediction" in own:
            frames.append(_of_targets(own))
    if not frames:
        return pd.DataFrame(columns=[*records.SCHEMA.names, "state"])
    return pd.concat(frames, ignore_index=True)


def _of_targets(own: pd.DataFrame) -> pd.DataFrame:
    """The records of what a method's targets predict by themselves."""
    return own.assign(
        method=own["method"].astype(str) + f": {TARGET}",
        prediction=own["target_prediction"].fillna(-1).astype(int),
        confidence=np.nan,
        milliseconds=np.nan,  # the views were encoded together with the student's training: not known by itself
        **{name: None for name in ("path", "minimum_loss_prediction", "first_loss", "last_loss")},
    )


def pass_milliseconds(teacher: Teacher, dataset: Dataset, *, images: int = 32, repeats: int = 3) -> float:
    """Milliseconds that the teacher takes to encode one image here and now, preprocessing included; the best of some repeats.

    What methods that read the teacher's stored features did not spend again.
    """
    pictures = [dataset.images[i] for i in range(min(images, len(dataset)))]
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        teacher.encode(teacher.transform(pictures)).feature.cpu()  # a GPU answers before it is done
        seconds.append(time.perf_counter() - start)
    return 1e3 * min(seconds) / len(pictures)


def table(
    rows: pd.DataFrame,
    references: Mapping[str, str],
    *,
    by: str = "set",
    pass_milliseconds: float | None = None,
) -> pd.DataFrame:
    """One row per method: means over the sets, with 95 % bootstrap intervals over images.

    rows: records of all methods, with `set` and origin as `apm.benchmark.by_origin` gives them, or another column `by` of what is
    averaged over, with the same weight each. references: heading -> method that each one is compared with, on the images that it
    saw itself. pass_milliseconds: added where a method read stored features of the teacher.

    Columns: method, state, n (rows of one order), sets, failed, orders; accuracy, low, high (percent); lowest and highest over
    orders; for each heading its accuracy there, difference, and the difference's low and high (percentage points); ECE
    (percent); passes; milliseconds per image. Raises ValueError for unknown references and for one that lacks an image.
    """
    known = list(dict.fromkeys(rows["method"]))
    for name in references.values():
        if name not in known:
            raise project.unknown("method of the records", name, known)
    key = [by, *tables.CONDITION, "sample"]
    theirs = {}
    for heading, name in references.items():
        own = rows[rows["method"] == name]
        theirs[heading] = pd.Series((own["prediction"] == own["label"]).to_numpy(), pd.MultiIndex.from_frame(own[key]))
    lines = [_line(name, rows[rows["method"] == name], theirs, key, by, pass_milliseconds) for name in known]
    return pd.DataFrame(lines)


def _line(
    name: str, own: pd.DataFrame, theirs: Mapping[str, pd.Series], key: list[str], by: str, encode: float | None
) -> dict[str, Any]:
    right = (own["prediction"] == own["label"]).to_numpy()
    groups: dict[str, Any] = {
        "samples": own["sample"].to_numpy(),
        "conditions": own[by].to_numpy(),
        "strata": own["dataset"].to_numpy(),
    }
    accuracy = stats.bootstrap_mean(right, **groups)
    over = [100.0 * part.groupby(by)["right"].mean().mean() for _, part in own.assign(right=right).groupby("seed")]
    state = own["state"].dropna().unique() if "state" in own else []
    line: dict[str, Any] = {
        "method": name,
        "state": state[0] if len(state) else "episodic",
        "n": len(own) // own["seed"].nunique(),
        "sets": own[by].nunique(),
        "failed": int((own["prediction"] < 0).sum()),
        "orders": len(over),
        "accuracy": accuracy.value,
        "low": accuracy.low,
        "high": accuracy.high,
        "lowest": min(over),
        "highest": max(over),
    }
    index = pd.MultiIndex.from_frame(own[key])
    for heading, reference in theirs.items():
        there = reference.reindex(index)
        if there.isna().any():
            raise ValueError(
                f"{name} saw {int(there.isna().sum())} images that {heading} did not: run both on the same sets"
            )
        other = there.to_numpy(dtype=bool)
        difference = stats.paired_difference(right, other, **groups)
        line[f"{heading} there"] = stats.bootstrap_mean(other, **groups).value
        line[f"- {heading}"] = difference.value
        line[f"- {heading} low"], line[f"- {heading} high"] = difference.low, difference.high
    sure = own["confidence"].notna().to_numpy() if "confidence" in own else np.zeros(len(own), dtype=bool)
    line["ECE"] = (
        stats.calibration_error(own["confidence"].to_numpy(dtype=float)[sure].clip(0, 1), right[sure])
        if sure.any()
        else np.nan
    )
    line["passes"] = float(own["teacher_passes"].mean()) if "teacher_passes" in own else np.nan
    spent = own["milliseconds"].astype(float)
    stored = own["saved_milliseconds"].astype(float) if "saved_milliseconds" in own else pd.Series(np.nan, own.index)
    line["milliseconds"] = float((spent + stored.fillna(encode if encode is not None else 0.0)).mean())
    return line


def compact(compared: pd.DataFrame, *, milliseconds: bool = False) -> pd.DataFrame:
    """`table` for reading: numbers with their intervals in one cell, without the differences from the single prompt, which
    `beside_published` shows. milliseconds: a column that no two runs agree on."""
    headings = [c.removesuffix(" there") for c in compared if c.endswith(" there")]
    shown = compared[["method", "state", "n"]].copy()
    if compared["failed"].any():
        shown["failed"] = compared["failed"]
    shown["accuracy"] = [
        tables.percent(cell) for cell in zip(*(compared[c] for c in ("accuracy", "low", "high")), strict=True)
    ]
    shown[f"{headings[0]} on the same images"] = compared[f"{headings[0]} there"]
    for heading in (heading for heading in headings if heading != ONE_PROMPT):
        columns = (f"- {heading}", f"- {heading} low", f"- {heading} high")
        shown[f"difference from {heading}"] = [
            tables.percent(cell) for cell in zip(*(compared[c] for c in columns), strict=True)
        ]
    if (compared["orders"] > 1).any():
        spans = zip(compared["lowest"], compared["highest"], compared["orders"], strict=True)
        shown["over orders"] = [f"{low:.1f} to {high:.1f} ({n})" if n > 1 else "" for low, high, n in spans]
    shown["ECE"] = [tables.percent(float(value)) for value in compared["ECE"]]
    shown["teacher passes"] = [f"{value:g}" if np.isfinite(value) else "" for value in compared["passes"]]
    if milliseconds:
        shown["ms per image"] = compared["milliseconds"]
    return shown


def by_set(rows: pd.DataFrame, order: Sequence[str], *, by: str = "set") -> pd.DataFrame:
    """Accuracy in percent per method (down) and set (across); the number of images per set stands in the last column."""
    right = rows.assign(right=100.0 * (rows["prediction"] == rows["label"]))
    wide = right.groupby(["method", by], sort=False)["right"].mean().unstack(by)  # noqa: PD010
    methods = list(dict.fromkeys(rows["method"]))
    counts = rows.groupby("method", sort=False).apply(
        lambda r: r.groupby(by)["sample"].nunique().max(), include_groups=False
    )
    return wide.loc[methods, list(order)].assign(**{"n per set": counts.loc[methods]})


def beside_published(
    compared: pd.DataFrame, published: pd.DataFrame, rows: Mapping[str, str], column: str
) -> pd.DataFrame:
    """Steps from the single prompt, ours beside the published ones.

    compared: from `table` with a reference headed "one prompt". published: from `apm.published.wide`. rows: our method -> published
    row, the single prompt first; those that this profile does not run have empty cells. column: the published average. Columns:
    method, published row, published, published step, ours, our step, and the step's low and high. Raises ValueError for unknown
    published rows and columns.
    """
    for what, wanted, known in (("row", rows.values(), published.index), ("column", [column], published.columns)):
        for name in wanted:
            if name not in known:
                raise project.unknown(f"published {what}", name, [str(k) for k in known])
    ours = compared.set_index("method")
    base = next(iter(rows.values()))
    lines = []
    for name, row in rows.items():
        own = ours.loc[name] if name in ours.index else None
        lines.append(
            {
                "method": name,
                "published row": row,
                "published": published.loc[row, column],
                "published step": np.nan if row == base else published.loc[row, column] - published.loc[base, column],
                "ours": np.nan if own is None else own["accuracy"],
                "our step": np.nan if own is None or row == base else own[f"- {ONE_PROMPT}"],
                "low": np.nan if own is None or row == base else own[f"- {ONE_PROMPT} low"],
                "high": np.nan if own is None or row == base else own[f"- {ONE_PROMPT} high"],
            }
        )
    return pd.DataFrame(lines)


def compact_steps(both: pd.DataFrame) -> pd.DataFrame:
    """`beside_published` for reading, as text: our step with its interval in one cell; empty where there is nothing."""
    cells = zip(both["our step"], both["low"], both["high"], strict=True)
    shown = both.drop(columns=["low", "high"]).assign(**{"our step": [tables.percent(cell) for cell in cells]})
    for column in ("published", "published step", "ours"):
        shown[column] = [tables.percent(float(value)) for value in both[column]]
    return shown


def cost_figure(compared: pd.DataFrame) -> tuple[Figure, str]:
    """What methods gain over the teacher against what they cost per image: teacher passes on the left, milliseconds on the right.

    Raises ValueError for a table of one method or none.
    """
    import matplotlib.pyplot as plt
    import seaborn as sns

    from apm import figures

    figures.style()
    heading = next(c.removesuffix(" there") for c in compared if c.endswith(" there"))
    if len(compared) < 2:
        raise ValueError("expected at least two methods to compare: add lines to baselines")
    figure, grid = plt.subplots(1, 2, figsize=(figures.WIDTH, 4.6), sharey=True, layout="constrained")
    colours = sns.color_palette("husl", len(compared))
    markers = "osD^vP*Xph<>"
    panels = (("passes", "teacher passes per image"), ("milliseconds", "milliseconds per image"))
    for axes, (column, label) in zip(grid, panels, strict=True):
        shown = compared[compared[column].notna() & (compared[column] > 0)]
        for place, (_, line) in enumerate(compared.iterrows()):
            if place not in shown.index:
                continue
            # methods with equal costs side by side
            same = [i for i in shown.index if abs(np.log(shown.loc[i, column] / line[column])) < 0.08]
            x = line[column] * 1.13 ** (same.index(place) - (len(same) - 1) / 2)
            value = line[f"- {heading}"]
            error = [[value - line[f"- {heading} low"]], [line[f"- {heading} high"] - value]]
            axes.errorbar(
                x,
                value,
                yerr=error,
                fmt=markers[place % len(markers)],
                color=colours[place],
                capsize=2,
                markersize=7,
                label=line["method"],
            )
        axes.axhline(0, color="0.3", linewidth=1.2, zorder=1)
        axes.set(xscale="log", xlabel=label)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    grid[0].set_ylabel(f"accuracy - {heading} (percentage points)")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")
    low, high = int(compared["n"].min()), int(compared["n"].max())
    return figure, (
        f"Mean over {int(compared['sets'].max())} sets of accuracy minus that of {heading} on the same images (n = {low} to {high} "
        "images in all); bars are 95 % bootstrap intervals over images. Equal costs are drawn side by side. Milliseconds are "
        "of this machine, views and teacher included, shared views counted for each."
    )
