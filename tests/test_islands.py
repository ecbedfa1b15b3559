"""Looking at the grid while it learns shows what is there and changes nothing."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from apm import figures, islands, ttt
from apm.model import APM, APMConfig, positional_encoding
from apm.ttt import TTTConfig

CONFIG = TTTConfig(
    APMConfig(grid=(4, 4), patch=4, hidden=(32, 16), width=16, rgb_head=False),
    iterations=6,
    learning_rate=5e-3,
    lockstep=2,
)


def problem() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(3, 3, 16, 16, generator=g), torch.randn(3, 16, generator=g)


def test_snapshots_are_the_grids_of_the_students_at_those_iterations() -> None:
    images, targets = problem()
    shots = islands.Snapshots(CONFIG.student, images, [6, 0])
    result = ttt.adapt(images, targets, CONFIG, callback=shots, keep_parameters=True)
    assert shots.iterations == [0, 6]
    for state, weights in ((0, ttt.initial_parameters(images, CONFIG)), (6, result.parameters)):
        for k in range(3):
            model = APM.from_parameters(CONFIG.student, {name: value[k] for name, value in weights.items()})
            grid = model.grid(images[k : k + 1])[0].detach().numpy()
            np.testing.assert_allclose(shots.grids[state][k], grid, rtol=1e-4, atol=1e-6)


def test_looking_does_not_change_what_is_learnt() -> None:
    images, targets = problem()
    seen = ttt.adapt(images, targets, CONFIG, callback=islands.Snapshots(CONFIG.student, images, range(7)))
    assert torch.equal(seen.features, ttt.adapt(images, targets, CONFIG).features)


def test_colours_are_pictures_of_the_grid_between_0_and_1() -> None:
    images, targets = problem()
    shots = islands.Snapshots(CONFIG.student, images, [0, 3])
    ttt.adapt(images, targets, CONFIG, callback=shots)
    pictures = shots.colours(1)
    assert [p.shape for p in pictures] == [(4, 4, 3), (4, 4, 3)]
    assert all(p.min() >= 0 and p.max() <= 1 for p in pictures)


def test_a_normalised_image_is_shown_as_it_was() -> None:
    from apm.teachers import student_images

    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    np.testing.assert_allclose(islands.displayed(student_images([pixels], 16)[0]), pixels / 255, atol=1e-6)


# ------------------------------------------------------------------------------------------------- looking, extended


def test_looking_in_float64_sees_what_float32_rounds_away() -> None:
    images, targets = problem()
    single, double = (
        islands.Snapshots(CONFIG.student, images, [0]),
        islands.Snapshots(CONFIG.student, images, [0], double=True),
    )
    ttt.adapt(images, targets, CONFIG, callback=single)
    ttt.adapt(images, targets, CONFIG, callback=double)
    assert (single.grids[0].dtype, double.grids[0].dtype) == (np.float32, np.float64)
    np.testing.assert_allclose(single.grids[0], double.grids[0], rtol=1e-4, atol=1e-7)
    rounded = double.grids[0].astype(np.float32).astype(np.float64)
    assert not np.array_equal(rounded, double.grids[0])


def test_watch_keeps_grids_and_final_weights() -> None:
    images, targets = problem()
    result, shots = islands.watch(images, targets, CONFIG, [0, 6])
    weights = {name: value.double() for name, value in result.parameters.items()}
    own = islands.feature_grids(weights, images, CONFIG.student).numpy()
    np.testing.assert_allclose(own, shots.grids[6], atol=1e-12)
    other = islands.feature_grids(weights, images.roll(-1, 0), CONFIG.student).numpy()
    assert not np.allclose(other, own, atol=1e-12)
    with pytest.raises(ValueError, match=r"0 to 6 iterations, found \[7\]"):
        islands.watch(images, targets, CONFIG, [0, 7])


def test_routed_tokens_are_those_of_the_patch_each_place_lies_in() -> None:
    tokens = torch.arange(4.0).reshape(1, 2, 2, 1)
    found = islands.routed(tokens, (4, 4))[0, :, 0].reshape(4, 4)
    assert found.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    assert torch.equal(islands.routed(tokens, (2, 2)), tokens.flatten(1, 2))
    with pytest.raises(ValueError, match="no patch tokens"):
        islands.routed(None, (2, 2))


# --------------------------------------------------------------------------------------------------------- measures


def halves(h: int = 4, w: int = 4) -> np.ndarray:
    """One grid whose left half is (1, 0) and whose right half is (0, 1)."""
    grid = np.zeros((1, h, w, 2))
    grid[:, :, : w // 2, 0] = 1
    grid[:, :, w // 2 :, 1] = 1
    return grid


def test_neighbour_and_far_cosine_of_two_halves_counted_by_hand() -> None:
    grid = halves()
    # 24 neighbouring pairs of a 4 x 4 grid; 4 cross the border: cosine 0 there, 1 elsewhere; less the mean: -1 there
    assert islands.neighbour_cosine(grid) == pytest.approx([20 / 24])
    assert islands.neighbour_cosine(grid, centre=True) == pytest.approx([(20 - 4) / 24])
    places = [(i, j) for i in range(4) for j in range(4)]
    far = [
        float((a[1] < 2) == (b[1] < 2)) for a in places for b in places if max(abs(a[0] - b[0]), abs(a[1] - b[1])) >= 2
    ]
    assert islands.far_cosine(grid) == pytest.approx([np.mean(far)])
    assert islands.far_cosine(grid, centre=True) == pytest.approx([2 * np.mean(far) - 1])


def test_a_checkerboard_has_opposite_neighbours_and_a_large_common_part_hides_it() -> None:
    board = (np.indices((4, 4)).sum(0) % 2 * 2.0 - 1)[None, :, :, None] * np.array([1.0, 0.0])
    assert islands.neighbour_cosine(board) == pytest.approx([-1])
    shifted = board + np.array([0.0, 1000.0])
    assert islands.neighbour_cosine(shifted)[0] > 0.99999
    assert islands.neighbour_cosine(shifted, centre=True) == pytest.approx([-1])
    assert islands.spread(shifted) == pytest.approx([1e-3])


def test_places_without_a_direction_are_left_out() -> None:
    grid = np.array([[[[1.0], [0.0]], [[1.0], [1.0]]]])  # one place of length zero: two of four pairs remain
    assert islands.neighbour_cosine(grid) == pytest.approx([1])
    with pytest.raises(ValueError, match=r"image\(s\) \[0\] do not vary"):
        islands.neighbour_cosine(np.ones((1, 3, 3, 2)) / 3, centre=True)


def test_first_component_and_share_of_rows_and_columns() -> None:
    assert islands.first_component(halves()) == pytest.approx([1])
    square = np.zeros((1, 2, 2, 2))
    square[0, 1, :, 0] = 2.0  # rows differ along one direction, columns half as much along another
    square[0, :, 1, 1] = 1.0
    assert islands.first_component(square) == pytest.approx([4 / 5])
    assert islands.position_share(square) == pytest.approx([1])
    board = (np.indices((4, 4)).sum(0) % 2 * 1.0)[None, :, :, None]
    assert islands.position_share(board) == pytest.approx([0], abs=1e-12)
    assert np.isnan(islands.position_share(np.ones((1, 2, 2, 1)))).all()


def test_position_share_is_the_least_squares_fit_on_the_positional_code() -> None:
    grid = np.random.default_rng(0).normal(size=(1, 8, 8, 5))
    code = positional_encoding((8, 8), 64, dtype=torch.float64).numpy().reshape(64, 64)
    code = np.column_stack([code, np.ones(64)])
    flat = grid.reshape(64, 5)
    rest = flat - code @ np.linalg.lstsq(code, flat, rcond=1e-13)[0]
    total = np.square(flat - flat.mean(0)).sum()
    assert islands.position_share(grid) == pytest.approx([1 - np.square(rest).sum() / total], abs=1e-6)


def test_alike_ignores_rotation_and_scale_and_sees_another_map() -> None:
    rng = np.random.default_rng(0)
    grid = rng.normal(size=(2, 4, 4, 3))
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    assert islands.alike(grid, 7 * grid @ rotation + 5) == pytest.approx([1, 1])
    rows, columns = np.indices((4, 4))[:, None, :, :, None] * 1.0
    assert islands.alike(rows, columns) == pytest.approx([0], abs=1e-12)
    with pytest.raises(ValueError, match="same images and places"):
        islands.alike(grid, grid[:, :2])
    with pytest.raises(ValueError, match="pair 0 do not vary"):
        islands.alike(np.ones((1, 2, 2, 1)), rows[:, :2, :2])


def test_shuffled_keeps_the_features_and_loses_the_map() -> None:
    rows = np.repeat(np.indices((8, 8))[:1, :, :, None] * 1.0, 20, axis=0)
    mixed = islands.shuffled(rows)
    np.testing.assert_array_equal(np.sort(mixed.reshape(20, -1)), np.sort(rows.reshape(20, -1)))
    assert islands.alike(rows, mixed).mean() < 0.1


def test_clusters_finds_the_groups_that_are_there() -> None:
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    which = np.arange(36).reshape(6, 6) % 3
    found = islands.clusters(centres[which] + 0.1 * rng.normal(size=(6, 6, 2)))
    assert found.count == 3
    assert found.silhouette > 0.9
    assert adjusted_rand_score(which.ravel(), found.labels.ravel()) == 1
    tiny = islands.clusters(1000 + 1e-6 * centres[which])  # a large common part and a small scale change nothing
    assert adjusted_rand_score(which.ravel(), tiny.labels.ravel()) == 1
    assert islands.clusters(halves()[0]).count == 2
    with pytest.raises(ValueError, match="with 1 different features"):
        islands.clusters(np.ones((3, 3, 2)))
    with pytest.raises(ValueError, match=r"groups: at least 2"):
        islands.clusters(halves()[0], [1])


def test_foreground_is_the_bright_part() -> None:
    image = np.repeat(np.random.default_rng(0).uniform(0.0, 0.3, (1, 8, 8, 1)), 3, axis=-1)
    image[0, 2:6, 4:6] += 0.7  # fills places (1, 2) and (2, 2) of a 4 x 4 grid
    image[0, :2, :2] = 0.0
    image[0, 0, 0] = 0.9  # bright, but a quarter of place (0, 0): on average too dark
    expected = np.zeros((4, 4), dtype=bool)
    expected[1:3, 2] = True
    np.testing.assert_array_equal(islands.foreground(image, (4, 4))[0], expected)
    np.testing.assert_array_equal(islands.foreground((255 * image).astype(np.uint8), (4, 4))[0], expected)
    with pytest.raises(ValueError, match="multiples of the grid 3 x 3"):
        islands.foreground(image, (3, 3))
    with pytest.raises(ValueError, match=r"\[0\] have one brightness"):
        islands.foreground(np.ones((1, 8, 8, 3)), (4, 4))


def test_mask_agreement_with_own_and_other_masks() -> None:
    masks = np.zeros((3, 4, 4), dtype=bool)
    masks[0, :, :2], masks[1, :2], masks[2, :, :2] = True, True, True
    own, other = islands.mask_agreement(masks.astype(int) * 5, masks, others=1)
    assert own == pytest.approx([1, 1, 1])
    crossed = adjusted_rand_score(masks[0].ravel(), masks[1].ravel())
    assert other == pytest.approx([crossed, crossed, 1])  # the one after the last is the first
    with pytest.raises(ValueError, match=r"one shape \(N, h, w\), found \(3, 4, 4\) and \(3, 2, 2\)"):
        islands.mask_agreement(masks, masks[:, :2, :2])
    with pytest.raises(ValueError, match="more than 3 images, found 3"):
        islands.mask_agreement(masks, masks, others=3)


def test_measure_knows_an_object_from_a_shared_map() -> None:
    rng = np.random.default_rng(0)
    masks = rng.random((12, 6, 6)) < 0.4
    seen = masks[..., None] + 0.01 * rng.normal(size=(12, 6, 6, 2))
    shared = np.repeat(np.indices((6, 6)).transpose(1, 2, 0)[None] + 0.0, 12, axis=0)
    knows, blind = islands.measure(seen, masks, counts=[2, 3]), islands.measure(shared, masks, counts=[2, 3])
    assert list(knows) == list(islands.MEASURES)
    assert (knows["ari_two"] == 1).all()
    assert abs(knows["ari_two_others"].mean()) < 0.1
    np.testing.assert_allclose(knows["neighbour_minus_far"], knows["neighbour_centred"] - knows["far_centred"])
    np.testing.assert_allclose(knows["ari_two_gain"], knows["ari_two"] - knows["ari_two_others"])
    assert islands.against_zero(islands.interval(knows["ari_two_gain"])) == "above 0"
    assert islands.against_zero(islands.interval(blind["ari_two_gain"])) == "not distinguishable from 0"
    assert "ari" not in islands.measure(seen, counts=[2])
    sentences = islands.reading({"seen": knows, "shared": blind}, "seen", "shared", {"seen": np.full(12, 0.5)})
    assert sum("above 0." in s and "own mask" in s for s in sentences) == 1
    assert sentences[-1].endswith("alike to 0.50 (1: the same map).")
    assert "Neighbouring places agree more than distant ones by" in sentences[1]
    with pytest.raises(ValueError, match="unknown source 'student'"):
        islands.reading({"seen": knows}, "student", "seen", {})


def test_grids_that_cannot_be_measured_are_refused() -> None:
    with pytest.raises(ValueError, match="expected grids of shape"):
        islands.spread(np.zeros((4, 4, 2)))
    broken = np.ones((2, 2, 2, 1))
    broken[1, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"image\(s\) \[1\] have NaN"):
        islands.measure(broken)
    with pytest.raises(ValueError, match=r"mean feature of image\(s\) \[0\] is zero"):
        islands.spread(np.array([[[[1.0], [-1.0]], [[1.0], [-1.0]]]]))


# --------------------------------------------------------------------------------------------------- tables in words


def test_summary_and_table_hold_means_with_intervals() -> None:
    values = np.linspace(0.2, 0.6, 20)
    long = islands.summary({"a": pd.DataFrame({"ari": values, "spread": np.full(20, 0.014)})})
    row = long[long["measure"] == "ari"].iloc[0]
    assert row["value"] == pytest.approx(0.4)
    error = values.std() / np.sqrt(20)  # the bootstrap of a mean is near normal
    assert row["low"] == pytest.approx(0.4 - 1.96 * error, abs=0.01)
    assert row["high"] == pytest.approx(0.4 + 1.96 * error, abs=0.01)
    shown = islands.table(long, ["spread", "ari"])
    assert list(shown) == ["features", "spread (%)", "ARI, chosen number"]
    assert shown["spread (%)"][0] == "1.4"
    assert shown["ARI, chosen number"][0] == f"0.40 [{row['low']:.2f}, {row['high']:.2f}]"
    with pytest.raises(ValueError, match="unknown measure 'clusters'"):
        islands.table(long, ["clusters"])
    with pytest.raises(ValueError, match="at least 10 images, found 9"):
        islands.summary({"a": pd.DataFrame({"ari": values[:9]})})


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5449, "0.54"), (0.01, "0.010"), (-0.0001, "0.000"), (0.99999, "1.0000"), (0.9967, "0.9967"), (1.0, "1.00")],
)
def test_cosines_near_one_keep_four_decimals(value: float, text: str) -> None:
    assert islands._decimals(value) == text


def test_the_published_loss_is_read_from_its_file() -> None:
    paper = islands.published_loss()
    assert (paper.iterations, paper.first, paper.last) == (250, 1e-3, 1e-12)
    assert paper.source


@pytest.mark.parametrize("row", ["Fig 3,x,y,about nothing,,s", "Fig 2,x,y,1,,s"])
def test_a_published_loss_that_cannot_be_read_is_refused(
    row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "table5_and_appendix.csv").write_text(f"table,row,column,value,unit,source\n{row}\n")
    monkeypatch.setattr("apm.published.folder", lambda: tmp_path)
    with pytest.raises(ValueError, match="Fig 3"):
        islands.published_loss()


def test_loss_table_puts_medians_under_the_published_values() -> None:
    runs = {"float32": np.array([[1.0, 1e-3], [2.0, 2e-3], [3.0, 9e-3]]), "float64": np.array([[1.0, 1e-9]])}
    table = islands.loss_table(runs, islands.PublishedLoss(250, 1e-3, 1e-12, "s"))
    assert table["run"].tolist() == ["published, Figure 3", "float32", "float64"]
    assert table["fall"].tolist() == ["1.0e+09-fold", "1.0e+03-fold", "1.0e+09-fold"]
    assert table["lowest of any image"].tolist() == ["", "1.0e-03", "1.0e-09"]
    (sentence,) = islands.by_precision(runs)
    assert sentence.endswith("the rounding of float32 holds it up.")
    (sentence,) = islands.by_precision({"float32": runs["float64"], "float64": runs["float64"]})
    assert sentence.endswith("is not what limits it.")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_what_rounding_leaves(dtype: torch.dtype) -> None:
    targets = torch.randn(400, 64, generator=torch.Generator().manual_seed(0))
    unit = torch.nn.functional.normalize(targets.double(), dim=-1)
    left = (unit.to(dtype).double() - unit).square().mean().item()
    assert islands.rounding(targets, dtype) == pytest.approx(left, rel=0.05)


def test_photographs_have_one_row_each() -> None:
    measured = islands.measure(np.random.default_rng(0).normal(size=(2, 4, 4, 3)) + 5, counts=[2])
    grids = {"student": measured, "random weights": measured, "pixels": measured}
    table = islands.photograph_table(["cat", "coffee"], grids, np.array([1.0, 0.25]))
    assert table["another T, student"].tolist() == ["1.00", "0.25"]
    assert table["clusters, student"].tolist() == table["clusters, random weights"].tolist() == ["2", "2"]
    with pytest.raises(ValueError, match="one row per photograph, found 1 names"):
        islands.photograph_table(["cat"], grids, np.array([1.0, 0.25]))


def test_photographs_are_counted_by_their_numbers() -> None:
    told = islands.photograph_reading(
        ["cat", "coffee", "rocket"], np.array([1.0, 0.95, 0.4]), np.array([0.99, 0.5, 0.3])
    )
    assert "on 2 of 3 the grid is a map of place" in told[0]
    assert "lowest is 0.40" in told[0]
    assert "on 1 of 3 and changes on coffee, rocket" in told[1]
    assert islands.photograph_reading(["cat"], np.array([1.0]), np.array([1.0]))[1].endswith("on 1 of 1.")
    with pytest.raises(ValueError, match="one value per photograph, found 1, 1 and 2"):
        islands.photograph_reading(["cat"], np.array([1.0]), np.array([1.0, 1.0]))


def test_whose_islands_they_are_is_decided_by_numbers() -> None:
    def measures(position: float, gain: float) -> pd.DataFrame:
        wave = np.linspace(-0.01, 0.01, 20)
        return pd.DataFrame({"position": position + 0 * wave, "ari_two_gain": gain + wave})

    high, low = np.full(20, 0.99), np.full(20, 0.3)
    told = islands.conclusion(
        {
            "place": measures(1.0, 0.0),
            "both": measures(1.0, 0.1),
            "image": measures(0.5, 0.2),
            "lost": measures(0.5, 0.0),
        },
        {"place": high, "both": high, "image": low, "lost": low},
    )
    assert told[0].startswith("place: the islands are a map of place, not of the image. R2 of P 1.00; CKA")
    assert "a map of place, with a trace of the image" in told[1]
    assert "at least in part a map of the image" in told[2]
    assert "not to the object in it" in told[3]
    assert told[2].endswith("above 0.")
    assert "undecided" in islands.conclusion({"x": measures(0.5, 0.0)}, {"x": high})[0]
    with pytest.raises(ValueError, match="unknown student 'y'"):
        islands.conclusion({"x": measures(0.5, 0.0)}, {"y": high})


def test_two_components_are_orange_and_blue() -> None:
    first, second = islands.as_colour(np.eye(2)[None])[0]
    assert first.tolist() == [1.0, 0.5, 0.0]
    assert second.tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("name", ["alike", "clusters", "measure", "embed"])
def test_measures_do_not_depend_on_the_number_of_threads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from threadpoolctl import threadpool_info, threadpool_limits

    threads = []

    def look(*arguments: object) -> None:
        threads.extend(pool["num_threads"] for pool in threadpool_info())
        raise InterruptedError

    monkeypatch.setattr(islands, "_grids", look)
    grid = np.random.default_rng(0).normal(size=(1, 4, 4, 2))
    calls = {
        "alike": lambda: islands.alike(grid, grid),
        "clusters": lambda: islands.clusters(grid[0]),
        "measure": lambda: islands.measure(grid),
        "embed": lambda: islands.embed(grid[0], method="tsne"),
    }
    with threadpool_limits(2), pytest.raises(InterruptedError):
        calls[name]()
    assert set(threads) == {1}


# ------------------------------------------------------------------------------------------- embeddings and pictures


def test_pca_colours_are_those_of_grid_rgb() -> None:
    grid = np.random.default_rng(0).normal(size=(5, 5, 6))
    np.testing.assert_array_equal(islands.picture(grid), figures.grid_rgb(grid))
    np.testing.assert_array_equal(islands.embed(grid, components=1)[..., 0], figures.grid_rgb(grid)[..., 0])


@pytest.mark.parametrize("components", [1, 2, 3])
def test_tsne_keeps_groups_apart_and_repeats(components: int) -> None:
    which = np.zeros((6, 6), dtype=int)
    which[:, 3:] = 1
    grid = 50.0 * np.eye(4)[which] + np.random.default_rng(0).normal(size=(6, 6, 4))
    found = islands.embed(grid, method="tsne", components=components)
    assert found.shape == (6, 6, components)
    assert found.min() >= 0
    assert found.max() <= 1
    middle = [found[which == k].mean(axis=0) for k in (0, 1)]
    within = max(np.linalg.norm(found[which == k] - middle[k], axis=-1).mean() for k in (0, 1))
    assert np.linalg.norm(middle[0] - middle[1]) > within
    np.testing.assert_array_equal(found, islands.embed(grid, method="tsne", components=components))


def test_tsne_lays_the_positional_code_out_smoothly() -> None:
    code = positional_encoding((8, 8), 64, dtype=torch.float64).numpy()
    for components in (2, 3):
        laid = islands.embed(code, method="tsne", components=components)[None]
        assert islands.neighbour_cosine(laid, centre=True)[0] > 0.6


def test_embeddings_that_make_no_sense() -> None:
    grid = np.random.default_rng(0).normal(size=(4, 4, 3))
    with pytest.raises(ValueError, match=r"unknown embedding method 'tsn'.*Did you mean 'tsne'"):
        islands.embed(grid, method="tsn")
    with pytest.raises(ValueError, match="1, 2 or 3 components to show as colour, found 4"):
        islands.embed(grid, components=4)
    with pytest.raises(ValueError, match=r"one grid of shape \(h, w, D\)"):
        islands.embed(grid[None])
    with pytest.raises(ValueError, match="found 4"):
        islands.as_colour(np.zeros((2, 2, 4)))
    assert (islands.embed(np.ones((3, 3, 2)), method="tsne") == 0.5).all()


def test_swapped_shows_equal_maps_in_equal_colours() -> None:
    grid = np.random.default_rng(0).normal(size=(4, 4, 3))
    own, other = islands.swapped(grid, grid + 3.0)
    np.testing.assert_allclose(own, other)
    assert not np.allclose(own, islands.swapped(grid, grid[::-1])[1])


def test_figures_say_n_and_refuse_what_they_cannot_show() -> None:
    rng = np.random.default_rng(0)
    masks = rng.random((10, 4, 4)) < 0.5
    measures = islands.measure(rng.normal(size=(10, 4, 4, 3)) + 2, masks, counts=[2])
    paper = islands.PublishedLoss(3, 1e-3, 1e-12, "s")
    shown = [
        islands.iterations_figure({0: measures, 5: measures}),
        islands.sources_figure(islands.summary({"a": measures})),
        islands.loss_figure({"float32": np.array([[1.0, 0.1], [2.0, 0.3]])}, paper, {"float32": 1e-3}),
    ]
    assert ["n = 10" in caption for _, caption in shown] == [True, True, False]
    spread, *_ = shown[0][0].axes
    assert spread.get_ylabel() == "spread (% of the mean's length)"
    assert spread.lines[0].get_ydata()[0] == pytest.approx(100 * measures["spread"].mean())
    assert all(axes.get_ylabel() for axes in shown[0][0].axes)
    assert "n = 2 images" in shown[2][1]
    figure, caption = islands.picture_table({"a": [np.zeros((2, 2, 3)), masks[0]]}, ["x", "y"])
    assert caption == "1 rows of 2 pictures."
    for made in (figure, *(f for f, _ in shown)):
        plt.close(made)
    with pytest.raises(ValueError, match="row 'a': expected 2 pictures, one per heading, found 1"):
        islands.picture_table({"a": [np.zeros((2, 2, 3))]}, ["x", "y"])
    with pytest.raises(ValueError, match="at least one row"):
        islands.picture_table({}, [])
    with pytest.raises(ValueError, match="float32: expected losses of shape"):
        islands.loss_figure({"float32": np.zeros(3)}, paper)
    with pytest.raises(ValueError, match="at least one source"):
        islands.sources_figure(islands.summary({"a": measures}).iloc[:0])
