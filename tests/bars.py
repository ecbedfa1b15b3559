"""A small set of images whose colours and tokens lie on one line, for tests of what is trained over a dataset."""

import hashlib

import numpy as np
import torch

from apm import data as datasets
from apm import teachers
from apm.experiments import field, material
from apm.experiments.field import FieldConfig
from apm.model import APMConfig

STUDENT = APMConfig(grid=(4, 4), patch=2, hidden=(32, 16), width=8, rgb_hidden=(16,))
CONFIG = FieldConfig(STUDENT, epochs=6, batch=8, learning_rate=5e-3)


def problem(n: int = 24) -> material.Material:
    """Grey images, each a mixture of two pictures; the tokens follow the mixture too."""
    g = torch.Generator().manual_seed(0)
    ends, share = torch.rand(2, 1, 4, 4, generator=g), torch.linspace(0, 1, n)[torch.randperm(n, generator=g)]
    coarse = (ends[0] + share[:, None, None, None] * (ends[1] - ends[0])).expand(n, 3, 4, 4)
    pixels = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
    images = np.uint8(255 * pixels.permute(0, 2, 3, 1).numpy())
    tokens = torch.randn(2, 1, 8, generator=g).expand(-1, 16, -1)
    return made(images, (tokens[0] + share[:, None, None] * tokens[1]).numpy())


def made(images: np.ndarray, tokens: np.ndarray | None) -> material.Material:
    """A material of arrays: what `material.prepare` reads from files."""
    n = len(images)
    fingerprint = datasets.fingerprint(images, np.arange(n), ())
    data = datasets.Dataset("bars", images, np.arange(n) % 2, ("a", "b"), ("a {}",), fingerprint, np.arange(n))
    colours = teachers.patch_colours(teachers.student_images(images, 8), 2).numpy()
    of = {"data": fingerprint, "tokens": None if tokens is None else hashlib.sha256(tokens.tobytes()).hexdigest()}
    return material.Material(data, tokens, colours, np.arange(n), STUDENT, of, {})


def same_weights(one: field.Field, other: field.Field) -> bool:
    return all(torch.equal(one.model.weights[name], value) for name, value in other.model.weights.items())
