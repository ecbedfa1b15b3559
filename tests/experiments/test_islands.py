"""Looking at the grid while it learns shows what is there and changes nothing."""

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from apm import ttt
from apm.analysis import stats
from apm.experiments import islands
from apm.model import APM, APMConfig, positional_encoding
from apm.ttt import TTTConfig

STUDENT = APMConfig(grid=(4, 4), patch=4, hidden=(32, 16), width=16, rgb_head=False)
CONFIG = TTTConfig(STUDENT, iterations=6, learning_rate=5e-3, lockstep=2)
GAIN = "own - other masks"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APM_CACHE", str(tmp_path / "cache"))


def test_watching_sees_the_students_at_those_iterations_in_float64_and_changes_nothing() -> None:
    g = torch.Generator().manual_seed(0)
    images, targets = torch.randn(3, 3, 16, 16, generator=g), torch.randn(3, 16, generator=g)
    result = ttt.adapt(images, targets, CONFIG, keep_parameters=True)
    shots, again = (islands.watch(images, targets, CONFIG, [6, 0]) for _ in range(2))
    assert result.parameters is not None
    assert shots.iterations == [0, 6]
    for state, weights in ((0, ttt.initial_parameters(images, CONFIG)), (6, result.parameters)):
        for k in range(3):
            model = APM.from_parameters(STUDENT, {name: value[k] for name, value in weights.items()})
            grid = model.grid(images[k : k + 1])[0].detach().numpy()
            np.testing.assert_allclose(shots.grids[state][k], grid, rtol=1e-4, atol=1e-6)
    assert not np.array_equal(shots.grids[0], shots.grids[0].astype(np.float32).astype(np.float64))
    own, other = again.maps(again.weights)  # from the cache
    np.testing.assert_array_equal(again.last, shots.last)
    assert torch.equal(again.losses, result.losses)
    np.testing.assert_allclose(own, shots.last, atol=1e-12)
    first = {name: value[:1] for name, value in result.parameters.items()}  # the image before the first is the last
    np.testing.assert_array_equal(other[:1], islands.feature_grids(first, images[-1:], STUDENT))
    assert all(torch.equal(shots.weights[name], value) for name, value in result.parameters.items())
    with pytest.raises(ValueError, match=r"0 to 6 iterations, found \[7\]"):
        islands.watch(images, targets, CONFIG, [0, 7])


BOARD = (np.indices((4, 4)).sum(0) % 2 * 2.0 - 1)[None, :, :, None] * np.array([1.0, 0.0])
HALVES = np.repeat(np.eye(2)[[0, 0, 1, 1]][None, None], 4, axis=1)  # the left half is (1, 0), the right half (0, 1)


def test_cosines_counted_by_hand() -> None:
    # 24 neighbouring pairs of a 4 x 4 grid; 4 cross the border: cosine 0 there, 1 elsewhere; less the mean: -1 there
    places = np.array(list(np.ndindex(4, 4)))
    apart = np.abs(places[:, None] - places).max(axis=-1) >= 2
    far = ((places[:, None, 1] < 2) == (places[:, 1] < 2))[apart].mean()
    assert np.ravel(islands.cosines(HALVES)) == pytest.approx([20 / 24, far])
    assert np.ravel(islands.cosines(HALVES, centre=True)) == pytest.approx([(20 - 4) / 24, 2 * far - 1])
    shifted = BOARD + np.array([0.0, 1000.0])  # a large common part hides opposite neighbours
    assert islands.cosines(shifted)[0] > 0.99999
    assert islands.cosines(shifted, centre=True)[0] == pytest.approx([-1])
    assert islands.spread(shifted) == pytest.approx([1e-3])
    # a place without a direction is left out: two of four pairs remain
    assert islands.cosines(np.array([[[[1.0], [0.0]], [[1.0], [1.0]]]]))[0] == pytest.approx([1])
    assert np.isnan(islands.cosines(np.ones((1, 3, 3, 2)) / 3, centre=True)).all()


