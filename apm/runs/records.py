"""Records: what every method said about every image, one parquet row each, kept so that no run is repeated or lost.

A run is cut into shards of some images of one (dataset, corruption, severity, method, seed). A shard's file name ends in the
hash of everything that determines its predictions (the method's settings with the teacher's hash, the data's fingerprint, the
images, the seed, the code). So a shard that exists under its name *is* the result: a rerun reads it, a changed setting
makes another. Shards are written to a temporary file and renamed, so a killed run leaves whole shards only.

Predictions per iteration are int16 in zstd-compressed parquet: 50,000 images with 21 predictions each, of 1000 classes, in
shards of 128, take 6 MB when images settle within 8 iterations; with 61 that never settle, 9 MB.

A method receives the data with its labels hidden; labels are joined to predictions here, after both exist.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from apm import project
from apm.project.identity import RUN_MODULES, STOPS, code_version, libraries
from apm.project.progress import progress
from apm.runs import cluster

FORMAT = 2  # raise when rows change their meaning: older shards are then made again
STALE_SECONDS = 600.0  # a shard takes milliseconds to write, so an older temporary file belongs to a killed run

_TEXT = pa.dictionary(pa.int16(), pa.string())
SCHEMA = pa.schema(
    [
        pa.field("dataset", _TEXT, nullable=False),
        pa.field("corruption", _TEXT, nullable=False),  # "none" for clean images
        pa.field("severity", pa.int8(), nullable=False),  # 1 to 5; 0 for clean images
        pa.field("sample", pa.int64(), nullable=False),  # position of the image in the full dataset
        pa.field("group", _TEXT),  # sub-population of the dataset, such as the font; null where it has none
        pa.field("method", _TEXT, nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field(
            "prediction", pa.int32(), nullable=False
        ),  # at the iteration fixed beforehand; -1 where the method failed
        pa.field("teacher_prediction", pa.int32()),  # null when no teacher was asked
        pa.field(
            "path", pa.list_(pa.int16())
        ),  # prediction after k = 0..K updates; null for methods without iterations
        pa.field("minimum_loss_prediction", pa.int32()),  # null for methods without a loss
        pa.field("first_loss", pa.float64()),
        pa.field("last_loss", pa.float64()),
        pa.field("milliseconds", pa.float32(), nullable=False),  # time of the shard divided by its number of images
        pa.field("status", pa.string(), nullable=False),  # "ok", or what went wrong with this image
    ]
)
ROW_KEY = ("dataset", "corruption", "severity", "sample", "method", "seed")
_PACKAGES = (
    *("torch", "torchvision", "open_clip_torch", "timm", "numpy", "scipy", "pandas", "pyarrow"),
    *("scikit-learn", "scikit-image", "pillow", "matplotlib"),
)
_META = b"apm"


class RecordError(RuntimeError):
    """A method failed on an image; the message names the image."""


# ------------------------------------------------------------------------------------------------- what determines a shard


@dataclass(frozen=True)
class Shard:
    """One unit of work: some images of one (dataset, corruption, severity, method, seed)."""

    path: Path
    key: str  # sha256 over everything that determines the rows
    positions: np.ndarray  # (n,) positions in the dataset at hand
    settings: dict[str, Any]  # what the key was made from, without the images


def plan(
    method: Any,
    dataset: Any,
    *,
    folder: Path | str,
    seed: int = 0,
    shard_size: int = 128,
    teacher_method: Any = None,
) -> list[Shard]:
    """Cut a run into shards of up to shard_size images; nothing is computed or written.

    A method with a true attribute `online` carries state from image to image, so its run is one shard. One that reads other data
    says with `data_identity(dataset)` which, as plain JSON-able data: it stands in the keys.
    Raises ValueError for an empty dataset, labels of another length, or shard_size < 1.
    """
    n = len(dataset.images)
    if n == 0:
        raise ValueError(f"dataset {dataset.name!r} has no images: nothing to run {method.name!r} on")
    if shard_size < 1:
        raise ValueError(f"shard_size must be at least 1 image, found {shard_size}")
    for what, values in (("labels", dataset.labels), ("indices", dataset.indices)):
        if len(values) != n:
            raise ValueError(f"dataset {dataset.name!r}: expected {n} {what}, one per image, found {len(values)}")
    if len(np.unique(dataset.indices)) != n:
        raise ValueError(
            f"dataset {dataset.name!r}: the same image appears twice; rows of a record are unique per image"
        )
    modules = _modules(method, teacher_method)
    settings = {
        "format": FORMAT,
        "dataset": dataset.name,
        "corruption": dataset.corruption,
        "severity": int(dataset.severity),
        "data": dataset.fingerprint,
        **({"remark": remark} if (remark := getattr(dataset, "remark", "")) else {}),
        # as hashes: a shard's file would hold more of them than of predictions
        "classnames": project.sha256_of(list(dataset.classnames)),
        "templates": project.sha256_of(list(dataset.templates)),
        "method": method.name,
        "settings": method.settings(),
        "teacher": None if teacher_method is None else teacher_method.settings(),
        "seed": int(seed),
        "modules": list(modules),
        "code": code_version(modules),
    }
    if hasattr(method, "data_identity"):
        settings["method data"] = method.data_identity(dataset)
    if getattr(method, "online", False):
        shard_size = n
    return [
        _shard(Path(folder), settings, np.arange(start, min(start + shard_size, n)), dataset)
        for start in range(0, n, shard_size)
    ]


def _modules(*methods: Any) -> tuple[str, ...]:
    return tuple(
        sorted({m for method in methods if method is not None for m in getattr(method, "modules", RUN_MODULES)})
    )


def _shard(folder: Path, settings: dict[str, Any], positions: np.ndarray, dataset: Any) -> Shard:
    samples = [int(i) for i in np.asarray(dataset.indices)[positions]]
    key = project.sha256_of({**settings, "samples": samples})
    condition = dataset.corruption if dataset.severity == 0 else f"{dataset.corruption}-{dataset.severity}"
    parts = (dataset.name, condition, settings["method"], f"seed{settings['seed']}", f"{positions[0]:06d}")
    name = ".".join(_slug(part) for part in parts)
    return Shard(folder / f"{name}.{key[:16]}.parquet", key, positions, settings)


def _slug(text: str) -> str:
    """Text as part of a file name: no separators, at most 40 characters."""
    return re.sub(r"[^A-Za-z0-9_+=-]+", "-", text).strip("-")[-40:] or "x"


# ---------------------------------------------------------------------------------------------------------------- running


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
        images, so it has to give failed rows itself (status "error: ...").
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
    folder = Path(folder)
    shards = plan(method, dataset, folder=folder, seed=seed, shard_size=shard_size, teacher_method=teacher_method)
    _make(folder)
    tables: dict[str, pa.Table] = {}
    for shard in shards:
        table = _read_if_whole(shard)
        if table is not None and not (on_error == "raise" and _has_errors(table)):
            tables[shard.key] = table
    missing = [shard for shard in shards if shard.key not in tables]
    if missing:
        hidden = hide_labels(dataset)
        for part in (method, teacher_method):  # outside the measured time, and once where many processes work
            if hasattr(part, "prepare"):
                part.prepare(hidden)
        succeeded = any(not every_image_failed(table) for table in tables.values())
        condition = "" if dataset.severity == 0 else f", {dataset.corruption} {dataset.severity}"
        with progress(
            total=sum(len(s.positions) for s in missing), desc=f"{method.name}: {dataset.name}{condition}"
        ) as bar:
            if (client := cluster.current()) is not None:
                _on_workers(client, missing, method, dataset, teacher_method, on_error, tables, succeeded, bar)
                missing = []
            for shard in missing:
                table = compute(shard, method, dataset, teacher_method, on_error=on_error, hidden=hidden)
                first_error = every_image_failed(table)
                if first_error and not succeeded:
                    raise _all_failed(method, dataset, table)
                succeeded = succeeded or not first_error
                write(shard, table, method)
                tables[shard.key] = table
                bar.update(table.num_rows)
    return _frame([(tables[shard.key], shard.key) for shard in shards])


def _on_workers(
    client: Any,
    missing: Sequence[Shard],
    method: Any,
    dataset: Any,
    teacher_method: Any,
    on_error: str,
    tables: dict[str, pa.Table],
    succeeded: bool,
    bar: Any,
) -> None:
    """The missing shards by the workers of a cluster; their tables are read from the files that these wrote."""
    failed: list[tuple[Shard, pa.Table]] = []
    for shard, table in cluster.compute(client, missing, method, dataset, teacher_method, on_error):
        if table is None:
            read = _read_if_whole(shard)
            if read is None:
                raise FileNotFoundError(
                    f"a worker wrote {shard.path}, which is not there for this process: workers and run must share the results folder"
                )
            tables[shard.key], succeeded = read, True
        else:
            failed.append((shard, table))
        bar.update(len(shard.positions))
    for shard, table in failed:
        if not succeeded:
            raise _all_failed(method, dataset, table)
        write(shard, table, method)
        tables[shard.key] = table


def _all_failed(method: Any, dataset: Any, table: pa.Table) -> RecordError:
    return RecordError(
        f"{method.name!r} failed on each of the first {table.num_rows} images of {dataset.name!r}: "
        f"{every_image_failed(table)}. This points at the method or its settings, not at single images; nothing was recorded"
    )


def run_all(methods: Iterable[Any], datasets: Sequence[Any], *, folder: Path | str, **options: Any) -> pd.DataFrame:
    """`run` of every method on every dataset, in that order, as one frame. options: those of `run`."""
    frames = [run(method, dataset, folder=folder, **options) for method in methods for dataset in datasets]
    if not frames:
        raise ValueError("nothing to run: expected at least one method and one dataset")
    return pd.concat(frames, ignore_index=True)


def hide_labels(dataset: Any) -> Any:
    """The dataset as methods see it: every label is 0. Stopping or choosing by label is impossible by construction."""
    hidden = np.zeros(len(dataset.labels), dtype=np.int64)
    hidden.setflags(write=False)
    return replace(dataset, labels=hidden)


def compute(
    shard: Shard,
    method: Any,
    dataset: Any,
    teacher_method: Any = None,
    *,
    on_error: str = "raise",
    hidden: Any = None,
) -> pa.Table:
    """Predict one shard and join the labels: a table with the columns of SCHEMA and the method's extra ones.

    When images fail together, they are tried again in halves, down to the single image that is at fault.
    """
    hidden = hide_labels(dataset) if hidden is None else hidden
    seed = shard.settings["seed"]

    def asked(positions: np.ndarray, predictions: Any = None) -> dict[str, Any]:
        """What the teacher says of these images; predictions: the method's own, where it is the teacher itself."""
        if teacher_method is None:
            return {}
        if predictions is None or teacher_method is not method:
            predictions = teacher_method.predict(hidden, positions, seed)
        name = f"{teacher_method.name}: prediction"
        return {"teacher_prediction": _integers(predictions.prediction, len(positions), name)}

    def attempt(positions: np.ndarray) -> dict[str, Any]:
        start = time.perf_counter()
        predictions = method.predict(hidden, positions, seed)
        milliseconds = 1e3 * (time.perf_counter() - start) / len(positions)
        columns = _columns(predictions, len(positions), method.name)
        columns["milliseconds"] = np.full(len(positions), milliseconds, dtype=np.float32)
        for place, status in enumerate(columns["status"]):
            if on_error == "raise" and status.startswith("error:"):
                raise _failed(method, dataset, positions[place], status.removeprefix("error: "))
        return {**columns, **asked(positions, predictions)}

    def alone(position: np.ndarray, reason: str) -> dict[str, Any]:
        """The row of an image on which the method failed. The teacher may know it all the same."""
        row = {
            "prediction": np.array([-1]),
            "status": [" ".join(f"error: {reason}".split())[:300]],
            "milliseconds": np.array([np.nan], dtype=np.float32),
        }
        try:
            return {**row, **(asked(position) if teacher_method is not method else {})}
        except STOPS:
            raise
        except Exception:
            return row

    parts = _attempt(attempt, alone, shard.positions, method, dataset, on_error)
    n = len(shard.positions)
    groups = getattr(dataset, "groups", None)
    fixed: dict[str, Any] = {
        "dataset": [dataset.name] * n,
        "corruption": [dataset.corruption] * n,
        "severity": [dataset.severity] * n,
        "sample": np.asarray(dataset.indices)[shard.positions],
        "group": [None if groups is None else str(groups[i]) for i in shard.positions],
        "method": [method.name] * n,
        "seed": [seed] * n,
        "label": np.asarray(dataset.labels)[shard.positions],
    }
    if "remark" in shard.settings:
        fixed["remark"] = np.full(n, shard.settings["remark"])
    tables, start = [], 0
    for size, columns in parts:
        rows = slice(start, start + size)
        merged = {**{name: values[rows] for name, values in fixed.items()}, **columns}
        arrays = [_array(merged.get(field.name), field, size) for field in SCHEMA]
        extra = {name: pa.array(values) for name, values in merged.items() if name not in SCHEMA.names}
        schema = pa.schema([*SCHEMA, *(pa.field(name, values.type) for name, values in extra.items())])
        tables.append(pa.Table.from_arrays([*arrays, *extra.values()], schema=schema))
        start += size
    # values of one shard in one chunk, and fields that only some parts have (extra columns) filled with nulls
    return pa.concat_tables(tables, promote_options="default").unify_dictionaries().combine_chunks()


