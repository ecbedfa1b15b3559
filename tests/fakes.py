"""A teacher and records for tests: no training, no download."""

import numpy as np
import pandas as pd
import torch
from open_clip.transform import PreprocessCfg

from apm import teachers


class FakeTeacher:
    """A teacher whose feature is a fixed linear map of the mean colour of image quarters."""

    logit_scale = 10.0
    logit_bias = None
    probabilities = teachers.Teacher.probabilities
    preprocess_config = PreprocessCfg(size=16)
    name, width, hash, device, mean, std = "fake", 12, "0" * 64, torch.device("cpu"), (0.5,) * 3, (0.5,) * 3

    def text_features(self, classnames, templates):
        g = torch.Generator().manual_seed(len(templates))
        return torch.nn.functional.normalize(torch.randn(len(classnames), 12, generator=g), dim=-1)

    def features(self, dataset):
        quarters = np.stack(
            [[i[a : a + 8, b : b + 8].mean((0, 1)) for a in (0, 8) for b in (0, 8)] for i in dataset.images]
        )
        return (quarters.reshape(len(quarters), 12) / 255 - 0.5).astype(np.float32)


def damaged(content: bytes, how: str) -> bytes:
    """What a disk may leave of a file: "zeros" in its place, "cut" in half, one bit "flipped", "nothing"."""
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    return {"zeros": bytes(len(content)), "cut": content[:middle], "flipped": flipped, "nothing": b""}[how]


def records(prediction, **columns) -> pd.DataFrame:
    """Records of images 0, 1, ..., of class 1 and without teacher or path unless the columns say otherwise."""
    empty = pd.array([None] * len(prediction), dtype="Int32")
    named = {"dataset": "digits-test", "corruption": "none", "severity": 0, "method": "APM", "seed": 0, "label": 1}
    asked = {"teacher_prediction": empty, "minimum_loss_prediction": empty, "path": None}
    return pd.DataFrame({"sample": np.arange(len(prediction)), **named, "prediction": prediction, **asked, **columns})
