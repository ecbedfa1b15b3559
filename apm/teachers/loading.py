"""Teachers by name or file, through the factories of open_clip and timm; what is known to go wrong is refused first.

load("mini")                                                  # the small one that comes with the clone
load("ViT-B-16-quickgelu", pretrained="openai")               # any open_clip model and tag
load("ViT-B-32", pretrained="/weights/vit_b_32.safetensors")  # or a local checkpoint
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.transform import PreprocessCfg

from apm.lockstep import caller_free
from apm.project import located, unknown
from apm.project.paths import say
from apm.teachers import weights
from apm.teachers.teacher import PRECISIONS, Teacher
from apm.teachers.timm_models import Classifier, TimmTeacher, classnames, from_package

open_clip.add_model_config(Path(__file__).parent / "model_configs")


@caller_free()
def load(
    name: str,
    *,
    pretrained: str | Path | None = None,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    feature_dtype: str = "float32",
) -> Teacher:
    """A frozen teacher.

    name: "mini" (the weights in data/teachers), any open_clip model name, an open_clip "hf-hub:" or "local-dir:" name, or the path
    of a model configuration (.json). "timm:MODEL" is an image tower of timm without a text tower, such as
    "timm:vit_large_patch14_reg4_dinov2.lvd142m", the teacher of dataset-scale training; "timm:MODEL@448" reads images of 448 px.
    pretrained: an open_clip tag; a checkpoint file (.safetensors, or .pt/.bin/.pth read with weights_only), which in data/cache is
    one in `apm.project.cache_dir`; or both as "TAG=FILE": the tag says how the weights want their images and with which activation
    they were trained. None: timm's own weights. precision: "fp32", "bf16", "fp16" or "fp64". feature_dtype: of the cached
    features, "float32" or "float16" (half the space; cosines change by about 1e-3).

    Raises ValueError for unknown names, tags, precisions and devices, and weights of another activation or architecture, or not those of
    the card beside them; FileNotFoundError for weights that are neither here nor reachable; ModuleNotFoundError for a tokenizer that
    needs transformers. Warns of a file alone where its model's tags want different things, and of other weights than a card's.
    """
    if precision not in PRECISIONS:
        raise unknown("precision", precision, list(PRECISIONS))
    if feature_dtype not in ("float32", "float16"):
        raise unknown("feature_dtype", feature_dtype, ("float32", "float16"))
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device {str(device)!r} was asked for, but torch {torch.__version__} finds no CUDA GPU here: set device: cpu, or "
            "install a torch that fits the GPU's driver"
        )
    build = _timm if name.startswith("timm:") else _clip
    given = None if pretrained is None else located(str(pretrained))
    teacher = build(name, given, device, precision)
    if bad := [key for key, value in teacher.model.state_dict().items() if not bool(value.isfinite().all())]:
        what = f"weights {', '.join(bad[:3])} of {given or 'its file'}"
        raise ValueError(f"teacher {name}: the {what} are not finite in {precision}: damaged, or use another precision")
    teacher.feature_dtype = feature_dtype
    return teacher


def _misfit(file: str, model: str, error: Exception) -> ValueError:
    return ValueError(
        f"the weights {file} cannot be loaded into {model}: {type(error).__name__}: {' '.join(str(error).split())[:300]}. "
        "Expected a checkpoint of this architecture (.safetensors, or a state dict saved by torch.save; what OpenAI published are "
        "TorchScript archives: save torch.jit.load(FILE, 'cpu').state_dict() without input_resolution, context_length, vocab_size)"
    )


def _timm(name: str, pretrained: str | None, device: str | torch.device, precision: str) -> TimmTeacher:
    """A network of timm: a classifier where it has a linear head, else an image tower. name: timm:MODEL or timm:MODEL@PIXELS."""
    import timm

    model_name, _, pixels = name.removeprefix("timm:").partition("@")
    if pixels and not pixels.isdecimal():
        raise ValueError(f"teacher {name}: expected the image size in pixels after @, such as @448, found {pixels!r}")
    if not timm.is_model(model_name):
        near = timm.list_models([f"{model_name[:9]}*", "*dinov2*"], pretrained=True)
        raise unknown("timm model", model_name, near)
    if pretrained is None:
        source = {"hf_hub": f"{getattr(timm.get_pretrained_cfg(model_name), 'hf_hub_id', None)}/model.safetensors"}
        weights.check_reachable(f"teacher {name}", source, "/path/to/weights.safetensors")
    elif pretrained != "package" and not Path(pretrained).is_file():
        raise FileNotFoundError(f"teacher {name}: there is no file {pretrained}")
    options: dict[str, Any] = {"img_size": int(pixels)} if pixels else {}
    file = None if pretrained == "package" else pretrained
    stored = open_clip.factory.load_state_dict(file) if file else {}
    cfg: Any = timm.get_pretrained_cfg(model_name) or timm.get_pretrained_cfg(model_name.split(".")[0])
    head = cfg.classifier
    if file:  # as many classes as the file has; none: a tower
        weight = stored.get(f"{head}.weight")
        options["num_classes"] = 0 if weight is None else len(weight)
    try:
        model: Any = timm.create_model(model_name, pretrained=pretrained is None, **options)
    except (TypeError, AssertionError) as error:  # a tower that has no say in the size
        raise ValueError(f"timm cannot build {model_name} for images of another size than its own: {error}") from error
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", (1, 1))
    if pixels and any(int(pixels) % side for side in patch):
        raise ValueError(f"teacher {name}: {pixels} px are no whole number of patches of {patch[0]} px")
    if pretrained == "package":
        stored = from_package(model_name, model)
    if stored:
        try:
            if pixels and isinstance(model, timm.models.VisionTransformer):
                stored = timm.models.vision_transformer.checkpoint_filter_fn(stored, model)  # fits the position codes
            model.load_state_dict(stored)
        except Exception as error:
            raise _misfit(str(file), f"timm:{model_name}", error) from error
    # a convolution of many small groups takes half the time with channels last
    model = model.to(device, PRECISIONS[precision], memory_format=torch.channels_last)
    if model.num_classes and isinstance(model.get_classifier(), torch.nn.Linear):
        return Classifier(name, model, classnames(model, file), precision)
    return TimmTeacher(name, model, precision)


def _clip(name: str, pretrained: str | None, device: str | torch.device, precision: str) -> Teacher:
    """A CLIP by open_clip's own factory and tokenizer."""
    label, tag, file, wanted = name, None, pretrained, {}
    if name == "mini":
        if pretrained is not None:
            raise ValueError("teacher 'mini' is the one in data/teachers: for other weights pass name='apm-mini'")
        name, file = "apm-mini", str(weights.shipped("mini"))
    elif open_clip.factory.parse_model_name(name)[0] is None:
        label = name = register(name)
        tag, file = split_pretrained(name, pretrained)
        wanted = _wanted(name, tag, file)
        if file is None:
            weights.check_reachable(f"{name}:{tag}", open_clip.get_pretrained_cfg(name, str(tag)))
    elif name.startswith("hf-hub:"):
        weights.check_reachable(f"teacher {name}", {"hf_hub": f"{name[7:]}/"})
    config = open_clip.factory.get_model_config(name)
    text = (config or {}).get("text_cfg", {})
    if (text.get("hf_tokenizer_name") or text.get("hf_model_name")) and not find_spec("transformers"):
        raise ModuleNotFoundError(
            f"teacher {label} needs the package transformers, for its text: pip install 'apm[hf]'"
        )
    path = Path(file) if file and Path(file).is_file() else None
    if path:
        weights.check_file(path)
    try:
        model = open_clip.create_model(
            name,
            file or tag,
            precision="fp32" if precision == "fp64" else precision,  # open_clip knows no fp64
            device=device,
            require_pretrained=True,
            weights_only=True,
            force_preprocess_cfg=wanted if path else None,
        )
    except Exception as error:
        raise _misfit(str(file or tag or name), f"model {name}", error) from error
    if path:
        weights.read(path) if path.suffix == ".safetensors" else None
        _check_positions(name, model, path)
    try:
        tokenizer = open_clip.get_tokenizer(name)
    except OSError as error:  # transformers' word for a repository that is neither here nor reachable
        raise FileNotFoundError(
            f"teacher {label}: its tokenizer {text.get('hf_tokenizer_name')} is not here, and the hub cannot be reached. "
            "Load it once where there is a network, and copy that folder here (HF_HOME says where)"
        ) from error
    return Teacher(label, model.double() if precision == "fp64" else model, tokenizer, config, precision)


