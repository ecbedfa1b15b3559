"""Sentences in a notebook's output, as paragraphs that wrap between words: printed lines break anywhere in a page."""

from __future__ import annotations

import re

# verdicts of the claims audit
HOLDS, FAILS, UNTESTED = "holds", "does not hold", "cannot be tested"
CONSTRUCTION, NOT_RUN = "by construction", "not tested here"


def markdown(text: str) -> str:
    """Plain text so that Markdown shows it as it is: file and set names keep their underscores, "<" is no tag, "](" no link."""
    return re.sub(r"([\\`*_<>$|~#]|\](?=[(\[:])|&(?=#?\w+;))", r"\\\1", " ".join(text.split()))


def say(*sentences: str) -> None:
    """Show plain text below a cell, none of it an item of a list: one as a paragraph, several as a list. Nothing for none."""
    from IPython.display import Markdown, display

    lines = [re.sub(r"^(\d*)([-+=.)])", r"\1\\\2", markdown(sentence)) for sentence in sentences if sentence.strip()]
    if lines:
        display(Markdown(lines[0] if len(lines) == 1 else "\n".join(f"- {line}" for line in lines)))
