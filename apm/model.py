"""The Asynchronous Perception Machine (APM): one image, one trigger column, a grid of location-aware columns.

The network of Modi & Rawat (NeurIPS 2024, section 3), as functions of a dictionary of parameters (`parameter_shapes`), of one
student or of N stacked ones (leading axis N, weight set k belongs to image k); `APM` is the nn.Module of one:

    image --conv--> trigger column T --unfold--> q[i, j] = concat(T, P[i, j]) --shared MLP--> f[i, j] --fold--> feature

Exact identities make it cheap (tests/plain.py does without): the 2-D code P is separable, so the first layer on concat(T, P) takes
h + w + 1 products instead of h * w; head and value projection are linear, so they follow the pooling; the key projection of a fold
with one learned query is folded into the query.

Shapes: N images, h x w grid, L = h * w locations (or fewer, for a subset), D teacher width.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apm.typed import checked

Parameters = Mapping[str, Tensor]


@checked
@dataclass(frozen=True)
class APMConfig:
    """Settings of the network; ValueError for wrong types and contradictions. Defaults: the preset ``mini``."""

    grid: tuple[int, int] = (8, 8)  # h, w: number of columns
    patch: int = 4  # p: side of a patch in pixels; the image is h*p x w*p
    hidden: tuple[int, ...] = (256, 128, 64)  # widths of the shared MLP, ReLU after each
    width: int = 64  # D: width of the teacher's feature
    position_width: int | None = None  # width of P; None: h*w, the width of T with one kernel (the paper's choice)
    column: str = "conv"  # "conv": T = flattened convolution; "tokens": T_vit, the routed token of each location
    kernels: int = 1  # conv kernels in T (section 6: 1 -> 3)
    token_width: int | None = None  # width of the routed tokens, for column="tokens"
    local_patch: bool = False  # I_xy: each column also sees its own patch's pixels (Table 5b)
    fold: str = "mean"  # "mean" (section 3.6) or "attention" (released code)
    heads: int = 8  # attention heads of the fold
    rgb_head: bool = True
    rgb_hidden: tuple[int, ...] = (256, 256)

    def __post_init__(self) -> None:
        h, w = self.grid
        if min(h, w, self.patch, self.kernels, self.width, *self.hidden) < 1 or not self.hidden:
            raise ValueError(f"grid, patch, kernels, width and hidden must all be positive, found {self}")
        if self.column not in ("conv", "tokens"):
            raise ValueError(f"unknown column {self.column!r}. Known: conv, tokens")
        if self.column == "tokens" and not self.token_width:
            raise ValueError("column='tokens' needs token_width, the width of the teacher's tokens")
        if self.fold not in ("mean", "attention"):
            raise ValueError(f"unknown fold {self.fold!r}. Known: mean, attention")
        if self.positions % 4:
            raise ValueError(
                f"position_width must be divisible by 4 (sin, cos of x, y), found {self.positions}: pass another"
            )
        if self.fold == "attention" and (self.width % self.heads or self.width % 4):
            raise ValueError(
                f"attention needs a width divisible by its {self.heads} heads and by 4, found {self.width}"
            )

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) in pixels that the student reads."""
        return self.grid[0] * self.patch, self.grid[1] * self.patch

    @property
    def locations(self) -> int:
        """h * w."""
        return self.grid[0] * self.grid[1]

    @property
    def positions(self) -> int:
        """Width of the positional code P."""
        return self.locations if self.position_width is None else self.position_width

    @property
    def column_width(self) -> int:
        """Width of the trigger column T (of one location's token for column='tokens')."""
        return self.kernels * self.locations if self.column == "conv" else int(self.token_width or 0)

    @property
    def local_width(self) -> int:
        """Width of the injected local patch I_xy; 0 without."""
        return 3 * self.patch**2 if self.local_patch else 0

    @property
    def query_width(self) -> int:
        """Width of q[i, j], the MLP's input."""
        return self.column_width + self.positions + self.local_width