def _attempt(
    attempt: Callable[[np.ndarray], dict[str, Any]],
    alone: Callable[[np.ndarray, str], dict[str, Any]],
    positions: np.ndarray,
    method: Any,
    dataset: Any,
    on_error: str,
) -> list[tuple[int, dict[str, Any]]]:
    """(number of images, columns) for runs of consecutive images; a failing run is halved until its culprit is alone."""
    try:
        return [(len(positions), attempt(positions))]
    except (*STOPS, RecordError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        if type(error).__name__ == "OutOfMemoryError":  # of torch, which this module does without
            raise
        if getattr(method, "online", False):
            raise RecordError(
                f"{method.name!r} failed on {dataset.name!r}: {reason}. It carries state from image to image, so its images cannot "
                "be tried in parts: it has to give failed rows itself"
            ) from error
        if len(positions) > 1:
            middle = len(positions) // 2
            halves = [
                part
                for half in (positions[:middle], positions[middle:])
                for part in _attempt(attempt, alone, half, method, dataset, on_error)
            ]
            if not any(status.startswith("error:") for _, columns in halves for status in columns["status"]):
                warnings.warn(
                    f"{method.name!r} failed on {len(positions)} images of {dataset.name!r} together ({reason}) but not on each "
                    "half of them: went on with the halves",
                    stacklevel=2,
                )
            return halves
        if on_error == "raise":
            raise _failed(method, dataset, positions[0], reason) from error
        return [(1, alone(positions, reason))]


def _failed(method: Any, dataset: Any, position: int, reason: str) -> RecordError:
    condition = "" if dataset.severity == 0 else f" with {dataset.corruption} {dataset.severity}"
    return RecordError(
        f"{method.name!r} failed on image {int(np.asarray(dataset.indices)[position])} of {dataset.name!r}{condition}: {reason}. "
        "Mend or remove the image, or use on_error='record' to keep it as a failed row and go on"
    )


def _columns(predictions: Any, n: int, name: str) -> dict[str, Any]:
    """A method's Predictions as columns, checked: n rows each, -1 where status is not "ok". Raises TypeError."""
    prediction = _integers(predictions.prediction, n, f"{name}: prediction")
    status = ["ok"] * n if predictions.status is None else [str(s) for s in predictions.status]
    if len(status) != n:
        raise TypeError(f"{name}: expected {n} entries of status, one per image, found {len(status)}")
    for i in range(n):
        if (prediction[i] < 0) != (status[i] != "ok"):
            raise TypeError(f"{name}: image {i} of {n} has prediction {prediction[i]} but status {status[i]!r}")
    columns: dict[str, Any] = {"prediction": prediction, "status": status}
    if predictions.path is not None:
        path = np.asarray(predictions.path)
        if path.ndim != 2 or len(path) != n or path.shape[1] < 2 or not np.issubdtype(path.dtype, np.integer):
            raise TypeError(
                f"{name}: expected a path of integers of shape ({n}, K + 1), K >= 1, found {path.dtype} {path.shape}"
            )
        if path.size and not (path.min() >= -1 and path.max() <= np.iinfo(np.int16).max):
            raise TypeError(f"{name}: classes in a path must fit int16, found {path.min()} to {path.max()}")
        columns["path"] = path.astype(np.int16)
    if predictions.minimum_loss_prediction is not None:
        columns["minimum_loss_prediction"] = _integers(
            predictions.minimum_loss_prediction, n, f"{name}: minimum_loss_prediction"
        )
    for loss in ("first_loss", "last_loss"):
        if getattr(predictions, loss) is not None:
            columns[loss] = _rows(getattr(predictions, loss), n, f"{name}: {loss}").astype(np.float64)
    for column, values in dict(getattr(predictions, "extra", None) or {}).items():
        if (column in SCHEMA.names and column != "teacher_prediction") or column in ("shard", "remark"):
            raise TypeError(f"{name}: the extra column {column!r} has the name of a column of every record: rename it")
        columns[column] = _rows(values, n, f"{name}: extra column {column!r}")
    return columns


def _rows(values: Any, n: int, what: str) -> np.ndarray:
    array = np.asarray(values)
    if array.shape != (n,):
        raise TypeError(f"{what}: expected shape ({n},), one value per image, found {array.shape}")
    return array


def _integers(values: Any, n: int, what: str) -> np.ndarray:
    array = _rows(values, n, what)
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{what}: expected integers, found {array.dtype}")
    return array


def _array(values: Any, field: pa.Field, n: int) -> pa.Array:
    if values is None:
        return pa.nulls(n, field.type)
    if isinstance(values, np.ndarray) and values.ndim == 2:
        offsets = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.ravel(), field.type.value_type))
    if pa.types.is_dictionary(field.type):
        return pa.array(values, pa.string()).dictionary_encode().cast(field.type)
    if pa.types.is_floating(field.type):
        return pa.array(np.asarray(values), field.type, from_pandas=False)
    return pa.array(values, field.type)


