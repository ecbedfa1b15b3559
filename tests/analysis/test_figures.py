"""Figures: they show the numbers they are given, say n and intervals, and repeat byte for byte."""

import base64
import io

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from apm.analysis import figures, stats, tables
from apm.analysis.figures import (
    accuracy_bars,
    accuracy_over_iterations,
    grid_rgb,
    image_strip,
    loss_curve,
    save,
    severity_curves,
)
from apm.analysis.numbers import Number
from apm.experiments.naming import PROBE

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
ANY = "any (upper bound, uses labels)"


@pytest.fixture(autouse=True)
def _close():
    yield
    import matplotlib.pyplot as plt

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
    frame = records()
    return frame, tables.summary(frame)


def labels(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_bars_have_the_heights_of_the_table(data):
    figure, caption = accuracy_bars(data[1], chance=25.0)
    axes = figure.axes[0]
    heights = [
        [bar.get_height() for bar in group]
        for group in axes.containers
        if len(group) == 5 and hasattr(group[0], "get_height")
    ]
    for rule, shown in zip(("teacher", "final", "any"), heights, strict=True):
        assert shown == list(data[1][rule])
    assert [t.get_text() for t in axes.get_xticklabels()][:2] == ["digits-test", "fog 1"]
    assert axes.get_ylabel() == "top-1 accuracy (%)"
    assert labels(figure) == ["teacher (zero-shot)", "final", ANY, "chance (25.0 %)"]
    assert "n = 40 images" in caption
    assert "95 % intervals" in caption
    assert "upper bound that uses the labels" in caption


def test_chance_is_one_line_or_a_mark_per_condition_where_it_differs(data):
    figure, _ = accuracy_bars(data[1], chance=[25.0] * 5)
    assert labels(figure)[-1] == "chance (25.0 %)"
    chances = [25.0, 50.0, 10.0, 25.0, 25.0]
    figure, _ = accuracy_bars(data[1], chance=chances)
    assert labels(figure)[-1] == "chance (10.0 to 50.0 %)"
    marks = next(c for c in figure.axes[0].collections if str(c.get_label()).startswith("chance"))
    segments = marks.get_segments()
    assert [segment[0][1] for segment in segments] == chances
    assert [segment.mean(axis=0)[0] for segment in segments] == pytest.approx(range(5))
    with pytest.raises(ValueError, match="one for each of 5 conditions, found 2"):
        accuracy_bars(data[1], chance=[25.0, 50.0])


def test_any_is_drawn_open_and_only_when_there_is_one(data):
    frame, _ = data
    plain = tables.summary(frame.assign(path=None))
    figure, caption = accuracy_bars(plain)
    assert labels(figure) == ["teacher (zero-shot)", "final"]
    assert "upper bound" not in caption
    figure, _ = accuracy_bars(data[1], rules=("any",))
    assert figure.axes[0].patches[0].get_facecolor()[3] == 0.0


def test_bars_of_several_methods_need_a_choice(data):
    both = pd.concat([data[1], data[1].assign(method="B")])
    with pytest.raises(ValueError, match=r"found APM, B: pass method="):
        accuracy_bars(both)
    with pytest.raises(ValueError, match="unknown method 'C'"):
        accuracy_bars(both, method="C")
    with pytest.raises(ValueError, match="unknown counting rule 'best'"):
        accuracy_bars(both, method="B", rules=("best",))
    accuracy_bars(both, method="B")


def test_severity_curves_start_at_the_clean_images(data):
    figure, caption = severity_curves(data[1])
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == ["fog", "snow"]
    line = next(line for line in panels[1].lines if line.get_label() == "final")
    rows = data[1].set_index(["corruption", "severity"])["final"]
    assert list(line.get_xdata()) == [0, 1, 5]
    assert list(line.get_ydata()) == [rows["none", 0], rows["snow", 1], rows["snow", 5]]
    assert figure.get_supxlabel() == "severity (0: clean)"
    assert "n = 40 images per point" in caption


def test_severity_curves_need_one_dataset_with_corruptions(data):
    clean = data[1][data[1]["severity"] == 0]
    with pytest.raises(ValueError, match="clean rows only"):
        severity_curves(clean)
    with pytest.raises(ValueError, match="one dataset, found digits-test, other"):
        severity_curves(pd.concat([data[1], data[1].assign(dataset="other")]))


def test_accuracy_over_iterations_ends_at_final_and_any(data):
    frame, _ = data
    figure, caption = accuracy_over_iterations(frame, chance=25.0)
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    final, ever, teacher = (stats.mean_accuracy(frame, rule).value for rule in ("final", "any", "teacher"))
    assert lines["final, had K been k"].get_ydata()[-1] == pytest.approx(final)
    assert lines[ANY].get_ydata()[-1] == pytest.approx(ever)
    assert lines["teacher (zero-shot)"].get_ydata()[0] == pytest.approx(teacher)
    assert list(lines[ANY].get_xdata()) == [1, 2, 3, 4, 5, 6]  # random weights do not count
    assert (np.diff(lines[ANY].get_ydata()) >= 0).all()
    assert "mean of 5 conditions; n = 40 images" in caption
    with pytest.raises(ValueError, match="one method, found APM, B"):
        accuracy_over_iterations(pd.concat([frame, frame.assign(method="B")]))
    with pytest.raises(ValueError, match="needs a method with iterations"):
        accuracy_over_iterations(frame.assign(path=None))


def test_loss_curve_is_the_median_on_a_log_axis():
    losses = np.array([[1e-3, 1e-4, 1e-5], [3e-3, 3e-4, 3e-5], [2e-3, 2e-4, 2e-5], [1e-3, np.nan, np.nan]])
    figure, caption = loss_curve(losses, target=1e-4)
    axes = figure.axes[0]
    assert axes.get_yscale() == "log"
    assert list(axes.lines[0].get_ydata()) == [2e-3, 2e-4, 2e-5]
    assert "n = 3 images" in caption
    assert "100-fold" in caption
    assert "1 images with a non-finite loss are left out" in caption
    assert "n = 1 image;" in loss_curve(losses[:1])[1]
    with pytest.raises(ValueError, match=r"shape \(N, K \+ 1\).*found \(3,\)"):
        loss_curve(losses[0])
    with pytest.raises(ValueError, match="none of 1 images"):
        loss_curve(losses[3:])


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
    for bad, message in ((np.ones((2, 2)), "found"), (np.full((2, 2, 3), np.nan), "NaN")):
        with pytest.raises(ValueError, match=message):
            grid_rgb(bad)
    with pytest.raises(ValueError, match="one width, found 8 and 3"):
        grid_rgb(many, fit=np.ones((2, 3)))
    small = 1e-3 * (many[2] + 7)  # another size and place: in the range of fit a point, in its own the same picture
    np.testing.assert_allclose(grid_rgb(small, fit=many[2], own_range=True), grid_rgb(many[2]), atol=1e-9)
    assert np.ptp(grid_rgb(small, fit=many[2])) < 0.5
    assert (grid_rgb(np.full((2, 2, 8), 1 / 3), fit=many, own_range=True) == 0.5).all()  # rounding is no variation


def test_image_strip_shows_every_image_with_its_title():
    images = [np.full((4, 4, 3), i, dtype=np.uint8) for i in range(8)]
    figure, caption = image_strip(images, [f"k = {i}" for i in range(8)])
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == 8
    assert [axes.get_title() for axes in shown] == [f"k = {i}" for i in range(8)]
    assert "8 images, 4 x 4 px" in caption
    assert all(spine.get_visible() for axes in shown for spine in axes.spines.values())  # white images have an edge
    image_strip([np.zeros((4, 4))])
    with pytest.raises(ValueError, match="at least one image"):
        image_strip([])
    with pytest.raises(ValueError, match="expected 8 titles, one per image, found 1"):
        image_strip(images, ["a"])
    with pytest.raises(ValueError, match=r"found \(4, 4, 4\)"):
        image_strip([np.zeros((4, 4, 4))])


def test_saved_figures_repeat_byte_for_byte_without_dates(data, tmp_path):
    contents = []
    for folder in ("a", "b"):
        figure, _ = severity_curves(data[1])
        paths = save(figure, "curves", tmp_path / folder)
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
    figure, _ = severity_curves(data[1])
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
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython.display, "display", shown.append)
    figure, _ = image_strip([np.zeros((2, 2))], size=2.0)
    path = save(figure, "a", tmp_path)["png"]
    figures.display(path, "A caption")
    picture, said = shown
    bundle, about = picture._repr_png_()
    assert base64.b64decode(bundle) == path.read_bytes()
    assert about["width"] == figures.page_width(path) == round(Image.open(path).width / 1.5)
    assert said.data.strip() == "A caption"


