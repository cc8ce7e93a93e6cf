import numpy as np
import pytest
import torch

import efficient_mae as emae


def test_equation_2():
    rng = np.random.default_rng(0)
    prediction, target = rng.normal(size=(2, 7, 12)).astype(np.float32)
    d = rng.uniform(4, 40, size=7).astype(np.float32)
    weight = d**-0.6
    expected = (weight * ((prediction - target) ** 2).mean(axis=1)).sum() / weight.sum()
    loss = emae.difficulty_flatten_loss(*map(torch.from_numpy, (prediction, target, d)), gamma=0.6)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_gamma_zero_is_the_mean_squared_error():
    prediction, target = torch.randn(2, 9, 5)
    loss = emae.difficulty_flatten_loss(prediction, target, torch.rand(9) + 1, gamma=0.0)
    torch.testing.assert_close(loss, torch.nn.functional.mse_loss(prediction, target))


def test_it_is_in_float32_whatever_the_images_are_in():
    prediction, target = torch.full((3, 4), 300.0).half(), torch.zeros(3, 4).half()
    loss = emae.difficulty_flatten_loss(prediction, target, torch.ones(3))
    assert loss.dtype == torch.float32 and loss == 300**2


@pytest.mark.parametrize("difficulties", [[6.0, 10.0, 26.0], [0.3, 0.5, 0.26]])
def test_a_large_gamma_leaves_the_easiest_patch(difficulties: list[float]):
    prediction, target = torch.randn(2, 3, 4)
    loss = emae.difficulty_flatten_loss(prediction, target, torch.tensor(difficulties), gamma=100.0)
    easiest = int(np.argmin(difficulties))
    torch.testing.assert_close(loss, torch.nn.functional.mse_loss(prediction[easiest], target[easiest]))


def test_nothing_to_predict():
    empty = torch.empty(0, 4)
    with pytest.raises(ValueError, match="no patch"):
        emae.difficulty_flatten_loss(empty, empty, torch.empty(0))
    assert emae.difficulty_flatten_loss(*torch.randn(2, 2, 4), torch.tensor([0.0, torch.inf]), gamma=0.0).isnan()
