"""Records: what every method said about every image, one parquet row each, kept so that no run is repeated or lost.

A run is cut into shards (`apm.runs.shards`), computed here or on a cluster (`apm.runs.cluster`). Predictions per iteration are
int16 in zstd-compressed parquet: 50,000 images with 21 predictions each, of 1000 classes, in shards of 128, take 6 MB when
images settle within 8 iterations; with 61 that never settle, 9 MB.

A method receives the data with its labels hidden; labels are joined to predictions after both exist.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from apm import project
from apm.project.identity import code_version
from apm.project.progress import progress
from apm.runs import cluster, shards
from apm.runs.shards import SCHEMA, RecordError, Shard, hide_labels, plan

__all__ = ["SCHEMA", "RecordError", "load", "metadata", "plan", "provenance", "provenance_table", "run", "run_all"]
ROW_KEY = ["dataset", "corruption", "severity", "sample", "method", "seed"]
STALE_SECONDS = 600.0  # a shard takes milliseconds to write, so an older temporary file belongs to a killed run


def run(
    method: Any,
    dataset: Any,
    *,
    folder: Path | str,
    seed: int = 0,
    shard_size: int = 128,
    on_error: str = "raise",
    teacher_method: Any = None,
) -> pd.DataFrame:
    """Run a method over a dataset, or read what an earlier run left: one row per image, in the dataset's order.

    method: has .name, .settings() and .predict(dataset, positions, seed) (`apm.methods.Method`); see `plan` for `online`.
    folder: of the parquet shards; made when missing. The same folder serves all runs.
    on_error: "raise" stops at an image that the method cannot handle and names it; "record" keeps it as a row with
        prediction -1 and status "error: ...". Programming errors (TypeError, NameError, ...) and those of the machine (a full
        disk, no memory left) always stop: they are no property of an image. An online method is never asked for parts of its
        images, so it has to give failed rows itself (status "error: ..."); images that cannot be read are left out for it.
    teacher_method: whose predictions on the same images stand in `teacher_prediction`; it may be `method` itself. None: the
        method's own extra column of that name, else empty.

    Returns the columns of SCHEMA, the method's extra columns, `remark` where the dataset has one, and `shard`, the first 16
    digits of the shard's key.
    Milliseconds are the method's time per image, measured over a shard; the teacher_method's time is not in them.

    Where the environment names a cluster (`apm.runs.cluster.current`) its workers compute the shards; the rows are the same. What a
    method's `prepare(dataset)` makes, such as the teacher's cached features, is made once before and its time is not counted.

    Raises ValueError for an empty dataset or an unknown on_error; RecordError for a failing image; TypeError for a method whose
    predictions have the wrong shape or type; OSError for a folder that cannot be written. Shards written before an error
    stay and are not repeated.
    """
    if on_error not in ("raise", "record"):
        raise project.unknown("on_error", on_error, ("raise", "record"))
    planned = plan(method, dataset, folder=folder, seed=seed, shard_size=shard_size, teacher_method=teacher_method)
    _make(Path(folder))
    tables = {shard.key: shards.read_if_whole(shard) for shard in planned}
    for key, table in tables.items():
        if table is not None and on_error == "raise" and shards.failures(table):
            tables[key] = None
    missing = [shard for shard in planned if tables[shard.key] is None]
    if missing:
        hidden = hide_labels(dataset)
        for part in (method, teacher_method):  # outside the measured time, and once where many processes work
            if hasattr(part, "prepare"):
                part.prepare(hidden)
        client = cluster.current()
        if client is None:
            made = _here(missing, method, dataset, teacher_method, on_error, hidden)
        else:
            made = cluster.compute(client, missing, method, dataset, teacher_method, on_error)
        condition = "" if dataset.severity == 0 else f", {dataset.corruption} {dataset.severity}"
        total = sum(len(shard.positions) for shard in missing)
        with progress(total=total, desc=f"{method.name}: {dataset.name}{condition}") as bar:
            failed: list[tuple[Shard, pa.Table]] = []
            for shard, table in made:
                bar.update(len(shard.positions))
                if table is None:
                    tables[shard.key] = _written(shard)
                    continue
                failed.append((shard, table))
                # here shards come in order: where the first fails, so may all
                if client is None and all(one is None for one in tables.values()):
                    break
            for shard, table in failed:
                if all(one is None or len(shards.failures(one)) == one.num_rows for one in tables.values()):
                    raise RecordError(
                        f"{method.name!r} failed on each of the first {table.num_rows} images of {dataset.name!r}: "
                        f"{shards.failures(table)[0]}. This points at the method or its settings, not at single images; nothing "
                        "was recorded"
                    )
                shards.write(shard, table, method)
                tables[shard.key] = table
    return _frame((tables[shard.key], shard.key) for shard in planned)


def _here(
    missing: Sequence[Shard], method: Any, dataset: Any, teacher_method: Any, on_error: str, hidden: Any
) -> Iterator[tuple[Shard, pa.Table | None]]:
    """As `cluster.compute`, in this process and in order."""
    for shard in missing:
        yield shard, shards.make(shard, method, dataset, teacher_method, on_error=on_error, hidden=hidden)


def _written(shard: Shard) -> pa.Table:
    table = shards.read_if_whole(shard)
    if table is None:
        raise FileNotFoundError(
            f"a worker wrote {shard.path}, which is not there for this process: workers and run must share the results folder"
        )
    return table


def run_all(methods: Iterable[Any], datasets: Sequence[Any], *, folder: Path | str, **options: Any) -> pd.DataFrame:
    """`run` of every method on every dataset, in that order, as one frame. options: those of `run`."""
    frames = [run(method, dataset, folder=folder, **options) for method in methods for dataset in datasets]
    if not frames:
        raise ValueError("nothing to run: expected at least one method and one dataset")
    return pd.concat(frames, ignore_index=True)


def _make(folder: Path) -> None:
    """Make the folder and remove what killed runs left in it. Raises OSError saying what to do."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(
            error.errno or 0,
            f"cannot make the folder of the records {folder} ({error}): free the place or set APM_RESULTS",
        ) from error
    for leftover in folder.glob(".*.parquet.*"):
        try:
            if leftover.stat().st_mtime < time.time() - STALE_SECONDS:
                leftover.unlink()
        except OSError:
            continue  # another run was faster, or the folder is read-only: neither harms what is to come


