"""What is drawn for one image: a function of the run's seed and the image's pixels alone, whatever the other images."""

from __future__ import annotations

import hashlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor


def image_seed(seed: int, image: Tensor) -> int:
    """Seed of one image's weights, a hash of run seed and pixels: independent of the other images and of their order."""
    pixels = image.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()
    return int.from_bytes(hashlib.blake2b(pixels, digest_size=8, key=str(seed).encode()).digest(), "little") >> 1


class CropFlip:
    """Views of images (n, 3, H, W): random crops of 8 to 100 % of the area and 3/4 to 4/3 in aspect, enlarged to the full size,
    mirrored every other time, as is usual in ImageNet training. Each image has its own stream of draws.
    """

    def __init__(self, images: Tensor, seed: int) -> None:
        # the weights' draw has the image's seed itself
        self.streams = [torch.Generator().manual_seed(image_seed(seed, image) ^ 0x5EED) for image in images]
        self.images = images

    def draw(self) -> Tensor:
        """The next view of every image (n, 3, H, W)."""
        draws = [torch.rand(5, generator=stream, dtype=torch.float32) for stream in self.streams]
        area, aspect, x, y, mirror = torch.stack(draws).unbind(1)  # (n,)
        area, aspect = 0.08 + 0.92 * area, torch.exp((2 * aspect - 1) * math.log(4 / 3))
        width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
        zero, side = torch.zeros_like(x), 1 - 2 * (mirror < 0.5).float()
        rows = [[side * width, zero, (2 * x - 1) * (1 - width)], [zero, height, (2 * y - 1) * (1 - height)]]
        matrix = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=1).to(self.images)  # (n, 2, 3)
        grid = F.affine_grid(matrix, list(self.images.shape), align_corners=False)
        return F.grid_sample(self.images, grid, align_corners=False, padding_mode="border")
