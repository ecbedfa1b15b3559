"""Where things are, and how files are written: project root, caches, results, atomic writes, stable hashes, clear errors."""

from __future__ import annotations

import dataclasses
import difflib
import errno
import fcntl
import functools
import hashlib
import json
import mmap
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import yaml

# Read once: it can only be read by setting it, and a file that another thread makes in between would be open to all.
_UMASK = os.umask(0)
os.umask(_UMASK)
SEAL = 64  # bytes of a digest, the last of a sealed file


def root() -> Path:
    """The project's folder: $APM_ROOT, else the nearest folder above the working directory or this package that has both
    `notebooks/` and `profiles/`. Raises FileNotFoundError when there is none."""
    if chosen := os.environ.get("APM_ROOT"):
        return Path(chosen).resolve()
    here = Path.cwd().resolve()
    for folder in (here, *here.parents, *Path(__file__).resolve().parents):
        if (folder / "notebooks").is_dir() and (folder / "profiles").is_dir():
            return folder
    raise FileNotFoundError(
        f"no project folder (one with notebooks/ and profiles/) at or above {here}: start from inside the clone, or set APM_ROOT"
    )


def _named(variable: str) -> Path | None:
    """The folder that a variable of the environment names: a relative one lies in the project, wherever the work starts."""
    if not (named := os.environ.get(variable)):
        return None
    folder = Path(named).expanduser()
    return (folder if folder.is_absolute() else root() / folder).resolve()


def cache_dir() -> Path:
    """Folder of trained teachers and cached features: $APM_CACHE, else data/cache in the project."""
    return _named("APM_CACHE") or root() / "data" / "cache"


CACHE = f"data{os.sep}cache{os.sep}"  # of a path in a profile: `cache_dir`, wherever that is


def located(named: str) -> str:
    """What a profile calls its weights (a file, TAG=FILE or a tag), where a file in data/cache lies in the cache's folder."""
    tag, equals, file = named.rpartition("=")
    return f"{tag}{equals}{cache_dir() / file.removeprefix(CACHE)}" if file.startswith(CACHE) else named


def data_dir() -> Path | None:
    """Folder of the datasets on disk: $DATA; None where it is not set."""
    return _named("DATA")


def results_dir(profile: str) -> Path:
    """Folder of a profile's results: $APM_RESULTS/<profile>, else results/<profile> in the project."""
    return (_named("APM_RESULTS") or root() / "results") / profile


def by_hand() -> str:
    """The folder in the results for what a notebook makes that somebody runs by hand, with whatever parameters: beside what
    `apm.project.run` made, which is where "" stands for."""
    return "" if os.environ.get("APM_RUN") else "by-hand"


def portable(text: str) -> str:
    """Text without the paths of this machine: the datasets' folder ($DATA) is written DATA, the project's is left out.

    So a result is the same wherever the clone and the datasets lie. Only where a path begins: a DATA of /data leaves
    results/data/a.csv and https://host/data/ as they are.
    """
    places = {f"{root()}{os.sep}": ""}
    if folder := data_dir():
        places[f"{folder}{os.sep}"] = f"DATA{os.sep}"
    either = "|".join(re.escape(place) for place in sorted(places, key=len, reverse=True))  # one may lie in the other
    return re.sub(rf"(?<![\w./+-])(?:{either})", lambda found: places[found.group()], text)


