"""TENT by hand, beside its release on BatchNorm, and its parts one by one."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from colours import Colour, Tower, colours, noise, normed
from torch import nn

from apm import methods
from apm.methods import tent, views
from apm.methods.tent import Tent

SIX = np.arange(6)


def said(teacher, **options):
    return Tent(teacher, **{"views": 10, **options}).predict(noise(), SIX, 0)


def zero_shot(teacher) -> np.ndarray:
    return methods.ZeroShot(teacher).predict(noise(), SIX, 0).extra["confidence"]


def test_one_step_by_hand():
    """LayerNorm without epsilon maps two numbers to (1, -1); Adam's first step moves a parameter by the learning rate.

    The feature is u = (w1 + b1, -w2 + b2). With text features (1, 0) and (0.6, 0.8) the scores differ by v.u / |u|, v =
    (0.4, -0.8), which class 0 wins at u = (1, -1). The part of v across u is (-0.2, -0.2): both components of u must fall
    for the prediction to become surer. So w1, b1, b2 fall and w2 grows by 0.01.
    """
    teacher = Colour(nn.LayerNorm(2, eps=0), text=((1.0, 0.0), (0.6, 0.8)))
    tower, pixels = tent.Tower(teacher), teacher.transform(colours((200, 100)).images)
    logits_of = partial(teacher.logits, classnames=(), templates=())
    scores, passes = tent.adapt(tower, pixels, logits_of, steps=1, learning_rate=0.01)
    weight, bias = tower.parameters["layers.0.weight"], tower.parameters["layers.0.bias"]
    assert [*weight.tolist(), *bias.tolist()] == pytest.approx([0.99, 1.01, -0.01, -0.01], abs=1e-6)
    u = np.array([0.98, -1.02])
    np.testing.assert_allclose(scores, 2 * np.array([[1, 0], [0.6, 0.8]]) @ u / np.linalg.norm(u), rtol=1e-5)
    assert passes == 2
    tower.reset()
    assert [*weight.tolist(), *bias.tolist()] == [1, 1, 0, 0]


def test_the_parts_with_batch_norm_can_be_told_apart():
    """Without a step only the statistics change, with running statistics only scale and shift do."""
    teacher = Colour(nn.BatchNorm1d(2))
    norm = teacher.model.visual.layers[0]
    norm.running_mean[:], norm.running_var[:] = torch.tensor([0.3, 0.2]), torch.tensor([0.09, 0.04])

    only_statistics = said(teacher, steps=0)
    raw = views.view_pixels(teacher, noise().images[2], 10, seed=0)[:, :2].mean(dim=(2, 3))
    by_hand = (raw[0] - raw.mean(dim=0)) / (raw.var(dim=0, unbiased=False) + norm.eps).sqrt()
    expected = (2 * nn.functional.normalize(by_hand, dim=0)).softmax(dim=0).max()
    assert only_statistics.extra["confidence"][2] == pytest.approx(float(expected), rel=1e-4)
    barely = said(teacher, statistics="running", learning_rate=1e-12)
    np.testing.assert_allclose(barely.extra["confidence"], zero_shot(teacher), rtol=1e-4)
    step = said(teacher, statistics="running", learning_rate=0.1)
    assert not np.allclose(step.extra["confidence"], barely.extra["confidence"])
    columns = ("teacher_passes", "teacher_backward_passes", "batch_statistics")
    counts = [tuple(one.extra[c].mean() for c in columns) for one in (only_statistics, barely, said(teacher, steps=2))]
    assert counts == [(10, 0, 1), (11, 10, 0), (30, 20, 1)]  # running: no batch is needed for the last pass
    assert norm.running_mean.tolist() == pytest.approx([0.3, 0.2])  # the teacher's own are as they were
    assert norm.track_running_stats


def plain_tent(network: nn.Module, x: torch.Tensor, text: torch.Tensor, steps: int) -> torch.Tensor:
    """tent.py of the release on a network of BatchNorm1d layers, in its own order: scores, entropy, step; the scores are returned."""
    network.train().requires_grad_(False)
    norms = [layer.requires_grad_() for layer in network.modules() if isinstance(layer, nn.BatchNorm1d)]
    for layer in norms:
        layer.track_running_stats, layer.running_mean, layer.running_var = False, None, None
    optimiser = torch.optim.Adam([p for layer in norms for p in layer.parameters()], lr=0.05)
    for _ in range(steps):
        outputs = 2.0 * nn.functional.normalize(network(x), dim=-1) @ text.T
        loss = -(outputs.softmax(1) * outputs.log_softmax(1)).sum(1).mean(0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return outputs.detach()


def test_the_original_trains_batch_norm_alone_and_scores_before_the_step():
    teacher, original = normed(), {"learning_rate": 0.05, "layers": "batch", "scores": "before"}
    teacher.model.visual = Tower(nn.LayerNorm(2), nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()
    for steps in (1, 3):
        found = said(teacher, steps=steps, **original)
        for i, image in enumerate(noise().images):
            pixels = views.view_pixels(teacher, image, 10, seed=0)
            scores = plain_tent(copy.deepcopy(teacher.model.visual), pixels, teacher.text, steps)
            assert found.extra["confidence"][i] == pytest.approx(float(scores[0].softmax(dim=-1).max()), rel=1e-5)
        assert (found.extra["teacher_passes"] == 10 * steps).all()  # none after the last step
    none = said(teacher, steps=0).extra["confidence"]
    # one step after a reset: the scores of no step at all
    np.testing.assert_allclose(said(teacher, steps=1, **original).extra["confidence"], none, rtol=1e-5)
    assert not np.allclose(said(teacher, steps=1, **{**original, "scores": "after"}).extra["confidence"], none)
    every, batch = (set(tent.Tower(teacher, layers=layers).parameters) for layers in ("all", "batch"))
    assert batch == {"layers.2.weight", "layers.2.bias"}
    assert every == batch | {"layers.0.weight", "layers.0.bias"}


@pytest.mark.parametrize(
    ("teacher", "layers", "message"),
    [
        (normed(), "batch", "has no BatchNorm, the only one that the original trains: set layers: all"),
        (Colour(nn.Linear(2, 2)), "all", r"image tower of teacher colour has none.*another method"),
    ],
)
def test_a_tower_without_such_layers_is_refused(teacher, layers, message):
    with pytest.raises(ValueError, match=message):
        said(teacher, layers=layers)