def test_save_refuses_paths_and_unwritable_folders(data, tmp_path):
    figure, _ = image_strip([np.zeros((2, 2))])
    with pytest.raises(ValueError, match="plain file name"):
        save(figure, "a/b", tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="file"):
        save(figure, "a", tmp_path / "file")


def test_colours_are_of_the_colour_blind_safe_palette():
    import seaborn as sns

    assert set(figures.COLOURS.values()) <= set(sns.color_palette("colorblind").as_hex())
    assert len(set(figures.COLOURS.values())) == len(figures.COLOURS)
    assert list(figures.PALETTE) == sns.color_palette("colorblind").as_hex()


def test_series_are_told_apart_by_colour_and_marker():
    many = figures.series(20)
    assert len(set(many)) == 20
    assert {colour for colour, _ in many} == set(figures.PALETTE)


def test_classes_over_the_iterations_have_a_colour_and_a_marker_each():
    scores = np.linspace(0, 1, 12).reshape(4, 3)
    figure, caption = figures.class_scores(scores, np.array([0.1, 0.9, 0.4]), ["a", "b", "c"])
    lines = [line for line in figure.axes[0].lines if not line.get_label().startswith("_")]
    assert [line.get_label() for line in lines] == ["b", "c", "a"]
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 3
    assert "marks at the right: the teacher's feature" in caption


