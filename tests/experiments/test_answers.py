"""What a field is held against: numbers by hand, linear maps as scikit-learn's, and the whole interval decides."""

import numpy as np
import pytest
import torch
from bars import CONFIG, made, problem
from sklearn.linear_model import Ridge

from apm.experiments import answers, field, material

COSINE, MSE = "cosine to the teacher's grid", "MSE of the RGB"


def test_what_is_kept_of_a_material_in_batches_is_what_all_at_once_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    data = problem()
    batch = data.batch(range(24))
    trained = field.train(data, CONFIG)
    whole = field.look(trained, batch.images)
    monkeypatch.setattr(material.Material.batches, "__defaults__", (5,))
    for read, expected in (
        (answers.folded(trained), whole.folded),
        (answers.column(trained), whole.columns),
        (answers.pixels, batch.images.flatten(1)),
        (answers.patch_means, batch.colours.flatten(1)),
    ):
        np.testing.assert_allclose(data.each(read), expected, atol=1e-6)
    assert data.each(lambda b: answers.pixels(b, 4)).shape == (24, 48)
    mean_image = data.spread("colours").mean  # a single grid is the same answer for all images
    one, mean = answers.measure({"x": (trained, trained), "mean": (None, mean_image)}, data).values()
    np.testing.assert_allclose(mean[MSE], np.square(mean_image.numpy() - data.colours).mean(axis=(1, 2)), atol=1e-7)
    cosine = torch.cosine_similarity(whole.features.flatten(1, 2), batch.tokens, dim=-1).mean(dim=1)
    mse = (whole.colours.flatten(1, 2) - batch.colours).square().mean(dim=(1, 2))
    unit = torch.nn.functional.normalize(batch.tokens, dim=-1)
    grid = (whole.features.flatten(1, 2) - unit).square().mean(dim=(1, 2))
    np.testing.assert_allclose(one[COSINE], cosine, atol=1e-5)
    np.testing.assert_allclose(one[MSE], mse, atol=1e-6)
    np.testing.assert_allclose(one["PSNR"], -10 * np.log10(mse.numpy()), atol=1e-3)
    np.testing.assert_allclose(one["L_grid + L_rgb"], grid + mse, atol=1e-6)
    with pytest.raises(ValueError, match="no teacher tokens"):
        answers.measure({"x": (trained, None)}, data.without_tokens())


def test_share_of_colour_and_psnr_by_hand() -> None:
    red = np.zeros((12, 8, 8, 3), dtype=np.uint8)
    for i in range(12):
        red[i, i % 6 : i % 6 + 2, :2, 0] = 100 + i
    data = made(red, None)
    truth = torch.from_numpy(np.array(data.colours))
    grey = truth.mean(dim=-1, keepdim=True).expand_as(truth)
    sources = {"own": truth, "grey": grey, "half": (truth + grey) / 2, "flat": torch.full((12, 16, 3), 0.5)}
    found = answers.measure({name: (None, lambda batch, given=given: given) for name, given in sources.items()}, data)
    assert (found["own"]["PSNR"] == answers.PSNR_LIMIT).all()
    share = {name: answers.colour_share(one["chroma"], found["flat"]["chroma"]) for name, one in found.items()}
    assert share["own"].value == pytest.approx(100)
    assert share["grey"].value == pytest.approx(0, abs=1e-6)
    assert share["half"].value == pytest.approx(75)
    assert np.isnan(answers.colour_share(np.zeros(12), np.full(12, 1e-16)).value)


def test_a_ridge_is_that_of_scikit_learn_with_the_penalty_that_held_back_images_choose(monkeypatch) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    tokens = (rng.normal(size=(40, 48)) @ rng.normal(size=(48, 128))).reshape(40, 16, 8).astype(np.float32)
    data = made(images, tokens / np.linalg.norm(tokens, axis=-1, keepdims=True))
    x, y = data.colours.reshape(40, -1).astype(np.float64), data.tokens.reshape(40, -1).astype(np.float64)
    monkeypatch.setattr(material.Material.batches, "__defaults__", (7,))

    def reference(rows: np.ndarray, penalty: float) -> Ridge:
        return Ridge(penalty * len(rows) * x.var(axis=0).mean()).fit(x[rows], y[rows])

    fitted, back = np.arange(40) % 5 > 0, np.arange(40) % 5 == 0
    errors = {p: np.square(reference(np.flatnonzero(fitted), p).predict(x[back]) - y[back]).mean() for p in answers.PENALTIES}  # fmt: skip
    best = min(errors, key=errors.__getitem__)
    found = answers.ridge(answers.patch_means, data, "tokens")
    expected = reference(np.arange(40), best).predict(x).reshape(40, 16, 8)
    np.testing.assert_allclose(found(data.batch(range(40))), expected, atol=1e-4)
    with pytest.raises(ValueError, match="at least 10 images, found 9"):
        answers.ridge(answers.patch_means, made(images[:9], tokens[:9]), "tokens")


def test_a_linear_map_answers_what_is_linear_and_the_nearest_image_what_was_seen() -> None:
    known = problem(48)
    linear = answers.ridge(answers.column(field.untrained(CONFIG)), known, "colours")
    found = answers.measure({"linear": (None, linear), "nearest": answers.of_nearest(known)}, known)
    assert found["linear"]["PSNR"].min() > 30
    np.testing.assert_allclose(found["nearest"][COSINE], 1.0, atol=1e-6)
    distance, place = answers.nearest_image(torch.from_numpy(known.colours[[5, 0]]).flatten(1), known)
    assert place.tolist() == [5, 0]
    np.testing.assert_allclose(distance, 0, atol=1e-6)


def test_the_field_stands_beside_the_best_control_and_the_whole_interval_decides() -> None:
    base = np.linspace(0, 1, 30)
    row = answers.against_best(base + 0.1, {"low": base - 1, "near": base}, unit="dB")
    assert (row["best control"], row["field better"]) == ("near", "yes")
    assert (row["field - control"].value, row["field - control"].unit) == (pytest.approx(0.1), "dB")
    assert answers.against_best(base - 0.1, {"near": base})["field better"] == "no"
    assert answers.against_best(base - 0.1, {"near": base}, higher=False)["field better"] == "yes"
    assert answers.against_best(base[::-1], {"near": base})["field better"] == "undecided"
