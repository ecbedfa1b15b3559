"""Sentences in a notebook's output: plain text stays as it is, and captions stand below their figures."""

from typing import Any

import pytest

from apm.analysis import text


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []
    monkeypatch.setattr("IPython.display.display", found.append)
    return found


def rendered(source: str) -> str:
    from nbconvert.filters import markdown2html

    return str(markdown2html(source))


def test_one_sentence_is_a_paragraph_and_several_are_a_list(shown: list[Any]) -> None:
    text.say("One.")
    text.say("One.", "", "Two.")
    text.say()
    text.say("")
    assert [m.data for m in shown] == ["One.", "- One.\n- Two."]


@pytest.mark.parametrize(
    "plain", ["min_loss of digits_a and b_c", "p < 0.001, a*b*c", "x [-0.1, 0.2] `code`", "from $5 to $6", "~3~ #1 | 2"]
)
def test_text_is_shown_as_it_is(plain: str) -> None:
    import html
    import re

    page = html.unescape(re.sub(r"<[^>]+>", "", rendered(text.markdown(plain)))).strip()
    assert page == plain
