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
