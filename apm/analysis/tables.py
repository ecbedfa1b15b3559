"""Tables: from records to tidy numbers, to the paper's layout, to CSV, Markdown and LaTeX.

Accuracies are in percent with one decimal. Nothing here depends on the time or the machine: the same records give the same
bytes.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from apm import project
from apm.analysis import numbers, stats
from apm.analysis.numbers import Number
from apm.analysis.stats import Interval
from apm.runs.records import provenance

CONDITION = ("dataset", "corruption", "severity")
WIDEST = 12  # columns of the widest table that is not turned
WIDE = 9  # columns from which a table's cells break into lines
LONG_TEXT = 40  # characters from which the cells of a column break into lines
RULE_LABELS = {
    "teacher": "teacher (zero-shot)",
    "final": "final",
    "minimum loss": "minimum loss",
    "any": "any (upper bound, uses labels)",
}
DIFFERENCE = "final - teacher"
HEADERS = {
    "n_failed": "failed",
    "minimum_loss": "minimum loss",
    "any": RULE_LABELS["any"],
    "difference": DIFFERENCE,
    "p": "p (McNemar)",
}
_KEY = {"teacher": "teacher", "final": "final", "minimum loss": "minimum_loss", "any": "any"}
_ANY: dict[str, int] = {"minimum": 1}  # images that an interval needs where it is not shown


# ------------------------------------------------------------------------------------------------------------ tidy numbers


def summary(
    records: pd.DataFrame,
    *,
    by: Sequence[str] = (*CONDITION, "method"),
) -> pd.DataFrame:
    """One row of numbers per (dataset, corruption, severity, method), in the order of the records.

    Columns, after those of `by`: n (images), seeds, n_failed (rows without prediction, counted as wrong); final, teacher, any,
    minimum_loss in percent, each with _low and _high (95 % interval); agreement of final and teacher likewise; difference
    final - teacher in percentage points with low and high (`stats.mean_difference`); p (McNemar exact). Empty where the
    records do not hold what a number needs; p is empty too for several seeds, whose rows are not independent.

    by: other groupings, such as ("dataset", "group", "method"); rows of one group that belong to several conditions are
    averaged over the conditions, all copies of an image together.

    Raises ValueError for no records, unknown columns, or groups too small for an interval.
    """
    _columns(records, (*by, *CONDITION, "sample", "seed", "label", "prediction", "teacher_prediction", "path"))
    if records.empty:
        raise ValueError("no records: run a method first")
    rows = []
    for values, group in records.groupby(list(by), sort=False, observed=True):
        name = ", ".join(f"{column} {value}" for column, value in zip(by, values, strict=True))
        try:
            rows.append({**dict(zip(by, values, strict=True)), **_numbers(group)})
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return pd.DataFrame(rows)


def _numbers(group: pd.DataFrame) -> dict[str, Any]:
    images = len(group[["dataset", "sample"]].drop_duplicates())
    independent = images == len(group)
    row: dict[str, Any] = {
        "n": images,
        "seeds": group["seed"].nunique(),
        "n_failed": int((group["prediction"] < 0).sum()),
    }
    for rule, key in (("final", "final"), ("teacher", "teacher"), ("any", "any"), ("minimum loss", "minimum_loss")):
        row[key], row[f"{key}_low"], row[f"{key}_high"] = _accuracy(group, rule, independent)
    final, teacher = stats.correct(group, "final"), stats.correct(group, "teacher")
    row |= dict.fromkeys(("agreement", "agreement_low", "agreement_high"), np.nan)
    row.update(difference=np.nan, low=np.nan, high=np.nan, p=np.nan)
    if final is not None and teacher is not None:
        asked = group.assign(label=group["teacher_prediction"].fillna(-2))  # a failed one agrees with nothing
        row["agreement"], row["agreement_low"], row["agreement_high"] = _accuracy(asked, "final", independent)
        difference = stats.mean_difference(group)
        assert difference is not None
        row["difference"], row["low"], row["high"], _ = difference
        row["p"] = stats.mcnemar(final, teacher) if independent else np.nan
    return row


def _accuracy(group: pd.DataFrame, rule: str, independent: bool) -> tuple[float, float, float]:
    right = stats.correct(group, rule)
    if right is None:
        return (np.nan,) * 3
    if independent and group.groupby(list(CONDITION)).ngroups == 1:
        return stats.accuracy(right)[:3]
    interval = stats.mean_accuracy(group, rule)
    assert interval is not None
    return interval[:3]


# ----------------------------------------------------------------------------------------------------------- paper's layout


def condition_label(dataset: str, corruption: str, severity: int) -> str:
    """Heading of one condition: the corruption, with its severity, or the dataset's name for clean images."""
    return dataset if severity == 0 else f"{corruption.replace('_', ' ')} {severity}"