def register(name: str) -> str:
    """The open_clip name of a model; a .json path is registered first. Raises ValueError for an unknown name."""
    known = open_clip.list_models()
    if name in known:
        return name
    if not name.endswith(".json"):
        raise unknown("model", name, ["mini", *known])
    path = Path(name)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"model configuration {path} is no JSON: {error}") from error
    if missing := [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in config]:
        raise ValueError(f"model configuration {path} lacks {', '.join(missing)}: expected an open_clip model config")
    if path.stem in known and open_clip.factory.get_model_config(path.stem) != config:
        raise ValueError(f"{path}: the model name {path.stem} is taken by another configuration: rename the file")
    open_clip.add_model_config(path)
    return path.stem


def split_pretrained(name: str, pretrained: str | None) -> tuple[str | None, str | None]:
    """(tag, file) that a value of `pretrained` names for an open_clip model; None for what it leaves open. Raises ValueError for an
    unknown tag in "TAG=FILE"."""
    if pretrained is None or open_clip.get_pretrained_cfg(name, pretrained):
        return pretrained, None
    tag, equals, file = pretrained.partition("=")
    if not equals or Path(pretrained).is_file() or "/" in tag:
        return None, pretrained
    if not open_clip.get_pretrained_cfg(name, tag):
        raise unknown(f"tag of {name}", tag, open_clip.list_pretrained_tags_by_model(name) or ["none"])
    return tag, file


