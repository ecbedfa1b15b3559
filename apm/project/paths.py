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
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

import yaml

Kept = TypeVar("Kept")
SEAL = 64  # bytes of a digest, the last of a sealed file
LISTED = 80  # names that an error lists whole
CACHE = f"data{os.sep}cache{os.sep}"  # of a path in a profile: `cache_dir`, wherever that is


def root() -> Path:
    """The project's folder: $APM_ROOT, else the nearest above the working directory or this package with `notebooks/` and `profiles/`.
    Raises FileNotFoundError when there is none."""
    if chosen := os.environ.get("APM_ROOT"):
        return Path(chosen).resolve()
    here = Path.cwd().resolve()
    for folder in (here, *here.parents, *Path(__file__).resolve().parents):
        if (folder / "notebooks").is_dir() and (folder / "profiles").is_dir():
            return folder
    wanted = f"no project folder (one with notebooks/ and profiles/) at or above {here}"
    raise FileNotFoundError(f"{wanted}: start from inside the clone, or set APM_ROOT")


def _named(variable: str) -> Path | None:
    """The folder that a variable of the environment names: a relative one lies in the project, wherever the work starts."""
    named = os.environ.get(variable)
    return root().joinpath(Path(named).expanduser()).resolve() if named else None


def cache_dir() -> Path:
    """Folder of trained teachers and cached features: $APM_CACHE, else data/cache in the project."""
    return _named("APM_CACHE") or root() / "data" / "cache"


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
    """The folder in the results for what a notebook run by hand makes; "" in a run of `apm.project.run`."""
    return "" if os.environ.get("APM_RUN") else "by-hand"


def portable(text: str) -> str:
    """Text without the paths of this machine: the datasets' folder ($DATA) is written DATA, the project's is left out. Only where a
    path begins: a DATA of /data leaves results/data/a.csv and https://host/data/ as they are."""
    places = {f"{root()}{os.sep}": ""}
    if folder := data_dir():
        places[f"{folder}{os.sep}"] = f"DATA{os.sep}"
    either = "|".join(re.escape(place) for place in sorted(places, key=len, reverse=True))  # one may lie in the other
    return re.sub(rf"(?<![\w./+-])(?:{either})", lambda found: places[found.group()], text)


@contextmanager
def locked(path: Path | str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock file `path`; the lock goes with the process, however that ends. waiting: called once where another process holds
    it. Without locks in the file system the work goes on, which is said. Raises as `explained`."""
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
    """A temporary path in the same folder, renamed to `path` when its bytes are on the disk; removed on any error.

    sealed: the digest of its bytes is written behind them (`check_seal`). Raises as `explained`; the file that was there stays.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.touch()
            allowed = temporary.stat().st_mode  # as the umask says, whatever a library makes of it
            yield temporary
            digest = sha256_file(temporary).encode() if sealed else b""
            with temporary.open("ab") as file:
                file.write(digest)
                file.flush()
                os.fsync(file.fileno())  # else a power cut can leave a file of the right length, full of zeros
            temporary.chmod(allowed)
            temporary.replace(path)
        finally:
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


_ELSEWHERE = "choose another folder with APM_RESULTS or APM_CACHE"
_ADVICE = {
    errno.EACCES: f"the folder is not writable: change its permissions, or {_ELSEWHERE}",
    errno.EROFS: f"the file system is read-only: {_ELSEWHERE}",
    errno.ENOSPC: "the disk is full: free some space and run again, what was written before is intact",
    errno.EDQUOT: "the disk quota is used up: free some space and run again, what was written before is intact",
    errno.ENOTDIR: "a file stands where a folder is needed: move it away",
}
_ADVICE |= {errno.EPERM: _ADVICE[errno.EACCES], errno.EEXIST: _ADVICE[errno.ENOTDIR]}


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """An OSError of what cannot be written names the folder of `path` and what to do."""
    try:
        yield
    except OSError as error:
        if not (advice := _ADVICE.get(error.errno or 0)):
            raise
        raise type(error)(error.errno, f"cannot write {path.name} in {path.parent}: {advice}") from error


def kept(path: Path, read: Callable[[str], Kept], nothing: Kept) -> Kept:
    """What a file of this package's own state holds, as `read` makes it of its text: `nothing` where there is no such file, and,
    which is said, where it cannot be read, so that it is made anew."""
    try:
        return read(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return nothing
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        say(f"{path} cannot be read ({type(error).__name__}: {error}): it is made anew")
        return nothing


def plain(value: Any) -> Any:
    """Plain JSON data of dicts, sequences, dataclasses, paths and numpy scalars; TypeError for anything else."""
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
    """A ValueError to raise: what is unknown, what is known (of many names those like it), and what was probably meant."""
    names = list(known)
    folded = {each.casefold(): each for each in reversed(names)}
    near = [folded[each] for each in difflib.get_close_matches(str(name).casefold(), folded, n=10, cutoff=0.4)]
    close = difflib.get_close_matches(str(name).casefold(), folded, n=1)
    hint = f" Did you mean {folded[close[0]]!r}?" if close else ""
    listed = names if len(names) <= LISTED or not near else [*near, f"... ({len(names)} in all)"]
    return ValueError(f"unknown {kind} {name!r}. Known: {', '.join(listed) or 'none'}.{hint}")


def among(kind: str, names: Iterable[object], known: Iterable[object]) -> None:
    """Raises `unknown` for the first of the names that is not among the known ones."""
    known = list(known)
    for name in names:
        if name not in known:
            raise unknown(kind, name, map(str, known))
