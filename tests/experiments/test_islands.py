"""Looking at the grid while it learns shows what is there and changes nothing."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from apm import ttt
from apm.analysis import numbers, stats
from apm.experiments import islands
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


def test_a_map_that_stays_keeps_its_colours_whatever_its_size_and_noise() -> None:
    shots = islands.Snapshots(CONFIG.student, torch.zeros(1, 3, 16, 16), range(6))
    rng = np.random.default_rng(0)
    grid = rng.normal(size=(4, 4, 16))
    for k in shots.iterations:  # a growing map, with noise that turns components fitted anew
        shots.grids[k] = (1 + k) * (grid + 0.1 * rng.normal(size=grid.shape))[None]
    *before, last = shots.colours()
    assert all(
        np.corrcoef(look[..., c].ravel(), last[..., c].ravel())[0, 1] > 0.95 for look in before for c in range(3)
    )


def test_a_normalised_image_is_shown_as_it_was() -> None:
    from apm.teachers import student_images

    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    np.testing.assert_allclose(islands.displayed(student_images([pixels], 16)[0]), pixels / 255, atol=1e-6)


# ------------------------------------------------------------------------------------------------- looking, extended


def test_looking_is_in_float64_whatever_is_trained() -> None:
    images, targets = problem()
    shots = islands.Snapshots(CONFIG.student, images, [0])
    ttt.adapt(images, targets, CONFIG, callback=shots)
    assert not np.array_equal(shots.grids[0], shots.grids[0].astype(np.float32).astype(np.float64))


def test_watch_keeps_grids_and_final_weights() -> None:
    images, targets = problem()
    result, shots = islands.watch(images, targets, CONFIG, [0, 6])
    own = islands.feature_grids(result.parameters, images, CONFIG.student)
    np.testing.assert_allclose(own, shots.grids[6], atol=1e-12)
    other = islands.feature_grids(result.parameters, images.roll(-1, 0), CONFIG.student)
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


def maps() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masks of 12 images, grids that show them, and grids that show the place alone."""
    rng = np.random.default_rng(0)
    masks = rng.random((12, 6, 6)) < 0.4
    seen = masks[..., None] + 0.01 * rng.normal(size=(12, 6, 6, 2))
    place = np.repeat(np.indices((6, 6)).transpose(1, 2, 0)[None] + 0.0, 12, axis=0)
    return masks, seen, place


def test_measure_knows_an_object_from_a_shared_map() -> None:
    masks, seen, place = maps()
    knows = islands.measure(seen, masks, another=np.roll(seen, 1, axis=0), counts=[2, 3])
    blind = islands.measure(place, masks, another=place, counts=[2, 3])
    assert list(knows) == list(islands.MEASURES)
    assert (knows["ari_two"] == 1).all()
    assert abs(knows["ari_two_others"].mean()) < 0.1
    np.testing.assert_allclose(knows["neighbour_minus_far"], knows["neighbour_centred"] - knows["far_centred"])
    np.testing.assert_allclose(knows["ari_two_gain"], knows["ari_two"] - knows["ari_two_others"])
    np.testing.assert_allclose(knows["spread"], 100 * islands.spread(seen))
    assert (
        islands.interval(knows["ari_two_gain_another"]).low < 0.1
    )  # another image's map does not fit this image's mask
    assert blind["another"].to_numpy() == pytest.approx(np.ones(12))
    np.testing.assert_array_equal(blind["ari_two_gain_another"], blind["ari_two_gain"])
    assert "ari" not in islands.measure(seen, counts=[2])
    assert "another" not in islands.measure(seen, masks, counts=[2])