def _frame(tables: Iterable[tuple[Any, str]]) -> pd.DataFrame:
    """One frame from tables and their keys; same types whatever the tables."""
    keyed = [
        table.replace_schema_metadata(None).append_column("shard", pa.array([key[:16]] * table.num_rows, pa.string()))
        for table, key in tables
    ]
    whole = pa.concat_tables(keyed, promote_options="default").unify_dictionaries()
    columns = [*SCHEMA.names, *sorted(set(whole.column_names) - set(SCHEMA.names) - {"shard"}), "shard"]
    frame = whole.select(columns).to_pandas(strings_to_categorical=False)
    for name in ("dataset", "corruption", "group", "method"):
        frame[name] = frame[name].astype("str")  # of pandas: empty stays empty
    for name in ("teacher_prediction", "minimum_loss_prediction"):
        frame[name] = frame[name].astype("Int32")  # nullable: empty is not a class
    return frame


# ---------------------------------------------------------------------------------------------- reading what earlier runs left


def metadata(folder: Path | str) -> dict[Path, dict[str, Any]]:
    """What every shard of a folder says of itself: settings, `key`, `provenance`, and `current`, whether it was made by the present
    code. Raises FileNotFoundError where there is none, ValueError for a file that is no whole shard."""
    files = sorted(Path(folder).glob("*.parquet"))
    if not files:
        raise FileNotFoundError(f"no record shards (*.parquet) in {folder}: run a notebook that makes records first")
    found = {}
    for path in files:
        try:
            meta = shards.metadata(path)
        except (pa.ArrowException, ValueError) as error:
            raise _not_whole(path, error) from error
        try:
            current = code_version(tuple(meta["modules"]))
        except FileNotFoundError:
            current = ""  # made by a module that is gone: other code, certainly
        found[path] = {**meta, "current": meta["code"] == current}
    return found


