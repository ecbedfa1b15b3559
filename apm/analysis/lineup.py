"""The other methods that a profile runs beside the APM, on the same teacher and images: its list `baselines`, one line each.

    baselines:
      - {method: zero, samples: 64, flip: false}             # a name that apm.methods knows, and its options
      - {method: tda, samples: 64, orders: [0, 1, 2]}        # online: the images once in each of three orders
      - {method: zero, name: "ZERO, 16 views", views: 16}    # another row of the same method, whose name says what is different

samples: images per set, "all" for those that the other rows see. All see the same images and views, so differences are paired; and the
set's prompts, unless a line says otherwise (`prompts: original`) or a method tunes its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from apm import methods, teachers
from apm.data import Dataset
from apm.data.sets import check_samples
from apm.runs import records
from apm.teachers import Teacher
from apm.ttt import TTTConfig

PUBLISHED = {"iterations": 20, "learning_rate": 1e-4}  # section 3.6; the released code
AT_PUBLISHED = "APM, published rate and K"  # row of a student trained so
ONE_PROMPT = "zero-shot, one prompt"
FIXED = (ONE_PROMPT, "zero-shot", "APM", AT_PUBLISHED)  # rows that notebooks have besides those of `baselines`
TARGET = "target, no student"  # what the distilled feature alone predicts: row of methods that say it
STATES = ("episodic", "trained once", "online")
KEYS = ("method", "samples", "orders")  # of a line; every other one is an option of the method


class Entry(NamedTuple):
    """One row of a comparison: a method, or the same one for several orders of the images."""

    name: str
    runs: list[tuple[Any, int | None]]  # (method, seed of the order; None where there is none)
    samples: int | str  # images per set; "all" that the other rows see


def own_rows(teacher: Teacher, config: TTTConfig, prompt: str) -> tuple[Any, Any, Any]:
    """The rows that every benchmark has: the teacher with one prompt, with the set's own, and the APM."""
    one_prompt = methods.ZeroShot(teacher, name=ONE_PROMPT, templates=(prompt,))
    return one_prompt, methods.ZeroShot(teacher), methods.APM(teacher, config)


def as_published(config: TTTConfig) -> TTTConfig:
    """The same student, trained with the published rate and number of iterations."""
    return replace(config, **PUBLISHED)  # type: ignore[arg-type]


def at_published(teacher: Teacher, config: TTTConfig, samples: int | str = "all") -> list[Entry]:
    """The row of a student trained as published; none where that is the setting already. Raises ValueError for bad samples."""
    check_samples(samples)
    method = methods.APM(teacher, as_published(config), name=AT_PUBLISHED)
    return [] if method.config == config else [Entry(AT_PUBLISHED, [(method, None)], samples)]


def parse(lines: Sequence[Mapping[str, Any]], teacher: Teacher, config: TTTConfig) -> list[Entry]:
    """The entries of a profile's list `baselines`; config: of the student, for methods that train one.

    Raises ValueError, naming the line, for bad methods, options, samples and orders, and a row's name that is taken.
    """
    entries: list[Entry] = []
    taken = dict.fromkeys(FIXED, "of the notebooks")
    for place, line in enumerate(lines, start=1):
        try:
            entry = _entry(line, teacher, config)
            for row in [entry.name, target_row(entry.name)][: 1 + _takes(line["method"], "config")]:
                if row in taken:
                    raise ValueError(f"there is a row {row!r} {taken[row]} already: give this one another name")
                taken[row] = f"of line {place}"
        except (ValueError, TypeError) as error:
            raise ValueError(f"baselines, line {place}: {error}") from error
        entries.append(entry)
    return entries


