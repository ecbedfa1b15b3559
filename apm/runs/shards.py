"""One shard: some images of one (dataset, corruption, severity, method, seed), from the plan to its file.

A shard's file name ends in the hash of everything that determines its predictions (the method's settings with the teacher's
hash, the data's fingerprint, the images, the seed, the code). So a shard that exists under its name *is* the result: a rerun
reads it, a changed setting makes another. It is written to a temporary file and renamed: a killed run leaves whole shards only.
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
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from apm import project
from apm.project.identity import STOPS, code_version, libraries

FORMAT = 3  # raise when rows change their meaning: older shards are then made again
PACKAGES = (
    *("torch", "torchvision", "open_clip_torch", "timm", "numpy", "scipy", "pandas", "pyarrow"),
    *("scikit-learn", "scikit-image", "pillow", "matplotlib"),
)
META = b"apm"
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
        pa.field("prediction", pa.int32(), nullable=False),  # at the iteration fixed beforehand; -1: the method failed
        pa.field("teacher_prediction", pa.int32()),  # null when no teacher was asked
        pa.field("path", pa.list_(pa.int16())),  # prediction after k = 0..K updates; null without iterations
        pa.field("minimum_loss_prediction", pa.int32()),  # null for methods without a loss
        pa.field("first_loss", pa.float64()),
        pa.field("last_loss", pa.float64()),
        pa.field("milliseconds", pa.float32(), nullable=False),  # time of the shard divided by its number of images
        pa.field("status", pa.string(), nullable=False),  # "ok", or what went wrong with this image
    ]
)
CLASSES = ("prediction", "path", "minimum_loss_prediction", "teacher_prediction")  # columns of whole numbers


class RecordError(RuntimeError):
    """A method failed on an image; the message names the image."""


@dataclass(frozen=True)
class Shard:
    """One unit of work."""

    path: Path
    key: str  # sha256 over everything that determines the rows
    positions: np.ndarray  # (n,) positions in the dataset at hand
    settings: dict[str, Any]  # what the key was made from, without the images


def plan(
    method: Any, dataset: Any, *, folder: Path | str, seed: int = 0, shard_size: int = 128, teacher_method: Any = None
) -> list[Shard]:
    """Cut a run into shards of up to shard_size images; nothing is computed or written.

    The run of an online method, which carries state from image to image, is one shard.
    Raises ValueError for a dataset in which an image appears twice, or shard_size < 1.
    """
    if shard_size < 1:
        raise ValueError(f"shard_size must be at least 1 image, found {shard_size}")
    n, indices = len(dataset.images), np.asarray(dataset.indices)
    if len(np.unique(indices)) != n:
        raise ValueError(
            f"dataset {dataset.name!r}: the same image appears twice; rows of a record are unique per image"
        )
    modules = sorted({module for one in (method, teacher_method) if one for module in one.modules})
    settings = {
        "format": FORMAT,
        "dataset": dataset.name,
        "corruption": dataset.corruption,
        "severity": int(dataset.severity),
        "data": dataset.fingerprint,
        "remark": dataset.remark,
        # as hashes: a shard's file would hold more of them than of predictions
        "classnames": project.sha256_of(list(dataset.classnames)),
        "templates": project.sha256_of(list(dataset.templates)),
        "method": method.name,
        "settings": method.settings(),
        # the other students of ablations are no `Method`: they read no other data and prepare nothing
        "method data": getattr(method, "data_identity", lambda _: None)(dataset),
        "teacher": None if teacher_method is None else teacher_method.settings(),
        "seed": int(seed),
        "modules": modules,
        "code": code_version(tuple(modules)),
    }
    condition = dataset.corruption if dataset.severity == 0 else f"{dataset.corruption}-{dataset.severity}"
    size, planned = n if getattr(method, "online", False) else shard_size, []
    for positions in np.split(np.arange(n), np.arange(size, n, size)):
        key = project.sha256_of({**settings, "samples": indices[positions].tolist()})
        parts = (dataset.name, condition, method.name, f"seed{int(seed)}", f"{positions[0]:06d}")
        slugs = (re.sub(r"[^A-Za-z0-9_+=-]+", "-", part).strip("-")[-40:] or "x" for part in parts)
        planned.append(Shard(Path(folder) / f"{'.'.join(slugs)}.{key[:16]}.parquet", key, positions, settings))
    return planned


@dataclass
class Job:
    """What the shards of a run are computed with."""

    method: Any
    dataset: Any
    seed: int
    teacher: Any  # the method whose predictions stand in `teacher_prediction`, or None
    on_error: str  # "raise" or "record"

    @functools.cached_property
    def hidden(self) -> Any:
        """The dataset as methods see it: every label is 0. Stopping or choosing by label is impossible by construction."""
        labels = np.zeros(len(self.dataset.labels), dtype=np.int64)
        labels.setflags(write=False)
        return replace(self.dataset, labels=labels)

    def make(self, shard: Shard) -> pa.Table | None:
        """Compute a shard and `write` it; the table where every image failed, which is not written, else None."""
        table = self.compute(shard)
        if len(failures(table)) == table.num_rows:
            return table
        write(shard, table, self.method)
        return None

    def compute(self, shard: Shard) -> pa.Table:
        """Predict one shard and join the labels: a table with the columns of SCHEMA and the method's extra ones.

        When images fail together, they are tried again in halves, down to the single image that is at fault. Images that an
        online method cannot read are left out of its sequence; its other failures are its own to record.
        """
        data, tables, order = self.dataset, [], []
        for positions, columns in self.attempt(shard.positions):
            n = len(positions)
            same = {"dataset": data.name, "corruption": data.corruption, "severity": data.severity}
            same |= {"method": self.method.name, "seed": self.seed} | ({"remark": data.remark} if data.remark else {})
            rows: dict[str, Any] = {name: [value] * n for name, value in same.items()}
            rows |= {"sample": np.asarray(data.indices)[positions], "label": np.asarray(data.labels)[positions]}
            rows["group"] = [None if data.groups is None else str(data.groups[i]) for i in positions]
            rows |= columns
            table = pa.Table.from_pydict({name: rows.pop(name, [None] * n) for name in SCHEMA.names}, SCHEMA)
            for name, values in rows.items():
                table = table.append_column(name, pa.array(values))
            tables.append(table)
            order += list(positions)
        # values of one shard in one chunk, and fields that only some parts have (extra columns) filled with nulls
        whole = pa.concat_tables(tables, promote_options="default").unify_dictionaries().combine_chunks()
        return whole if len(tables) == 1 else whole.take(np.argsort(order)).combine_chunks()

    def attempt(self, positions: np.ndarray) -> list[tuple[np.ndarray, dict[str, Any]]]:
        """(positions, columns) of parts of the images; a failing part is halved until its culprit is alone."""
        try:
            return [(positions, self.ask(positions))]
        except (*STOPS, RecordError):
            raise
        except Exception as error:
            if type(error).__name__ == "OutOfMemoryError":  # of torch, which this module does without
                raise
            reason = f"{type(error).__name__}: {error}"
            if getattr(self.method, "online", False):
                return self.without_unreadable(positions, reason, error)
            if len(positions) == 1:
                return [(positions, self.failure(positions, reason, error))]
            middle = len(positions) // 2
            halves = [part for half in (positions[:middle], positions[middle:]) for part in self.attempt(half)]
            if not any(status.startswith("error:") for _, columns in halves for status in columns["status"]):
                warnings.warn(
                    f"{self.method.name!r} failed on {len(positions)} images of {self.dataset.name!r} together ({reason}) but "
                    "not on each half of them: went on with the halves",
                    stacklevel=2,
                )
            return halves

    def ask(self, positions: np.ndarray) -> dict[str, Any]:
        """What the method, and the teacher, say of these images."""
        start = time.perf_counter()
        said = self.method.predict(self.hidden, positions, self.seed)
        milliseconds = 1e3 * (time.perf_counter() - start) / len(positions)
        columns = _columns(said, len(positions), self.method.name)
        columns["milliseconds"] = np.full(len(positions), milliseconds, dtype=np.float32)
        for position, status in zip(positions, columns["status"], strict=True):
            if self.on_error == "raise" and status.startswith("error:"):
                raise self.failed(position, status.removeprefix("error: "))
        return columns | self.ask_teacher(positions, said if self.teacher is self.method else None)

    def ask_teacher(self, positions: np.ndarray, said: Any = None) -> dict[str, Any]:
        if self.teacher is None:
            return {}
        said = said or self.teacher.predict(self.hidden, positions, self.seed)
        return {"teacher_prediction": _columns(said, len(positions), self.teacher.name)["prediction"]}

    def failure(self, position: np.ndarray, reason: str, error: Exception) -> dict[str, Any]:
        """The row of an image (1,) on which the method failed. The teacher may know it all the same."""
        if self.on_error == "raise":
            raise self.failed(position[0], reason) from error
        row = {
            "prediction": np.array([-1]),
            "status": [" ".join(f"error: {reason}".split())[:300]],
            "milliseconds": np.array([np.nan], dtype=np.float32),
        }
        try:
            return row | (self.ask_teacher(position) if self.teacher is not self.method else {})
        except STOPS:
            raise
        except Exception:
            return row

    def without_unreadable(
        self, positions: np.ndarray, reason: str, error: Exception
    ) -> list[tuple[np.ndarray, dict[str, Any]]]:
        """An online method's rows where images cannot be read: these are left out of its sequence."""
        rows, rest = [], []
        for position in positions:
            try:
                self.dataset.images[int(position)]
                rest.append(position)
            except ValueError as unreadable:  # `apm.data.UnreadableImage`
                why = f"{type(unreadable).__name__}: {unreadable}"
                rows.append((np.array([position]), self.failure(np.array([position]), why, unreadable)))
        if not rows:
            raise RecordError(
                f"{self.method.name!r} failed on {self.dataset.name!r}: {reason}. It carries state from image to image, so its "
                "images cannot be tried in parts: it has to give failed rows itself"
            ) from error
        return rows + (self.attempt(np.array(rest)) if rest else [])

    def failed(self, position: int, reason: str) -> RecordError:
        data = self.dataset
        condition = "" if data.severity == 0 else f" with {data.corruption} {data.severity}"
        return RecordError(
            f"{self.method.name!r} failed on image {int(np.asarray(data.indices)[position])} of {data.name!r}{condition}: {reason}. "
            "Mend or remove the image, or use on_error='record' to keep it as a failed row and go on"
        )


