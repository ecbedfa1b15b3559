"""Ablations by hand: a variant beside its base and its teacher as soon as it is trained, in any notebook.

    session = Session("mini")
    session.compare(student={"kernels": 5}, training={"learning_rate": 1.0e-3}, name="5 kernels, slow")
    session.sweep(learning_rate=[5.0e-4, 1.0e-3], fold=["mean", "attention"])
    session.table(), session.figure()
    session.save("5 kernels, slow")         # a line of the profile, for the next `make reproduce`

What was trained once is read from records, whatever its name: of a line of the profile from its results, of others from the cache.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import yaml
from matplotlib.figure import Figure

from apm import data as datasets
from apm import project, teachers
from apm.analysis import figures, numbers, tables
from apm.experiments import ablations
from apm.model import APMConfig
from apm.project import profiles, progress
from apm.ttt import TTTConfig
from apm.typed import hints

NOTEBOOK, PART = "05_ablations", "by hand"
NOTE = "Brackets: 95 % intervals over images and seeds. loss: median after the last update; sums of different losses are not comparable."
COSTS = {"last_loss": "loss", "parameters": "weights", "milliseconds": "ms per image"}


class Session:
    """Variants of a profile's student, on the teacher, images, seeds and base of its ablations; samples: another number of images."""

    def __init__(self, profile: str = "mini", *, samples: int | None = None) -> None:
        given = profiles.notebook_parameters(profiles.notebook_path(NOTEBOOK)) | profiles.load(profile, NOTEBOOK)
        self.profile, self.file, self.base, self.samples = profile, given["lines"], given["base"], samples
        self.known = {line.name: line for line in ablations.load(profile, self.file, self.base)}
        project.among("base", [self.base], self.known)
        how = {name: given[name] for name in ("pretrained", "device", "precision", "feature_dtype")}
        self.teacher = teachers.load(given["teacher"], **how)
        data, count = datasets.load(given["dataset"]), samples or given["samples"]
        self.data = data if count == "all" or count >= len(data) else data.subset(count, seed=0)
        self.options = {name: given[name] for name in ("student", "training", "seeds", "on_error")}
        self.lines: dict[str, ablations.Ablation] = {}  # what was asked for, by name
        self.rows: dict[str, pd.DataFrame] = {}  # and its records
        self._run([self.known[self.base]])

    def compare(self, student: Any = None, training: Any = None, name: Any = None, **options: Any) -> tables.Shown:
        """Train one variant, beside base and teacher. student, training: fields of `APMConfig` and `TTTConfig` that it changes; options:
        other fields of `ablations.Ablation`, such as network or samples. name: default what is changed.

        Raises ValueError for options that do not exist, with those that do, or do not fit, and for a name of something else.
        """
        return self._run([self._line(name, student=student or {}, training=training or {}, **options)])

    def sweep(self, **values: Sequence[Any]) -> tables.Shown:
        """Every combination of values of fields of `APMConfig` and `TTTConfig`; all are checked before the first is trained."""
        kinds = {"student": {"preset": str, **hints(APMConfig)}, "training": hints(TTTConfig)}
        project.among("field of student or training", values, [*kinds["student"], *kinds["training"]])
        for name, each in values.items():
            if not isinstance(each, list | tuple) or not each:
                raise ValueError(f"sweep: {name}: expected a list of values, found {each!r}")
        grid = [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]
        split = [{kind: {k: v for k, v in one.items() if k in own} for kind, own in kinds.items()} for one in grid]
        return self._run([self._line(None, **one) for one in split])

    def _line(self, name: str | None, **options: Any) -> ablations.Ablation:
        (line,) = ablations.parse([{"part": PART, "name": name or "variant", **options}])
        line = line if name else replace(line, name=words(line) or self.base)
        other = self.lines.get(line.name) or self.known.get(line.name, line)
        if self._key(line) != self._key(other):
            raise ValueError(f"the name {line.name!r} is that of {words(other) or 'the base'}: choose another")
        return line

    def _key(self, line: ablations.Ablation) -> list[Any]:
        """What determines a line's run."""
        made = ablations.method(line, self.teacher, self.options["student"], self.options["training"])
        return [made.settings(), line.dataset or self.data.name, line.samples or len(self.data)]

    def _run(self, lines: Sequence[ablations.Ablation]) -> tables.Shown:
        for line in lines:
            same = [known for known in self.known.values() if self._key(known) == self._key(line)]
            # a name stands in the keys of records: of equal lines the notebook runs the last
            run = same[-1] if same else replace(line, name=words(line))
            home = project.results_dir(self.profile) if same and not self.samples else project.cache_dir()
            with progress.live():
                rows = ablations.run([run], self.teacher, self.data, folder=home / "records", **self.options)
            self.lines[line.name], self.rows[line.name] = line, rows.assign(part=PART, variant=line.name, against="")
        return self.table([line.name for line in lines])

    def table(self, names: Sequence[str] | None = None) -> tables.Shown:
        """Teacher, base and every variant so far, or those of the names."""
        project.among("variant", names or [], self.rows)
        rows = pd.concat([self.rows[name] for name in dict.fromkeys([self.base, *(names or self.rows)])])
        found = ablations.after(rows, self.base).droplevel("part").rename(columns={"final": "accuracy"})
        found = found.join(rows.groupby("variant")[[*COSTS]].median().rename(columns=COSTS).astype({"weights": int}))
        shown = ["images", "k", "accuracy", "final - teacher", "difference", "against that", *COSTS.values()]
        teacher = pd.DataFrame({"images": len(self.data), "accuracy": found["teacher"].iloc[0]}, ["teacher"])
        frame = pd.concat([teacher.astype(object), found[shown].astype(object)])[shown].rename_axis("variant")
        caption = f"{self.data.name}, {len(self.options['seeds'])} seeds, base {self.base}"
        page = tables.show(frame, caption, NOTE, bold=lambda row: row["variant"] == self.base)
        cells = {k: [numbers.text(one, small=numbers.is_small(v)) for one in v] for k, v in frame.items()}
        return replace(page, text=f"{caption}\n{pd.DataFrame(cells, frame.index).to_string()}\n{NOTE}")

    def figure(self) -> Figure:
        """`table` as marks with their intervals: accuracies, and differences from the base in points."""
        frame = self.table().frame.map(lambda cell: cell if isinstance(cell, numbers.Number) else None)
        parts = {"top-1 accuracy, %": "accuracy", "minus base, points": "difference"}
        return figures.dots({x: frame[[name]].set_axis(["with 95 % interval"], axis=1) for x, name in parts.items()})

    def save(self, name: str, part: str = PART) -> str:
        """Append a variant to the profile's lines, where comments stay; returns the line. ValueError for a name that the file has."""
        project.among("variant to save", [name], self.lines)
        text = text_of(replace(self.lines[name], part=part))
        path = profiles.folder_of(self.profile) / self.file
        with project.locked(project.cache_dir() / f".{self.profile}.lines.lock"):
            before = path.read_text(encoding="utf-8")
            whole = before + "\n" * (not before.endswith("\n")) + text
            ablations.parse(yaml.safe_load(whole))
            project.atomic_write(path, whole)
        return text


def said(line: ablations.Ablation) -> dict[str, Any]:
    """What a line says beyond its defaults, part and name first."""
    return {k: v for k, v in vars(line).items() if v not in (None, {}) and (k, v) != ("network", "apm")}


def text_of(line: ablations.Ablation) -> str:
    """A line as it stands in a profile's file."""
    plain = project.plain(said(line))
    return f"- {yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6)}"


def words(line: ablations.Ablation) -> str:
    """What a line changes."""
    own = {name: value for name, value in said(line).items() if name not in ("part", "name", "against", "published")}
    every = {**own.pop("student", {}), **own.pop("training", {}), **own}
    return ", ".join(f"{name} = {value}" for name, value in every.items())
