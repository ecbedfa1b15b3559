"""The APM beside other ways to use the same teacher at test time: which of them a profile runs, and what they gain and cost.

A profile names them in its list `baselines`, one line each:

    baselines:
      - {method: zero, samples: 64, flip: false}             # a name that apm.baselines knows, and its options
      - {method: tda, samples: 64, orders: [0, 1, 2]}        # online: the images once in each of three orders
      - {method: zero, name: "ZERO, 16 views", views: 16}    # another row of the same method, whose name says what is different

samples: images per set (a part of those that the other rows see; "all" for the same ones), orders: seeds of random orders of the
images, for methods that carry state from one to the next. All see the same images and views, so differences are paired; and the set's
prompts, unless a line says otherwise (`prompts: original`) or a method tunes its own: `apm.benchmark.prompts_note` says which.
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
from apm.datasets import Dataset, UnreadableImage
from apm.teachers import Teacher
from apm.ttt import TTTConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ONE_PROMPT = "one prompt"  # heading of that reference
TARGET = "target, no student"  # what the distilled feature alone predicts: row of methods that say it
ITS_TARGET = "its target"  # heading of the difference from that row
FIXED = ("zero-shot, one prompt", "zero-shot", "APM")  # rows that notebooks have besides those of `baselines`
CALIBRATION_NOTE = (
    f"ECE: expected calibration error over all images of the row, {stats.CALIBRATION_BINS} bins. Small samples bias it upwards and "
    "rows differ in n, so compare each with the teacher's ECE on the same images."
)
COST_NOTE = (
    "Teacher passes: forward passes of the image tower per image. Episodic: nothing is kept from one image to the next; online: it "
    "is, so the order of the images matters. The orders are random permutations of the images, each drawn from a seed; the accuracy "
    "of such a row is the mean over the orders, its span from the lowest to the highest of them."
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
    if samples != "all" and not (_whole(samples) and samples >= stats.MINIMUM_SAMPLES):
        raise ValueError(
            f'samples must be "all" or a whole number of at least {stats.MINIMUM_SAMPLES} images (for an interval), '
            f"found {samples!r}"
        )
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
    """The records of every entry on every set, with a column `state` ("episodic" or "online").

    on_error: as of `apm.records.run`; "record": an image on which a method fails is a failed row of that method. A method that
    says what its target alone predicts gets a second row for that, "NAME: target, no student". Returns an empty frame for no
    entries. Raises as `apm.records.run`.
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


def _target_row(name: str) -> str:
    return f"{name}: {TARGET}"


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
    if rows["method"].astype(str).str.endswith(f": {TARGET}").any():
        found.append(TARGET_NOTE)
    if "batch_statistics" in rows and (rows["batch_statistics"] > 0).any():
        found.append(STATISTICS_NOTE)
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
    """One row per method: means over the sets, with 95 % bootstrap intervals over images.

    rows: records of all methods, with `set` and origin as `apm.benchmark.by_origin` gives them, or another column `by` of what is
    averaged over, with the same weight each. references: heading -> method that each one is compared with, on the images that it
    saw itself. pass_milliseconds: added where a method read stored features of the teacher.

    Columns: method, state, n (rows of one order), sets, failed, orders; accuracy, low, high (percent); lowest and highest over
    orders; for each heading its accuracy there, difference, and the difference's low and high (percentage points), and its
    ECE there; the same difference from "its target" where the records have that row; ECE (percent); passes; milliseconds per
    image. Raises ValueError for unknown references and for one that lacks an image.
    """
    known = list(dict.fromkeys(rows["method"]))
    for name in references.values():
        if name not in known:
            raise project.unknown("method of the records", name, known)
    key = [by, *tables.CONDITION, "sample"]
    theirs = {heading: _judged(rows[rows["method"] == name], key) for heading, name in references.items()}
    lines = [_line(name, rows[rows["method"] == name], theirs, key, by, pass_milliseconds) for name in known]
    found = pd.DataFrame(lines)
    targets = [f"- {ITS_TARGET}{end}" for end in ("", " low", " high")]
    for place, name in enumerate(known):
        if _target_row(str(name)) in known:
            own, target = (_judged(rows[rows["method"] == m], [*key, "seed"]) for m in (name, _target_row(str(name))))
            difference = stats.paired_difference(
                own["right"].to_numpy(),
                target["right"].reindex(own.index).to_numpy(dtype=bool),
                **_groups(rows[rows["method"] == name], by),
            )
            found.loc[place, targets] = [difference.value, difference.low, difference.high]
    return found


