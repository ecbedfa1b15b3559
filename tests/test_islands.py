"""Looking at the grid while it learns shows what is there and changes nothing."""

import numpy as np
import torch

from apm import islands, ttt
from apm.model import APM, APMConfig
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
