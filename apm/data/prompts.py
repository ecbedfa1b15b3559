"""Prompt templates by name: the sentences whose text features make the zero-shot classifier.

A template holds exactly one "{}", where the class name goes. Several templates make CLIP's prompt ensemble
(Modi & Rawat, NeurIPS 2024, section 4 and appendix E.2: 80 templates for the ImageNet sets).
"""

from __future__ import annotations

from collections.abc import Sequence

from apm.project import unknown

SINGLE = ("a photo of a {}.",)

DIGITS = (
    "a photo of the number {}.",
    "a photo of the digit {}.",
    "a handwritten {}.",
    "a handwritten digit {}.",
    "the number {}, written by hand.",
    "a picture of the number {}.",
    "a grayscale image of the digit {}.",
    "the digit {}.",
)

# For class names that are no noun of a certain kind.
GENERAL = ("a photo of a {}.", "an image of a {}.", "a picture of the {}.", "a drawing of a {}.")

# The prompts published with CLIP for CIFAR-10 and CIFAR-100.
_CIFAR_NOUNS = (
    "photo of {article} {{}}",
    "blurry photo of {article} {{}}",
    "black and white photo of {article} {{}}",
    "low contrast photo of {article} {{}}",
    "high contrast photo of {article} {{}}",
    "bad photo of {article} {{}}",
    "good photo of {article} {{}}",
    "photo of {article} small {{}}",
    "photo of {article} big {{}}",
)
CIFAR = tuple(f"a {noun.format(article=article)}." for article in ("a", "the") for noun in _CIFAR_NOUNS)

# One template a set: CUSTOM_TEMPLATES of CoOp (Zhou et al., IJCV 2022; github KaiyangZhou/CoOp, trainers/zsclip.py), which
# the zero-shot rows of the cross-dataset tables use.
COOP: dict[str, tuple[str, ...]] = {
    "flowers102": ("a photo of a {}, a type of flower.",),
    "dtd": ("{} texture.",),
    "pets": ("a photo of a {}, a type of pet.",),
    "ucf101": ("a photo of a person doing {}.",),
    "caltech101": ("a photo of a {}.",),
    "food101": ("a photo of {}, a type of food.",),
    "sun397": ("a photo of a {}.",),
    "aircraft": ("a photo of a {}, a type of aircraft.",),
    "eurosat": ("a centered satellite photo of {}.",),
}

# Several templates a set: CLIP's own (Radford et al. 2021; github openai/CLIP, data/prompts.md). For the three sets that are
# not here (flowers, pets, food) CLIP has one template, the same as CoOp.
_CALTECH_NOUNS = (
    "a photo of a {}.",
    "a painting of a {}.",
    "a plastic {}.",
    "a sculpture of a {}.",
    "a sketch of a {}.",
    "a tattoo of a {}.",
    "a toy {}.",
    "a rendition of a {}.",
    "a embroidered {}.",
    "a cartoon {}.",
    "a {} in a video game.",
    "a plushie {}.",
    "a origami {}.",
    "art of a {}.",
    "graffiti of a {}.",
    "a drawing of a {}.",
    "a doodle of a {}.",
)


def _definite(template: str) -> str:
    """The same template with "the" before the class name's noun phrase, as the second half of CLIP's lists has it."""
    return template.replace(" of a ", " of the ") if " of a " in template else template.replace("a ", "the ", 1)


CLIP: dict[str, tuple[str, ...]] = {
    "clip-caltech101": (*_CALTECH_NOUNS, *(_definite(template) for template in _CALTECH_NOUNS)),
    "clip-dtd": tuple(
        f"a photo of {article} {{}} {noun}."
        for article in ("a", "the")
        for noun in ("texture", "pattern", "thing", "object")
    ),
    "clip-eurosat": tuple(f"a centered satellite photo of {article}{{}}." for article in ("", "a ", "the ")),
    "clip-aircraft": ("a photo of a {}, a type of aircraft.", "a photo of the {}, a type of aircraft."),
    "clip-sun397": ("a photo of a {}.", "a photo of the {}."),
    "clip-ucf101": tuple(
        f"a {medium} of {article} person{verb} {{}}."
        for verb in ("", " using", " doing", " during", " performing", " practicing")
        for article in ("a", "the")
        for medium in ("photo", "video", "example", "demonstration")
    ),
}

# Other ways to say a class name; a teacher trained here sees all of them in its captions.
ALIASES: dict[str, tuple[str, ...]] = {
    word: (word, str(digit))
    for digit, word in enumerate(("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"))
}

_FIXED: dict[str, tuple[str, ...]] = {
    "single": SINGLE,
    "released": ("a photo of a {}",),  # the prompt of the paper's released code, without a full stop
    "digits": DIGITS,
    "cifar10": CIFAR,
    "cifar100": CIFAR,
    **COOP,
    **CLIP,
}
_FROM_OPEN_CLIP = {"imagenet-80": "OPENAI_IMAGENET_TEMPLATES", "imagenet-7": "SIMPLE_IMAGENET_TEMPLATES"}


def names() -> list[str]:
    """Names that `templates` knows."""
    return [*_FIXED, *_FROM_OPEN_CLIP]


def templates(name: str) -> tuple[str, ...]:
    """The templates of that name. "imagenet-80" and "imagenet-7" are read from open_clip (imports torch).

    Raises ValueError with the known names for any other.
    """
    if name in _FIXED:
        return _FIXED[name]
    if name in _FROM_OPEN_CLIP:
        from open_clip import zero_shot_metadata  # here, because it pulls in torch

        return tuple(template("{}") for template in getattr(zero_shot_metadata, _FROM_OPEN_CLIP[name]))
    raise unknown("prompt set", name, names())


def describe(chosen: Sequence[str]) -> str:
    """Templates in a few words, for notes and table footers: all of one or two, else their number, name and first one."""
    chosen = check(chosen)
    if len(chosen) <= 2:
        return " and ".join(f'"{template}"' for template in chosen)
    known = next((name for name, fixed in _FIXED.items() if fixed == chosen), None)
    if known is None and len(chosen) in (7, 80):  # as many as the ImageNet ensembles have: worth the import
        known = next((name for name in _FROM_OPEN_CLIP if templates(name) == chosen), None)
    return f'{len(chosen)} templates{f" ({known})" if known else ""}, the first "{chosen[0]}"'


def check(templates: Sequence[str]) -> tuple[str, ...]:
    """The templates as a tuple. Raises ValueError for none, for a bare string, or where one lacks its single "{}"."""
    if isinstance(templates, str):
        raise ValueError(f"expected a sequence of templates, found the string {templates!r}: pass ({templates!r},)")
    if not templates:
        raise ValueError('expected at least one prompt template such as "a photo of a {}.", found none')
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f'a prompt template holds exactly one "{{}}" for the class name, found {template!r}')
    return tuple(templates)


def fill(template: str, classname: str) -> str:
    """The prompt of one class. Class names may hold braces."""
    return template.replace("{}", classname)


def forms(classname: str) -> tuple[str, ...]:
    """Ways to say a class name in captions: ("seven", "7") for "seven"; the name alone where no other is known."""
    return ALIASES.get(classname, (classname,))
