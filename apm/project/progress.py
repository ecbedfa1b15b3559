"""Progress of long work, with rate and time left, on the terminal that runs it: never in an executed notebook, and in one that is run
by hand only where somebody waits for a cell (`live`).

A notebook run by `apm.project.run` reports through $APM_PROGRESS, a path that is opened for writing. Where that is no terminal (a log), a
plain line appears every 15 seconds.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import IO, Any

from tqdm import tqdm

LOG_EVERY = 15.0  # seconds between lines where the stream is no terminal
_LIVE = ContextVar("_LIVE", default=False)


class _Lines:
    """A log as tqdm writes to it: each state of the bar on a line of its own; a reader that has gone stops nobody's work."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        if line := text.strip("\r\n "):
            with contextlib.suppress(OSError):
                print(line, file=self.stream, flush=True)

    def flush(self) -> None:
        """Every line is flushed as it is written."""


@contextlib.contextmanager
def live() -> Iterator[None]:
    """Within it bars show in a notebook that is run by hand, too, and are gone when their work is done."""
    before = _LIVE.set(True)
    try:
        yield
    finally:
        _LIVE.reset(before)


def progress(
    iterable: Iterable[Any] | None = None,
    *,
    total: int | None = None,
    desc: str = "",
    unit: str = "image",
    **options: Any,
) -> tqdm:
    """A progress bar: `for x in progress(xs, desc=...)`, or `with progress(total=n, desc=...) as bar: bar.update(k)`.

    options: others of tqdm."""
    stream = _stream()
    wide = stream is not None and stream.isatty()
    terminal = wide or (stream is sys.stderr and _in_notebook())
    return tqdm(
        iterable,
        total=total,
        desc=desc,
        unit=unit,
        disable=stream is None,
        file=stream if terminal or stream is None else _Lines(stream),
        leave=False,
        position=None if terminal else 0,  # a log has no line above the last
        dynamic_ncols=wide,
        ncols=None if wide else 100,
        mininterval=0.1 if terminal else LOG_EVERY,
        maxinterval=LOG_EVERY,
        miniters=0 if terminal else 1,
        delay=0 if terminal else LOG_EVERY,
        smoothing=0.1 if terminal else 0,
        **options,
    )


def _stream() -> IO[str] | None:
    """Where to report; None for nowhere. The terminal that $APM_PROGRESS names stays open as long as the bar that writes to it."""
    if "PYTEST_CURRENT_TEST" in os.environ:
        return None
    if path := os.environ.get("APM_PROGRESS"):
        try:
            return open(path, "a", encoding="utf-8")  # noqa: PTH123 - closed with the bar
        except OSError:
            return None
    return None if _in_notebook() and not _LIVE.get() else sys.stderr  # its cells say what they did


def _in_notebook() -> bool:
    """Whether this process is the kernel of a notebook that is run by hand."""
    return "ipykernel" in sys.modules and not sys.stderr.isatty()
