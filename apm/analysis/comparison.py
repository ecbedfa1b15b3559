"""The APM beside other ways to use the same teacher at test time: which of them a profile runs, and what they gain and cost.

A profile names them in its list `baselines`, one line each:

    baselines:
      - {method: zero, samples: 64, flip: false}             # a name that apm.methods knows, and its options
      - {method: tda, samples: 64, orders: [0, 1, 2]}        # online: the images once in each of three orders
      - {method: zero, name: "ZERO, 16 views", views: 16}    # another row of the same method, whose name says what is different

samples: images per set (a part of those that the other rows see; "all" for the same ones), orders: seeds of random orders of the
images, for methods that carry state from one to the next. All see the same images and views, so differences are paired; and the set's
prompts, unless a line says otherwise (`prompts: original`) or a method tunes its own: `apm.analysis.benchmark.prompts_note` says which.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from apm import methods, project
from apm import methods as baselines
from apm.analysis import benchmark, numbers, stats, tables
from apm.analysis.benchmark import AT_PUBLISHED
from apm.analysis.numbers import Number
from apm.data.datasets import Dataset, UnreadableImage
from apm.runs import records
from apm.teachers import Teacher
from apm.ttt import TTTConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ONE_PROMPT = "one prompt"  # heading of that reference
TARGET = "target, no student"  # what the distilled feature alone predicts: row of methods that say it
ITS_TARGET = "its target"  # heading of the difference from that row
FIXED = (
    "zero-shot, one prompt",
    "zero-shot",
    "APM",
    AT_PUBLISHED,
)  # rows that notebooks have besides those of `baselines`
CALIBRATION_NOTE = (
    f"ECE: expected calibration error over all images of the row, {stats.CALIBRATION_BINS} bins. Small samples bias it upwards and "
    "rows differ in n, so compare each with the teacher's ECE on the same images."
)
STATES = ("episodic", "trained once", "online")
COST_NOTE = (
    "Per image: passes of the image tower; prompts that the text tower reads (those of a fixed classifier are read once for all "
    "images); updates of a student. Episodic: nothing is kept from one image to the next. Online: it is, so other test images help, and "
    "their order matters: compare online rows with each other. The orders are random, each drawn from a seed; the accuracy of such a "
    "row is the mean over the orders, beside it the lowest and the highest."
)
LEARNED_NOTE = (
    "Trained once: on labelled images of another split, with one training seed. Their intervals are over images and know nothing of "
    "how another training would come out."
)
TARGET_NOTE = (
    f"{TARGET[0].upper()}{TARGET[1:]}: the class nearest to the distilled feature itself; the difference of a student from it is what "
    "the student adds."
)
STATISTICS_NOTE = (
    "TENT, and norm (the same without its step), with BatchNorm normalise by the statistics of one image's views instead of those of "
    "training. The methods were made for batches of 200 images: crops of one image are alike, and what they share is normalised away. "
    "What norm loses is due to these statistics alone; only the difference between TENT and norm is due to entropy minimisation."
)
NOTES = (CALIBRATION_NOTE, COST_NOTE)  # under every table; `notes` adds those that its rows call for
KEYS = ("method", "name", "samples", "orders")  # of a line; every other one is an option of the method


@dataclass(frozen=True)
class Entry:
    """One row of a comparison: a method, or the same one for several orders of the images."""

    name: str
    runs: tuple[tuple[Any, int | None], ...]  # (method, seed of the order; None where there is none)
    samples: int | None  # images per set; None: all that the other rows see


def at_published(teacher: Teacher, config: TTTConfig, samples: int | str = "all") -> list[Entry]:
    """The row of a student trained with the published rate and K; none where that is the setting already. samples: as of a line.

    Raises ValueError for samples that a line may not have.
    """
    published = benchmark.at_published(config)
    if config == published:
        return []
    _check_samples(samples)
    method = methods.APM(teacher, published, name=AT_PUBLISHED)
    return [Entry(method.name, ((method, None),), None if samples == "all" else int(samples))]


def parse(lines: Sequence[Mapping[str, Any]], teacher: Teacher, config: TTTConfig) -> list[Entry]:
    """The entries of a profile's list `baselines`.

    config: of the student, for methods that train one. Raises ValueError, naming the line, for a line that is no mapping or has no
    method, unknown methods and options, values of another type than the option's, two rows of one name or one that notebooks
    have besides (FIXED), too few samples for an interval, and orders of a method that has none.
    """
    entries: list[Entry] = []
    taken = dict.fromkeys(FIXED, "of the notebooks")
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
        rows = [entries[-1].name]
        if _takes(line["method"], "config"):
            rows.append(_target_row(entries[-1].name))
        for row in rows:
            if row in taken:
                raise ValueError(f"{where}: there is a row {row!r} {taken[row]} already: give this one another name")
        taken |= dict.fromkeys(rows, f"of line {place}")
    return entries


def _entry(line: Mapping[str, Any], options: dict[str, Any], teacher: Teacher, config: TTTConfig) -> Entry:
    samples = line.get("samples", "all")
    _check_samples(samples)
    if "name" in line:
        options["name"] = line["name"]
    if _takes(line["method"], "config"):
        options["config"] = config
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    first = baselines.create(str(line["method"]), teacher, **options)
    runs: tuple[tuple[Any, int | None], ...] = ((first, None),)
    if "orders" in line:
        orders = line["orders"]
        if not _takes(line["method"], "order_seed"):
            raise ValueError(f"{line['method']} is episodic: the order of the images has no effect; remove orders:")
        if "order_seed" in options:
            raise ValueError("order_seed: is one order and orders: are several: remove one of them")
        seeds = list(orders) if isinstance(orders, list | tuple) else []
        if not seeds or not all(_whole(seed) and seed >= 0 for seed in seeds) or len(set(seeds)) < len(seeds):
            raise ValueError(f"orders must be different seeds, a list of whole numbers from 0, found {orders!r}")
        made = (baselines.create(str(line["method"]), teacher, **options, order_seed=seed) for seed in seeds)
        runs = tuple(zip(made, seeds, strict=True))
    return Entry(first.name, runs, None if samples == "all" else int(samples))


def _check_samples(samples: Any) -> None:
    if samples != "all" and not (_whole(samples) and samples >= stats.MINIMUM_SAMPLES):
        raise ValueError(
            f'samples must be "all" or a whole number of at least {stats.MINIMUM_SAMPLES} images (for an interval), '
            f"found {samples!r}"
        )


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _takes(method: Any, option: str) -> bool:
    constructor = baselines.REGISTRY.get(str(method))
    return option in getattr(constructor, "__dataclass_fields__", {})


def run(
    entries: Sequence[Entry],
    sets: Sequence[Dataset],
    *,
    folder: Path | str,
    seed: int = 0,
    on_error: str = "record",
) -> pd.DataFrame:
    """The records of every entry on every set, with a column `state`, one of STATES.

    on_error: as of `apm.runs.records.run`; "record": an image on which a method fails is a failed row of that method. A method that
    says what its target alone predicts gets a second row for that, "NAME: target, no student". Returns an empty frame for no
    entries. Raises as `apm.runs.records.run`.
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
                    [method], [chosen], folder=folder, seed=seed if order is None else order, on_error=on_error
                )
                found.setdefault((entry.name, place), []).append(made.assign(state=_state(method, chosen)))
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


