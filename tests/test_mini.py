"""The real thing at the scale of profile mini: its teacher, its images, its settings. Trains the teacher when none is cached."""

import dataclasses

import numpy as np
import plain
import pytest
import torch

from apm import data as datasets
from apm import methods, teachers, ttt
from apm.data import corruptions
from apm.project import profiles

KINDS = ("gaussian_noise", "glass_blur", "frost", "contrast", "pixelate")


@pytest.fixture(scope="module")
def teacher() -> teachers.Teacher:
    return teachers.load("mini")


@pytest.fixture(scope="module")
def config(teacher: teachers.Teacher) -> ttt.TTTConfig:
    values = profiles.load("mini", "02_corruptions")
    return methods.training_config(teacher, values["student"], values["training"])


@pytest.fixture(scope="module")
def conditions() -> list[datasets.Dataset]:
    few = datasets.load("digits-test").subset(48, seed=0)
    return [few, *(corruptions.corrupted(few, kind, 5) for kind in KINDS)]


def test_loss_falls_a_hundredfold_within_the_fixed_number_of_iterations(teacher, config, conditions):
    assert config.iterations >= 50
    for dataset in conditions:
        losses = methods.adapt_dataset(teacher, dataset, np.arange(len(dataset)), config).losses
        assert losses[:, -1].mean() < losses[:, 0].mean() / 100


def test_bfloat16_keeps_99_percent_of_the_class_decisions(teacher, config, conditions):
    both, everything = (config, dataclasses.replace(config, precision="bfloat16")), np.arange(48)
    full, half = (
        np.concatenate([methods.APM(teacher, c).predict(data, everything, 0).prediction for data in conditions])
        for c in both
    )
    assert (full == half).mean() >= 0.99


def test_float32_lockstep_makes_the_decisions_of_the_plain_formulation(teacher, config, conditions):
    dataset = conditions[1].subset(np.arange(6))
    result = methods.adapt_dataset(teacher, dataset, np.arange(6), config)
    images = teachers.student_images(list(dataset.images), 32)
    targets = torch.as_tensor(np.array(teachers.features(teacher, dataset)))
    text = teacher.text_features(dataset.classnames, dataset.templates)
    weights, trained = ttt.initial_parameters(images, config), dataclasses.replace(config, student=config.trained)
    for k in range(6):
        start = {name: value[k] for name, value in weights.items()}
        scores = ttt.cosine_scores(plain.adapt_one(images[k], targets[k], trained, start)[1], text)
        torch.testing.assert_close(result.scores[k], scores, rtol=1e-3, atol=1e-4)
        assert result.predictions()[k, -1] == scores[-1].argmax()


def test_a_student_at_random_weights_is_near_chance_and_trained_as_good_as_its_teacher(teacher, config):
    dataset = datasets.load("digits-test").subset(200, seed=1)
    predictions = methods.APM(teacher, config).predict(dataset, np.arange(200), seed=0)
    teachers_own = methods.ZeroShot(teacher).predict(dataset, np.arange(200), seed=0).prediction
    assert (predictions.path[:, 0] == dataset.labels).mean() < 0.25
    assert (predictions.prediction == teachers_own).mean() > 0.97
