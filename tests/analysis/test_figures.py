"""Figures: they show the numbers they are given, say n and intervals, and repeat byte for byte."""

import base64
import io

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import seaborn as sns
from fakes import records
from PIL import Image

from apm.analysis import figures, stats
from apm.analysis.figures import grid_rgb
from apm.analysis.numbers import Number

ANY = "any (upper bound, uses labels)"


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def data():
    """40 images of four classes under five conditions, six iterations."""
    rng, frames = np.random.default_rng(0), []
    label = rng.integers(0, 4, 40)
    for corruption, severity in [("none", 0), ("fog", 1), ("fog", 5), ("snow", 1), ("snow", 5)]:
        teacher = np.where(rng.random(40) < 0.9 - 0.1 * severity, label, (label + 1) % 4)
        path = [rng.integers(0, 4, 40), *(np.where(rng.random(40) < 0.8, teacher, label) for _ in range(6))]
        asked = {"teacher_prediction": teacher, "path": list(np.stack(path, 1).astype(np.int16))}
        frames.append(records(path[-1], label=label, corruption=corruption, severity=severity, **asked))
    return pd.concat(frames, ignore_index=True)


@pytest.fixture
def figure():
    found, axes = plt.subplots(figsize=(4, 3))
    axes.plot([1, 2], label="a")
    axes.set_title("Letters and lines")
    return found


def test_accuracy_over_iterations_ends_at_final_and_any(data):
    figure, caption = figures.accuracy_over_iterations(data, chance=25.0)
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    final, ever, teacher = (stats.estimate(data, rule).value for rule in ("final", "any", "teacher"))
    assert lines["final, had K been k"].get_ydata()[-1] == pytest.approx(final)
    assert lines[ANY].get_ydata()[-1] == pytest.approx(ever)
    assert lines["teacher (zero-shot)"].get_ydata()[0] == pytest.approx(teacher)
    assert list(lines[ANY].get_xdata()) == [1, 2, 3, 4, 5, 6]  # random weights do not count
    assert (np.diff(lines[ANY].get_ydata()) >= 0).all()
    assert "mean of 5 conditions; n = 40 images" in caption
    with pytest.raises(ValueError, match="needs a method with iterations"):
        figures.accuracy_over_iterations(data.assign(path=None))
    with pytest.raises(ValueError, match="one method, found APM, B"):
        figures.accuracy_over_iterations(pd.concat([data, data.assign(method="B")]))


def test_grid_rgb_shows_islands_as_colours():
    features = np.zeros((4, 6, 8))
    features[:, :3, 0], features[:, 3:, 1] = 1.0, 1.0
    features += 1e-4 * np.random.default_rng(0).normal(size=features.shape)
    colours = grid_rgb(features)
    assert colours.shape == (4, 6, 3)
    left, right = colours[:, :3, 0], colours[:, 3:, 0]
    assert left.std() < 0.01
    assert right.std() < 0.01
    assert abs(left.mean() - right.mean()) > 0.9


def test_grid_rgb_edges():
    assert (grid_rgb(np.ones((2, 2, 4))) == 0.5).all()
    assert grid_rgb(np.random.default_rng(0).normal(size=(2, 2, 1))).shape == (2, 2, 3)  # fewer than three components
    rng = np.random.default_rng(0)
    many = rng.normal(size=(5, 4, 4, 8))
    together = grid_rgb(many)
    assert ((together >= 0) & (together <= 1)).all()
    np.testing.assert_allclose(grid_rgb(many[2], fit=many), together[2])  # shared colours
    small = 1e-3 * (many[2] + 7)  # another size and place: in the range of fit a point, in its own the same picture
    np.testing.assert_allclose(grid_rgb(small, fit=many[2], own_range=True), grid_rgb(many[2]), atol=1e-9)
    assert np.ptp(grid_rgb(small, fit=many[2])) < 0.5
    assert (grid_rgb(np.full((2, 2, 8), 1 / 3), fit=many, own_range=True) == 0.5).all()  # rounding is no variation


def test_saved_figures_repeat_byte_for_byte_without_dates(figure, tmp_path):
    contents = []
    for folder in ("a", "b"):
        paths = figures.save(figure, "curves", tmp_path / folder)
        assert sorted(p.name for p in (tmp_path / folder).iterdir()) == ["curves.pdf", "curves.png"]
        contents.append({suffix: path.read_bytes() for suffix, path in paths.items()})
    assert contents[0] == contents[1]
    assert b"CreationDate" not in contents[0]["pdf"]
    assert b"Software" not in contents[0]["png"]
    with pytest.raises(OSError, match="curves"):
        figures.save(figure, "curves", paths["png"])


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_plot_gets_a_palette_that_cannot_be_seen_and_a_photograph_keeps_its_colours(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    plot = buffer.getvalue()
    small = figures.lean(plot)
    assert len(small) < len(plot) / 2
    before, after = (np.asarray(Image.open(io.BytesIO(b)).convert("RGB")).astype(int) for b in (plot, small))
    assert np.abs(before - after).max() <= figures.UNSEEN
    rng = np.random.default_rng(0)
    for photograph in (
        rng.integers(0, 256, (200, 200, 3), dtype=np.uint8),  # more colours than are counted
        rng.integers(0, 256, (40, 40, 3), dtype=np.uint8),  # few enough, but no palette is near them
    ):
        kept = Image.open(io.BytesIO(figures.lean(png(photograph))))
        assert kept.mode == "RGB"
        assert np.array_equal(np.asarray(kept), photograph)


def test_a_figure_is_shown_as_the_file_that_was_saved(figure, tmp_path, monkeypatch):
    shown = []
    for place in ("IPython.display.display", "apm.analysis.figures.show_here"):
        monkeypatch.setattr(place, shown.append)
    path = figures.save(figure, "a", tmp_path)["png"]
    figures.display(path, "A caption")
    picture, said = shown
    bundle, about = picture._repr_png_()
    assert base64.b64decode(bundle) == path.read_bytes()
    assert about["width"] == figures.page_width(path) == round(Image.open(path).width / 1.5)
    assert said.data.strip() == "A caption"


def test_dots_are_told_apart_by_colour_and_marker_and_an_upper_bound_is_open():
    safe = sns.color_palette("colorblind").as_hex()
    assert list(figures.PALETTE) == safe
    assert set(figures.COLOURS.values()) <= set(safe)
    cells = pd.DataFrame({f"{i}": [Number(i, i - 1, i + 1)] for i in range(20)} | {ANY: [Number(70)]}, index=["a"])
    (axes,) = figures.dots({"accuracy": cells}).axes
    marks = [container.lines[0] for container in axes.containers]
    assert [mark.get_xdata().tolist() for mark in marks] == [[i] for i in (*range(20), 70)]
    assert len({(mark.get_color(), mark.get_marker()) for mark in marks}) == 21
    assert [mark.get_markerfacecolor() == "none" for mark in marks] == [False] * 20 + [True]
