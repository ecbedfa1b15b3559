import pytest
from hypothesis import given
from hypothesis import strategies as st

from apm.data import prompts


@pytest.mark.parametrize(
    ("name", "count"), [("single", 1), ("released", 1), ("cifar10", 18), ("imagenet-80", 80), ("imagenet-7", 7)]
)
def test_published_prompt_sets_have_their_published_size(name, count):
    found = prompts.templates(name)
    assert len(set(found)) == count
    assert prompts.check(found) == found


def test_imagenet_prompts_are_those_of_open_clip():
    assert prompts.templates("imagenet-80")[0] == "a bad photo of a {}."
    assert "itap of a {}." in prompts.templates("imagenet-7")


def test_cifar_prompts_read_as_published():
    assert prompts.CIFAR[0] == "a photo of a {}."
    assert "a low contrast photo of the {}." in prompts.CIFAR
    assert prompts.CIFAR[-1] == "a photo of the big {}."


def test_unknown_prompt_set_lists_the_known_ones():
    with pytest.raises(ValueError, match="imagenet-80"):
        prompts.templates("imagenet-8")


@pytest.mark.parametrize("bad", [[], ["no place"], ["{} and {}"], "a photo of a {}."])
def test_templates_without_exactly_one_place_are_refused(bad):
    with pytest.raises(ValueError, match="template"):
        prompts.check(bad)


@given(st.text())
def test_any_class_name_is_filled_in_literally(name):
    assert prompts.fill("a {}.", name) == f"a {name}."


def test_digits_are_said_in_words_and_numerals_and_other_names_once():
    assert prompts.forms("seven") == ("seven", "7")
    assert prompts.forms("great white shark") == ("great white shark",)
