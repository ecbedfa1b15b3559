import pytest

from apm.data import prompts


@pytest.mark.parametrize(
    ("name", "count", "some"),
    [
        ("single", 1, ("a photo of a {}.",)),
        ("released", 1, ("a photo of a {}",)),
        ("cifar10", 18, ("a photo of a {}.", "a low contrast photo of the {}.", "a photo of the big {}.")),
        ("cifar100", 18, ("a photo of the big {}.",)),
        ("imagenet-80", 80, ("a bad photo of a {}.",)),
        ("imagenet-7", 7, ("itap of a {}.",)),
        ("clip-caltech101", 34, ("a embroidered {}.", "the toy {}.", "the {} in a video game.", "art of the {}.")),
        ("clip-dtd", 8, ("a photo of a {} texture.", "a photo of the {} object.")),
        ("clip-eurosat", 3, ("a centered satellite photo of {}.", "a centered satellite photo of the {}.")),
        ("clip-aircraft", 2, ("a photo of the {}, a type of aircraft.",)),
        ("clip-sun397", 2, ("a photo of the {}.",)),
        ("clip-ucf101", 48, ("a photo of a person {}.", "a demonstration of the person practicing {}.")),
        ("ucf101", 1, ("a photo of a person doing {}.",)),
        ("dtd", 1, ("{} texture.",)),
    ],
)
def test_published_prompt_sets_have_their_size_and_order(name, count, some):
    found = prompts.templates(name)
    assert len(set(found)) == len(found) == count
    assert [t for t in found if t in some] == list(some)
    assert prompts.check(found) == found


@pytest.mark.parametrize("bad", [[], ["no place"], ["{} and {}"], "a photo of a {}."])
def test_unknown_names_and_templates_without_exactly_one_place_are_refused(bad):
    with pytest.raises(ValueError, match="template"):
        prompts.check(bad)
    with pytest.raises(ValueError, match="imagenet-80"):
        prompts.templates("imagenet-8")


def test_prompts_in_a_few_words_and_class_names_filled_in_literally_and_in_other_forms():
    assert prompts.describe(prompts.SINGLE) == '"a photo of a {}."'
    assert prompts.describe(prompts.templates("cifar10")) == '18 templates (cifar10), the first "a photo of a {}."'
    assert prompts.describe([f"{i} {{}}" for i in range(7)]) == '7 templates, the first "0 {}"'
    assert prompts.fill("a {}.", "{0} \\1 {}") == "a {0} \\1 {}."
    assert prompts.forms("seven") == ("seven", "7")
    assert prompts.forms("great white shark") == ("great white shark",)