def test_first_component_and_share_of_rows_and_columns() -> None:
    square = np.zeros((1, 2, 2, 2))
    square[0, 1, :, 0] = 2.0  # rows differ along one direction, columns half as much along another
    square[0, :, 1, 1] = 1.0
    assert islands.first_component(square) == pytest.approx([4 / 5])
    assert islands.position_share(square) == pytest.approx([1])
    assert islands.position_share(BOARD) == pytest.approx([0], abs=1e-12)
    assert np.isnan(islands.position_share(np.ones((1, 2, 2, 1)))).all()
    # it is the least squares fit on the positional code
    flat = np.random.default_rng(0).normal(size=(64, 5))
    code = np.column_stack([positional_encoding((8, 8), 64, dtype=torch.float64).reshape(64, 64), np.ones(64)])
    rest = flat - code @ np.linalg.lstsq(code, flat, rcond=1e-13)[0]
    explained = 1 - np.square(rest).sum() / np.square(flat - flat.mean(0)).sum()
    assert islands.position_share(flat.reshape(1, 8, 8, 5)) == pytest.approx([explained], abs=1e-6)


def test_alike_ignores_rotation_and_scale_and_sees_another_map() -> None:
    rng = np.random.default_rng(0)
    grid, rotation = rng.normal(size=(2, 4, 4, 3)), np.linalg.qr(rng.normal(size=(3, 3)))[0]
    assert islands.alike(grid, 7 * grid @ rotation + 5) == pytest.approx([1, 1])
    rows, columns = np.indices((8, 8))[:, None, :, :, None] * 1.0
    assert islands.alike(rows, columns) == pytest.approx([0], abs=1e-12)
    assert np.isnan(islands.alike(np.ones((1, 8, 8, 1)), rows))


def test_clusters_finds_the_groups_that_are_there() -> None:
    centres = np.array([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])[np.arange(36).reshape(6, 6) % 3]
    noise = np.random.default_rng(0).normal(size=(6, 6, 2))
    # a large common part and a small scale change nothing
    for grid in (centres + 0.1 * noise, 1000 + 1e-6 * centres):
        assert adjusted_rand_score(np.arange(36) % 3, islands.clusters(grid).ravel()) == 1
    with pytest.raises(ValueError, match="with 1 different features"):
        islands.clusters(np.ones((3, 3, 2)))
    with pytest.raises(ValueError, match=r"groups: at least 2"):
        islands.clusters(HALVES[0], [1])


def test_foreground_is_the_bright_part() -> None:
    image = np.repeat(np.random.default_rng(0).uniform(0.0, 0.3, (1, 8, 8, 1)), 3, axis=-1)
    image[0, 2:6, 4:6] += 0.7  # fills places (1, 2) and (2, 2) of a 4 x 4 grid
    image[0, :2, :2] = 0.0
    image[0, 0, 0] = 0.9  # bright, but a quarter of place (0, 0): on average too dark
    dim = islands.foreground(np.concatenate([image, 0.1 * image]), (4, 4))  # each image has its own threshold
    assert [np.argwhere(mask).tolist() for mask in dim] == [[[1, 2], [2, 2]]] * 2
    with pytest.raises(ValueError, match=r"\[0\] have one brightness"):
        islands.foreground(np.ones((1, 8, 8, 3)), (4, 4))