def test_whose_map_it_is_is_decided_by_place_and_by_the_own_image() -> None:
    masks, seen, place = maps()
    noise = np.random.default_rng(1).normal(size=seen.shape)
    sources = {"object": seen, "place": place, "neither": noise}
    told = islands.whose(
        {
            name: islands.measure(grid, masks, another=np.roll(grid, 1, axis=0), counts=[2])
            for name, grid in sources.items()
        }
    )
    assert told["a map of place"].tolist() == ["no", "yes", "no"]
    assert told["shows its own image"].tolist()[0] == "yes"
    assert "yes" not in told["shows its own image"].tolist()[1:]
    assert "of place" in islands.WHOSE
    # a mask that weights carry, whatever image is put in, is not the image's own map
    carried = islands.measure(seen, masks, another=seen, counts=[2])
    assert islands.whose({"carried": carried})["shows its own image"].tolist() == ["not decided"]


def test_training_made_it_larger_only_if_it_was_not_there_before() -> None:
    masks, seen, place = maps()
    measured = {
        name: islands.measure(grid, masks, counts=[2])
        for name, grid in (("seen", seen), ("place", place), ("blur", seen + 0.6 * place))
    }
    before = {"as before": measured["seen"], "learnt": measured["place"], "lost": measured["seen"]}
    after = {"as before": measured["seen"], "learnt": measured["seen"], "lost": measured["blur"]}
    told = islands.changes(before, after, ["ari_two_gain", "position"])
    assert told.index.names == ["measure", "student"]
    gain = told.loc["own - other masks"]
    assert gain["training made it"].to_dict() == {"as before": "not decided", "learnt": "larger", "lost": "smaller"}
    assert gain.loc["as before", "trained"].low > 0.5  # far above 0, and not learnt
    paired = stats.mean(measured["seen"]["ari_two_gain"] - measured["place"]["ari_two_gain"])
    change = gain.loc["learnt", "change"]
    assert (change.value, change.low, change.n) == pytest.approx((paired.value / 100, paired.low / 100, 12))
    with pytest.raises(ValueError, match=r"same students before and after, found \['a'\] and \['b'\]"):
        islands.changes({"a": measured["seen"]}, {"b": measured["seen"]}, ["position"])


def test_grids_that_cannot_be_measured_are_refused() -> None:
    with pytest.raises(ValueError, match="expected grids of shape"):
        islands.spread(np.zeros((4, 4, 2)))
    broken = np.ones((2, 2, 2, 1))
    broken[1, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"image\(s\) \[1\] have NaN"):
        islands.measure(broken)
    with pytest.raises(ValueError, match=r"mean feature of image\(s\) \[0\] is zero"):
        islands.spread(np.array([[[[1.0], [-1.0]], [[1.0], [-1.0]]]]))


