"""Sentences in a notebook's output: plain text stays as it is, and captions stand below their figures."""

import html
import re
from typing import Any

import pytest
from nbconvert.filters import markdown2html

from apm.analysis import text


def test_one_sentence_is_a_paragraph_and_several_are_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    for sentences in (["One."], ["One.", "", "Two."], [], [""]):
        text.say(*sentences)
    assert [m.data for m in shown] == ["One.", "- One.\n- Two."]


@pytest.mark.parametrize(
    "plain", ["min_loss of digits_a and b_c", "p < 0.001, a*b*c", "x [-0.1, 0.2] `code`", "from $5 to $6", "~3~ #1 | 2"]
)
def test_text_is_shown_as_it_is(plain: str) -> None:
    page = html.unescape(re.sub(r"<[^>]+>", "", markdown2html(text.markdown(plain)))).strip()
    assert page == plain