def _judged(own: pd.DataFrame, key: list[str]) -> pd.DataFrame:
    """One method's rows by their image: right, and confidence (NaN where it says none)."""
    confidence = own["confidence"].to_numpy(dtype=float) if "confidence" in own else np.nan
    right = (own["prediction"] == own["label"]).to_numpy()
    return pd.DataFrame({"right": right, "confidence": confidence}).set_index(pd.MultiIndex.from_frame(own[key]))


def _groups(own: pd.DataFrame, by: str) -> dict[str, Any]:
    return {
        "samples": own["sample"].to_numpy(),
        "conditions": own[by].to_numpy(),
        "strata": own["dataset"].to_numpy(),
    }


def _calibration(confidence: np.ndarray, right: np.ndarray) -> float:
    """ECE in percent over the rows that have a confidence; NaN where none has."""
    sure = ~np.isnan(confidence)
    return stats.calibration_error(confidence[sure].clip(0, 1), right[sure]) if sure.any() else np.nan


def _line(
    name: str, own: pd.DataFrame, theirs: Mapping[str, pd.DataFrame], key: list[str], by: str, encode: float | None
) -> dict[str, Any]:
    right = (own["prediction"] == own["label"]).to_numpy()
    groups = _groups(own, by)
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
        lacking = int(there["right"].isna().sum())
        if lacking:
            raise ValueError(f"{name} saw {lacking} images that {heading} did not: run both on the same sets")
        other = there["right"].to_numpy(dtype=bool)
        difference = stats.paired_difference(right, other, **groups)
        line[f"{heading} there"] = stats.bootstrap_mean(other, **groups).value
        line[f"- {heading}"] = difference.value
        line[f"- {heading} low"], line[f"- {heading} high"] = difference.low, difference.high
        line[f"ECE of {heading}"] = _calibration(there["confidence"].to_numpy(dtype=float), other)
    line["ECE"] = _calibration(_judged(own, key)["confidence"].to_numpy(), right)
    line["passes"] = float(own["teacher_passes"].mean()) if "teacher_passes" in own else np.nan
    spent = own["milliseconds"].astype(float)
    stored = own["saved_milliseconds"].astype(float) if "saved_milliseconds" in own else pd.Series(np.nan, own.index)
    # median: other work on the machine makes some images far slower
    line["milliseconds"] = float((spent + stored.fillna(encode if encode is not None else 0.0)).median())
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
    differences = [heading for heading in headings if heading != ONE_PROMPT]
    if f"- {ITS_TARGET}" in compared:
        differences.append(ITS_TARGET)
    for heading in differences:
        columns = (f"- {heading}", f"- {heading} low", f"- {heading} high")
        shown[f"difference from {heading}"] = [
            "" if np.isnan(cell[0]) else tables.percent(cell)
            for cell in zip(*(compared[c] for c in columns), strict=True)
        ]
    if (compared["orders"] > 1).any():
        spans = zip(compared["lowest"], compared["highest"], compared["orders"], strict=True)
        shown["over orders"] = [f"{low:.1f} to {high:.1f} ({n})" if n > 1 else "" for low, high, n in spans]
    shown["ECE"] = [tables.percent(float(value)) for value in compared["ECE"]]
    shown[f"ECE of {headings[0]} on the same images"] = [
        tables.percent(float(value)) for value in compared[f"ECE of {headings[0]}"]
    ]
    shown["teacher passes"] = [f"{value:g}" if np.isfinite(value) else "" for value in compared["passes"]]
    if milliseconds:
        shown["ms per image"] = compared["milliseconds"]
    return shown