def _wanted(name: str, tag: str | None, file: str | None) -> dict[str, Any]:
    """How weights want their images (fields of PreprocessCfg): as their tag says, or the open_clip_config.json beside their file."""
    tags = open_clip.list_pretrained_tags_by_model(name)
    own = "" if tags else ". A teacher of ours is trained with `make teacher`, or `python -m apm.teachers.train`"
    if tag is None and file is None:
        raise ValueError(
            f"teacher {name} needs weights: pass pretrained=TAG ({', '.join(tags) or 'none'}) or a file{own}"
        )
    if file is not None and not Path(file).is_file():
        raise FileNotFoundError(
            f"teacher {name}: {file!r} is neither a file nor a tag of this model. Known tags: {', '.join(tags) or 'none'}{own}"
        )
    quick = bool(open_clip.factory.get_model_config(name).get("quick_gelu", False))
    other = name.removesuffix("-quickgelu") if quick else f"{name}-quickgelu"
    there = other in open_clip.list_models()
    fields = PreprocessCfg.__dataclass_fields__.keys() - {"size"}

    def read(config: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
        """Preprocessing, and whether the activation is another."""
        return {k: v for k, v in config.items() if k in fields}, bool(config.get("quick_gelu", False)) != quick

    if tag:
        images, differs = read(open_clip.get_pretrained_cfg(name, tag))
        differs = differs and there
    elif (beside := Path(file or "").with_name("open_clip_config.json")).is_file():
        said = json.loads(beside.read_text(encoding="utf-8"))
        images, differs = read({**said.get("model_cfg", {}), **said.get("preprocess_cfg", {})})
    else:
        ways: dict[tuple[str, bool], list[str]] = {}
        for each in tags:
            images, differs = read(open_clip.get_pretrained_cfg(name, each))
            ways.setdefault((json.dumps(images, sort_keys=True), differs and there), []).append(each)
        if len(ways) > 1:
            groups = [f"{', '.join(each)}{f' (of {other})' * differs}" for (_, differs), each in ways.items()]
            warnings.warn(
                f"teacher {name}: the file {file} does not say how its weights want their images, nor whether they were trained with "
                f"QuickGELU, and this model's tags differ in that ({'; '.join(groups)}): taking OpenAI's resizing, mean {OPENAI_DATASET_MEAN} "
                f"and std {OPENAI_DATASET_STD}, and {'a' if quick else 'no'} QuickGELU. If the weights are of one of the tags, say TAG={file}",
                stacklevel=2,
            )
            return {}
        if not ways or differs:  # a configuration of one's own: trained with OpenAI's here
            images = {}
        if ways:
            mean, std = images.get("mean", OPENAI_DATASET_MEAN), images.get("std", OPENAI_DATASET_STD)
            say(f"teacher {name}: {file} has no tag: its images get mean {mean} and std {std}; TAG=FILE says otherwise")
        return images
    if differs:
        raise ValueError(
            f"the weights {name}:{tag or file} were trained {'without' if quick else 'with'} QuickGELU and give wrong features in "
            f"{name}: use {other if there else 'a model configuration that says so'}"
        )
    return images


def _check_positions(name: str, model: Any, file: Path) -> None:
    """open_clip stretches position codes to fit any grid and context; a local file of another size is an error here."""
    stored, expected = open_clip.factory.load_state_dict(str(file)), model.state_dict()
    for key in ("visual.positional_embedding", "positional_embedding"):
        if key in stored and key in expected and stored[key].shape != expected[key].shape:
            found, wanted = (tuple(each[key].shape) for each in (stored, expected))
            raise ValueError(f"{file} is of another architecture than {name}: {key} is {found}, expected {wanted}")
