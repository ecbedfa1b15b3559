"""A teacher that sees colours, images of colours, and a student for them: small enough to follow by hand."""

import sys
from contextlib import suppress

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg
from torch import nn

from apm import teachers
from apm.data import Dataset, UnreadableImage
from apm.methods import views
from apm.model import APMConfig
from apm.teachers import Encoding
from apm.ttt import TTTConfig


class Tower(nn.Module):
    """The mean red and green of an image, (n, 3, S, S) -> (n, 2), through layers."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x[:, :2].mean(dim=(2, 3)))


class Colour:
    """A teacher whose feature is the mean red and green of an image (n, 2), in 0..1; white images give no number."""

    name, width, hash, precision, image_size = "colour", 2, "0" * 64, "fp32", 8
    device, logit_scale, logit_bias = torch.device("cpu"), 2.0, None
    probabilities, logits, tower = teachers.Teacher.probabilities, teachers.Teacher.logits, teachers.Teacher.tower
    tokenizer, preprocess_config = len, PreprocessCfg(size=8)

    def __init__(self, *layers: nn.Module, text=((1.0, 0.0), (0.0, 1.0))):
        self.model = nn.Module()
        self.model.visual = Tower(*layers).eval().requires_grad_(False)
        self.text = torch.tensor(text)

    def transform(self, images):
        return torch.stack([torch.from_numpy(i.copy()).permute(2, 0, 1).float() / 255 for i in images])

    def encode(self, images):
        with torch.inference_mode():
            feature = self.model.visual(images)
            return Encoding(torch.where((images == 1).all(dim=(1, 2, 3))[:, None], torch.nan, feature).clone())

    def text_features(self, classnames, templates):
        return self.text.clone()


def colours(*rg: tuple[int, int]) -> Dataset:
    """Images of one colour each (red, green, 0): every crop has the image's own feature."""
    images = np.zeros((len(rg), 8, 8, 3), dtype=np.uint8)
    images[..., :2] = np.array(rg)[:, None, None]
    return dataset(images)


def dataset(images: np.ndarray) -> Dataset:
    n = len(images)
    print_of = f"{hash(images.tobytes()):x}"
    return Dataset("toy", images, np.arange(n) % 2, ("ant", "bee"), ("a {}",), print_of, np.arange(n))


def units(teacher, data, positions, n: int) -> torch.Tensor:
    """(N, n, D) unit features of n views."""
    return nn.functional.normalize(views.encoded(teacher, data, positions, n, seed=0).features, dim=-1)


def noise(n: int = 6) -> Dataset:
    """Images in which the colour changes from place to place, so that crops differ."""
    coarse = np.random.default_rng(5).integers(0, 256, (n, 2, 2, 3), dtype=np.uint8)
    return dataset(coarse.repeat(4, axis=1).repeat(4, axis=2))


def normed() -> Colour:
    """A teacher with a normalisation layer between fixed random maps."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Colour(nn.Linear(2, 4), nn.LayerNorm(4), nn.Linear(4, 2))


CONFIG = TTTConfig(
    APMConfig(grid=(2, 2), patch=4, hidden=(16, 8), width=2, position_width=8), iterations=12, learning_rate=5e-3
)


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch):
    """Features are those of `encode`, in the place of those that teachers keep in the cache."""

    def features(teacher, data):
        rows = np.full((len(data.images), teacher.width), np.nan, dtype=np.float32)
        for i in range(len(rows)):
            with suppress(UnreadableImage):  # these stay NaN, as in apm.teachers.features
                rows[i] = teacher.encode(teacher.transform([data.images[i]])).feature[0].numpy()
        return rows

    views.forget()
    for module in (teachers, sys.modules[teachers.features_at.__module__]):
        monkeypatch.setattr(module, "features", features)
