"""Names that people give are text, never mark-up: in figures, tables, sentences and pages."""

import html
import re
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib import font_manager

from apm.analysis import figures, tables, text

NAMES = [
    "Ba$$in",
    "a_{b}",
    r"$\frac{1}$",
    "$x^2$ $",
    "Tom & Jerry",
    "<b>bold</b>",
    '"it\'s"',
    "100 %",
    r"C:\dir",
    "#1",
    "~^",
]
NAMES += ["[a](b)", "![a](b)", "&lt;", "a|b", "*a* _b_ `c`", "[x]: y", "\u732b", "\u0648\u0631\u062f", "x\\$y"]


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.mark.filterwarnings("ignore:Glyph")
def test_a_figure_shows_names_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def formula(_: object, said: str, *__: object) -> None:
        pytest.fail(f"{said} is a formula")

    monkeypatch.setattr("matplotlib.mathtext.MathTextParser.parse", formula)
    figures.style()
    figure, (left, right) = plt.subplots(1, 2)
    left.set_title("\n".join(NAMES))
    left.set(yticks=range(len(NAMES)), yticklabels=NAMES)
    for name in NAMES:
        right.plot([0, 1], [0, 1], label=name)
        right.annotate(name, (0, 0))
    right.legend(title=NAMES[0])
    figure.canvas.draw()


def test_labels_of_logarithmic_axes_are_still_powers() -> None:
    figures.style()
    figure, axes = plt.subplots()
    axes.semilogy(np.geomspace(1, 1e-6, 8))
    figure.canvas.draw()
    labels = [label for label in axes.get_yticklabels() if label.get_text()]
    assert labels
    assert all(label._preprocess_math(label.get_text())[1] for label in labels)


def test_letters_that_the_font_lacks_come_from_another_one_where_there_is_one(monkeypatch) -> None:
    figures.style.cache_clear()
    monkeypatch.setattr(font_manager, "get_font_names", lambda: ["PingFang SC", "Zapfino"])
    with mpl.rc_context({"text.usetex": True}):  # as a user's own settings may have it
        figures.style()
        assert (mpl.rcParams["font.family"], mpl.rcParams["text.usetex"]) == (["DejaVu Sans", "PingFang SC"], False)
    figures.style.cache_clear()


@pytest.mark.parametrize("name", NAMES)
def test_a_sentence_and_a_table_in_markdown_show_a_name_as_it_is(name: str, tmp_path: Path) -> None:
    from nbconvert.filters import markdown2html

    def read(source: str) -> str:
        page = re.sub(r"(?s)<style.*?</style>|<[^>]+>", "\n", str(markdown2html(source)))
        return html.unescape(page)

    assert f"about {name} here" in read(text.markdown(f"about {name} here"))
    frame = pd.DataFrame({"class": [name], name: ["x"]})
    lines = read(tables.save(frame, "t", tmp_path, f"of {name}", f"from {name}")["md"].read_text()).splitlines()
    assert lines.count(name) == 2
    assert {f"of {name}", f"from {name}"} <= set(lines)


@pytest.mark.parametrize("start", ["- a", "+ a", "1. a", "12) a", "= a"])
def test_a_sentence_does_not_begin_a_list(start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from nbconvert.filters import markdown2html

    found: list = []
    monkeypatch.setattr("IPython.display.display", found.append)
    text.say(start)
    page = str(markdown2html(found[0].data))
    assert html.unescape(re.sub(r"<[^>]+>", "", page)).strip() == start
    assert "<li>" not in page


@pytest.mark.parametrize("name", NAMES)
def test_a_page_shows_a_name_as_it_is_and_sets_no_formulas(name: str) -> None:
    page = tables.show(pd.DataFrame({"class": [name], name: ["x"]}), f"of {name}", f"from {name}").html
    assert "mathjax_ignore" in page.split(">")[0]
    cells = [html.unescape(cell) for cell in re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", page)]
    assert cells == ["class", name, name, "x"]


@pytest.mark.parametrize(
    ("name", "safe"), [("[1] a", "{}[1] a"), ("* a", "{}* a"), ("$x$ & _y_ #", r"\$x\$ \& \_y\_ \#")]
)
def test_latex_takes_no_name_for_a_command(name: str, safe: str, tmp_path: Path) -> None:
    body = tables.save(pd.DataFrame({"class": ["x", name]}), "t", tmp_path, "c")["tex"].read_text()
    assert f"\n{safe} \\\\\n" in body