def every_image_failed(table: pa.Table) -> str:
    """The first error when no image of a table gave a result, else ""."""
    status = table["status"].to_pylist()
    return status[0] if all(s.startswith("error:") for s in status) else ""


def _has_errors(table: pa.Table) -> bool:
    return any(s.startswith("error:") for s in table["status"].unique().to_pylist())


# ------------------------------------------------------------------------------------------------------------------ files


def _device(method: Any) -> str:
    """Where a method says that it, or its teacher, computes; "cpu" when it does not say."""
    return str(getattr(method, "device", getattr(getattr(method, "teacher", None), "device", "cpu")))


def _make(folder: Path) -> None:
    """Make the folder and remove what killed runs left in it. Raises OSError saying what to do."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not folder.is_dir():
            raise NotADirectoryError(f"{folder} is not a folder")
    except OSError as error:
        raise type(error)(
            error.errno or 0,
            f"cannot make the folder of the records {folder} ({error}): free the place or set APM_RESULTS",
        ) from error
    limit = time.time() - STALE_SECONDS
    for leftover in folder.iterdir():
        if leftover.name.endswith(".parquet") or ".parquet" not in leftover.name:
            continue
        try:
            if leftover.stat().st_mtime < limit:
                leftover.unlink()
        except OSError:
            continue  # another run was faster, or the folder is read-only: neither harms what is to come


def write(shard: Shard, table: pa.Table, method: Any) -> None:
    """Write a computed shard under its name, atomically, with its settings and provenance."""
    made = {**environment(), "device": _device(method), "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    meta = {**shard.settings, "key": shard.key, "provenance": made}
    meta["content"] = _digest(table, meta)
    table = table.replace_schema_metadata({_META: json.dumps(meta, sort_keys=True, default=str).encode()})
    with project.atomic_path(shard.path) as temporary:
        pq.write_table(table, temporary, compression="zstd", compression_level=9)


def _read(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    """A shard's table and metadata. Raises ValueError or OSError when it is not a whole shard of ours."""
    table = pq.ParquetFile(path).read()
    meta = json.loads((table.schema.metadata or {}).get(_META, b"{}"))
    if "key" not in meta or meta.get("format") != FORMAT:
        raise ValueError(f"no metadata of a record shard of format {FORMAT}")
    found = [(field.name, field.type) for field in table.schema][: len(SCHEMA)]
    if found != [(field.name, field.type) for field in SCHEMA]:
        raise ValueError(f"expected the columns {SCHEMA.names} with their types, found {found}")
    if meta.pop("content", None) != _digest(table, meta):
        raise ValueError("its content is not what was written")
    return table, meta


