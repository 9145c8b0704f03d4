"""The evaluation's measures, on cases whose answers are known."""

import numpy as np
import pytest
import torch

from deploy.demo_model.measures import balanced_accuracy, sign_test, ssim


def test_balanced_accuracy_does_not_reward_always_saying_no() -> None:
    truth = np.array([True] * 5 + [False] * 95)
    assert balanced_accuracy(truth, np.zeros(100, dtype=bool)) == 0.5
    assert balanced_accuracy(truth, truth) == 1.0


def test_sign_test_counts_the_tail() -> None:
    assert sign_test(0, 0) == 1.0
    assert sign_test(5, 0) == pytest.approx(1 / 32)
    assert sign_test(4, 1) == pytest.approx(6 / 32)


def test_ssim_is_one_for_equal_pictures_and_less_for_others() -> None:
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1
    noise = 0.3 * torch.randn(picture.shape, generator=generator)
    assert torch.allclose(ssim(picture, picture), torch.ones(2))
    assert (ssim(picture, picture + noise) < 0.95).all()
    assert (ssim(picture, -picture) < 0).all()