def _not_whole(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{path}: not a whole record shard ({error}): run its notebook again, which repairs it, or delete the file"
    )


def load(folder: Path | str) -> pd.DataFrame:
    """All rows of a folder of records that the present code made, by file name (dataset, corruption, method, ...), then in the
    order of the images; a warning counts the shards of other code.

    The same image run twice with the same settings (in shards of another size) counts once. Raises FileNotFoundError where there
    are no shards, ValueError for one that cannot be read (a rerun repairs it), and for an image with two records of one method
    name under different settings, where there is no telling which was meant.
    """
    metas = metadata(folder)
    own = {path: meta for path, meta in metas.items() if meta["current"]}
    if len(own) < len(metas):
        warnings.warn(f"{folder}: left out {len(metas) - len(own)} record shards made by other code", stacklevel=2)
    if not own:
        raise ValueError(f"no record in {folder} was made by the present code: run the notebook that makes it first")
    tables = []
    for path, meta in own.items():
        try:
            tables.append((shards.read(path)[0], meta["key"]))
        except (pa.ArrowException, ValueError, OSError) as error:
            raise _not_whole(path, error) from error
    frame = _frame(tables)
    settings = {meta["key"][:16]: project.sha256_of(_settings(meta)) for meta in own.values()}
    different = frame.assign(settings=frame["shard"].map(settings)).groupby(ROW_KEY)["settings"].nunique()
    if (different > 1).any():
        what = ", ".join(map(str, different.index[different > 1][0]))
        raise ValueError(
            f"{folder} holds two records of {what}, made with different settings: give the methods different names, use another "
            "folder, or delete the shards of one of them"
        )
    return frame.drop_duplicates(ROW_KEY).reset_index(drop=True)


def _settings(meta: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in meta.items() if name not in ("key", "provenance", "content", "current")}


def provenance(records: pd.DataFrame) -> str:
    """ "records 3f2a90c1d5e7 (34 shards)": stable name of the records a table or figure was made from.

    A hash over the keys of the shards: it changes when any setting, image, seed or line of run-relevant code does, and
    not with time, machine or commit. Raises ValueError for a frame without the column `shard`.
    """
    keys = sorted(_shards_of(records))
    name = hashlib.sha256("\n".join(keys).encode()).hexdigest()[:12]
    return f"records {name} ({len(keys)} shard{'s' * (len(keys) != 1)})"


def _shards_of(records: pd.DataFrame) -> set[str]:
    if "shard" not in records.columns:
        raise ValueError(f"expected records with the column 'shard', found {list(records.columns)}")
    return set(records["shard"].astype(str))


def provenance_table(folder: Path | str, records: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row per shard (of those in `records`, default all in the folder): where its rows come from.

    Columns: shard, dataset, corruption, severity, method, seed, n, commit, time, python, machine, device, data, remark, code,
    current (whether the present code made it), settings (JSON) and one column per library version.
    """
    wanted = None if records is None else _shards_of(records)
    rows = []
    for path, meta in metadata(folder).items():
        shard = meta["key"][:16]
        if wanted is not None and shard not in wanted:
            continue
        made = meta["provenance"]
        rows.append(
            {
                "shard": shard,
                **{name: meta[name] for name in ("dataset", "corruption", "severity", "method", "seed")},
                "n": pq.read_metadata(path).num_rows,
                **{name: made.get(name) for name in ("commit", "time", "python", "machine", "device")},
                **{name: meta[name] for name in ("data", "remark", "code", "current")},
                "settings": json.dumps(meta["settings"], sort_keys=True),
                **made.get("versions", {}),
            }
        )
    lost = (wanted or set()) - {row["shard"] for row in rows}
    if lost:
        raise FileNotFoundError(f"{folder}: {len(lost)} of the shards asked for are gone, among them {min(lost)}")
    return pd.DataFrame(rows)
