"""Files of weights: what they hold, whether they are what their card says, and whether they can be had."""

from __future__ import annotations

import hashlib
import json
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from apm.project import atomic_path, cache_dir, locked, sha256_file, sha256_of

# weights that come with the clone, with their cards
SHIPPED = Path(__file__).resolve().parents[2] / "data" / "teachers"


def save(weights: dict[str, Tensor], path: str | Path, metadata: dict[str, Any]) -> None:
    """A checkpoint file, atomically; metadata, with the weights' hash, as one JSON text "apm" in its header. Raises ValueError for
    another suffix than .safetensors."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"checkpoints are written as .safetensors, found {path}")
    metadata = {**metadata, "weights_sha256": weights_sha256(weights)}
    with atomic_path(path) as temporary:
        save_file(weights, str(temporary), metadata={"apm": json.dumps(metadata)})  # several keys have no fixed order


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, on the CPU. Raises ValueError for one of `save` that is damaged."""
    with safe_open(path, framework="pt") as file:
        said = json.loads((file.metadata() or {}).get("apm", "{}")).get("weights_sha256")
    found = load_file(path)
    if said not in (None, weights_sha256(found)):
        raise ValueError(f"{path} is damaged: its weights are not those that were written")
    return found


def kept(path: Path) -> dict[str, Tensor] | None:
    """`read` of a file in the cache; None where it is not there, and, with a warning, where it is damaged: to be made again."""
    try:
        return read(path) if path.is_file() else None
    except (ValueError, SafetensorError) as error:
        warnings.warn(f"the cached file {path} cannot be used ({error}): making it again", stacklevel=2)
        return None


def remembered(kind: str, identity: Any, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors that make() gives, on the CPU: from a file of the cache under the hash of `identity`, all that determines them; one
    process at a time makes it where there is none."""
    path = cache_dir() / kind / f"{sha256_of(identity)[:24]}.safetensors"
    with locked(path.with_name(f".{path.stem}.lock.tmp")):
        if (found := kept(path)) is None:
            found = {name: value.detach().cpu().contiguous() for name, value in make().items()}
            save(found, path, {})
    return found


def hash_weights(digest: Any, weights: dict[str, Tensor]) -> None:
    """Add names, types, shapes and bytes of weights to a hash of hashlib."""
    for key, value in sorted(weights.items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def weights_sha256(weights: dict[str, Tensor]) -> str:
    """sha256 of weights, whatever else their file says."""
    hash_weights(digest := hashlib.sha256(), weights)
    return digest.hexdigest()


def shipped(name: str) -> Path:
    """The checkpoint of that name in data/teachers. Raises FileNotFoundError where it or its card is not there."""
    path = SHIPPED / f"{name}.safetensors"
    for file in (path, path.with_suffix(".yaml")):
        if not file.is_file():
            what = f"teacher {name}: {file} is not there. It comes with the clone: `git checkout data/teachers` brings it back"
            raise FileNotFoundError(f"{what} (an installed package has none: run from a clone)")
    return path


def check_file(file: Path) -> None:
    """Raises ValueError for a checkpoint that is not the one that the card beside it (.yaml, with a sha256) describes; warns of one
    whose weights are not those of the card of its name in data/teachers, which too large a file has alone."""
    card = file.with_suffix(".yaml")
    if not (beside := card.is_file()):
        card = SHIPPED / card.name
    said = (yaml.safe_load(card.read_text(encoding="utf-8")) or {}) if card.is_file() else {}
    if beside and (expected := said.get("sha256")) != (found := sha256_file(file)):
        what = f"expected sha256 {expected}, found {found} ({file.stat().st_size:,} bytes). It was cut off or changed"
        advice = "`git checkout data/teachers` brings it back, `make teacher` trains another"
        raise ValueError(f"{file} is not the file that {card.name} beside it describes: {what}: {advice}")
    expected = None if beside or file.suffix != ".safetensors" else said.get("weights_sha256")
    if expected and (found := weights_sha256(load_file(file))) != expected:
        what = f"{card} describes weights of sha256 {expected[:16]}, found {found[:16]}"
        why = "Another machine trains others from the same seed, and numbers differ with them"
        other = f"{file}: these are not the weights that the committed results were made with"
        warnings.warn(f"{other}: {what}. {why}", stacklevel=2)


def check_reachable(what: str, source: Mapping[str, Any], file: str = "TAG=/path/to/weights.safetensors") -> None:
    """Raises FileNotFoundError for weights that are neither here nor to be had: open_clip and timm would try for most of a minute.

    source: "hf_hub", "repository/file" or "repository/", or "url". file: how a file is named instead.
    """
    from huggingface_hub import constants

    if source.get("hf_hub"):
        where, url = Path(constants.HF_HUB_CACHE), constants.ENDPOINT
        files = where.glob(f"models--{source['hf_hub'].rpartition('/')[0].replace('/', '--')}/snapshots/*/*")
        found = any(path.suffix in (".safetensors", ".bin", ".pt", ".pth") for path in files)
    else:
        where, url = Path("~/.cache/clip").expanduser(), source["url"]
        found = (where / Path(url).name).is_file()
    if not found and (constants.HF_HUB_OFFLINE or not _answers(url)):
        advice = (
            f"Download them where there is a network and name the file, in a profile or in load: pretrained={file!r}"
        )
        raise FileNotFoundError(f"{what}: the weights are not in {where}, and {url} cannot be reached. {advice}")


def _answers(url: str) -> bool:
    """Whether the host answers at all, proxies included; an HTTP error is an answer."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=4).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True