@pytest.fixture
def maps() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masks of 12 images, grids that show them, and grids that show the place alone."""
    rng = np.random.default_rng(0)
    masks = rng.random((12, 6, 6)) < 0.4
    seen = masks[..., None] + 0.01 * rng.normal(size=(12, 6, 6, 2))
    return masks, seen, np.repeat(np.indices((6, 6)).transpose(1, 2, 0)[None] + 0.0, 12, axis=0)


def test_measure_knows_an_object_from_a_shared_map(maps) -> None:
    masks, seen, place = maps
    knows = islands.measure(seen, masks, another=np.roll(seen, 1, axis=0), counts=[2, 3])
    blind = islands.measure(place, masks, another=place, counts=[2, 3])
    assert (knows["ARI, 2 clusters"] == 1).all()
    assert abs(knows["ARI, 2 clusters, other masks"].mean()) < 0.1
    np.testing.assert_allclose(knows["neighbours - far"], knows["neighbours"] - knows["far"])
    np.testing.assert_allclose(knows[GAIN], knows["ARI, 2 clusters"] - knows["ARI, 2 clusters, other masks"])
    assert knows[f"{GAIN}, another image's map"].mean() < 0.1  # it does not fit this image's mask
    assert blind["CKA, another image"].to_numpy() == pytest.approx(np.ones(12))
    np.testing.assert_array_equal(blind[f"{GAIN}, another image's map"], blind[GAIN])
    assert not {"CKA, another image", "ARI, chosen number"} & set(islands.measure(seen, counts=[2]))
    seen[1, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"image\(s\) \[1\] have NaN"):
        islands.measure(seen)


def test_whose_map_it_is_is_decided_by_place_and_by_the_own_image(maps) -> None:
    masks, seen, place = maps
    noise = np.random.default_rng(1).normal(size=seen.shape)
    # a mask that weights carry, whatever image is put in, is not the image's own map
    sources = {"object": (seen, np.roll(seen, 1, axis=0)), "place": (place, place), "carried": (seen, seen)}
    sources["neither"] = (noise, np.roll(noise, 1, axis=0))
    measures = {name: islands.measure(own, masks, another=other, counts=[2]) for name, (own, other) in sources.items()}
    told = islands.whose(measures)
    assert told["a map of place"].tolist()[:2] == ["no", "yes"]
    assert told.loc["carried", "shows its own image"] == "not decided"
    assert told.index[told["shows its own image"] == "yes"].tolist() == ["object"]


def test_training_made_it_larger_only_if_it_was_not_there_before(maps) -> None:
    masks, seen, place = maps
    shown, shared, blurred = (islands.measure(x, masks, counts=[2]) for x in (seen, place, seen + 0.6 * place))
    before = {"as before": shown, "learnt": shared, "lost": shown}
    told = islands.changes(before, {"as before": shown, "learnt": shown, "lost": blurred}, [GAIN, "R2 of P"])
    assert told.index.names == ["measure", "student"]
    gain = told.loc[GAIN]
    assert gain["training made it"].to_dict() == {"as before": "not decided", "learnt": "larger", "lost": "smaller"}
    assert gain.loc["as before", "trained"].low > 0.5  # far above 0, and not learnt
    paired, change = stats.mean(shown[GAIN] - shared[GAIN]), gain.loc["learnt", "change"]
    assert (change.value, change.low, change.n) == pytest.approx((paired.value, paired.low, 12))


def test_a_map_that_stays_keeps_its_colours_whatever_its_size_and_noise() -> None:
    shots = islands.Snapshots(STUDENT, torch.zeros(1, 3, 16, 16), range(6))
    rng = np.random.default_rng(0)
    grid = rng.normal(size=(4, 4, 16))
    for k in shots.iterations:  # a growing map, with noise that turns components fitted anew
        shots.grids[k] = (1 + k) * (grid + 0.1 * rng.normal(size=grid.shape))[None]
    *before, last = np.reshape(shots.colours(), (6, 16, 3))
    assert all(np.corrcoef(look[:, c], last[:, c])[0, 1] > 0.95 for look in before for c in range(3))


def test_a_component_without_weight_stays_grey_and_its_share_is_told() -> None:
    rows, columns = np.indices((5, 5))[..., None] - 2.0
    grid = np.concatenate([rows, 0.01 * columns, np.zeros((5, 5, 4))], axis=-1)  # 0.01 % of the variance
    colours = islands.picture(grid)
    assert np.ptp(colours[..., 0]) == pytest.approx(1, abs=0.01)
    assert np.ptp(colours[..., 1]) < 0.02
    assert (colours[..., 2] == 0.5).all()
    other = grid[..., [1, 0, 2, 3, 4, 5]]  # the same in other directions: along the first component lies little of it
    held = islands.shares(np.stack([grid, other]), np.stack([grid, grid]))[["red (%)", "green (%)", "blue (%)"]]
    large, small = 100 / 1.0001, 0.01 / 1.0001
    np.testing.assert_allclose(held, [[large, small, 0], [small, large, 0]], atol=1e-7)


def test_fewer_components_and_tsne_are_pictures_too() -> None:
    laid = islands.picture(positional_encoding((8, 8), 64, dtype=torch.float64).numpy(), "tsne")
    assert (laid.min(), laid.max()) == (0, 1)
    assert islands.cosines(laid[None], centre=True)[0] > 0.6
    assert (islands.picture(np.ones((3, 3, 2)), "tsne") == 0.5).all()
    low, high = islands.picture(np.array([[[0.0], [1.0]]]), components=1)[0]  # viridis, either way round
    assert sorted([low[2] > low[1], high[2] > high[1]]) == [False, True]
    two = islands.picture(np.random.default_rng(0).normal(size=(3, 3, 2)), components=2)
    np.testing.assert_allclose(two[..., 1], (two[..., 0] + two[..., 2]) / 2, atol=1e-9)  # orange and blue