def _digest(table: pa.Table, meta: Mapping[str, Any]) -> str:
    """Hash of all values and metadata: a flipped bit on the disk must not become another prediction.

    Parquet's page checksums do not cover page headers, where one bit can turn a column into nulls.
    """
    digest = hashlib.sha256(json.dumps(meta, sort_keys=True, default=str).encode())
    for name, column in zip(table.column_names, table.columns, strict=True):
        values = pa.concat_arrays(column.cast(_plain_type(column.type)).chunks)
        digest.update(name.encode())
        digest.update(np.asarray(values.is_null()).tobytes())
        if pa.types.is_list(values.type):
            digest.update(pc.list_value_length(values).fill_null(0).to_numpy(zero_copy_only=False).tobytes())
            values = values.flatten()
        if pa.types.is_string(values.type):
            digest.update(json.dumps(values.to_pylist()).encode())
        else:
            digest.update(values.fill_null(0).to_numpy(zero_copy_only=False).tobytes())
    return digest.hexdigest()


def _plain_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _read_if_whole(shard: Shard) -> pa.Table | None:
    """The table of a shard that exists and is whole; None, with a warning, where there is one that is not."""
    if not shard.path.exists():
        return None
    try:
        table, meta = _read(shard.path)
        if meta["key"] != shard.key or table.num_rows != len(shard.positions):
            raise ValueError(
                f"expected {len(shard.positions)} rows of shard {shard.key[:16]}, found {table.num_rows} of another"
            )
        return table
    except (pa.ArrowException, ValueError, OSError, EOFError) as error:
        if isinstance(error, PermissionError):
            raise
        warnings.warn(f"{shard.path}: unreadable record shard ({error}); it is computed again", stacklevel=3)
        return None