PRESETS: dict[str, APMConfig] = {
    # Reduced scale for 32 px images and a teacher of width 64: 78,385 parameters without the RGB head.
    "mini": APMConfig(),
    # The student of the released test-time training script (448 px, ViT-L/14 teacher), without its unused LayerNorm.
    "released": APMConfig(grid=(32, 32), patch=14, hidden=(4096, 2048, 1024), width=768, fold="attention"),
    # The five-layer variant ("53M net"), trained over many images with a DINOv2 ViT-L/14 teacher.
    "five_layer": APMConfig(
        grid=(32, 32), patch=14, hidden=(4096, 4096, 4096, 2048, 1024), width=1024, fold="mean", rgb_head=False
    ),
}


def preset(name: str, **changes: object) -> APMConfig:
    """A preset by name, with changes. Raises ValueError with the list of known presets."""
    if name not in PRESETS:
        raise ValueError(f"unknown student preset {name!r}. Known: {', '.join(PRESETS)}")
    return replace(PRESETS[name], **changes)  # type: ignore[arg-type]


def sinusoid(n: int, width: int, *, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Tensor:
    """Fixed 1-D code (n, width), width even: sine and cosine interleaved, wavelengths from 2 pi to 10000 * 2 pi."""
    frequency = torch.exp(torch.arange(0, width, 2, dtype=torch.float64) * (-math.log(10000.0) / width))
    angle = torch.arange(n, dtype=torch.float64)[:, None] * frequency  # (n, width / 2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).reshape(n, width).to(dtype=dtype, device=device)


# made once: in every iteration it would cost a core as much as a layer, and a copy to a GPU, for which the CPU waits and which a
# CUDA graph cannot hold
@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def position_codes(
    grid: tuple[int, int], width: int, *, dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """The two halves of the separable 2-D code: along x (w, width / 2) and along y (h, width / 2). All who ask share them: not to be
    changed in place."""
    h, w = grid
    return sinusoid(w, width // 2, dtype=dtype, device=device), sinusoid(h, width // 2, dtype=dtype, device=device)


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def _code_rows(config: APMConfig, before: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The rows [0; 0; Py[i]] and [0; Px[j]; 0] of `shared_products` (h + w, before + positions), shared as `position_codes`."""
    px, py = position_codes(config.grid, config.positions, dtype=dtype, device=device)
    return F.pad(torch.cat([F.pad(py, (px.shape[1], 0)), F.pad(px, (0, py.shape[1]))]), (before, 0))


def positional_encoding(
    grid: tuple[int, int], width: int, *, dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> Tensor:
    """The 2-D code P (h, w, width): the first half of the channels depends on x only, the second on y only (section 3.4)."""
    h, w = grid
    px, py = position_codes(grid, width, dtype=dtype, device=device)
    return torch.cat([px.expand(h, w, -1), py[:, None].expand(h, w, -1)], dim=-1)


def parameter_shapes(config: APMConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of one student, in the order in which they are drawn."""
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, inputs: int, outputs: int) -> None:
        shapes[f"{name}_weight"], shapes[f"{name}_bias"] = (inputs, outputs), (outputs,)

    if config.column == "conv":
        linear("column", 3 * config.patch**2, config.kernels)
    widths = (config.query_width, *config.hidden)
    for layer, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        linear(f"mlp{layer}", inputs, outputs)
    linear("head", config.hidden[-1], config.width)
    if config.fold == "attention":
        shapes["fold_query"] = (config.width,)
        linear("fold_in", config.width, 3 * config.width)  # query, key and value projections
        linear("fold_out", config.width, config.width)
    if config.rgb_head:  # last, so that the other draws do not depend on whether the head exists
        widths = (config.width + config.query_width, *config.rgb_hidden, 3)
        for layer, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            linear(f"rgb{layer}", inputs, outputs)
    return shapes


def count_parameters(config: APMConfig) -> int:
    """Number of weights of one student."""
    return sum(math.prod(shape) for shape in parameter_shapes(config).values())


def draw_parameters(
    config: APMConfig,
    generator: torch.Generator | None = None,
    *,
    std: float = 0.01,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> dict[str, Tensor]:
    """Random weights of one student: every parameter, biases too, from N(0, std) (section 4, App. E.1)."""
    # one call per parameter: what is drawn for a layer does not depend on the layers after it
    return {
        name: torch.randn(shape, generator=generator, dtype=dtype, device=device) * std
        for name, shape in parameter_shapes(config).items()
    }


def stack(parameters: Sequence[Parameters]) -> dict[str, Tensor]:
    """Stack the weights of N students: every parameter gets a leading axis N."""
    return {name: torch.stack([p[name] for p in parameters]) for name in parameters[0]}


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (N, L, in) times weight (in, out) or, stacked, (N, in, out) -> (N, L, out)."""
    if weight.dim() == 2:
        return F.linear(x, weight.mT, bias)
    if bias is None:
        return torch.bmm(x, weight)
    return torch.baddbmm(bias.unsqueeze(1), x, weight)


def _layer(parameters: Parameters, name: str, x: Tensor) -> Tensor:
    return _linear(x, parameters[f"{name}_weight"], parameters[f"{name}_bias"])


def image_seed(seed: int, image: Tensor) -> int:
    """Seed of one image's weights, a hash of run seed and pixels: independent of the other images and of their order."""
    pixels = image.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()
    return int.from_bytes(hashlib.blake2b(pixels, digest_size=8, key=str(seed).encode()).digest(), "little") >> 1


class CropFlip:
    """Views of images (n, 3, H, W), each with its own stream of draws: crops of 8 to 100 % of the area and 3/4 to 4/3 in aspect,
    enlarged to the full size, mirrored every other time."""

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


def patches(images: Tensor, config: APMConfig) -> Tensor:
    """Cut images (N, 3, H, W) into the grid's patches (N, h*w, 3*p*p), row by row. Raises ValueError for another size."""
    h, w = config.grid
    if images.dim() != 4 or images.shape[1] != 3 or images.shape[2:] != torch.Size(config.image_size):
        raise ValueError(
            f"expected images (N, 3, {config.image_size[0]}, {config.image_size[1]}), {h} x {w} columns of {config.patch} px, "
            f"found {tuple(images.shape)}: resize them or choose another grid or patch"
        )
    n, p = images.shape[0], config.patch
    blocks = images.reshape(n, 3, h, p, w, p).permute(0, 2, 4, 1, 3, 5)  # (N, h, w, 3, p, p)
    return blocks.reshape(n, h * w, 3 * p * p)


@dataclass(frozen=True)
class Percept:
    """What one image puts into the grid: all that the columns are unfolded from. Folded, it is a single column."""

    column: Tensor  # T (N, column_width), or routed tokens (N, L, token_width)
    local: Tensor | None  # I_xy (N, L, 3*p*p) where injected


def perceive(parameters: Parameters, image_patches: Tensor, config: APMConfig, tokens: Tensor | None = None) -> Percept:
    """Fold images, given as patches (N, L, 3*p*p), into their trigger column T; column="tokens" needs the teacher's routed tokens
    (N, L, token_width), else ValueError."""
    local = image_patches if config.local_patch else None
    if config.column == "conv":
        # (N, L, kernels): one filter per kernel, stride p (section 3.2)
        response = _layer(parameters, "column", image_patches)
        return Percept(response.mT.reshape(image_patches.shape[0], config.column_width), local)
    expected = (image_patches.shape[0], config.locations, config.column_width)
    if tokens is None or tuple(tokens.shape) != expected:
        found = None if tokens is None else tuple(tokens.shape)
        raise ValueError(f"column='tokens' needs tokens of shape {expected} (N, h*w, token_width), found {found}")
    return Percept(tokens, local)


def unfold(percept: Percept, config: APMConfig, locations: Tensor | None = None, code: Tensor | None = None) -> Tensor:
    """The location-aware columns q (N, L, query_width) = concat(T, P[i, j](, I_xy)) (section 3.4).

    locations: indices i*w + j, in any order; default all. code: P (h*w, positions) where it exists already.
    """
    n = percept.column.shape[0]
    if code is None:
        code = positional_encoding(
            config.grid, config.positions, dtype=percept.column.dtype, device=percept.column.device
        ).flatten(0, 1)
    where = slice(None) if locations is None else locations
    code = code[where].expand(n, -1, -1)
    column = (
        percept.column[:, where] if percept.column.dim() == 3 else percept.column[:, None].expand(n, code.shape[1], -1)
    )
    parts = [column, code] if percept.local is None else [column, code, percept.local[:, where]]
    return torch.cat(parts, dim=-1)


def shared_products(parameters: Parameters, percept: Percept, config: APMConfig) -> tuple[Tensor, Tensor]:
    """What all locations share of the first layer: its row part (N, h, hidden), with T and bias, and its column part (N, w, hidden).

    W1 [T; Px[j]; Py[i]] + b = (W_T T + W_y Py[i] + b) + W_x Px[j], one product with the rows [T; 0; 0], [0; 0; Py[i]], [0; Px[j]; 0].
    """
    h, w = config.grid
    n = percept.column.shape[0]
    weight, bias = parameters["mlp0_weight"], parameters["mlp0_bias"]
    routed = percept.column.dim() == 3  # differ from place to place: only the position code is shared
    codes = _code_rows(config, 0 if routed else config.column_width, weight.dtype, weight.device)
    w_t, w_p, _ = weight.split([config.column_width, config.positions, config.local_width], dim=-2)
    if routed:
        rows = codes.expand(n, -1, -1)
    else:
        column = F.pad(percept.column, (0, config.positions))[:, None]
        rows = torch.cat([column, codes.expand(n, -1, -1)], dim=1)
        w_p = weight if percept.local is None else torch.cat([w_t, w_p], dim=-2)
    product = _linear(rows, w_p)  # (N, (1 +) h + w, hidden)
    column_part, row_part, col_part = product.split([rows.shape[1] - h - w, h, w], dim=1)
    everywhere = bias.unsqueeze(-2) + column_part if column_part.shape[1] else bias.unsqueeze(-2)
    return row_part + everywhere, col_part


def activations(
    parameters: Parameters,
    percept: Percept,
    config: APMConfig,
    locations: Tensor | None = None,
    shared: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The shared MLP's last activations (N, L, hidden[-1]) at all or the given locations, in the given order; shared: `shared_products`."""
    # the first layer without making q: the shared products, and W_I I or W_T T where they differ from place to place
    row_part, col_part = shared_products(parameters, percept, config) if shared is None else shared
    if locations is None:
        x = row_part[:, :, None] + col_part[:, None]  # (N, h, w, hidden)
    else:
        x = row_part[:, locations // config.grid[1]] + col_part[:, locations % config.grid[1]]  # (N, L, hidden)
    where = slice(None) if locations is None else locations
    w_t, _, w_i = parameters["mlp0_weight"].split([config.column_width, config.positions, config.local_width], dim=-2)
    if percept.column.dim() == 3:
        x = x + _linear(percept.column[:, where], w_t).view_as(x)
    if percept.local is not None:
        x = x + _linear(percept.local[:, where], w_i).view_as(x)
    # in place: the values before the ReLU are not needed again, and a pass over memory costs as much as a small product; before
    # the reshape, because autograd copies the gradients of a view that is written to
    x = x.relu_().flatten(1, -2)
    for layer in range(1, len(config.hidden)):
        x = _layer(parameters, f"mlp{layer}", x).relu_()
    return x


def head(parameters: Parameters, x: Tensor) -> Tensor:
    """Linear feature head: activations (N, L, hidden[-1]) -> features f (N, L, D)."""
    return _layer(parameters, "head", x)


def rgb(
    parameters: Parameters, features: Tensor, percept: Percept, config: APMConfig, locations: Tensor | None = None
) -> Tensor:
    """RGB (N, L, 3) from concat(f, q), ReLU after each layer, the last included (released code). ValueError without RGB head."""
    if not config.rgb_head:
        raise ValueError("this student has no RGB head: build it with rgb_head=True")
    x = torch.cat([features, unfold(percept, config, locations)], dim=-1)
    for layer in range(len(config.rgb_hidden) + 1):
        x = F.relu(_layer(parameters, f"rgb{layer}", x))
    return x


def _fold_projections(parameters: Parameters, config: APMConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Query with the key projection folded in (N, heads, D), value weight (N, D, D), value bias (N, D); N = 1 unstacked."""
    d, heads = config.width, config.heads
    weight, bias, query = (parameters[f"fold_{k}"] for k in ("in_weight", "in_bias", "query"))
    if weight.dim() == 2:
        weight, bias, query = weight[None], bias[None], query[None]
    w_q, w_k, w_v = weight.split(d, dim=2)
    b_q, _, b_v = bias.split(d, dim=1)  # the key bias moves all scores alike: softmax does not see it
    q = torch.baddbmm(b_q[:, None], query[:, None], w_q).view(-1, heads, 1, d // heads)
    w_k = w_k.unflatten(2, (heads, -1)).permute(0, 2, 3, 1)  # (N, heads, D / heads, D)
    return (q @ w_k).squeeze(2) / math.sqrt(d // heads), w_v, b_v


def _attend(parameters: Parameters, pooled: Tensor, w_v: Tensor, b_v: Tensor, config: APMConfig) -> Tensor:
    """Value and output projection of pooled inputs (N, heads, D), one per head -> (N, D)."""
    n, heads, d = pooled.shape
    w_v = w_v.unflatten(2, (heads, -1)).transpose(1, 2)  # (N, heads, D, D / heads)
    values = (pooled[:, :, None] @ w_v).reshape(n, 1, d) + b_v[:, None]
    return _layer(parameters, "fold_out", values)[:, 0]


def fold(parameters: Parameters, x: Tensor, config: APMConfig) -> Tensor:
    """Fold the whole grid's activations (N, h*w, hidden[-1]) into one feature (N, D), head included.

    "mean": over the grid (section 3.6). "attention": multi-head, of one learned query over f + P_out (released code).
    """
    if config.fold == "mean":
        return head(parameters, x.mean(dim=1, keepdim=True))[:, 0]
    h, w = config.grid
    query, w_v, b_v = _fold_projections(parameters, config)  # (N, heads, D)
    px, py = position_codes(config.grid, config.width, dtype=query.dtype, device=query.device)
    q_x, q_y = query.split(config.width // 2, dim=-1)
    weight = parameters["head_weight"]
    place = (q_y @ py.mT)[..., :, None] + (q_x @ px.mT)[..., None, :]  # (N, heads, h, w)
    scores = (query @ weight.mT) @ x.mT + place.flatten(-2)  # (N, heads, L); the head's bias cancels in the softmax
    attention = scores.softmax(dim=-1)
    pooled = _linear(attention @ x, weight, parameters["head_bias"])  # (N, heads, D)
    share = attention.unflatten(-1, (h, w))
    pooled = pooled + torch.cat([share.sum(-2) @ px, share.sum(-1) @ py], dim=-1)  # + attention average of P_out
    return _attend(parameters, pooled, w_v, b_v, config)


def output_code(config: APMConfig, like: Tensor) -> Tensor:
    """P_out (h*w, D), the code that attention adds to the features; of the type and on the device of `like`."""
    return positional_encoding(config.grid, config.width, dtype=like.dtype, device=like.device).flatten(0, 1)


class OnlineFold:
    """Fold a stream of columns, in any order and chunks, in memory that does not grow with the grid; `result()` at any time.

    "mean": the paper's running average (n f_avg + f_ij) / (n + 1) (section 3.6); "attention": its softmax online.
    """

    def __init__(self, parameters: Parameters, config: APMConfig, code: Tensor | None = None) -> None:
        """code: P_out (h*w, D) where it exists already, for "attention"."""
        self.parameters, self.config = parameters, config
        self.count = 0
        self.pooled: Tensor | None = None
        self.maximum: Tensor | None = None
        self.weight: Tensor | None = None
        if config.fold == "attention":
            self.query, self.w_v, self.b_v = _fold_projections(parameters, config)
            self.code = output_code(config, self.query) if code is None else code  # once, not once per chunk

    def update(self, features: Tensor, locations: Tensor) -> None:
        """Add features f (N, l, D) of the given l locations (indices i*w + j)."""
        added = features.shape[1]
        if self.config.fold == "mean":
            total = features.sum(dim=1)
            before = 0 if self.pooled is None else self.count * self.pooled
            self.pooled = (before + total) / (self.count + added)
        else:
            inputs = features + self.code[locations]  # (N, l, D)
            scores = self.query @ inputs.mT  # (N, heads, l)
            top = scores.amax(dim=-1, keepdim=True)
            if self.maximum is None or self.pooled is None or self.weight is None:
                self.maximum = top
                self.pooled = torch.zeros_like(self.query.expand(inputs.shape[0], -1, -1))
                self.weight = torch.zeros_like(top)
            maximum = torch.maximum(self.maximum, top)
            kept, share = (self.maximum - maximum).exp(), (scores - maximum).exp()
            self.pooled = self.pooled * kept + share @ inputs
            self.weight = self.weight * kept + share.sum(dim=-1, keepdim=True)
            self.maximum = maximum
        self.count += added

    def result(self) -> Tensor:
        """Folded feature (N, D). Raises ValueError before the first update."""
        if self.pooled is None:
            raise ValueError("nothing folded yet: call update first")
        if self.config.fold == "mean":
            return self.pooled
        assert self.weight is not None
        return _attend(self.parameters, self.pooled / self.weight, self.w_v, self.b_v, self.config)


class APM(nn.Module):
    """One student with its own weights: for a look inside, for asynchronous evaluation, and for dataset-scale training."""

    def __init__(
        self,
        config: APMConfig,
        generator: torch.Generator | None = None,
        *,
        std: float | None = 0.01,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """std: parameters from N(0, std), the paper's; None: PyTorch's default of linear layers, uniform in +-1/sqrt(fan_in)."""
        super().__init__()
        self.config = config
        # drawn in float32: the same student in any precision
        weights = {name: x.to(dtype) for name, x in draw_parameters(config, generator, std=std or 1.0).items()}
        if std is None:
            bound = 0.0
            for name, value in weights.items():
                if value.dim() == 2:
                    bound = 1 / math.sqrt(value.shape[0])
                # the normal draws, mapped to uniform ones
                weights[name] = (torch.special.ndtr(value) * 2 - 1) * bound
        self.weights = nn.ParameterDict({name: nn.Parameter(value.clone()) for name, value in weights.items()})

    @classmethod
    def from_parameters(cls, config: APMConfig, parameters: Parameters) -> APM:
        """A student with given weights, such as `apm.ttt.adapt` returns. Raises ValueError on other shapes."""
        expected = parameter_shapes(config)
        found = {name: tuple(value.shape) for name, value in parameters.items()}
        if wrong := {k: (expected[k], found.get(k)) for k in expected if found.get(k) != expected[k]}:
            raise ValueError(f"weights do not fit the config: {{name: (expected, found)}} = {wrong}")
        model = cls(config, dtype=next(iter(parameters.values())).dtype)
        with torch.no_grad():
            for name in expected:
                model.weights[name].copy_(parameters[name])
        return model

    @property
    def parameters_dict(self) -> dict[str, Tensor]:
        """The weights by name, as the functions of this module take them."""
        return dict(self.weights.items())

    def perceive(self, images: Tensor, tokens: Tensor | None = None) -> Percept:
        """Images (N, 3, H, W) -> their folded percepts."""
        return perceive(self.parameters_dict, patches(images, self.config), self.config, tokens)

    def columns(
        self, percept: Percept, locations: Tensor | None = None, shared: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Features f (N, L, D) of the given locations, in their order; default all, row by row. shared: `shared_products`."""
        weights = self.parameters_dict
        return head(weights, activations(weights, percept, self.config, locations, shared))

    def stream(
        self, percept: Percept, order: Iterable[int] | None = None, chunk: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Evaluate columns asynchronously: yields (locations (l,), features (N, l, D)), l <= chunk. order: of range(h * w) or some."""
        where = torch.as_tensor(
            list(range(self.config.locations) if order is None else order), device=percept.column.device
        )
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1 location, found {chunk}")
        shared = shared_products(self.parameters_dict, percept, self.config)  # once, not once per chunk
        for part in where.split(chunk):
            yield part, self.columns(percept, part, shared)

    def grid(self, images: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Feature grid (N, h, w, D) of images (N, 3, H, W): all locations at once."""
        return self.columns(self.perceive(images, tokens)).unflatten(1, self.config.grid)

    def rgb(self, percept: Percept, features: Tensor, locations: Tensor | None = None) -> Tensor:
        """RGB values (N, L, 3) of the given columns."""
        return rgb(self.parameters_dict, features, percept, self.config, locations)

    def forward(self, images: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Folded feature (N, D) of images (N, 3, H, W)."""
        weights = self.parameters_dict
        x = activations(weights, self.perceive(images, tokens), self.config)
        return fold(weights, x, self.config)
