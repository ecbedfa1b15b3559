"""Test-time training as a module: evaluation loops that were written for other models take it unchanged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from apm.data import Dataset, prompts
from apm.methods.apm import adapt_dataset, training_config
from apm.teachers import Teacher
from apm.ttt import TTTConfig

Names = Sequence[str]
Config = TTTConfig | None
# of the small profiles: the published rate is that of a larger student
SMALL = {"iterations": 50, "learning_rate": 2e-3}


class TestTimeTrained(nn.Module):
    """images (N, 3, H, W), floats in [0, 1] -> scores (N, C), the teacher's logits of what a new student says of each image.

    templates: prompts with one "{}" each, default "a photo of a {}.". config: default the preset mini at the rate and K of the small
    profiles. Trains in any grad mode on the teacher's device, answers on that of the images, whose pixels are rounded to 8 bits.
    Raises ValueError for images of another type, shape or range, a student that does not fit its teacher, a protocol that carries state
    from image to image, and an image on which training failed: no score can say so.
    """

    __test__ = False  # of no use to pytest, whatever its name

    def __init__(
        self, teacher: Teacher, class_names: Names, config: Config = None, templates: Names | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        self.teacher, self.class_names, self.seed = teacher, tuple(class_names), seed
        self.config = config or training_config(teacher, training=SMALL)
        self.templates = tuple(templates or prompts.SINGLE)
        if self.config.carried:
            raise ValueError(
                f"protocol {self.config.protocol} carries state from image to image: scores would depend on batches"
            )

    def forward(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(f"expected float images (N, 3, H, W), found {images.dtype} {tuple(images.shape)}")
        pixels = images.detach().float()
        if not ((pixels > -1e-3) & (pixels < 1.001)).all():  # NaN is in no range
            raise ValueError("expected images in [0, 1], found other values: the module normalises them itself")
        pictures = (255 * pixels).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
        places = np.arange(len(pictures))
        data = Dataset("images", pictures, 0 * places, self.class_names, self.templates, "", places)
        targets = self.teacher.encode(self.teacher.transform(pictures)).feature
        result = adapt_dataset(self.teacher, data, places, self.config, targets=targets, seed=self.seed)
        if failed := {i: said for i, said in enumerate(result.status) if said != "ok"}:
            raise ValueError(f"training failed on images {failed}: a lower learning rate may do")
        assert result.scores is not None
        logits = self.teacher.logit_scale * result.scores[:, -1].float() + (self.teacher.logit_bias or 0.0)
        return logits.to(images.device)