def _frame(tables: Iterable[tuple[pa.Table, str]]) -> pd.DataFrame:
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


def load(folder: Path | str, *, code: str = "current", **filters: Any) -> pd.DataFrame:
    """All rows of a folder of records, by file name (dataset, corruption, method, ...), then in the order of the images.

    filters: column=value or column=[values] on dataset, corruption, severity, method, seed, sample or any other column.
    code: "current" leaves out, with a warning, shards made by other code of the same modules; "any" takes all; or the
        beginning of a code version.
    The same image run twice with the same settings (in shards of another size) counts once. With different settings under
    one name there is no telling which was meant: ValueError says in what they differ.

    Raises FileNotFoundError when there is no folder or no shard in it, ValueError for an unknown column, for filters that
    nothing passes, and for a shard that cannot be read (a rerun repairs it).
    """
    folder = Path(folder)
    read, other_code = [], 0
    for path in _shard_files(folder):
        meta = _metadata(path)
        if any(
            name in meta and meta[name] not in _listed(wanted)
            for name, wanted in filters.items()
            if name in _META_COLUMNS
        ):
            continue
        if code == "current" and meta["code"] != _current_code(meta):
            other_code += 1
            continue
        if code not in ("current", "any") and not meta["code"].startswith(code):
            continue
        read.append((_read_or_explain(path)[0], meta))
    if other_code:
        warnings.warn(
            f"{folder}: left out {other_code} record shards made by other code than the present one: run again to renew them, "
            "or load(..., code='any')",
            stacklevel=2,
        )
    if not read:
        raise ValueError(
            f"no record in {folder} passes {filters or 'code=' + repr(code)}: run the notebook that makes it first"
        )
    frame = _frame((table, meta["key"]) for table, meta in read)
    for name, wanted in filters.items():
        if name not in frame.columns:
            raise project.unknown("column", name, list(frame.columns))
        frame = frame[frame[name].isin(_listed(wanted))]
    if frame.empty:
        raise ValueError(f"no record in {folder} passes {filters}")
    return _unique(frame, {meta["key"][:16]: meta for _, meta in read}, folder).reset_index(drop=True)