def _state(method: Any, dataset: Dataset) -> str:
    """What a method knows besides the image: nothing, labelled images of a training split, or earlier test images."""
    if getattr(method, "online", False):
        return "online"
    reads = getattr(method, "data_identity", lambda _: None)
    return "trained once" if reads(dataset) else "episodic"


def _target_row(name: str) -> str:
    return f"{name}: {TARGET}"


def _targets(known: Iterable[Any]) -> dict[Any, str]:
    """Of the methods that are there, those beside which the row of what their targets predict stands, with its name."""
    known = list(known)
    return {name: _target_row(str(name)) for name in known if _target_row(str(name)) in known}


def _of_targets(own: pd.DataFrame) -> pd.DataFrame:
    """The records of what a method's targets predict by themselves."""
    return own.assign(
        method=own["method"].astype(str).map(_target_row),
        prediction=own["target_prediction"].fillna(-1).astype(int),
        confidence=own["target_confidence"],
        milliseconds=own["target_milliseconds"],
        **{name: None for name in ("path", "minimum_loss_prediction", "first_loss", "last_loss")},
    )


def notes(rows: pd.DataFrame) -> list[str]:
    """Sentences that belong under a table of these records: NOTES, and what some of its rows cannot be read without."""
    found = list(NOTES)
    if _targets(rows["method"].unique()):
        found.append(TARGET_NOTE)
    if "batch_statistics" in rows and (rows["batch_statistics"] > 0).any():
        found.append(STATISTICS_NOTE)
    if "state" in rows and (rows["state"] == "trained once").any():
        found.append(LEARNED_NOTE)
    return found


