"""Laws that every loss keeps. A new function in LOSSES is tested here without a change."""

import pytest
import torch

from cddnet import plugins
from cddnet.losses.pixel import absolute, charbonnier, local_mean

LOSSES = {
    name: function
    for family in plugins.names("losses")
    for name, function in plugins.load("losses", family).LOSSES.items()
}
every_loss = pytest.mark.parametrize("name", LOSSES)
SHAPES = [(1, 1, 33, 47), (2, 1, 16, 16), (3, 1, 5, 70)]
every_shape = pytest.mark.parametrize("shape", SHAPES)


def images(shape, seed=0):
    """Prediction and target in network range, float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, *shape, generator=generator, dtype=torch.float64)


@every_loss
@every_shape
def test_least_at_the_target(name, shape):
    prediction, target = images(shape)
    steps = (0.0, 1e-3, 0.1, 0.5, 1.0, 3.0)
    losses = [LOSSES[name](target + s * (prediction - target), target).item() for s in steps]
    assert losses[0] == pytest.approx(0.0, abs=1e-15)
    assert losses == sorted(losses)
    assert len(set(losses)) == len(losses)


@every_loss
@every_shape
def test_gradients_are_those_of_finite_differences(name, shape):
    prediction, target = images(shape)
    few = (slice(None), slice(None), slice(0, 5), slice(0, 7))

    def of_a_corner(corner):
        whole = prediction.clone()
        whole[few] = corner
        return LOSSES[name](whole, target)

    corner = prediction[few].clone().requires_grad_()
    assert torch.autograd.gradcheck(of_a_corner, (corner,))
    loss = of_a_corner(corner)
    assert loss.shape == ()
    assert torch.autograd.grad(loss, corner)[0].abs().max() > 0


@every_loss
@pytest.mark.parametrize("hu", [-32768.0, 0.0, 65535.0])
def test_finite_at_extremes(name, hu):
    prediction = torch.full((1, 1, 33, 47), hu / 1024, requires_grad=True)
    for target_hu in (-32768.0, hu, 65535.0):
        loss = LOSSES[name](prediction, torch.full_like(prediction, target_hu / 1024))
        (gradient,) = torch.autograd.grad(loss, prediction)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()


@every_shape
def test_charbonnier_is_absolute_far_away_and_square_nearby(shape):
    prediction, target = images(shape)
    knee = 8 / 1024
    error = prediction - target
    expected = ((error**2 + knee**2) ** 0.5 - knee).mean()
    assert charbonnier(prediction, target).item() == pytest.approx(expected.item(), rel=1e-12)
    far = absolute(1e3 * prediction, 1e3 * target) - charbonnier(1e3 * prediction, 1e3 * target)
    assert far.item() == pytest.approx(knee, rel=1e-2)
    small = 1e-4 * knee
    near = charbonnier(target + small, target).item()
    assert near == pytest.approx(small**2 / (2 * knee), rel=1e-6)


@every_shape
def test_local_mean_is_that_of_blocks_summed_by_hand(shape):
    prediction, target = images(shape)
    error = (prediction - target).numpy()
    rows, columns = shape[-2:]
    means = [
        abs(picture[row : row + 16, column : column + 16].mean())
        for picture in error[:, 0]
        for row in range(0, rows, 16)
        for column in range(0, columns, 16)
    ]
    expected = sum(means) / len(means)
    assert local_mean(prediction, target).item() == pytest.approx(expected, rel=1e-12)


def test_local_mean_sees_a_shift_and_no_texture():
    target = images((1, 1, 48, 32))[1]
    checker = torch.ones_like(target)
    checker[..., ::2, ::2] = checker[..., 1::2, 1::2] = -1
    assert local_mean(target + checker, target).item() == pytest.approx(0.0, abs=1e-12)
    assert local_mean(target - 0.25, target).item() == pytest.approx(0.25)
    assert absolute(target + checker, target).item() == pytest.approx(1.0)