def _entry(line: Mapping[str, Any], teacher: Teacher, config: TTTConfig) -> Entry:
    if not isinstance(line, Mapping) or "method" not in line:
        known = ", ".join(sorted(methods.REGISTRY))
        raise ValueError(f"expected {{method: NAME, ...}} with one of {known}; found {line!r}")
    kind, samples = str(line["method"]), line.get("samples", "all")
    check_samples(samples)
    options = {key: tuple(v) if isinstance(v, list) else v for key, v in line.items() if key not in KEYS}
    if _takes(kind, "config"):
        options["config"] = config
    first = methods.create(kind, teacher, **options)
    if "orders" not in line:
        return Entry(first.name, [(first, None)], samples)
    orders = line["orders"]
    if not _takes(kind, "order_seed"):
        raise ValueError(f"{kind} is episodic: the order of the images has no effect; remove orders:")
    if "order_seed" in options:
        raise ValueError("order_seed: is one order and orders: are several: remove one of them")
    seeds = [seed for seed in orders if type(seed) is int and seed >= 0] if isinstance(orders, list | tuple) else []
    if not seeds or len(set(seeds)) < len(orders):
        raise ValueError(f"orders must be different seeds, a list of whole numbers from 0, found {orders!r}")
    runs: list[tuple[Any, int | None]] = [
        (methods.create(kind, teacher, **options, order_seed=seed), seed) for seed in seeds
    ]
    return Entry(first.name, runs, samples)


def _takes(method: Any, option: str) -> bool:
    return option in getattr(methods.REGISTRY.get(str(method)), "__dataclass_fields__", {})


def further_teachers(lines: Sequence[Mapping[str, Any]], **defaults: Any) -> dict[str, Teacher]:
    """The teachers of a profile's list `further_teachers`, by the heading of each; further keys of a line, over the defaults, are options of
    `apm.teachers.load`. Raises ValueError for a line without a teacher, two of one name, and as `load` does."""
    found: dict[str, Teacher] = {}
    for line in lines:
        if not isinstance(line, Mapping) or "teacher" not in line:
            expected = "{teacher: NAME, pretrained: TAG, name: HEADING}"
            raise ValueError(f"further_teachers: expected {expected}, found {line!r}")
        options = {**defaults, **line}
        name = str(options.pop("teacher"))
        heading = str(options.pop("name", name))
        if heading in found:
            raise ValueError(f"further_teachers: two lines are named {heading!r}")
        found[heading] = teachers.load(name, **options)
    return found


def run(
    entries: Sequence[Entry], sets: Sequence[Dataset], *, folder: Path | str, seed: int = 0, on_error: str = "record"
) -> pd.DataFrame:
    """The records of every entry on every set, with a column `state`, one of STATES; an empty frame for no entries.

    on_error: as of `apm.runs.records.run`, which raises. A method that says what its target alone predicts gets a second row for that.
    """
    if entries and not sets:
        raise ValueError("nothing to compare on: expected at least one dataset")
    frames: dict[str, list[pd.DataFrame]] = {entry.name: [] for entry in entries}
    for whole in sets:  # set by set: methods share an image's views in memory, which holds those of one set, not of all
        for entry in entries:
            chosen = whole.take(entry.samples)
            for method, order in entry.runs:
                # the order stands in the records as the seed: views are drawn from it too
                drawn = seed if order is None else order
                made = records.run(method, chosen, folder=folder, seed=drawn, on_error=on_error)
                frames[entry.name].append(made.assign(state=_state(method, chosen)))
    found = [pd.DataFrame(columns=[*records.SCHEMA.names, "state"])] if not entries else []
    for parts in frames.values():
        own = pd.concat(parts, ignore_index=True)
        found += [own, _of_targets(own)] if "target_prediction" in own else [own]
    return pd.concat(found, ignore_index=True)


def _state(method: Any, dataset: Dataset) -> str:
    """What a method knows besides the image: nothing, labelled images of a training split, or earlier test images."""
    if getattr(method, "online", False):
        return "online"
    return "trained once" if getattr(method, "data_identity", lambda _: None)(dataset) else "episodic"


def target_row(name: str) -> str:
    """The row of what a method's target alone predicts."""
    return f"{name}: {TARGET}"


def _of_targets(own: pd.DataFrame) -> pd.DataFrame:
    """The records of what a method's targets predict by themselves."""
    return own.assign(
        method=own["method"].astype(str).map(target_row),
        prediction=own["target_prediction"].fillna(-1).astype(int),
        confidence=own["target_confidence"],
        milliseconds=own["target_milliseconds"],
        **dict.fromkeys(("path", "minimum_loss_prediction", "first_loss", "last_loss")),
    )