def pass_milliseconds(teacher: Teacher, dataset: Dataset, *, images: int = 32, repeats: int = 3) -> float:
    """Milliseconds that the teacher takes to encode one image here and now, preprocessing included; the best of some repeats.

    What methods that read the teacher's stored features did not spend again. Images that cannot be read are passed over; raises
    UnreadableImage where none of the first `images` can.
    """
    pictures, damaged = [], None
    for i in range(min(images, len(dataset))):
        try:
            pictures.append(dataset.images[i])
        except UnreadableImage as error:
            damaged = error
    if not pictures and damaged is not None:
        raise damaged
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
    """One row per method, episodic ones first and online ones last: means over the sets, with 95 % intervals over images.

    rows: records of all methods, with `set` and origin as `apm.analysis.benchmark.by_origin` gives them, or another column `by` of what is
    averaged over, with the same weight each. references: heading -> method that each one is compared with, on the images that it
    saw itself. pass_milliseconds: added where a method read stored features of the teacher.

    Index: method. Columns: state, n (images of one order), failed, accuracy (percent), "HEADING on the same images" for the first
    reference, "difference from HEADING" for each, and from "its target" where the records have that row (points), lowest and highest
    order, ECE, that of the first reference there, image passes, prompts read, student updates and ms (median) per image. Columns
    that are empty throughout are left out. Raises ValueError for unknown references and for one that lacks an image.
    """
    known = list(dict.fromkeys(rows["method"]))
    for name in references.values():
        if name not in known:
            raise project.unknown("method of the records", name, known)
    targets = _targets(known)
    lines = {}
    for name in known:
        asked = dict(references) | ({ITS_TARGET: targets[name]} if name in targets else {})
        lines[name] = _line(rows[rows["method"] == name], rows, asked, by, pass_milliseconds)
    found = pd.DataFrame.from_dict(lines, orient="index").rename_axis("method")
    order = found["state"].map(STATES.index)
    found = found.loc[order.sort_values(kind="stable").index].dropna(axis="columns", how="all")
    return found if found["failed"].any() else found.drop(columns="failed")


def _judged(own: pd.DataFrame, key: list[str]) -> pd.DataFrame:
    """One method's rows by their image: right, and confidence (NaN where it says none)."""
    confidence = own["confidence"].to_numpy(dtype=float) if "confidence" in own else np.nan
    right = (own["prediction"] == own["label"]).to_numpy()
    return pd.DataFrame({"right": right, "confidence": confidence}).set_index(pd.MultiIndex.from_frame(own[key]))


def _line(
    own: pd.DataFrame, rows: pd.DataFrame, references: Mapping[str, str], by: str, encode: float | None
) -> dict[str, Any]:
    key = [by, *tables.CONDITION, "sample"]
    right = (own["prediction"] == own["label"]).to_numpy()
    columns = {"samples": "sample", "conditions": by, "strata": "dataset", "seeds": "seed"}
    groups = {name: own[column].to_numpy() for name, column in columns.items()}
    state = own["state"].dropna().unique() if "state" in own else []
    orders = [
        tables.percent(
            stats.mean(part["right"].to_numpy(), **{name: part[column].to_numpy() for name, column in columns.items()}),
            interval=False,
        )
        for _, part in own.assign(right=right).groupby("seed")
    ]
    line: dict[str, Any] = {
        "state": state[0] if len(state) else "episodic",
        "n": len(own) // own["seed"].nunique(),
        "failed": int((own["prediction"] < 0).sum()),
        "accuracy": tables.percent(stats.mean(right, **groups)),
    }
    for place, (heading, name) in enumerate(references.items()):
        # the row of what a student's target says has the same orders, every other reference one
        paired = [*key, "seed"] if heading == ITS_TARGET else key
        there = _judged(rows[rows["method"] == name], paired).reindex(pd.MultiIndex.from_frame(own[paired]))
        if lacking := int(there["right"].isna().sum()):
            raise ValueError(
                f"{own['method'].iloc[0]} saw {lacking} images that {heading} did not: run both on the same sets"
            )
        other = there["right"].to_numpy(dtype=bool)
        if place == 0:
            line[f"{heading} on the same images"] = replace(tables.percent(stats.mean(other, **groups)), brief=True)
            calibration = {f"ECE of {heading}": _calibration(there["confidence"].to_numpy(dtype=float), other)}
        line[f"difference from {heading}"] = None  # the reference itself
        if name != own["method"].iloc[0]:
            step = stats.paired_difference(right, other, **groups)
            line[f"difference from {heading}"] = tables.percent(step, kind="difference", unit="points")
    line.setdefault(f"difference from {ITS_TARGET}", None)
    several = len(orders) > 1
    line |= {
        f"{end} order": pick(orders, key=float) if several else None
        for end, pick in (("lowest", min), ("highest", max))
    }
    line["ECE"] = _calibration(_judged(own, key)["confidence"].to_numpy(), right)
    line |= calibration
    for heading, column in (("image passes", "teacher_passes"), ("prompts read", "prompts_read")):
        line[heading] = Number(float(own[column].mean()) if column in own else np.nan, unit="", kind="count")
    updates = own["path"].dropna().map(len).mean() - 1 if own["path"].notna().any() else np.nan
    line["student updates"] = Number(float(updates), unit="", kind="count")
    spent = own["milliseconds"].astype(float)
    stored = own["saved_milliseconds"].astype(float) if "saved_milliseconds" in own else pd.Series(np.nan, own.index)
    # median: other work on the machine makes some images far slower
    spent += stored.fillna(encode if encode is not None else 0.0)
    line["ms per image"] = Number(float(spent.median()), unit="ms", kind="cost")
    return {name: None if numbers.is_empty(cell) else cell for name, cell in line.items()}