def label_conditions(records: pd.DataFrame) -> pd.DataFrame:
    """The records with a column `condition` of readable headings (`condition_label`)."""
    _columns(records, CONDITION)
    unique = records[list(CONDITION)].drop_duplicates()
    headings = {tuple(row): condition_label(*row) for row in unique.itertuples(index=False)}
    if len(set(headings.values())) < len(headings):  # two datasets with the same corruptions
        headings = {row: label if row[2] == 0 else f"{row[0]}, {label}" for row, label in headings.items()}
    rows = zip(*(records[column] for column in CONDITION), strict=True)
    return records.assign(condition=[headings[row] for row in rows])


def wide(
    records: pd.DataFrame,
    *,
    columns: str = "condition",
    order: Sequence[str] | None = None,
    means: Mapping[str, Sequence[str]] | None = None,
    rules: Sequence[str] = (*stats.RULES, DIFFERENCE),
    intervals: str = "means",
    transpose: bool = False,
) -> pd.DataFrame:
    """The paper's layout: methods and counting rules down, conditions across, means at the end. Cells are `Number`s.

    columns: what the columns are: "condition" (dataset or corruption with severity) or a column of the records.
    order: columns wanted, in this order; default all, as they come in the records.
    means: heading -> the columns it averages, each with the same weight; default one "Mean" over all when there are several.
    rules: of `stats.RULES`, and "final - teacher" for the paired difference in percentage points. The teacher's row stands once where all methods share it. Methods without iterations have a
        single row of their own name: for them "any" and "minimum loss" mean nothing.
    intervals: 95 % intervals shown beside "means", "all" cells or "none"; every cell has its own.
    transpose: conditions down, for many conditions and few methods.

    Raises ValueError for unknown rules or columns, empty groups, and too few images for an interval.
    """
    for rule in rules:
        if rule not in (*RULE_LABELS, DIFFERENCE):
            raise project.unknown("counting rule", rule, [*RULE_LABELS, DIFFERENCE])
    if intervals not in ("means", "all", "none"):
        raise project.unknown("choice of intervals", intervals, ("means", "all", "none"))
    if columns == "condition":
        records = label_conditions(records)
    _columns(records, (columns, *CONDITION))
    present = list(dict.fromkeys(records[columns]))
    order = present if order is None else list(order)
    means = ({"Mean": order} if len(order) > 1 else {}) if means is None else means
    for name in {*order, *(column for part in means.values() for column in part)}:
        if name not in present:
            raise project.unknown(f"value of column {columns}", str(name), [str(p) for p in present])
    lines: dict[tuple[str, str], dict[str, Number | None]] = {}
    for label, rule, part in _lines(records, rules):
        line = {str(name): _cell(part[part[columns] == name], rule, columns, intervals == "all") for name in order}
        for heading, members in means.items():
            chosen = part[part[columns].isin(list(members))]
            complete = set(chosen[columns]) == set(
                members
            )  # a mean over fewer conditions than the heading says is none
            line[heading] = _cell(chosen, rule, columns, intervals != "none") if complete else None
        lines[label] = line
    table = pd.DataFrame.from_dict(lines, orient="index")
    table.index = pd.MultiIndex.from_tuples(list(lines), names=["method", "counting rule"])
    return table.T.rename_axis(columns) if transpose else table