def test_table_holds_means_with_intervals() -> None:
    values = np.linspace(0.2, 0.6, 20)
    shown = islands.table({"a": pd.DataFrame({"ari": values, "spread": np.full(20, 1.4)})}, ["spread", "ari"])
    assert list(shown) == ["spread (%)", "ARI, chosen number"]
    found = shown.loc["a", "ARI, chosen number"]
    assert (found.value, found.n, found.unit, found.kind) == (pytest.approx(0.4), 20, "", "measure")
    error = values.std() / np.sqrt(20)
    assert (found.low, found.high) == pytest.approx((0.4 - 2.1 * error, 0.4 + 2.1 * error), abs=0.01)
    assert shown.loc["a", "spread (%)"].unit == "%"
    assert len(numbers.tidy(shown, "06_x")) == 2
    with pytest.raises(ValueError, match="unknown measure 'clusters'"):
        islands.table({"a": pd.DataFrame({"ari": values})}, ["clusters"])
    with pytest.raises(ValueError, match="at least 10 images, found 9"):
        islands.table({"a": pd.DataFrame({"ari": values[:9]})}, ["ari"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_what_rounding_leaves(dtype: torch.dtype) -> None:
    targets = torch.randn(400, 64, generator=torch.Generator().manual_seed(0))
    unit = torch.nn.functional.normalize(targets.double(), dim=-1)
    left = (unit.to(dtype).double() - unit).square().mean().item()
    assert islands.rounding(targets, dtype) == pytest.approx(left, rel=0.05)


def test_two_components_are_orange_and_blue() -> None:
    first, second = islands.as_colour(np.eye(2)[None])[0]
    assert first.tolist() == [1.0, 0.5, 0.0]
    assert second.tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("name", ["alike", "measure", "embed"])
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
        "measure": lambda: islands.measure(grid),
        "embed": lambda: islands.embed(grid[0]),
    }
    with threadpool_limits(2), pytest.raises(InterruptedError):
        calls[name]()
    assert set(threads) == {1}


# ------------------------------------------------------------------------------------------- embeddings and pictures


def test_a_component_without_weight_stays_grey_and_its_share_is_told() -> None:
    rows, columns = np.indices((5, 5))[..., None] - 2.0
    grid = np.concatenate([rows, 0.01 * columns, np.zeros((5, 5, 4))], axis=-1)  # 0.01 % of the variance
    colours = islands.picture(grid)
    assert np.ptp(colours[..., 0]) == pytest.approx(1, abs=0.01)
    assert np.ptp(colours[..., 1]) < 0.02
    assert (colours[..., 2] == 0.5).all()
    assert islands.shares(grid) == pytest.approx([1 / 1.0001, 0.0001 / 1.0001, 0], abs=1e-9)
    other = grid[..., [1, 0, 2, 3, 4, 5]]  # the same in other directions: along the first component lies little of it
    assert islands.shares(other, grid) == pytest.approx([0.0001 / 1.0001, 1 / 1.0001, 0], abs=1e-9)


@pytest.mark.parametrize("components", [1, 2, 3])
def test_tsne_keeps_groups_apart_and_repeats(components: int) -> None:
    which = np.zeros((6, 6), dtype=int)
    which[:, 3:] = 1
    grid = 50.0 * np.eye(4)[which] + np.random.default_rng(0).normal(size=(6, 6, 4))
    found = islands.embed(grid, components)
    assert found.shape == (6, 6, components)
    assert found.min() >= 0
    assert found.max() <= 1
    middle = [found[which == k].mean(axis=0) for k in (0, 1)]
    within = max(np.linalg.norm(found[which == k] - middle[k], axis=-1).mean() for k in (0, 1))
    assert np.linalg.norm(middle[0] - middle[1]) > within
    np.testing.assert_array_equal(found, islands.embed(grid, components))


def test_tsne_lays_the_positional_code_out_smoothly() -> None:
    code = positional_encoding((8, 8), 64, dtype=torch.float64).numpy()
    for components in (2, 3):
        laid = islands.embed(code, components)[None]
        assert islands.neighbour_cosine(laid, centre=True)[0] > 0.6


def test_embeddings_that_make_no_sense() -> None:
    grid = np.random.default_rng(0).normal(size=(4, 4, 3))
    with pytest.raises(ValueError, match=r"unknown embedding method 'tsn'.*Did you mean 'tsne'"):
        islands.picture(grid, "tsn")
    with pytest.raises(ValueError, match="1, 2 or 3 components to show as colour, found 4"):
        islands.picture(grid, components=4)
    with pytest.raises(ValueError, match=r"one grid of shape \(h, w, D\)"):
        islands.picture(grid[None])
    assert (islands.picture(np.ones((3, 3, 2)), "tsne") == 0.5).all()


def test_swapped_shows_equal_maps_in_equal_colours() -> None:
    grid = np.random.default_rng(0).normal(size=(4, 4, 3))
    own, other = islands.swapped(grid, grid + 3.0)
    np.testing.assert_allclose(own, other)
    assert not np.allclose(own, islands.swapped(grid, grid[::-1])[1])


def test_picture_tables_refuse_what_they_cannot_show() -> None:
    figure = islands.picture_table({"a": [np.zeros((2, 2, 3)), np.ones((2, 2), dtype=bool)]}, ["x", "y"])
    assert [axes.get_title() for axes in figure.axes] == ["x", "y"]
    assert figure.axes[0].get_ylabel() == "a"
    plt.close(figure)
    with pytest.raises(ValueError, match="row 'a': expected 2 pictures, one per heading, found 1"):
        islands.picture_table({"a": [np.zeros((2, 2, 3))]}, ["x", "y"])
    with pytest.raises(ValueError, match="at least one row"):
        islands.picture_table({}, [])
