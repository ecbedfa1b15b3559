"""Records: what every method said about every image, one parquet row each, kept so that no run is repeated or lost.

A run is cut into shards (`apm.runs.shards`), computed here or on a cluster (`apm.runs.cluster`). Predictions per iteration are
int16 in zstd-compressed parquet: some 6 MB for 50,000 images with 21 predictions each.

A method receives the data with its labels hidden; labels are joined to predictions after both exist.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from apm import project
from apm.project.identity import code_version
from apm.project.progress import progress
from apm.runs import cluster, shards
from apm.runs.shards import SCHEMA, RecordError, plan

__all__ = ["SCHEMA", "RecordError", "plan", "provenance", "provenance_table", "run", "run_all"]
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

    method: an `apm.methods.Method`. dataset: an `apm.data.Dataset`.
    folder: of the parquet shards; made when missing. The same folder serves all runs.
    on_error: "raise" stops at an image that the method cannot handle and names it; "record" keeps it as a row with prediction -1 and
        status "error: ...". Programming errors (TypeError, ...) and those of the machine (a full disk, no memory left) always stop.
        An online method has to give failed rows itself; images that cannot be read are left out for it.
    teacher_method: whose predictions on the same images stand in `teacher_prediction`; it may be `method` itself. None: the
        method's own extra column of that name, else empty.

    Returns the columns of SCHEMA, the method's extra columns, `remark` where the dataset has one, and `shard`, the first 16
    digits of the shard's key. Milliseconds are the method's own time per image, measured over a shard, without `method.prepare`.
    Where the environment names a cluster (`apm.runs.cluster.current`) its workers compute the shards; the rows are the same.

    Raises ValueError for an unknown on_error; RecordError for a failing image; TypeError for a method whose predictions have the
    wrong shape or type; OSError for a folder that cannot be written. Shards written before an error stay and are not repeated.
    """
    if on_error not in ("raise", "record"):
        raise project.unknown("on_error", on_error, ("raise", "record"))
    planned = plan(method, dataset, folder=folder, seed=seed, shard_size=shard_size, teacher_method=teacher_method)
    _make(Path(folder))
    tables = {shard.key: table for shard in planned if (table := shards.read(shard)) is not None}
    if on_error == "raise":
        tables = {key: table for key, table in tables.items() if not shards.failures(table, "error:")}
    if missing := [shard for shard in planned if shard.key not in tables]:
        job = shards.Job(method, dataset, int(seed), teacher_method, on_error)
        for part in (method, teacher_method):  # outside the measured time, once where many processes work
            if hasattr(part, "prepare"):
                part.prepare(job.hidden)
        client = cluster.current()
        here = ((shard, job.make(shard)) for shard in missing)
        made = here if client is None else cluster.compute(client, missing, job)
        condition = "" if dataset.severity == 0 else f", {dataset.corruption} {dataset.severity}"
        failed: list[tuple[shards.Shard, pa.Table]] = []
        total = sum(len(shard.positions) for shard in missing)
        with progress(total=total, desc=f"{method.name}: {dataset.name}{condition}") as bar:
            for shard, table in made:
                bar.update(len(shard.positions))
                if table is not None:
                    failed.append((shard, table))
                    if client is None and not tables:  # here shards come in order: where the first fails, so may all
                        break
                elif (written := shards.read(shard)) is not None:
                    tables[shard.key] = written
                else:
                    raise FileNotFoundError(
                        f"a worker wrote {shard.path}, which is not there for this process: they must share the results folder"
                    )
        for shard, table in failed:
            if all(len(shards.failures(one)) == one.num_rows for one in tables.values()):
                raise RecordError(
                    f"{method.name!r} failed on each of the first {table.num_rows} images of {dataset.name!r}: "
                    f"{shards.failures(table)[0]}. This points at the method or its settings, not at single images; nothing "
                    "was recorded"
                )
            shards.write(shard, table, method)
            tables[shard.key] = table
    return _frame((tables[shard.key], shard.key) for shard in planned)


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


def _frame(tables: Iterable[tuple[pa.Table, str]]) -> pd.DataFrame:
    """One frame from tables and their keys; same types whatever the tables."""
    keyed = [
        table.replace_schema_metadata(None).append_column("shard", pa.array([key[:16]] * table.num_rows, pa.string()))
        for table, key in tables
    ]
    whole = pa.concat_tables(keyed, promote_options="default").unify_dictionaries()
    columns = [*SCHEMA.names, *sorted(set(whole.column_names) - set(SCHEMA.names) - {"shard"}), "shard"]
    frame = whole.select(columns).to_pandas(strings_to_categorical=False)
    types = dict.fromkeys(("dataset", "corruption", "group", "method"), "str")  # of pandas: empty stays empty
    types |= dict.fromkeys(("teacher_prediction", "minimum_loss_prediction"), "Int32")  # nullable: empty is not a class
    return frame.astype(types)


def provenance(records: pd.DataFrame) -> str:
    """ "records 3f2a90c1d5e7 (34 shards)": stable name of the records a table or figure was made from.

    A hash over the keys of the shards: it changes when any setting, image, seed or line of run-relevant code does, and
    not with time, machine or commit. Raises ValueError for a frame without the column `shard`.
    """
    if "shard" not in records.columns:
        raise ValueError(f"expected records with the column 'shard', found {list(records.columns)}")
    keys = sorted(set(records["shard"].astype(str)))
    name = hashlib.sha256("\n".join(keys).encode()).hexdigest()[:12]
    return f"records {name} ({len(keys)} shard{'s' * (len(keys) != 1)})"


def provenance_table(folder: Path | str) -> pd.DataFrame:
    """One row per shard of a folder of records: where its rows come from.

    Columns: shard, dataset, corruption, severity, method, seed, n, commit, time, python, machine, device, data, remark, code,
    current (whether the present code made it), settings (JSON) and one column per library version. Raises FileNotFoundError where
    there is no shard, ValueError for a file that is none.
    """
    files = sorted(Path(folder).glob("*.parquet"))
    if not files:
        raise FileNotFoundError(f"no record shards (*.parquet) in {folder}: run a notebook that makes records first")
    rows = []
    for path in files:
        try:
            file = pq.ParquetFile(path)
            meta = shards.metadata(file)
        except (pa.ArrowException, ValueError) as error:
            raise ValueError(
                f"{path}: not a whole record shard ({error}): run its notebook again, which repairs it, or delete the file"
            ) from error
        try:
            current = meta["code"] == code_version(tuple(meta["modules"]))
        except FileNotFoundError:
            current = False  # made by a module that is gone
        made = meta["provenance"]
        rows.append(
            {
                "shard": meta["key"][:16],
                **{name: meta[name] for name in ("dataset", "corruption", "severity", "method", "seed")},
                "n": file.metadata.num_rows,
                **{name: made.get(name) for name in ("commit", "time", "python", "machine", "device")},
                **{name: meta[name] for name in ("data", "remark", "code")},
                "current": current,
                "settings": json.dumps(meta["settings"], sort_keys=True),
                **made.get("versions", {}),
            }
        )
    return pd.DataFrame(rows)