_META_COLUMNS = ("dataset", "corruption", "severity", "method", "seed")


def _listed(wanted: Any) -> list[Any]:
    return (
        list(wanted) if isinstance(wanted, (list, tuple, set, frozenset, np.ndarray, pd.Series, pd.Index)) else [wanted]
    )


def _current_code(meta: Mapping[str, Any]) -> str:
    try:
        return code_version(tuple(meta["modules"]))
    except FileNotFoundError:
        return ""  # made by a module that is gone: other code, certainly


def _shard_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder of records at {folder}: run a notebook that makes records first")
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise FileNotFoundError(f"no record shards (*.parquet) in {folder}: run a notebook that makes records first")
    return files


def _metadata(path: Path) -> dict[str, Any]:
    try:
        meta = json.loads((pq.read_schema(path).metadata or {})[_META])
        if meta["format"] != FORMAT:
            raise ValueError(f"expected format {FORMAT}, found {meta['format']}")
        return meta
    except (pa.ArrowException, ValueError, KeyError) as error:
        raise ValueError(_repair(path, error)) from error


def _read_or_explain(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    try:
        return _read(path)
    except (pa.ArrowException, ValueError, OSError) as error:
        raise ValueError(_repair(path, error)) from error


def _repair(path: Path, error: Exception) -> str:
    return f"{path}: not a whole record shard ({error}): run its notebook again, which repairs it, or delete the file"


def _unique(frame: pd.DataFrame, metas: Mapping[str, Mapping[str, Any]], folder: Path) -> pd.DataFrame:
    """One row per ROW_KEY; raises ValueError when rows with one key come from different settings."""
    keys = list(ROW_KEY)
    twice = frame[frame.duplicated(keys, keep=False)]
    if twice.empty:
        return frame
    for values, rows in twice.groupby(keys, sort=False):
        first, *others = (metas[shard] for shard in rows["shard"])
        for other in others:
            differ = [
                name for name in first if name not in ("key", "provenance", "content") and first[name] != other[name]
            ]
            if differ:
                changes = "; ".join(_difference(name, first[name], other[name]) for name in differ)
                what = ", ".join(f"{k} {v}" for k, v in zip(keys, values, strict=True))
                raise ValueError(
                    f"{folder} holds two records of {what}, made with different settings ({changes}): give the methods "
                    "different names, use another folder, or delete the shards of one of them"
                )
    return frame.drop_duplicates(keys, keep="first")


def _difference(name: str, a: Any, b: Any) -> str:
    if isinstance(a, dict) and isinstance(b, dict):
        inner = [k for k in sorted({*a, *b}) if a.get(k) != b.get(k)]
        return "; ".join(_difference(f"{name}.{k}", a.get(k), b.get(k)) for k in inner)
    return f"{name}: {str(a)[:80]} and {str(b)[:80]}"


# ------------------------------------------------------------------------------------------------------------- provenance


@functools.cache
def environment() -> dict[str, Any]:
    """What surrounds a run without determining it: commit, python, library versions and machine. No part of any key."""
    torch = sys.modules.get("torch")  # asked only when the method has loaded it: this module stays light
    gpu = torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None
    return {
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": libraries(_PACKAGES),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores" + (f", {gpu}" if gpu else ""),
    }


def _commit() -> str:
    """The git commit of the code, with "+changes" for a modified tree; "unknown" outside a repository."""
    here = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return commit + ("+changes" if git("status", "--porcelain", "--untracked-files=no", "--", str(here)) else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def provenance(records: pd.DataFrame | Path | str) -> str:
    """ "records 3f2a90c1d5e7 (34 shards)": stable name of the records a table or figure was made from.

    A hash over the keys of the shards: it changes when any setting, image, seed or line of run-relevant code does, and
    not with time, machine or commit. Raises ValueError for a frame without the column `shard`.
    """
    keys = sorted(set(_shards_of(records)))
    name = hashlib.sha256("\n".join(keys).encode()).hexdigest()[:12]
    return f"records {name} ({len(keys)} shard{'s' if len(keys) != 1 else ''})"


def provenance_table(folder: Path | str, records: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row per shard (of those in `records`, default all in the folder): where its rows come from.

    Columns: shard, dataset, corruption, severity, method, seed, n, commit, time, python, machine, device, data, remark, code,
    settings (JSON) and one column per library version.
    """
    wanted = None if records is None else set(_shards_of(records))
    rows = []
    for path in _shard_files(Path(folder)):
        meta = _metadata(path)
        if wanted is not None and meta["key"][:16] not in wanted:
            continue
        made = meta["provenance"]
        rows.append(
            {
                "shard": meta["key"][:16],
                **{name: meta[name] for name in _META_COLUMNS},
                "n": pq.read_metadata(path).num_rows,
                **{name: made.get(name) for name in ("commit", "time", "python", "machine", "device")},
                "data": meta["data"],
                "remark": meta.get("remark", ""),
                "code": meta["code"],
                "settings": json.dumps(meta["settings"], sort_keys=True),
                **made.get("versions", {}),
            }
        )
    lost = (wanted or set()) - {row["shard"] for row in rows}
    if lost:
        raise FileNotFoundError(f"{folder}: {len(lost)} of the shards asked for are gone, among them {min(lost)}")
    return pd.DataFrame(rows)


def _shards_of(records: pd.DataFrame | Path | str) -> Sequence[str]:
    if isinstance(records, pd.DataFrame):
        if "shard" not in records.columns:
            raise ValueError(f"expected records with the column 'shard', found {list(records.columns)}")
        return [str(key) for key in records["shard"].unique()]
    return [_metadata(path)["key"][:16] for path in _shard_files(Path(records))]