def _calibration(confidence: np.ndarray, right: np.ndarray) -> Number:
    """ECE in percent over the rows that have a confidence; empty where none has."""
    sure = ~np.isnan(confidence)
    value = stats.calibration_error(confidence[sure].clip(0, 1), right[sure]) if sure.any() else np.nan
    return Number(value, n=int(sure.sum()), kind="measure")


def by_set(rows: pd.DataFrame, order: Sequence[str], *, by: str = "set") -> pd.DataFrame:
    """Accuracy in percent per method (down) and set (across), each number with its images."""
    right = rows.assign(right=100.0 * (rows["prediction"] == rows["label"]))
    cells = right.groupby(["method", by], sort=False).apply(
        lambda part: Number(part["right"].mean(), n=part["sample"].nunique()), include_groups=False
    )
    return cells.unstack(by).loc[list(dict.fromkeys(rows["method"])), list(order)].rename_axis(columns=None)  # noqa: PD010


def beside_published(
    compared: pd.DataFrame, published: pd.DataFrame, rows: Mapping[str, str], column: str
) -> pd.DataFrame:
    """Steps from the single prompt, ours beside the published ones.

    compared: from `table` with a reference headed "one prompt". published: from `apm.data.published.wide`. rows: our method -> published
    row, the single prompt first; those that this profile does not run have empty cells. column: the published average. Index: method;
    columns: published row, published, published step, our accuracy, our step, verdict. Raises ValueError for unknown published
    rows and columns.
    """
    for what, wanted, known in (("row", rows.values(), published.index), ("column", [column], published.columns)):
        for name in wanted:
            if name not in known:
                raise project.unknown(f"published {what}", name, [str(k) for k in known])
    base = next(iter(rows))
    lines = {}
    for name, row in rows.items():
        value = float(published.loc[row, column])
        lines[name] = {"published row": row, "published": Number(value, kind="published")}
        if name in compared.index:
            lines[name]["ours"] = compared.loc[name, "accuracy"]
        if name != base:
            lines[name]["published step"] = Number(
                value - published.loc[rows[base], column], unit="points", kind="published"
            )
        if name != base and name in compared.index:
            step = compared.loc[name, f"difference from {ONE_PROMPT}"]
            lines[name] |= {"our step": step, "verdict": numbers.verdict(step)}
    columns = ["published row", "published", "published step", "ours", "our step", "verdict"]
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis("method").reindex(columns=columns)