def _lines(records: pd.DataFrame, rules: Sequence[str]) -> Iterable[tuple[tuple[str, str], str, pd.DataFrame]]:
    """(method, rule as shown), rule, its records."""
    methods = list(dict.fromkeys(records["method"]))
    parts = {method: records[records["method"] == method] for method in methods}
    if "teacher" in rules:
        asked = {m: part for m, part in parts.items() if part["teacher_prediction"].notna().any()}
        by_image = {
            m: part.drop_duplicates([*CONDITION, "sample"])
            .set_index([*CONDITION, "sample"])["teacher_prediction"]
            .sort_index()
            for m, part in asked.items()
        }
        first = max(by_image, key=lambda m: len(by_image[m]), default=None)
        if first is not None and all(part.equals(by_image[first].reindex(part.index)) for part in by_image.values()):
            yield ("teacher", "zero-shot"), "teacher", asked[first].drop_duplicates([*CONDITION, "sample"])
            parts = {m: part for m, part in parts.items() if not _is_teacher(part)}
        else:
            for method, part in asked.items():
                if not _is_teacher(part):
                    yield (method, RULE_LABELS["teacher"]), "teacher", part
    for method, part in parts.items():
        iterative = stats.has_path(part)
        for rule in rules if iterative else [rule for rule in ("final", DIFFERENCE) if rule in rules]:
            if rule == DIFFERENCE:
                if part["teacher_prediction"].notna().any():
                    yield (method, DIFFERENCE), rule, part
            elif rule != "teacher":
                yield (method, RULE_LABELS[rule] if iterative else ""), rule, part


def _is_teacher(part: pd.DataFrame) -> bool:
    """Whether a method without iterations says what the teacher says on each image: then its row is the teacher's."""
    if stats.has_path(part) or part["teacher_prediction"].isna().all():
        return False
    # where the teacher failed, a method that is the teacher failed too
    return bool((part["prediction"] == part["teacher_prediction"].fillna(-1)).all())


def _cell(part: pd.DataFrame, rule: str, conditions: str, shown: bool) -> Number | None:
    """shown: whether its interval is shown, and so needs enough images."""
    if part.empty:
        return None
    options = {} if shown else _ANY
    several = len(part[conditions].unique()) > 1 or part.duplicated(["dataset", "sample"]).any()
    if rule == DIFFERENCE:
        value = stats.mean_difference(part, conditions=(conditions, *CONDITION), **options)
    elif several:
        value = stats.mean_accuracy(part, rule, conditions=(conditions, *CONDITION), **options)
    else:
        right = stats.correct(part, rule)
        value = None if right is None else stats.accuracy(right, **options)
    if value is None:
        return None
    return percent(value, interval=shown, kind="difference" if rule == DIFFERENCE else "accuracy")


def percent(
    value: Interval | Sequence[float] | float, *, interval: bool = True, kind: str = "accuracy", unit: str = "%"
) -> Number:
    """A `Number` of an estimate in percent or points, shown with or without its interval; empty for an empty one."""
    if not isinstance(value, Sequence):
        return Number(float(value), unit=unit, kind=kind)
    estimate, low, high, *n = value
    images, df = int(n[0]) if n else None, getattr(value, "df", None)
    return Number(float(estimate), float(low), float(high), images, unit, kind, brief=not interval, df=df)


def p_value(number: Number, limit: float = 0.0) -> float:
    """Two-sided p of a number being the limit, from its interval (`apm.analysis.stats.p_value`); NaN for one without an interval or width."""
    if not number.high > number.low:
        return float("nan")
    interval = Interval(number.value, number.low, number.high, number.n or 0)
    interval.df = number.df
    return stats.p_value(interval, limit)


def estimates(summary: pd.DataFrame) -> pd.DataFrame:
    """The frame of `summary` as `Number`s: each estimate with its interval in one cell under a readable heading, the rest as its index.

    Left out: what is empty throughout, `seeds` where it is 1, failures where there are none.
    """
    names = [c for c in summary if c not in _SUMMARY]
    found = summary[[*names, "n"]].copy()
    for name, heading in (("seeds", "seeds"), ("n_failed", HEADERS["n_failed"])):
        if (summary[name] > (name == "seeds")).any():
            found[heading] = summary[name]
    for key in ("teacher", "final", "minimum_loss", "any", "difference", "agreement", "p"):
        low, high = ("low", "high") if key == "difference" else (f"{key}_low", f"{key}_high")
        kind, unit = {"difference": ("difference", "points"), "p": ("p", ""), "agreement": ("measure", "%")}.get(
            key, ("accuracy", "%")
        )
        if summary[key].notna().any():
            none = pd.Series(np.nan, summary.index)  # of a p-value
            cells = zip(summary[key], summary.get(low, none), summary.get(high, none), summary["n"], strict=True)
            heading = RULE_LABELS["teacher"] if key == "teacher" else HEADERS.get(key, key)
            found[heading] = [Number(value, low, high, n, unit, kind) for value, low, high, n in cells]
    if DIFFERENCE in found:
        found["verdict"] = [numbers.verdict(cell) for cell in found[DIFFERENCE]]
    return found.set_index(names)


