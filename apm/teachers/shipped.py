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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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


def notes(path: Path) -> dict[str, Any]:
    """What a checkpoint says of how it was trained (`train.determined_by`). Raises ValueError for a file that was not trained here."""
    try:
        with safe_open(path, framework="pt") as file:
            found = json.loads(file.metadata()["apm"])
        return {"settings": found["settings"], "data": found["data"], **found}
    except (SafetensorError, TypeError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} says nothing of how it was trained: it is left as it is; move it away to train one"
        ) from error


def train_anew(options: Mapping[str, Any], out: Path) -> None:
    """Train where no checkpoint trained so is at `out`. options: of `train.run`. Raises as that and `notes`."""
    if out.exists():
        wanted = train.determined_by(load_dataset(options["data"]), train.configured(options))
        had, now = (
            {**said["settings"], "images": said["data"], "code": said.get("recipe"), **said.get("versions", {})}
            for said in (notes(out), wanted)
        )
        # what an older checkpoint does not say is no reason to train again
        differs = [f"{k} {had[k]}, not {value}" for k, value in now.items() if had.get(k) not in (None, value)]
        if not differs:
            print(f"up to date: {out}, trained with these settings")
            return
        print(f"{out} was trained with {'; '.join(differs)}: training it again", flush=True)
    train.run(options, out)


def distance(options: Mapping[str, Any], first: Path, second: Path) -> tuple[float, float, float, float, int]:
    """Of two checkpoints on the held-out images: accuracy of each (%), equal decisions (%), largest difference of a cosine, images."""
    test, model = load_dataset(options["test"]), train.configured(options).model
    one, other = (train.cosines(load(model, pretrained=path), test) for path in (first, second))  # (N, C)
    a, b, labels = one.argmax(dim=-1), other.argmax(dim=-1), torch.tensor(test.labels)
    shares = [100 * float((x == y).double().mean()) for x, y in ((a, labels), (b, labels), (a, b))]
    return shares[0], shares[1], shares[2], float((one - other).abs().max()), len(test)


def freeze(profile: str, options: Mapping[str, Any], source: Path) -> None:
    """Write a trained checkpoint into data/teachers, in float16, with its card; of one larger than `LARGEST` the card alone, with
    the hash of its weights.

    Raises ValueError for a file that was not trained here or on other images, and one that decides otherwise in float16 on more than
    one in a hundred held-out images; for one that is too large where a smaller one is shipped.
    """
    said, trained, data = notes(source), load_file(str(source)), load_dataset(options["data"])
    if said["data"] != data.fingerprint:
        raise ValueError(f"{source} was trained on other images: expected {data.fingerprint}, found {said['data']}")
    half = {key: value.half() if value.is_floating_point() else value for key, value in trained.items()}
    size = sum(value.nbytes for value in half.values())
    path = weights.SHIPPED / source.name
    card = path.with_suffix(".yaml")
    if size > LARGEST:
        if path.exists():
            raise ValueError(f"{path} is shipped and {source} is too large to take its place: remove that one first")
        single, right, _, _, images = distance(options, source, source)
        file = {
            "versions": said.get("versions") or "the checkpoint notes none",
            "stored_as": f"not shipped: {size / 1e6:.0f} MB in float16, at most {LARGEST / 1e6:.0f} MB are",
            "weights_sha256": weights.weights_sha256(trained),
        }
    else:
        card.unlink(missing_ok=True)  # else it would be held against the new file
        weights.save(half, path, said)
        single, right, same, _, images = distance(options, source, path)
        if same < 99:
            path.unlink()
            raise ValueError(f"{source}: in float16 it decides alike on {same:.1f} % of the images only")
        file = {
            "versions": {**libraries(("torch", "timm", "numpy")), "open_clip": open_clip.__version__},
            "processor": f"{torch.backends.cpu.get_cpu_capability()}; another kind trains other weights from the same seed",
            "stored_as": "float16; used as float32 with these rounded values",
            "bytes": path.stat().st_size,
            "sha256": sha256_file(path),
        }
    about = {
        "command": f"make teacher PROFILE={profile}",
        "model": said["settings"]["model"],
        "data": f"{options['data']}: {portable(data.notes)}",
        "images": len(data),
        "data_sha256": said["data"],
        "seed": said["settings"]["seed"],
        "settings": said["settings"],
        "accuracy": {options["test"]: round(right, 2), "images": images},
        **file,
    }
    atomic_write(card, yaml.safe_dump(about, sort_keys=False, allow_unicode=True, width=120))
    print(f"{card}: {about['stored_as']}; {right:.2f} % of the held-out images ({single:.2f} % in float32)")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    parser = argparse.ArgumentParser("python -m apm.teachers.shipped", description="Train a profile's own teacher.")
    parser.add_argument("profile")
    parser.add_argument("--freeze", nargs="?", const="", metavar="FILE", help="make FILE the one in data/teachers")
    asked = parser.parse_args(arguments)
    try:
        options, named = profiles.load_teacher(asked.profile)
        train.configured(options)
        used = root() / located(named)  # the checkpoint that the profile uses
        trained = cache_dir() / "teachers" / used.name
        if asked.freeze is not None:
            freeze(asked.profile, options, Path(asked.freeze or trained))
            return 0
        train_anew(options, trained)
        if used != trained and used.is_file() and "test" in options:
            first, second, same, largest, images = distance(options, used, trained)
            print(
                f"{options['test']}, {images} held-out images: shipped {first:.2f} %, trained here {second:.2f} %; the same decision "
                f"on {same:.2f} %; cosines with the classes differ by {largest:.4f} at most. Results are made with the shipped one, {used}"
            )
    except (ValueError, OSError, RuntimeError) as error:
        print(f"apm.teachers.shipped: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
