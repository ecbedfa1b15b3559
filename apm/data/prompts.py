"""Prompt templates by name (prompts.yaml): the sentences whose text features make the zero-shot classifier.

A template holds exactly one "{}", where the class name goes. Several templates make CLIP's prompt ensemble
(Modi & Rawat, NeurIPS 2024, section 4 and appendix E.2: 80 templates for the ImageNet sets).
"""

from __future__ import annotations

from collections.abc import Sequence

from apm.project import facts, unknown

_FIXED: dict[str, tuple[str, ...]] = {name: tuple(found) for name, found in facts(__file__).items()}
_FROM_OPEN_CLIP = {"imagenet-80": "OPENAI_IMAGENET_TEMPLATES", "imagenet-7": "SIMPLE_IMAGENET_TEMPLATES"}
SINGLE = _FIXED["single"]
DIGITS = _FIXED["digits"]

# Other ways to say a class name; a teacher trained here sees all of them in its captions.
_ALIASES = {
    word: (word, str(digit))
    for digit, word in enumerate(("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"))
}


def names() -> list[str]:
    return [*_FIXED, *_FROM_OPEN_CLIP]


def templates(name: str) -> tuple[str, ...]:
    """The templates of that name. "imagenet-80" and "imagenet-7" are read from open_clip (imports torch). Raises ValueError for others."""
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
    return _ALIASES.get(classname, (classname,))