def accuracies(summary: pd.DataFrame, by: str, rules: Sequence[str] = stats.RULES) -> pd.DataFrame:
    """Counting rules down, the values of a column of `summary` across, as `Number`s that are shown without their intervals."""
    lines = {
        rule: [
            Number(line[key], line[f"{key}_low"], line[f"{key}_high"], line["n"], brief=True)
            for _, line in summary.iterrows()
        ]
        for rule, key in _KEY.items()
        if rule in rules
    }
    return pd.DataFrame.from_dict(lines, orient="index", columns=list(summary[by]))


_SUMMARY = {"n", "seeds", "n_failed", "agreement", "difference", "low", "high", "p"} | {
    f"{key}{end}" for key in (*_KEY.values(), "agreement") for end in ("", "_low", "_high")
}


# ------------------------------------------------------------------------------------------------------------ footnotes


def footer(records: pd.DataFrame, *, rules: Sequence[str] = stats.RULES, notes: Sequence[str] = ()) -> str:
    """What a reader must know under a table: n, failed images, counting rules, intervals, remarks on the images, and which
    records it came from."""
    # per method too: expensive ones may see a part of the images
    per_condition = sorted(set(records.groupby([*CONDITION, "method"], sort=False, observed=True)["sample"].nunique()))
    n = str(per_condition[0]) if len(per_condition) == 1 else f"{per_condition[0]} to {per_condition[-1]}"
    parts = [f"n = {n} images" + (" per condition" if len(records.groupby(list(CONDITION))) > 1 else "")]
    seeds = {
        str(method): ", ".join(map(str, sorted(set(own))))
        for method, own in records.groupby("method", sort=False)["seed"]
    }
    if len(set(seeds.values())) == 1:
        (same,) = set(seeds.values())
        parts[0] += f", seeds {same}" if "," in same else ""
    else:  # an online method runs over several orders, others once
        parts[0] += "".join(f"; {method}: seeds {own}" for method, own in seeds.items() if "," in own)
    parts[0] += "."
    failed = records[records["prediction"] < 0]
    if len(failed):
        reasons = failed["status"].astype(str).value_counts().sort_index(kind="stable")
        reasons = reasons.sort_values(ascending=False, kind="stable")
        shown = "; ".join(f"{reason} ({count})" for reason, count in reasons.head(3).items())
        more = f"; and {len(reasons) - 3} other reasons" if len(reasons) > 3 else ""
        parts.append(f"{len(failed)} of {len(records)} predictions failed and count as wrong: {shown}{more}.")
    if stats.has_path(records):
        if "final" in rules:
            k = sorted({len(path) - 1 for path in records["path"].dropna()})
            parts.append(f"final: after {' or '.join(map(str, k))} iterations, fixed beforehand.")
        if "any" in rules:
            parts.append(
                "any: right after at least one iteration; it uses the labels, so it is an upper bound and never a score."
            )
    parts.append(
        "Accuracy in %; brackets: 95 % intervals over images, and seeds where there are several (Wilson; differences Bonett and Price)."
    )
    if "remark" in records:
        remarks = records[["dataset", "remark"]].drop_duplicates().dropna().sort_values("dataset", kind="stable")
        for remark, group in remarks.groupby("remark", sort=True):
            of = "" if set(group["dataset"]) == set(records["dataset"]) else f" of {', '.join(group['dataset'])}"
            parts.append(f"Images{of}: {remark}.")
    return " ".join([*parts, *notes, f"Made from {provenance(records)}."])


# ------------------------------------------------------------------------------------------------------- saving and showing


def save(
    table: pd.DataFrame, name: str, folder: Path | str, caption: str, footer: str = "", page: str = ""
) -> dict[str, Path]:
    """Write <name>.csv (cells as read), <name>.md and <name>.tex (with caption and footer) into a folder, <name>.html from `page`.

    Numbers are shown with one decimal, a column with a number too small for that with three significant digits, p-values with
    three decimals. Each file is replaced as a whole, and the same table gives the same bytes. Returns the paths by suffix. Raises ValueError for an empty table or a name that is no plain file name; OSError for a folder
    that cannot be written.
    """
    if table.empty:
        raise ValueError(f"table {name!r} is empty: there is nothing to save")
    if not name or name != Path(name).name:
        raise ValueError(f"expected a plain file name for a table, found {name!r}")
    folder = Path(folder)
    laid = _lay_out(_flat(table))
    texts = {
        "csv": laid.cells.to_csv(index=False, lineterminator="\n"),
        "md": _markdown(laid, caption, footer),
        "tex": _latex(laid, name, caption, footer),
    }
    texts |= {"html": page + "\n"} if page else {}
    paths = {suffix: folder / f"{name}.{suffix}" for suffix in texts}
    for suffix, text in texts.items():
        project.atomic_write(paths[suffix], text)
    return paths