def cost_figure(compared: pd.DataFrame, sets: str) -> tuple[Figure, str]:
    """What every method gains over the first reference, beside what it costs per image: passes of the teacher and milliseconds.

    compared: from `table`. sets: what the means are over, in words. One line per method, so that equal costs and distant values hide
    nobody. Raises ValueError for a table of one method or none.
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    from apm.analysis import figures

    figures.style()
    if len(compared) < 2:
        raise ValueError("expected at least two methods to compare: add lines to baselines")
    column = next(c for c in compared if c.startswith("difference from "))
    heading = column.removeprefix("difference from ")
    size = (figures.WIDTH, 1.4 + 0.3 * len(compared))
    figure, axes = plt.subplots(1, 3, figsize=size, sharey=True, width_ratios=(2.2, 1, 1), layout="constrained")
    gain, costs = axes[0], axes[1:]
    labelled: set[str] = set()
    targets = set(_targets(compared.index).values())
    for place, (name, line) in enumerate(compared.iterrows()):
        student = not numbers.is_empty(line.get("student updates"))
        kind = ITS_TARGET if name in targets else "APM" if student else _kind(str(name), str(line["state"]))
        colour, marker = _LOOKS[kind]
        look = {"color": colour, "marker": marker, "markersize": 7, "linestyle": "none"}
        step = Number(0.0) if numbers.is_empty(line[column]) else line[column]  # the reference itself
        error = [[step.value - step.bounds[0]], [step.bounds[1] - step.value]]
        gain.errorbar(
            step.value, place, xerr=np.abs(error), capsize=2.5, label=None if kind in labelled else kind, **look
        )
        labelled.add(kind)
        for panel, cost in zip(costs, ("image passes", "ms per image"), strict=True):
            if numbers.is_empty(line.get(cost)) or not float(line[cost]) > 0:
                continue
            panel.plot(float(line[cost]), place, **look)
            text = f"{float(line[cost]):.3g}"
            panel.annotate(
                text, (float(line[cost]), place), (7, 0), textcoords="offset points", va="center", fontsize="x-small"
            )
    gain.axvline(0, color="0.3", linewidth=1.2, zorder=1)
    gain.set_yticks(range(len(compared)), [str(name) for name in compared.index])
    gain.set(ylim=(len(compared) - 0.4, -0.6), xlabel=f"accuracy - {heading}\n(percentage points)")
    far = compared[column].dropna().map(lambda step: abs(step.value))
    broken = bool(far.max() > 3 * max(1.0, float(far.nsmallest(max(2, len(far) - 3)).max())))
    if broken:  # a few far ones would press all others together
        gain.set_xscale("symlog", linthresh=_LINEAR, linscale=1.5)
        ends = gain.get_xlim()
        ticks = [tick for tick in (-80, -20, -5, 0, 5, 20, 80) if ends[0] <= tick <= ends[1]]
        gain.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        gain.minorticks_off()
        for sign, end in zip((-1, 1), ends, strict=True):
            if sign * end > _LINEAR:
                gain.axvspan(sign * _LINEAR, end, color="0.93", zorder=0)
                gain.text(
                    sign * _LINEAR,
                    1.0,
                    "log scale",
                    fontsize="x-small",
                    color="0.35",
                    va="bottom",
                    transform=gain.get_xaxis_transform(),
                    ha="right" if sign < 0 else "left",
                )
        gain.set_xlim(ends)
    for panel, label in zip(costs, ("image passes\nof the teacher", "milliseconds\nper image"), strict=True):
        panel.set(xscale="log", xlabel=label)
        panel.margins(x=0.6)
        panel.xaxis.set_major_locator(LogLocator(numticks=4))
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}" if value < 1e4 else f"{value / 1e3:g}k")
        panel.xaxis.set_minor_formatter(NullFormatter())
    figure.legend(loc="outside lower center", ncols=min(4, len(labelled)), fontsize="small")
    scale = f" In the grey part, beyond {_LINEAR:g} points, the scale is logarithmic." if broken else ""
    return figure, (
        f"Mean over {sets} of accuracy minus that of {heading} on the same images (n = {compared['n'].min()} to {compared['n'].max()} "
        f"in all); bars are 95 % intervals over images.{scale} Beside it what each method costs: milliseconds are the median over images "
        "on this machine and whatever else it did, views and teacher included, shared views counted for each."
    )


_LINEAR = 5.0  # percentage points, up to which a scale with far values is linear
_LOOKS = {  # colours of seaborn's palette "colorblind", each with a marker of its own
    "zero-shot": ("#949494", "s"),
    "APM": ("#0173b2", "o"),
    ITS_TARGET: ("#56b4e9", "o"),
    "episodic": ("#de8f05", "^"),
    "trained once": ("#cc78bc", "v"),
    "online": ("#029e73", "D"),
}


def _kind(method: str, state: str) -> str:
    """How a method without a student is drawn: by what it is, the same in every notebook."""
    return "zero-shot" if method in FIXED else state
