"""Sentences and captions in a notebook's output, as paragraphs that wrap between words: printed lines break anywhere in a page."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# verdicts of the claims audit
HOLDS, FAILS, UNTESTED = "holds", "does not hold", "cannot be tested"
CONSTRUCTION, NOT_RUN = "by construction", "not tested here"


def markdown(text: str) -> str:
    """Plain text so that Markdown shows it as it is: file and set names keep their underscores, "<" is no tag."""
    return re.sub(r"([\\`*_<>$|~#])", r"\\\1", " ".join(text.split()))


def say(*sentences: str) -> None:
    """Show plain text below a cell: one as a paragraph, several as a list. Nothing for none."""
    from IPython.display import Markdown, display

    lines = [markdown(sentence) for sentence in sentences if sentence.strip()]
    if lines:
        display(Markdown(lines[0] if len(lines) == 1 else "\n".join(f"- {line}" for line in lines)))


def show(figure: Figure, caption: str) -> None:
    """Show a figure with its caption below it, and close it: a figure left open would come after the text of its cell."""
    import matplotlib.pyplot as plt
    from IPython.display import display

    display(figure)
    plt.close(figure)
    say(caption)
