"""The teachers that come with the clone, in data/teachers, and training them anew: `make teacher PROFILE=mini`.

profiles/<profile>/teacher.yaml holds the options of `python -m apm.teachers.teacher train`. `python -m apm.teachers.local_teacher mini` trains with
them into the cache, where no teacher of these settings, images, code and libraries is there yet, and says how far it is from
the shipped one. Results are made with the shipped weights: another processor trains others from the same seed.

    python -m apm.teachers.local_teacher mini --freeze [FILE]     # makes FILE (default: the one in the cache) the shipped one

A file that is too large to be shipped gets its card alone: `apm.teachers.load` then says of other weights that they are others.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apm.project import atomic_write, cache_dir, located, portable, profiles, root, sha256_file

LARGEST = 10_000_000  # bytes of a shipped file


@dataclass(frozen=True)
class Local:
    """A profile's own teacher: where it lies and how it is trained."""

    profile: str
    options: dict[str, Any]  # of `python -m apm.teachers.teacher train`, from teacher.yaml
    used: Path  # the checkpoint that the profile uses

    @property
    def trained(self) -> Path:
        """Where a training writes."""
        return cache_dir() / "teachers" / self.used.name

    @property
    def command(self) -> list[str]:
        """The arguments of `apm.teachers` that train it."""
        given = [part for name, value in self.options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        return ["train", *given, "--out", str(self.trained)]


def of_profile(profile: str) -> Local:
    """The teacher of a profile with a teacher.yaml. Raises ValueError as `profiles.load_teacher`."""
    options, used = profiles.load_teacher(profile)
    return Local(profile, options, root() / located(used))


NOTES = ("code", "torch", "open_clip")  # what older checkpoints do not say: no reason to train again


def noted(path: Path) -> dict[str, Any]:
    """What a checkpoint says of how it was trained. Raises ValueError for a file that `apm.teachers` did not write."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            found = json.loads((file.metadata() or {})["apm"])
        return {**found["settings"], "images": found["data"], "code": found.get("recipe"), **found.get("versions", {})}
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} says nothing of how it was trained: it is left as it is; move it away to train one"
        ) from error


def train(local: Local) -> int:
    """Train into the cache where none trained so is there. Returns the exit status. Raises as loading the data does."""
    from apm import teachers
    from apm.data import datasets
    from apm.teachers import teacher

    given = vars(teacher._parser().parse_args(local.command))
    config = teachers.TrainConfig(
        model=given["config"], **{k: v for k, v in given.items() if k in teachers.TrainConfig.__dataclass_fields__}
    )
    if local.trained.exists():
        now = teachers.determined_by(datasets.load(given["data"]), config)
        wanted = {**now["settings"], "images": now["data"], "code": now["recipe"], **now["versions"]}
        had = noted(local.trained)
        silent = [name for name in NOTES if had.get(name) is None]
        differs = [
            f"{name} {had.get(name)}, not {value}"
            for name, value in wanted.items()
            if had.get(name) != value and name not in silent
        ]
        if not differs:
            without = f"; it does not say with which {', '.join(silent)}" if silent else ""
            print(f"up to date: {local.trained}, trained with these settings{without}")
            return 0
        print(f"{local.trained} was trained with {'; '.join(differs)}: training it again", flush=True)
    print("python -m apm.teachers.teacher", *local.command, flush=True)
    return teacher.main(local.command)


def distance(local: Local, one: Path, other: Path) -> dict[str, float]:
    """How far two checkpoints are from each other on the held-out images: accuracy of each and share of equal decisions (%),
    largest difference of a class's cosine. Raises as loading teacher and data does."""
    import numpy as np
    import torch

    from apm import methods, teachers
    from apm.data import datasets

    data = datasets.load(local.options["test"])
    scores = []
    for path in (one, other):
        teacher = teachers.load(local.options.get("config", teachers.TrainConfig.model), pretrained=path)
        zero_shot = methods.ZeroShot(teacher)
        scores.append(zero_shot.scores(data, np.arange(len(data))))  # (N, C)
    first, second = scores
    decisions, labels = (first.argmax(-1), second.argmax(-1)), torch.tensor(data.labels)
    return {
        "images": float(len(data)),
        "accuracy of the first": float((decisions[0] == labels).double().mean() * 100),
        "accuracy of the second": float((decisions[1] == labels).double().mean() * 100),
        "same decisions": float((decisions[0] == decisions[1]).double().mean() * 100),
        "largest difference": float((first - second).abs().max()),
    }


def compare(local: Local) -> None:
    """Print how far the trained teacher is from the shipped one, where there are both."""
    if local.used == local.trained or not local.used.is_file() or "test" not in local.options:
        return
    far = distance(local, local.used, local.trained)
    print(
        f"{local.options['test']}, {far['images']:.0f} held-out images: shipped {far['accuracy of the first']:.2f} %, trained here "
        f"{far['accuracy of the second']:.2f} %; the same decision on {far['same decisions']:.2f} %; cosines with the classes "
        f"differ by {far['largest difference']:.4f} at most. Results are made with the shipped one, {local.used}"
    )


def freeze(local: Local, source: Path) -> Path:
    """Write a trained checkpoint as the shipped one, float16, with its card; of one larger than `LARGEST` the card alone, with
    the hash of its weights. Returns the path of what was written, in data/teachers.

    Raises ValueError for a file that `apm.teachers` did not write, that float16 cannot hold or decides otherwise in it on more
    than one in a hundred held-out images; for one that is too large where a smaller one is shipped.
    """
    import open_clip
    import torch
    import yaml
    from safetensors import safe_open
    from safetensors.torch import load_file

    from apm import teachers
    from apm.data import datasets
    from apm.project.identity import libraries

    said = noted(source)
    with safe_open(source, framework="pt") as file:
        metadata = json.loads(file.metadata()["apm"])
    trained = load_file(str(source))
    weights = {k: v.half() if v.is_floating_point() else v for k, v in trained.items()}
    size = sum(v.numel() * v.element_size() for v in weights.values())
    path = teachers.SHIPPED / source.name
    card = path.with_suffix(".yaml")
    data = datasets.load(local.options["data"])
    text = {
        "command": f"make teacher PROFILE={local.profile}",
        "model": metadata["settings"]["model"],
        "data": f"{local.options['data']}: {portable(data.notes)}",
        "images": len(data),
        "data_sha256": said["images"],
        "seed": metadata["settings"]["seed"],
        "settings": metadata["settings"],
    }
    if said["images"] != data.fingerprint:
        raise ValueError(
            f"{source} was trained on other images than {local.options['data']} holds here: expected sha256 {data.fingerprint}, "
            f"found {said['images']}"
        )
    if size > LARGEST:
        if path.exists():
            raise ValueError(f"{path} is shipped and {source} is too large to take its place: remove that one first")
        test = datasets.load(local.options["test"])
        teacher = teachers.load(metadata["settings"]["model"], pretrained=source)
        text |= {
            "versions": metadata.get("versions") or "the checkpoint notes none",
            "stored_as": f"not shipped: {size / 1e6:.0f} MB in float16, at most {LARGEST / 1e6:.0f} MB are",
            "accuracy": {local.options["test"]: round(100 * teachers.accuracy(teacher, test), 2), "images": len(test)},
            "weights_sha256": teachers.weights_sha256(trained),
        }
        atomic_write(card, yaml.safe_dump(text, sort_keys=False, allow_unicode=True, width=120))
        print(f"{card}: the card alone, {text['stored_as']}")
        return card
    if not all(bool(torch.isfinite(v).all()) for v in weights.values() if v.is_floating_point()):
        raise ValueError(f"{source}: float16 cannot hold its weights")
    card.unlink(missing_ok=True)  # else it would be held against the new file
    teachers.save(weights, path, metadata)
    far = distance(local, source, path)
    if far["same decisions"] < 99:
        path.unlink()
        raise ValueError(f"{source}: in float16 it decides alike on {far['same decisions']:.1f} % of the images only")
    text |= {
        "versions": {**libraries(("torch", "timm", "numpy")), "open_clip": open_clip.__version__},
        "processor": f"{torch.backends.cpu.get_cpu_capability()}; another kind trains other weights from the same seed",
        "stored_as": "float16; used as float32 with these rounded values",
        "accuracy": {local.options["test"]: round(far["accuracy of the second"], 2), "images": int(far["images"])},
        "bytes": path.stat().st_size,
        "sha256": sha256_file(path),
    }
    atomic_write(card, yaml.safe_dump(text, sort_keys=False, allow_unicode=True, width=120))
    print(
        f"{path}, {path.stat().st_size:,} bytes: {far['accuracy of the second']:.2f} % of {far['images']:.0f} images of "
        f"{local.options['test']} ({far['accuracy of the first']:.2f} % in float32)"
    )
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status: 0, 1 training failed, 2 bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m apm.teachers.local_teacher", description="Train a profile's own teacher."
    )
    parser.add_argument("profile")
    parser.add_argument("--freeze", nargs="?", const="", metavar="FILE", help="make FILE the one in data/teachers")
    options = parser.parse_args(argv)
    try:
        local = of_profile(options.profile)
        if options.freeze is not None:
            freeze(local, Path(options.freeze or local.trained))
            return 0
        status = train(local)
        if status == 0:
            compare(local)
        return status
    except (ValueError, OSError) as error:
        print(f"apm.teachers.local_teacher: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
