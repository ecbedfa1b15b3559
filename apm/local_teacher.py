"""The teacher that a profile trains for itself: `python -m apm.local_teacher cifar10`, which `make teacher` calls.

profiles/<profile>/teacher.yaml holds the options of `python -m apm.teachers train`; the checkpoint goes where the profile's
`pretrained` says. One that is there and was trained with these settings is kept.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from apm import profiles
from apm.project import root


def arguments(profile: str) -> list[str]:
    """The arguments of `apm.teachers` that train a profile's teacher.

    Raises ValueError for an unknown profile, one without teacher.yaml and one whose `pretrained` is no .safetensors file.
    """
    options, out = profiles.load_teacher(profile)
    given = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    return ["train", *given, "--out", str(root() / out)]


def other_settings(path: Path, wanted: dict[str, Any]) -> list[str]:
    """In which settings a checkpoint was trained otherwise than `wanted`, in words; none where it was not.

    Raises ValueError for a file that `apm.teachers` did not write.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            noted = json.loads((file.metadata() or {})["apm"])
        had = {**noted["settings"], "images": noted["data"]}
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} says nothing of how it was trained: it is left as it is; move it away to train one"
        ) from error
    return [f"{name} {had.get(name)}, not {value}" for name, value in wanted.items() if had.get(name) != value]


def main(argv: Sequence[str] | None = None) -> int:
    """Train the profile's teacher where it is not there yet. Returns the exit status: 0, 1 training failed, 2 bad input."""
    given = list(sys.argv[1:] if argv is None else argv)
    if len(given) != 1:
        print("usage: python -m apm.local_teacher PROFILE", file=sys.stderr)
        return 2
    try:
        train = arguments(given[0])
    except (ValueError, OSError) as error:
        print(f"apm.local_teacher: {error}", file=sys.stderr)
        return 2
    from apm import datasets, teachers

    options = vars(teachers._parser().parse_args(train))
    path: Path = options["out"]
    if path.exists():
        fields = {key: value for key, value in options.items() if key in teachers.TrainConfig.__dataclass_fields__}
        wanted = asdict(teachers.TrainConfig(model=options["config"], **fields))
        try:
            with suppress(FileNotFoundError):  # without the images the settings alone decide
                wanted["images"] = datasets.load(options["data"]).fingerprint
            differs = other_settings(path, wanted)
        except (ValueError, OSError) as error:
            print(f"apm.local_teacher: {error}", file=sys.stderr)
            return 2
        if not differs:
            print(f"up to date: {path}, trained with these settings")
            return 0
        print(f"{path} was trained with {'; '.join(differs)}: training it again", flush=True)
    print("python -m apm.teachers", *train, flush=True)
    return teachers.main(train)


if __name__ == "__main__":
    sys.exit(main())