@contextmanager
def locked(path: Path | str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock file `path`, which is made where there is none; the lock goes with the process, however that ends.

    waiting: called once where another process holds it. Where the file system has no locks, that is said and the work goes
    on. Raises OSError that names the folder and what to do when it cannot be written.
    """
    path = Path(path)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            say(f"{path.parent} is on a file system without locks ({error}): start no second run that writes there")
        yield


@functools.cache
def say(text: str) -> None:
    """Once, a line on the terminal that runs the work, also from a kernel: an executed notebook holds nothing of this machine."""
    terminal = os.environ.get("APM_PROGRESS")
    with suppress(OSError), Path(terminal).open("a") if terminal else nullcontext(sys.stderr) as stream:
        print(text, file=stream, flush=True)


@contextmanager
def atomic_path(path: Path | str, *, sealed: bool = False) -> Iterator[Path]:
    """A temporary path in the same folder, renamed to `path` when its bytes are on the disk, and removed on any error.

    sealed: the digest of its bytes is written behind them (`check_seal`). Raises OSError that names the folder and what to do when
    it cannot be written; the file that was there stays.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        digest = sha256_file(temporary).encode() if sealed else b""
        with temporary.open("ab") as file:
            file.write(digest)
            file.flush()
            os.fsync(file.fileno())  # else a power cut can leave a file of the right length, full of zeros
        temporary.chmod(0o666 & ~_UMASK)
        temporary.replace(path)
    except OSError as error:
        raise _explained(error, path) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def atomic_write(path: Path | str, data: bytes | str) -> Path:
    """Write a file whole or not at all. Raises as `atomic_path`."""
    path = Path(path)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def check_seal(path: Path) -> None:
    """Raises ValueError for a sealed file whose bytes are not those that were written. Read once while it stays as it is."""
    about = path.stat()
    if not _whole(path, about.st_size, about.st_mtime_ns, about.st_ino):
        raise ValueError("its bytes are not those that were written")


@functools.lru_cache
def _whole(path: Path, size: int, *_: int) -> bool:
    if size <= SEAL:
        return False
    with path.open("rb") as file:
        found = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    return hashlib.sha256(found[:-SEAL]).hexdigest().encode() == found[-SEAL:]


def facts(module: str) -> Any:
    """What the YAML file of a module's name beside it says. module: its `__file__`."""
    return yaml.safe_load(Path(module).with_suffix(".yaml").read_text(encoding="utf-8"))


_ADVICE = {
    errno.EACCES: "the folder is not writable: change its permissions, or choose another with APM_RESULTS or APM_CACHE",
    errno.EPERM: "the folder is not writable: change its permissions, or choose another with APM_RESULTS or APM_CACHE",
    errno.EROFS: "the file system is read-only: choose another folder with APM_RESULTS or APM_CACHE",
    errno.ENOSPC: "the disk is full: free some space and run again, what was written before is intact",
    errno.EDQUOT: "the disk quota is used up: free some space and run again, what was written before is intact",
    errno.ENOTDIR: "a file stands where a folder is needed: move it away",
    errno.EEXIST: "a file stands where a folder is needed: move it away",
}


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """An OSError of what cannot be written names the folder of `path` and what to do."""
    try:
        yield
    except OSError as error:
        raise _explained(error, path) from error


def _explained(error: OSError, path: Path) -> OSError:
    advice = _ADVICE.get(error.errno or 0)
    if advice is None:
        return error
    return type(error)(error.errno, f"cannot write {path.name} in {path.parent}: {advice}")


def kept(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file of this package's own state: {} where there is none, and, which is said, where it cannot be
    read, so that it is made anew."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
        error: Exception = ValueError("no mapping")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as failure:
        error = failure
    say(f"{path} cannot be read ({error}): it is made anew")
    return {}


def plain(value: Any) -> Any:
    """Plain JSON data for dicts, sequences, dataclasses, paths and numpy scalars. Raises TypeError for anything else."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return value.as_posix()
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return plain(value.item())
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"cannot hash a {type(value).__name__}: pass plain data (dict, list, str, number)")


def sha256_of(value: Any) -> str:
    """Hex digest of plain data: equal data give equal digests, whatever the order of keys."""
    text = json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path | str) -> str:
    """Hex digest of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unknown(kind: str, name: object, known: Iterable[str]) -> ValueError:
    """A ValueError to raise: what is unknown, what is known, and what was probably meant."""
    names = list(known)
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ValueError(f"unknown {kind} {name!r}. Known: {', '.join(names) or 'none'}.{hint}")


def among(kind: str, names: Iterable[object], known: Iterable[object]) -> None:
    """Raises `unknown` for the first of the names that is not among the known ones."""
    known = list(known)
    for name in names:
        if name not in known:
            raise unknown(kind, name, map(str, known))