def _columns(said: Any, n: int, name: str) -> dict[str, Any]:
    """A method's Predictions as columns, checked: n rows each, -1 where status is not "ok". Raises TypeError."""
    columns = {"prediction": said.prediction}
    for column in ("path", "minimum_loss_prediction", "first_loss", "last_loss"):
        if getattr(said, column) is not None:
            columns[column] = getattr(said, column)
    for column in said.extra:
        if (column in SCHEMA.names and column != "teacher_prediction") or column in ("shard", "remark"):
            raise TypeError(f"{name}: the extra column {column!r} has the name of a column of every record: rename it")
    columns = {column: np.asarray(values) for column, values in {**columns, **said.extra}.items()}
    for column, values in columns.items():
        dimensions, expected = (2, f"({n}, K + 1), K >= 1") if column == "path" else (1, f"({n},), one value per image")
        if values.ndim != dimensions or len(values) != n or values.shape[-1] < dimensions:
            raise TypeError(f"{name}: {column}: expected shape {expected}, found {values.shape}")
        if column in CLASSES and not np.issubdtype(values.dtype, np.integer):
            raise TypeError(f"{name}: {column}: expected integers, found {values.dtype}")
    status = ["ok"] * n if said.status is None else [str(s) for s in said.status]
    if len(status) != n:
        raise TypeError(f"{name}: expected {n} entries of status, one per image, found {len(status)}")
    for i, (prediction, state) in enumerate(zip(columns["prediction"], status, strict=True)):
        if (prediction < 0) != (state != "ok"):
            raise TypeError(f"{name}: image {i} of {n} has prediction {prediction} but status {state!r}")
    if (path := columns.get("path")) is not None:
        if not (path.min() >= -1 and path.max() <= np.iinfo(np.int16).max):
            raise TypeError(f"{name}: classes in a path must fit int16, found {path.min()} to {path.max()}")
        columns["path"] = list(path.astype(np.int16))
    return {**columns, "status": status}


