"""Downloads of the published sets that torchvision can fetch: what, how much and under which licence said first, resumed where
they broke off, checked against torchvision's own hashes."""

from __future__ import annotations

import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from unittest import mock

from apm.data.published_sets import SETS, PublishedSet
from apm.project.progress import progress

ROOM = 2.5  # space on the disk per byte of an archive: it is there until it is unpacked
BLOCK = 1 << 20


def fetch(names: Sequence[str], data: Path) -> list[str]:
    """Let torchvision fetch those of the sets that it can and that are not in the folder. Returns the names that failed.

    A download that breaks off leaves FILE.part, with which the next one goes on, and .CLASS.part until all files are there. Raises OSError before the first byte where the
    disk has too little room. CoOp's split files are not among what torchvision has: `apm.data.check` names those that are missing.
    """
    wanted: dict[str, PublishedSet] = {}  # one download may serve several sets
    for entry in (SETS[name] for name in names):
        if any((data / place).is_dir() for place in entry.places) and not _begun(entry, data).is_file():
            continue
        if entry.torchvision:
            wanted.setdefault(entry.torchvision, entry)
        else:
            print(f"by hand  {entry.name}: {entry.source} ({entry.size} GB)", flush=True)
    if not wanted:
        return []
    for entry in wanted.values():
        print(f"to fetch {entry.name}: {entry.size} GB, {entry.source}. Licence: {entry.licence}", flush=True)
    total = sum(entry.size for entry in wanted.values())
    print(f"in all {total:.1f} GB, into {data}", flush=True)
    data.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(data).free / 1e9
    if free < ROOM * total:
        raise OSError(
            f"{data} has room for {free:.1f} GB; {total:.1f} GB are to be fetched and unpacked, which takes {ROOM * total:.1f} GB: make "
            "room, or set DATA to a folder on another disk"
        )
    return [entry.name for entry in wanted.values() if not _fetched(entry, data)]


def _begun(entry: PublishedSet, data: Path) -> Path:
    """Lies beside a set that is being fetched: some have several archives, of which the first is no set yet."""
    return data / f".{entry.torchvision}.part"


def _fetched(entry: PublishedSet, data: Path) -> bool:
    from torchvision import datasets

    begun = _begun(entry, data)
    try:
        begun.touch()
        # torchvision unpacks and checks; the bytes come by `_retrieve`, which it has no way to be told
        with mock.patch("torchvision.datasets.utils._urlretrieve", _retrieve):
            getattr(datasets, entry.torchvision)(root=data, download=True)
        begun.unlink()
        return True
    except (OSError, RuntimeError, ImportError, ValueError, HTTPException) as error:
        said = f"{type(error).__name__}: {error}"
        print(
            f"failed   {entry.name}: {said}. Is this machine offline, or behind a proxy (https_proxy)? Run again to go on where it "
            f"stopped; by hand: {entry.source}",
            file=sys.stderr,
            flush=True,
        )
        return False


def _retrieve(url: str, filename: str | Path, chunk_size: int = BLOCK) -> None:
    """The file at a URL, by way of FILE.part, from where an earlier try stopped. Raises OSError where it is cut off."""
    file = Path(filename)
    part = file.with_name(f"{file.name}.part")
    there = part.stat().st_size if part.is_file() else 0
    ask = urllib.request.Request(url, headers={"User-Agent": "apm", "Range": f"bytes={there}-"})
    try:
        answer = urllib.request.urlopen(ask, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not there:  # 416: nothing is left to send
            raise
        part.replace(file)
        return
    with answer:
        if answer.status != 206:  # a server that cannot resume sends everything again
            there = 0
        length = int(answer.headers["Content-Length"] or 0)
        with (
            part.open("ab" if there else "wb") as out,
            progress(total=there + length or None, initial=there, desc=file.name, unit="B", unit_scale=True) as bar,
        ):
            while block := answer.read(chunk_size):
                out.write(block)
                bar.update(len(block))
    if length and part.stat().st_size < there + length:
        raise OSError(f"{file.name} was cut off after {part.stat().st_size:,} of {there + length:,} bytes")
    part.replace(file)
