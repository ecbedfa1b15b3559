"""Read this first: the whole method written down plainly, image by image, without any identity that makes it fast.

Modi & Rawat, NeurIPS 2024, sections 3.2 to 3.6; the number behind a line is where the paper says it. The class is the network, `adapt_one`
test-time training as the paper has it, `adapt_as_released` as its released script does. `apm` is held against this file. Every column q[i, j] = concat(T, P[i, j]) is made, every column goes
through the whole MLP and the head, the grid is folded, the loss taken, PyTorch's Adam steps. It shares with `apm` only the
names and shapes of the weights, so that both can start from the same ones.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def positional_encoding(h: int, w: int, d: int) -> Tensor:
    """P, (h, w, d), loops over every entry: sin/cos of x in the first half of the channels, of y in the second (3.4)."""
    half = d // 2
    code = torch.zeros(h, w, d, dtype=torch.float64)
    for i in range(h):
        for j in range(w):
            for c in range(0, half, 2):
                rate = math.exp(-math.log(10000.0) * c / half)
                code[i, j, c], code[i, j, c + 1] = math.sin(j * rate), math.cos(j * rate)
                code[i, j, half + c], code[i, j, half + c + 1] = math.sin(i * rate), math.cos(i * rate)
    return code


class PlainStudent(torch.nn.Module):
    def __init__(self, config, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.config = config
        self.p = torch.nn.ParameterDict({k: torch.nn.Parameter(v.clone()) for k, v in weights.items()})
        dtype = weights["head_weight"].dtype
        h, w = config.grid
        self.code = positional_encoding(h, w, config.positions).to(dtype)
        if config.fold == "attention":
            self.code_out = positional_encoding(h, w, config.width).to(dtype)

    def columns(self, image: Tensor, tokens: Tensor | None) -> Tensor:
        c, p = self.config, self.p
        h, w = c.grid
        if c.column == "conv":
            kernel = p["column_weight"].T.reshape(c.kernels, 3, c.patch, c.patch)
            t = F.conv2d(image[None], kernel, p["column_bias"], stride=c.patch).flatten()  # T, the column: 3.2
        if c.column == "conv":
            tokens = t.expand(h * w, -1)  # T is the same at every place: unfolding, 3.4
        parts = [tokens, self.code.reshape(h * w, -1)]  # with P[i, j], the code of the place: 3.4
        if c.local_patch:
            blocks = F.unfold(image[None], c.patch, stride=c.patch)[0].T  # (h*w, 3*p*p)
            parts.append(blocks)  # I_xy, the local patch: an ablation only, Table 5b
        return torch.cat(parts, dim=-1)  # (h*w, query_width)

    def forward(self, image: Tensor, tokens: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Folded feature (D,), grid (h*w, D), RGB (h*w, 3) or None."""
        c, p = self.config, self.p
        q = x = self.columns(image, tokens)
        for layer in range(len(c.hidden)):
            x = F.relu(x @ p[f"mlp{layer}_weight"] + p[f"mlp{layer}_bias"])  # one MLP for all columns: App. E.1
        f = x @ p["head_weight"] + p["head_bias"]
        if c.fold == "mean":
            folded = f.mean(dim=0)  # folding: 3.6
        else:  # attention pooling: the released code
            keys = f + self.code_out.reshape(f.shape)
            folded = F.multi_head_attention_forward(
                p["fold_query"][None, None], keys[:, None], keys[:, None], c.width, c.heads, p["fold_in_weight"].T,
                p["fold_in_bias"], None, None, False, 0.0, p["fold_out_weight"].T, p["fold_out_bias"], need_weights=False,
            )[0][0, 0]  # fmt: skip
        colour = None
        if "rgb0_weight" in p:
            colour = torch.cat([f, q], dim=-1)
            for layer in range(len(c.rgb_hidden) + 1):
                colour = F.relu(colour @ p[f"rgb{layer}_weight"] + p[f"rgb{layer}_bias"])
        return folded, f, colour

    def released(self, image: Tensor, copies: int = 8, chunk: int = 16) -> Tensor:
        """Folded features (copies, D) as the released script computes them: the image `copies` times, columns in chunks."""
        c, p = self.config, self.p
        q = self.columns(image, None).expand(copies, -1, -1)  # (copies, h*w, query_width)
        parts = []
        for x in q.split(chunk, dim=1):
            for layer in range(len(c.hidden)):
                x = F.relu(x @ p[f"mlp{layer}_weight"] + p[f"mlp{layer}_bias"])
            parts.append(x @ p["head_weight"] + p["head_bias"])
        f = torch.cat(parts, dim=1)
        if c.fold == "mean":
            return f.mean(dim=1)
        keys = (f + self.code_out.reshape(f.shape[1:])).transpose(0, 1)  # (h*w, copies, D)
        query = p["fold_query"].expand(1, copies, -1)
        return F.multi_head_attention_forward(
            query, keys, keys, c.width, c.heads, p["fold_in_weight"].T, p["fold_in_bias"], None, None, False, 0.0,
            p["fold_out_weight"].T, p["fold_out_bias"], need_weights=False,
        )[0][0]  # fmt: skip