def _flat(table: pd.DataFrame) -> pd.DataFrame:
    """A copy with the index as columns, where it says something, and single-level text headings."""
    named = any(name is not None for name in table.index.names) or table.index.inferred_type in ("string", "mixed")
    flat = table.copy()
    if isinstance(flat.columns, pd.MultiIndex):
        flat.columns = [", ".join(str(level) for level in column if str(level)) for column in flat.columns]
    if named or isinstance(table.index, pd.MultiIndex):
        flat = flat.reset_index(names=[str(n) if n is not None else "" for n in table.index.names])
    flat.columns = [str(column) for column in flat.columns]
    return flat


class _Laid(NamedTuple):
    """A table as text. right: for each column, whether its cells are numbers, which align at their right."""

    cells: pd.DataFrame
    right: list[bool]


def _lay_out(flat: pd.DataFrame) -> _Laid:
    columns = [flat.iloc[:, i] for i in range(flat.shape[1])]
    cells = [[numbers.text(value, small=numbers.is_small(column)) for value in column] for column in columns]
    texts = pd.DataFrame(dict(enumerate(cells)), index=flat.index).set_axis(flat.columns, axis=1)
    return _Laid(texts, [_is_numeric(column) for column in columns])


def _is_numeric(column: pd.Series) -> bool:
    """Whether what fills the column is numbers."""
    filled = [cell for cell in column if not numbers.is_empty(cell)]
    return len(filled) > 0 and all(
        isinstance(c, (Number, Real)) and not isinstance(c, (bool, np.bool_)) for c in filled
    )


def _markdown(laid: _Laid, caption: str, footer: str) -> str:
    align = ["right" if right else "left" for right in laid.right]
    escaped = laid.cells.map(lambda text: text.replace("|", "\\|").replace("\n", " "))
    escaped.columns = [column.replace("|", "\\|").replace("\n", " ") for column in escaped]
    body = escaped.to_markdown(index=False, disable_numparse=True, colalign=align)
    return "\n\n".join(part for part in (f"**{caption}**", body, footer) if part) + "\n"


def _latex(laid: _Laid, name: str, caption: str, footer: str) -> str:
    shown = laid.cells.set_axis([_escape(column) for column in laid.cells], axis=1)
    columns = "".join("r" if right else "l" for right in laid.right)
    text = (
        shown.style.hide(axis="index")
        .format(_escape)
        .to_latex(
            hrules=True,
            column_format=columns,
            caption=_escape(caption),
            label=f"tab:{name}",
            position="tb",
            position_float="centering",
        )
    )
    if len(shown.columns) > 7:  # wider than a page: scaled to it
        text = text.replace("\\begin{tabular}", "\\resizebox{\\linewidth}{!}{%\n\\begin{tabular}")
        text = text.replace("\\end{tabular}", "\\end{tabular}}")
    if footer:
        note = f"\\par\\smallskip\\footnotesize {_escape(footer)}\n"
        text = text.replace("\\end{table}", note + "\\end{table}")
    return "% needs \\usepackage{booktabs, graphicx}\n" + text


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}
_LATEX |= {character: f"\\{character}" for character in "&%$#_{}"}


def _escape(text: Any) -> str:
    return "".join(_LATEX.get(character, character) for character in str(text))


class Shown:
    """A table as a notebook shows it: caption above, footer below, scrolling sideways when it is wider than the page.

    As plain text it is its caption: a notebook keeps both, and the cells stand in the HTML and in the table's CSV.
    """

    def __init__(self, html: str, text: str):
        self._html, self._text = html, text

    def _repr_html_(self) -> str:
        return self._html

    def __repr__(self) -> str:
        return self._text


