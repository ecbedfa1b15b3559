"""The teachers that come with the clone, in data/teachers, and training them anew: `make teacher PROFILE=mini`.

profiles/<profile>/teacher.yaml holds the options of `apm.teachers.train`. `python -m apm.teachers.shipped mini` trains with them
into the cache, where no teacher of these settings, images, code and libraries is there yet, and says how far it is from the
shipped one. Results are made with the shipped weights: another processor trains others from the same seed.

    python -m apm.teachers.shipped mini --freeze [FILE]     # makes FILE (default: the one in the cache) the shipped one

A file that is too large to be shipped gets its card alone: `apm.teachers.load` then says of other weights that they are others.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from apm.data import load as load_dataset
from apm.project import atomic_write, cache_dir, located, portable, profiles, root, sha256_file
from apm.project.identity import libraries
from apm.teachers import train, weights
from apm.teachers.loading import load

LARGEST = 10_000_000  # bytes of a shipped file


@dataclass(frozen=True)
class Local:
    """A profile's own teacher: where it lies and how it is trained."""

    profile: str
    options: dict[str, Any]  # of `train.run`, from teacher.yaml
    used: Path  # the checkpoint that the profile uses

    @property
    def trained(self) -> Path:
        """Where a training writes."""
        return cache_dir() / "teachers" / self.used.name


def of_profile(profile: str) -> Local:
    """The teacher of a profile with a teacher.yaml. Raises ValueError as `profiles.load_teacher` and `train.configured`."""
    options, used = profiles.load_teacher(profile)
    train.configured(options)
    return Local(profile, options, root() / located(used))


def notes(path: Path) -> dict[str, Any]:
    """What a checkpoint says of how it was trained (`train.determined_by`). Raises ValueError for a file that was not trained here."""
    try:
        with safe_open(path, framework="pt") as file:
            found = json.loads((file.metadata() or {})["apm"])
        if not found.keys() >= {"settings", "data"}:
            raise ValueError("another kind of note")
        return found
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} says nothing of how it was trained: it is left as it is; move it away to train one"
        ) from error


def train_anew(local: Local) -> None:
    """Train into the cache where none trained so is there. Raises as `train.run` and `notes`."""
    if local.trained.exists():
        wanted = train.determined_by(load_dataset(local.options["data"]), train.configured(local.options))
        had, now = (
            {**said["settings"], "images": said["data"], "code": said.get("recipe"), **said.get("versions", {})}
            for said in (notes(local.trained), wanted)
        )
        # what an older checkpoint does not say is no reason to train again
        differs = [f"{k} {had[k]}, not {value}" for k, value in now.items() if had.get(k) not in (None, value)]
        if not differs:
            print(f"up to date: {local.trained}, trained with these settings")
            return
        print(f"{local.trained} was trained with {'; '.join(differs)}: training it again", flush=True)
    train.run(local.options, local.trained)


class Distance(NamedTuple):
    """How far two checkpoints are from each other on the held-out images."""

    first: float  # accuracy of each, %
    second: float
    same: float  # equal decisions, %
    largest: float  # difference of a class's cosine
    images: int


def distance(local: Local, first: Path, second: Path) -> Distance:
    """Of two checkpoints of the profile's architecture. Raises as loading teacher and data does."""
    test, model = load_dataset(local.options["test"]), train.configured(local.options).model
    one, other = (train.cosines(load(model, pretrained=path), test) for path in (first, second))  # (N, C)
    a, b, labels = one.argmax(dim=-1), other.argmax(dim=-1), torch.tensor(test.labels)
    first_right, second_right, same = (
        100 * float((x == y).double().mean()) for x, y in ((a, labels), (b, labels), (a, b))
    )
    return Distance(first_right, second_right, same, float((one - other).abs().max()), len(test))


def compare(local: Local) -> None:
    """Print how far the trained teacher is from the shipped one, where there are both."""
    if local.used == local.trained or not local.used.is_file() or "test" not in local.options:
        return
    far = distance(local, local.used, local.trained)
    print(
        f"{local.options['test']}, {far.images} held-out images: shipped {far.first:.2f} %, trained here {far.second:.2f} %; the "
        f"same decision on {far.same:.2f} %; cosines with the classes differ by {far.largest:.4f} at most. Results are made with "
        f"the shipped one, {local.used}"
    )


def freeze(local: Local, source: Path) -> None:
    """Write a trained checkpoint into data/teachers, in float16, with its card; of one larger than `LARGEST` the card alone, with
    the hash of its weights.

    Raises ValueError for a file that was not trained here or on other images, and one that decides otherwise in float16 on more than
    one in a hundred held-out images; for one that is too large where a smaller one is shipped.
    """
    said, trained, data = notes(source), load_file(str(source)), load_dataset(local.options["data"])
    if said["data"] != data.fingerprint:
        raise ValueError(f"{source} was trained on other images: expected {data.fingerprint}, found {said['data']}")
    half = {key: value.half() if value.is_floating_point() else value for key, value in trained.items()}
    size = sum(value.numel() * value.element_size() for value in half.values())
    path = weights.SHIPPED / source.name
    card = path.with_suffix(".yaml")
    if size > LARGEST:
        if path.exists():
            raise ValueError(f"{path} is shipped and {source} is too large to take its place: remove that one first")
        far = distance(local, source, source)
        file = {
            "versions": said.get("versions") or "the checkpoint notes none",
            "stored_as": f"not shipped: {size / 1e6:.0f} MB in float16, at most {LARGEST / 1e6:.0f} MB are",
            "weights_sha256": weights.weights_sha256(trained),
        }
    else:
        card.unlink(missing_ok=True)  # else it would be held against the new file
        weights.save(half, path, said)
        far = distance(local, source, path)
        if far.same < 99:
            path.unlink()
            raise ValueError(f"{source}: in float16 it decides alike on {far.same:.1f} % of the images only")
        file = {
            "versions": {**libraries(("torch", "timm", "numpy")), "open_clip": open_clip.__version__},
            "processor": f"{torch.backends.cpu.get_cpu_capability()}; another kind trains other weights from the same seed",
            "stored_as": "float16; used as float32 with these rounded values",
            "bytes": path.stat().st_size,
            "sha256": sha256_file(path),
        }
    about = {
        "command": f"make teacher PROFILE={local.profile}",
        "model": said["settings"]["model"],
        "data": f"{local.options['data']}: {portable(data.notes)}",
        "images": len(data),
        "data_sha256": said["data"],
        "seed": said["settings"]["seed"],
        "settings": said["settings"],
        "accuracy": {local.options["test"]: round(far.second, 2), "images": far.images},
        **file,
    }
    atomic_write(card, yaml.safe_dump(about, sort_keys=False, allow_unicode=True, width=120))
    print(f"{card}: {about['stored_as']}; {far.second:.2f} % of the held-out images ({far.first:.2f} % in float32)")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m apm.teachers.shipped", description="Train a profile's own teacher."
    )
    parser.add_argument("profile")
    parser.add_argument("--freeze", nargs="?", const="", metavar="FILE", help="make FILE the one in data/teachers")
    options = parser.parse_args(arguments)
    try:
        local = of_profile(options.profile)
        if options.freeze is not None:
            freeze(local, Path(options.freeze or local.trained))
        else:
            train_anew(local)
            compare(local)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"apm.teachers.shipped: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