def adapt_one(image, target, config, weights, tokens=None, colours=None):
    """Losses (K + 1,), folded features (K + 1, D) of one image (3, H, W) with target (D,), starting from `weights`."""
    student = PlainStudent(config.student, weights)
    if config.normalise_target:
        target = target / target.norm()
    # Adam and its schedule: released code (Table 7 is a picture), but new for every image, as the weights are: 4, App. E.1
    optimiser = torch.optim.Adam(student.parameters(), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, config.decay_every, config.decay)
    losses, features = [], []
    for k in range(config.iterations + 1):  # K = 20 updates: 3.6, Table 4
        optimiser.zero_grad()
        folded, grid, colour = student(image, tokens)
        loss = config.loss_cls * F.mse_loss(folded, target)  # to the teacher's feature, encoded once: 3.6
        if config.loss_grid:  # L_grid and L_rgb: Table 5b
            goal = tokens / tokens.norm(dim=-1, keepdim=True) if config.normalise_target else tokens
            loss = loss + config.loss_grid * F.mse_loss(grid, goal)
        if config.loss_rgb:
            loss = loss + config.loss_rgb * F.mse_loss(colour, colours)
        losses.append(loss.detach())
        features.append(folded.detach())
        if k < config.iterations:
            loss.backward()
            optimiser.step()
            schedule.step()
    return torch.stack(losses), torch.stack(features)


def adapt_as_released(images, targets, config, weights):
    """The released script's loop over a sequence of images: losses (N, K + 1) and folded features (N, K + 1, D).

    One network, one Adam, one schedule, one GradScaler for all images; gradients zeroed once per image; weights overwritten for
    each.
    """
    first = {k: v[0] for k, v in weights.items()}
    student = PlainStudent(config.student, first)
    optimiser = torch.optim.Adam(student.parameters(), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, config.decay_every, config.decay)
    scaler = torch.amp.GradScaler("cpu")
    losses, features = [], []
    for n, (image, target) in enumerate(zip(images, targets, strict=True)):
        target = target / target.norm() if config.normalise_target else target
        with torch.no_grad():
            for name, parameter in student.p.items():
                parameter.copy_(weights[name][n])
        optimiser.zero_grad()
        for k in range(config.iterations + 1):
            folded, _, _ = student(image)
            loss = F.mse_loss(folded, target)
            losses.append(loss.detach())
            features.append(folded.detach())
            if k < config.iterations:
                scaler.scale(loss).backward()  # adds to the gradients that are there
                scaler.step(optimiser)  # which divides them in place
                scaler.update()
                schedule.step()
    shape = (len(images), config.iterations + 1)
    return torch.stack(losses).reshape(shape), torch.stack(features).unflatten(0, shape)