def failures(table: pa.Table, kind: str = "") -> list[str]:
    """What went wrong with a table's images; kind: how it begins, "error:" for what the method raised."""
    return [status for status in table["status"].to_pylist() if status != "ok" and status.startswith(kind)]


def write(shard: Shard, table: pa.Table, method: Any) -> None:
    """Write a computed shard under its name, atomically, with its settings and provenance."""
    device = getattr(method.teacher, "device", "cpu")
    made = {**environment(), "device": str(device), "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    meta = {**shard.settings, "key": shard.key, "provenance": made}
    meta["content"] = _digest(table, meta)
    table = table.replace_schema_metadata({META: json.dumps(meta, sort_keys=True, default=str).encode()})
    with project.atomic_path(shard.path) as temporary:
        pq.write_table(table, temporary, compression="zstd", compression_level=9)


def read(shard: Shard) -> pa.Table | None:
    """The table of a shard that exists and is whole; None, with a warning, where there is one that is not."""
    if not shard.path.exists():
        return None
    try:
        file = pq.ParquetFile(shard.path)  # opened once: another run may put its own in its place meanwhile
        table, meta = file.read(), metadata(file)
        ours = list(table.schema)[: len(SCHEMA)] == list(SCHEMA) and meta["key"] == shard.key
        if meta.pop("content", None) != _digest(table, meta) or not ours:
            raise ValueError("its content is not what was written")
        return table
    except PermissionError:
        raise
    except (pa.ArrowException, ValueError, OSError, EOFError) as error:
        warnings.warn(f"{shard.path}: unreadable record shard ({error}); it is computed again", stacklevel=3)
        return None


def metadata(file: pq.ParquetFile) -> dict[str, Any]:
    """What a shard's file says of itself. Raises ValueError where it is none of ours."""
    meta = json.loads((file.schema_arrow.metadata or {}).get(META, b"{}"))
    if "key" not in meta or meta.get("format") != FORMAT:
        raise ValueError(f"no metadata of a record shard of format {FORMAT}")
    return meta


def _digest(table: pa.Table, meta: Mapping[str, Any]) -> str:
    """Hash of all values and metadata: a flipped bit on the disk must not become another prediction.

    Parquet's page checksums do not cover page headers, where one bit can turn a column into nulls.
    """
    text = json.dumps([meta, table.schema.names, table.to_pydict()], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def environment() -> dict[str, Any]:
    """What surrounds a run without determining it: commit, python, library versions and machine. No part of any key."""
    torch = sys.modules.get("torch")  # asked only when the method has loaded it: this module stays light
    gpu = f", {torch.cuda.get_device_name()}" if torch is not None and torch.cuda.is_available() else ""
    return {
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": libraries(PACKAGES),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores{gpu}",
    }


def _commit() -> str:
    """The git commit of the code, with "+changes" for a modified tree; "unknown" where the code is not in a repository of its own."""
    here = str(Path(__file__).parents[1])

    def git(*arguments: str) -> str:
        command = ["git", "-C", here, *arguments]
        own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # as in a hook
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10, env=own).stdout.strip()

    try:
        if (
            not git("ls-files", "--", here)
            or Path(git("rev-parse", "--show-toplevel")).resolve() != Path(here).resolve().parent
        ):
            return "unknown"  # a copy inside somebody's repository
        commit = git("rev-parse", "HEAD")
        return commit + ("+changes" if git("status", "--porcelain", "--untracked-files=no", "--", here) else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
