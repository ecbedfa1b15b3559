"""Progress of long work, with rate and time left, on the terminal that runs it: never in an executed notebook.

A notebook run by `apm.project.run` reports to the terminal of make through $APM_PROGRESS, a path that is opened for writing. Where
that is no terminal (a log), a plain line appears every 15 seconds. Under pytest nothing is shown.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import IO, Any

from tqdm import tqdm

LOG_EVERY = 15.0  # seconds between lines where the stream is no terminal


class Bar:
    """Counts units of work. A context manager, an iterator over what it was given, or both; `update(n)` adds by hand."""

    def __init__(self, iterable: Iterable[Any] | None, total: int | None, desc: str, unit: str) -> None:
        if total is None and isinstance(iterable, Sized):
            total = len(iterable)
        self._iterable, self._total, self._desc, self._unit = iterable, total, desc, unit
        self._n, self._start = 0, time.monotonic()
        self._said = self._start
        self._stream, self._own = _stream()
        self._bar: tqdm | None = None
        if self._stream is not None and self._stream.isatty():
            self._bar = tqdm(
                total=total, desc=desc, unit=unit, file=self._stream, leave=False, dynamic_ncols=True, smoothing=0.1
            )

    def update(self, n: int = 1) -> None:
        """n more units are done."""
        self._n += n
        if self._bar is not None:
            self._bar.update(n)
        elif self._stream is not None and time.monotonic() - self._said >= LOG_EVERY:
            self._said = time.monotonic()
            self._say()

    def _say(self) -> None:
        line = tqdm.format_meter(
            self._n, self._total or 0, time.monotonic() - self._start, prefix=self._desc, unit=self._unit, ncols=100
        )
        try:
            print(line.strip(), file=self._stream, flush=True)
        except OSError:  # the reader is gone: work goes on without telling
            self._stream = None

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self._bar is not None:
            self._bar.close()
        if self._own and self._stream is not None:
            self._stream.close()
        self._stream = None

    def __iter__(self) -> Iterator[Any]:
        if self._iterable is None:
            raise TypeError("this progress bar was given nothing to iterate over: pass an iterable, or use update()")
        with self:
            for item in self._iterable:
                yield item
                self.update()

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def progress(
    iterable: Iterable[Any] | None = None, *, total: int | None = None, desc: str = "", unit: str = "image"
) -> Bar:
    """A progress bar: `for x in progress(xs, desc=...)`, or `with progress(total=n, desc=...) as bar: bar.update(k)`."""
    return Bar(iterable, total, desc, unit)


def _stream() -> tuple[IO[str] | None, bool]:
    """Where to report, and whether it is ours to close; None for nowhere."""
    if "PYTEST_CURRENT_TEST" in os.environ:
        return None, False
    if path := os.environ.get("APM_PROGRESS"):
        try:
            return open(path, "a", encoding="utf-8"), True  # noqa: PTH123 - kept open while the bar lives
        except OSError:
            return None, False
    if "ipykernel" in sys.modules and not sys.stderr.isatty():
        return None, False  # a notebook run by hand: its cells say what they did
    return sys.stderr, False