def split(shown: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A `compact` table in two that fit a page: accuracies and differences; calibration and cost."""
    cut = list(shown).index("ECE")
    return shown.iloc[:, :cut], pd.concat([shown[["method", "state", "n"]], shown.iloc[:, cut:]], axis=1)


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
    method, published row, published, published step, n, ours, the single prompt's accuracy on the same images, our step, and the
    step's low and high. Raises ValueError for unknown published rows and columns.
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
                "n": None if own is None else int(own["n"]),
                "ours": np.nan if own is None else own["accuracy"],
                f"{ONE_PROMPT} on the same images": np.nan if own is None else own[f"{ONE_PROMPT} there"],
                "our step": np.nan if own is None or row == base else own[f"- {ONE_PROMPT}"],
                "low": np.nan if own is None or row == base else own[f"- {ONE_PROMPT} low"],
                "high": np.nan if own is None or row == base else own[f"- {ONE_PROMPT} high"],
            }
        )
    return pd.DataFrame(lines).astype({"n": "Int64"})


def compact_steps(both: pd.DataFrame) -> pd.DataFrame:
    """`beside_published` for reading, as text: our step with its interval in one cell; empty where there is nothing."""
    cells = zip(both["our step"], both["low"], both["high"], strict=True)
    shown = both.drop(columns=["low", "high"]).assign(**{"our step": [tables.percent(cell) for cell in cells]})
    shown["n"] = ["" if pd.isna(n) else str(n) for n in both["n"]]
    for column in ("published", "published step", "ours", f"{ONE_PROMPT} on the same images"):
        shown[column] = [tables.percent(float(value)) for value in both[column]]
    return shown


def cost_figure(compared: pd.DataFrame) -> tuple[Figure, str]:
    """What every method gains over the teacher, beside what it costs per image: teacher passes and milliseconds.

    One line per method, in the order of the table, so that equal costs and distant values hide nobody. Raises ValueError for a
    table of one method or none.
    """
    import matplotlib.pyplot as plt

    from apm import figures

    figures.style()
    heading = next(c.removesuffix(" there") for c in compared if c.endswith(" there"))
    if len(compared) < 2:
        raise ValueError("expected at least two methods to compare: add lines to baselines")
    figure, (gain, passes, time_) = plt.subplots(
        1,
        3,
        figsize=(figures.WIDTH, 1.2 + 0.3 * len(compared)),
        sharey=True,
        width_ratios=(2.2, 1, 1),
        layout="constrained",
    )
    labelled: set[str] = set()
    for place, (_, line) in enumerate(compared.iterrows()):
        kind = _kind(str(line["method"]), str(line["state"]))
        colour, marker = _LOOKS[kind]
        look = {"color": colour, "marker": marker, "markersize": 7, "linestyle": "none"}
        value, low, high = (float(line[f"- {heading}{end}"]) for end in ("", " low", " high"))
        label = None if kind in labelled else kind
        gain.errorbar(value, place, xerr=[[value - low], [high - value]], capsize=2.5, label=label, **look)
        labelled.add(kind)
        for axes, column in ((passes, "passes"), (time_, "milliseconds")):
            cost = float(line[column])
            if np.isfinite(cost) and cost > 0:
                axes.plot(cost, place, **look)
                axes.annotate(
                    f"{cost:.3g}", (cost, place), (7, 0), textcoords="offset points", va="center", fontsize="x-small"
                )
    gain.axvline(0, color="0.3", linewidth=1.2, zorder=1)
    gain.set_yticks(range(len(compared)), [str(name) for name in compared["method"]])
    gain.invert_yaxis()
    gain.set_xlabel(f"accuracy - {heading}\n(percentage points)")
    far = compared[f"- {heading}"].abs()
    linear = bool(far.max() <= 3 * max(1.0, float(far.nsmallest(max(2, len(far) - 3)).max())))
    if not linear:  # a few far ones would press all others together
        gain.set_xscale("symlog", linthresh=_LINEAR, linscale=1.0)
        ends = np.array(gain.get_xlim())
        ticks = [tick for tick in (-40, -20, -10, -5, 0, 5, 10, 20, 40) if ends[0] <= tick <= ends[1]]
        gain.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        gain.minorticks_off()
    for axes, label in ((passes, "teacher passes\nper image"), (time_, "milliseconds\nper image")):
        axes.margins(x=0.45)
        axes.set(xscale="log", xlabel=label)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    figure.legend(loc="outside lower center", ncols=len(labelled), fontsize="small")
    low_n, high_n = int(compared["n"].min()), int(compared["n"].max())
    scale = (
        ""
        if linear
        else f" Beyond {_LINEAR:g} points the scale is logarithmic, so that few far values do not press the others together."
    )
    targets = any(str(name).endswith(f": {TARGET}") for name in compared["method"])
    target = (
        f" {TARGET[0].upper()}{TARGET[1:]}: the distilled feature alone, timed until it is known." if targets else ""
    )
    return figure, (
        f"Mean over {int(compared['sets'].max())} sets of accuracy minus that of {heading} on the same images (n = {low_n} to {high_n} "
        f"images in all); bars are 95 % bootstrap intervals over images.{scale} Beside it what each method costs: milliseconds are the "
        f"median over images on this machine and whatever else it did, views and teacher included, shared views counted for each.{target}"
    )


_LINEAR = 5.0  # percentage points, up to which a scale with far values is linear
_LOOKS = {  # colours of seaborn's palette "colorblind", each with a marker of its own
    "zero-shot": ("#949494", "s"),
    "APM": ("#0173b2", "o"),
    "its target": ("#56b4e9", "o"),
    "episodic": ("#de8f05", "^"),
    "online": ("#029e73", "D"),
}


def _kind(method: str, state: str) -> str:
    """How a method is drawn: by what it is, the same in every notebook."""
    if method in FIXED:
        return "APM" if method == "APM" else "zero-shot"
    if method.endswith(f": {TARGET}"):
        return "its target"
    return state if not method.startswith("APM") else "APM"