def show(
    table: pd.DataFrame,
    caption: str,
    footer: str = "",
    *,
    bold: Callable[[pd.Series], bool | Collection[str]] | None = None,
    upright: bool = False,
) -> Shown:
    """A table for the end of a notebook cell, as `save` writes it.

    bold: what stands out in a row of the flat table: True for all of it, or the columns of the cells that do.
    upright: a table with more columns than fit a page, and fewer rows, is turned: for reading only.

    The HTML holds no random identifiers, so an executed notebook does not change between runs.
    """
    flat = _flat(table)
    laid = _lay_out(flat)
    if upright and len(flat.columns) > WIDEST >= len(flat):
        laid = _turned(laid)
        flat = laid.cells
    headings = list(laid.cells.columns)
    wraps = len(headings) > WIDE  # an interval then stands below its estimate
    cells = laid.cells.map(lambda text: _html(text).replace(", ", ",\u00a0") if wraps and "[" in text else _html(text))
    cells.columns = pd.RangeIndex(len(headings))  # two columns may have one heading
    marked = [_plain(bold(row)) if bold else False for _, row in flat.iterrows()]
    strong = [[row is True or (row is not False and name in row) for name in headings] for row in marked]
    cells = cells.where(~np.array(strong, dtype=bool), "<strong>" + cells + "</strong>")
    longest = [int(laid.cells.iloc[:, place].str.len().max()) for place in cells]
    # a rule per column, by place: a class or an id in each cell would be most of the page
    rules = [
        (
            f"td:nth-child({place + 1})",
            f"white-space: normal; min-width: {22 if characters > 3 * LONG_TEXT else 13}em",
        )
        for place, characters in enumerate(longest)
        if characters > LONG_TEXT
    ]
    if right := [f"{cell}:nth-child({place + 1})" for place in cells if laid.right[place] for cell in ("th", "td")]:
        rules.append((", ".join(right), "text-align: right; font-variant-numeric: tabular-nums"))
    name = "T_" + hashlib.sha256((caption + "\n".join(headings) + cells.to_csv()).encode()).hexdigest()[:8]
    rules = [
        ("", "border-collapse: collapse; font-size: 0.9em; margin: 0"),
        ("th, td", f"padding: 0.25em 0.5em; white-space: {'normal' if wraps else 'nowrap'}"),
        ("th", "text-align: left; border-bottom: 1.5px solid; vertical-align: bottom; white-space: normal"),
        ("td", "text-align: left; border-bottom: 1px solid rgba(128, 128, 128, 0.25)"),
        *rules,
    ]
    style = "\n".join(f"{_below(name, selector)} {{{props}}}" for selector, props in rules)
    with pd.option_context("display.max_colwidth", None):  # else pandas cuts long cells
        page = cells.set_axis([_html(heading) for heading in headings], axis=1).to_html(
            index=False, escape=False, border=0, justify="left", table_id=name
        )
    page = "\n".join(line.strip() for line in page.splitlines())
    buffer = io.StringIO()
    buffer.write('<figure class="apm-table" style="margin: 1em 0; max-width: 100%">')
    buffer.write(f'<figcaption style="margin-bottom: 0.5em"><strong>{_html(caption)}</strong></figcaption>')
    buffer.write(f'<div class="apm-scroll" style="overflow-x: auto"><style>\n{style}\n</style>\n{page}</div>')
    if footer:
        buffer.write(
            f'<p style="font-size: 0.85em; opacity: 0.8; margin-top: 0.5em; max-width: 60em">{_html(footer)}</p>'
        )
    buffer.write("</figure>")
    return Shown(buffer.getvalue(), f"{caption}: {len(flat)} rows")


def _below(name: str, selectors: str) -> str:
    """CSS selectors of what is in the element of that id; of the element itself for none."""
    return ", ".join(f"#{name} {selector}".strip() for selector in selectors.split(", "))


def _plain(marked: bool | np.bool_ | Collection[str]) -> bool | Collection[str]:
    return bool(marked) if isinstance(marked, (bool, np.bool_)) else marked


def _turned(laid: _Laid) -> _Laid:
    """A table's columns down, its rows across under their joined names, those of the columns before the first of numbers."""
    names = laid.right.index(True) if True in laid.right else 0
    if names == 0:
        return laid
    headings = [
        numbers.SEPARATOR.join(part for part in row if part)
        for row in laid.cells.iloc[:, :names].itertuples(index=False)
    ]
    turned = laid.cells.iloc[:, names:].T.set_axis(headings, axis=1).rename_axis("condition").reset_index()
    return _Laid(turned, [False] + [True] * len(headings))


def _html(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _columns(frame: pd.DataFrame, needed: Iterable[str]) -> None:
    for name in needed:
        if name not in frame.columns:
            raise project.unknown("column of the records", name, list(frame.columns))
