"""Progress of long work, with rate and time left, on the terminal that runs it: never in an executed notebook.

A notebook run by `apm.project.run` reports to the terminal of make through $APM_PROGRESS, a path that is opened for writing. Where
that is no terminal (a log), a plain line appears every 15 seconds. Under pytest nothing is shown.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from typing import IO, Any

from tqdm import tqdm

LOG_EVERY = 15.0  # seconds between lines where the stream is no terminal


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
    terminal = stream is not None and stream.isatty()
    return tqdm(
        iterable,
        total=total,
        desc=desc,
        unit=unit,
        disable=stream is None,
        file=stream if terminal or stream is None else _Lines(stream),
        leave=False,
        position=None if terminal else 0,  # a log has no line above the last
        dynamic_ncols=terminal,
        ncols=None if terminal else 100,
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
    if "ipykernel" in sys.modules and not sys.stderr.isatty():
        return None  # a notebook run by hand: its cells say what they did
    return sys.stderr