# ------------------------------------------------------------------------------------------------- steps and named classes


def test_steps_show_every_difference_with_our_intervals():
    steps = [Number(value, value - 1, value + 2) for value in (0.5, 0.0, -1.0)]
    key = ["set", "reference"]
    published = pd.DataFrame(
        {"set": ["A", "B"], "reference": "teacher", "step": [Number(1.5), Number(-2.0)]}
    ).set_index(key)
    ours = pd.DataFrame({"set": ["x", "y", "z"], "reference": "teacher", "n": [20, 30, 30], "step": steps}).set_index(
        key
    )
    figure, caption = figures.steps(published, ours)
    left, right = figure.axes
    assert [t.get_text() for t in left.get_yticklabels()] == ["A", "B"]
    np.testing.assert_allclose(left.lines[0].get_xdata(), [1.5, -2.0])
    container = right.containers[0]
    np.testing.assert_allclose(container[0].get_xdata(), [0.5, 0.0, -1.0])
    segments = container[2][0].get_segments()
    np.testing.assert_allclose([(s[0][0], s[1][0]) for s in segments], [(-0.5, 2.5), (-1.0, 2.0), (-2.0, 1.0)])
    assert left.get_xlim() == right.get_xlim()
    assert "n = 20 to 30 images per set" in caption
    assert "without intervals" in caption
    with pytest.raises(ValueError, match="found none"):
        figures.steps(published.iloc[:0], ours)


def test_seen_and_named_shows_probe_teacher_student_and_chance():
    table = pd.DataFrame({"n": [40, 40], "chance": [Number(50.0), Number(10.0)]}, index=["parity", "digits"])
    for key, values in ((PROBE, [96, 98]), ("teacher (zero-shot)", [31, 97]), ("APM, final", [30, 97])):
        table[key] = [Number(value, value - 5, value + 2) for value in values]
    figure, caption = figures.seen_and_named(table)
    (axes,) = figure.axes
    shown = [list(container[0].get_xdata()) for container in axes.containers]
    assert shown == [[96, 98], [31, 97], [30, 97]]
    assert [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == ":"] == [50.0, 10.0]
    assert "n = 40 images per set" in caption
    with pytest.raises(ValueError, match="at least one set"):
        figures.seen_and_named(table.iloc[:0])
