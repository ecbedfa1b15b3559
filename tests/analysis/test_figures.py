"""Figures: they show the numbers they are given, say n and intervals, and repeat byte for byte."""

import base64
import io

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import seaborn as sns
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from apm.analysis import figures, stats
from apm.analysis.figures import grid_rgb

ANY = "any (upper bound, uses labels)"


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def records(n=40, corruptions=("fog", "snow"), severities=(1, 5), iterations=6, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 4, n)
    frames = []
    for corruption, severity in [("none", 0), *((c, s) for c in corruptions for s in severities)]:
        teacher = np.where(rng.random(n) < 0.9 - 0.1 * severity, label, (label + 1) % 4)
        path = np.stack(
            [rng.integers(0, 4, n), *(np.where(rng.random(n) < 0.8, teacher, label) for _ in range(iterations))], 1
        )
        frames.append(
            pd.DataFrame(
                {
                    "dataset": "digits-test",
                    "corruption": corruption,
                    "severity": severity,
                    "sample": np.arange(n),
                    "method": "APM",
                    "seed": 0,
                    "label": label,
                    "prediction": path[:, -1],
                    "teacher_prediction": pd.array(teacher, dtype="Int32"),
                    "minimum_loss_prediction": pd.array(path[:, -1], dtype="Int32"),
                    "path": list(path.astype(np.int16)),
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


@pytest.fixture(scope="module")
def data():
    return records()


def labels(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_figures_of_one_method_refuse_several(data):
    with pytest.raises(ValueError, match="one method, found APM, B"):
        figures.accuracy_over_iterations(pd.concat([data, data.assign(method="B")]))


def test_accuracy_over_iterations_ends_at_final_and_any(data):
    figure, caption = figures.accuracy_over_iterations(data, chance=25.0)
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    final, ever, teacher = (stats.mean_accuracy(data, rule).value for rule in ("final", "any", "teacher"))
    assert lines["final, had K been k"].get_ydata()[-1] == pytest.approx(final)
    assert lines[ANY].get_ydata()[-1] == pytest.approx(ever)
    assert lines["teacher (zero-shot)"].get_ydata()[0] == pytest.approx(teacher)
    assert list(lines[ANY].get_xdata()) == [1, 2, 3, 4, 5, 6]  # random weights do not count
    assert (np.diff(lines[ANY].get_ydata()) >= 0).all()
    assert "mean of 5 conditions; n = 40 images" in caption
    with pytest.raises(ValueError, match="needs a method with iterations"):
        figures.accuracy_over_iterations(data.assign(path=None))


def test_loss_curve_is_the_median_on_a_log_axis():
    losses = np.array([[1e-3, 1e-4, 1e-5], [3e-3, 3e-4, 3e-5], [2e-3, 2e-4, 2e-5], [1e-3, np.nan, np.nan]])
    figure, caption = figures.loss_curve(losses)
    axes = figure.axes[0]
    assert axes.get_yscale() == "log"
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [2e-3, 2e-4, 2e-5])
    for said in ("n = 3 images", "100-fold", "1 images with a non-finite loss are left out"):
        assert said in caption
    assert "n = 1 image;" in figures.loss_curve(losses[:1])[1]
    with pytest.raises(ValueError, match="none of 1 images"):
        figures.loss_curve(losses[3:])


def test_classes_over_the_iterations_have_a_colour_and_a_marker_each():
    scores = np.linspace(0, 1, 12).reshape(4, 3)
    figure, caption = figures.class_scores(scores, np.array([0.1, 0.9, 0.4]), ["a", "b", "c"])
    lines = [line for line in figure.axes[0].lines if not line.get_label().startswith("_")]
    assert [line.get_label() for line in lines] == ["b", "c", "a"]
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 3
    assert "marks at the right: the teacher's feature" in caption


def test_image_strip_shows_every_image_with_its_title():
    images = [np.full((4, 4, 3), i, dtype=np.uint8) for i in range(8)]
    figure, caption = figures.image_strip(images, [f"k = {i}" for i in range(8)])
    shown = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in shown] == [f"k = {i}" for i in range(8)]
    assert "8 images, 4 x 4 px" in caption
    assert all(spine.get_visible() for axes in shown for spine in axes.spines.values())  # white images have an edge
    with pytest.raises(ValueError, match="at least one image"):
        figures.image_strip([])


# ----------------------------------------------------------------------------------------------------- features as colours


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


@settings(max_examples=40, deadline=None)
@given(arrays(np.float64, (3, 3, 5), elements=st.floats(-1e6, 1e6)))
def test_grid_rgb_is_a_picture_whatever_the_features(features):
    colours = grid_rgb(features)
    assert ((colours >= 0) & (colours <= 1)).all()


def test_grid_rgb_edges():
    assert (grid_rgb(np.ones((2, 2, 4))) == 0.5).all()
    assert grid_rgb(np.random.default_rng(0).normal(size=(2, 2, 1))).shape == (2, 2, 3)  # fewer than three components
    rng = np.random.default_rng(0)
    many = rng.normal(size=(5, 4, 4, 8))
    together = grid_rgb(many)
    np.testing.assert_allclose(grid_rgb(many[2], fit=many), together[2])  # shared colours
    small = 1e-3 * (many[2] + 7)  # another size and place: in the range of fit a point, in its own the same picture
    np.testing.assert_allclose(grid_rgb(small, fit=many[2], own_range=True), grid_rgb(many[2]), atol=1e-9)
    assert np.ptp(grid_rgb(small, fit=many[2])) < 0.5
    assert (grid_rgb(np.full((2, 2, 8), 1 / 3), fit=many, own_range=True) == 0.5).all()  # rounding is no variation


# ---------------------------------------------------------------------------------------------------------- saving, showing


def test_saved_figures_repeat_byte_for_byte_without_dates(data, tmp_path):
    contents = []
    for folder in ("a", "b"):
        figure, _ = figures.accuracy_over_iterations(data)
        paths = figures.save(figure, "curves", tmp_path / folder)
        assert sorted(p.name for p in (tmp_path / folder).iterdir()) == ["curves.pdf", "curves.png"]
        contents.append({suffix: path.read_bytes() for suffix, path in paths.items()})
    assert contents[0] == contents[1]
    assert b"CreationDate" not in contents[0]["pdf"]
    assert b"Software" not in contents[0]["png"]


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_plot_gets_a_palette_that_cannot_be_seen_and_a_photograph_keeps_its_colours(data):
    figure, _ = figures.accuracy_over_iterations(data)
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


def test_a_figure_is_shown_as_the_file_that_was_saved(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    figure, _ = figures.image_strip([np.zeros((2, 2))], size=2.0)
    path = figures.save(figure, "a", tmp_path)["png"]
    figures.display(path, "A caption")
    picture, said = shown
    bundle, about = picture._repr_png_()
    assert base64.b64decode(bundle) == path.read_bytes()
    assert about["width"] == figures.page_width(path) == round(Image.open(path).width / 1.5)
    assert said.data.strip() == "A caption"


def test_save_refuses_paths_and_unwritable_folders(tmp_path):
    figure, _ = figures.image_strip([np.zeros((2, 2))])
    with pytest.raises(ValueError, match="plain file name"):
        figures.save(figure, "a/b", tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="file"):
        figures.save(figure, "a", tmp_path / "file")


def test_series_are_told_apart_by_colour_and_marker_and_colours_are_colour_blind_safe():
    safe = sns.color_palette("colorblind").as_hex()
    assert list(figures.PALETTE) == safe
    assert set(figures.COLOURS.values()) <= set(safe)
    many = figures.series(20)
    assert len(set(many)) == 20
    assert {colour for colour, _ in many} == set(figures.PALETTE)
