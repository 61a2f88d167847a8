"""Difference perception: where one task errs, the other one looks."""

import numpy as np
import pytest
import torch

from cddnet.losses.interaction import (
    Perception,
    Player,
    capped_softmax,
    difference_weights,
    objective,
    relative_error,
    weighted_absolute,
)

SHARP = Perception(smoothing=1)
every_form = pytest.mark.parametrize(
    "perception",
    [
        SHARP,
        Perception(),
        Perception(temperature=0.05, cap=3.0, smoothing=3),
        Perception(temperature=1e-3, cap=1.5, smoothing=1),
    ],
)


def errors(shape=(3, 1, 33, 47), seed=0, dtype=torch.float64):
    """Signed errors; the images differ in scale by a thousand."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([1.0, 1e-3, 1e3], dtype=dtype)[: shape[0]].reshape(-1, 1, 1, 1)
    return scale * torch.randn(shape, generator=generator, dtype=dtype)


def weights_of(error, perception=SHARP):
    return difference_weights(error, torch.zeros_like(error), perception)


@every_form
@pytest.mark.parametrize(("dtype", "eps"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_the_mean_of_each_image_is_one_and_none_above_the_cap(perception, dtype, eps):
    weights = weights_of(errors(dtype=dtype), perception)
    assert (weights.mean((1, 2, 3)) - 1).abs().max() < eps
    assert weights.min() >= 0
    assert weights.max() <= perception.cap * (1 + eps)
    assert weights.std() > 0.1


def test_the_larger_error_has_the_larger_weight():
    error = errors()
    for e, w in zip(error.abs().flatten(1), weights_of(error).flatten(1), strict=True):
        ordered = w[e.argsort()]
        assert (ordered.diff() >= 0).all()
        assert w[e.argmax()] == w.max()
        assert ordered[-1] > 5 * ordered[0]


def test_the_sign_and_the_scale_of_the_error_do_not_matter():
    error = errors()
    assert torch.equal(weights_of(error), weights_of(-error))
    assert torch.allclose(weights_of(error), weights_of(7.5 * error), rtol=1e-12)


def test_smoothing_looks_at_a_region_and_not_at_a_pixel_of_noise():
    error = torch.full((1, 1, 31, 31), 0.1, dtype=torch.float64)
    error[..., 3, 3] = 0.9
    error[..., 14:21, 14:21] = 0.6
    smooth = weights_of(error, Perception(cap=1e3))
    sharp = weights_of(error, Perception(cap=1e3, smoothing=1))
    assert sharp[0, 0, 3, 3] > sharp[0, 0, 17, 17]
    assert smooth[0, 0, 3, 3] < smooth[0, 0, 17, 17] == smooth.max()


@every_form
@pytest.mark.parametrize("error", [0.0, 1e-30, 0.25, -64.0])
def test_equal_errors_weigh_one_everywhere(perception, error):
    weights = weights_of(torch.full((2, 1, 9, 13), error, dtype=torch.float64), perception)
    assert (weights - 1).abs().max() < 1e-12


@pytest.mark.parametrize("cap", [1.01, 3.0, 10.0, 1e4])
@pytest.mark.parametrize("spread", [0.1, 3.0, 300.0])
def test_the_cap_is_that_of_a_search_by_bisection(cap, spread):
    """The independent way: bisect the logarithm of c until the mean of min(cap, c exp) is 1."""
    scores = spread * np.random.default_rng(3).normal(size=(2, 1, 15, 21))
    found = capped_softmax(torch.from_numpy(scores), cap).numpy()
    for score, ours in zip(scores, found, strict=True):
        low, high = -score.max() - 20.0, -score.min() + 20.0
        for _ in range(200):
            middle = (low + high) / 2
            mean = np.exp(np.minimum(score + middle, np.log(cap))).mean()
            low, high = (middle, high) if mean < 1 else (low, middle)
        expected = np.exp(np.minimum(score + low, np.log(cap)))
        assert ours == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("cap", [1.0, 0.5, -1.0])
def test_a_cap_without_room_for_the_mean_is_refused(cap):
    with pytest.raises(ValueError, match="above 1"):
        capped_softmax(torch.zeros(1, 1, 2, 2), cap)


def test_extremes_stay_finite():
    error = torch.zeros(1, 1, 33, 47)
    error[..., 5, 6] = 65535 / 1024
    for perception in (SHARP, Perception(), Perception(temperature=1e-4)):
        weights = weights_of(error, perception)
        assert torch.isfinite(weights).all()
        assert weights[0, 0, 5, 6] == pytest.approx(perception.cap, rel=1e-5)


def test_the_weighted_error_passes_no_gradient_to_the_weights():
    error = errors((1, 1, 5, 7))
    prediction = error.clone().requires_grad_()
    weights = torch.rand_like(error).requires_grad_()
    loss = weighted_absolute(prediction, torch.zeros_like(error), weights)
    loss.backward()
    assert weights.grad is None
    expected = weights * error.sign() / error.numel()
    assert torch.allclose(prediction.grad, expected, rtol=1e-12)
    assert not weights_of(prediction).requires_grad


def test_gradients_are_those_of_finite_differences():
    target, prediction = errors((2, 1, 4, 5)), errors((2, 1, 4, 5), seed=1).requires_grad_()
    weights = weights_of(errors((2, 1, 4, 5), seed=2))
    assert torch.autograd.gradcheck(weighted_absolute, (prediction, target, weights))
    scores = (3 * errors((1, 1, 4, 5), seed=4)).requires_grad_()
    assert (capped_softmax(scores, 2.0) > 2 - 1e-9).any()
    assert torch.autograd.gradcheck(lambda s: capped_softmax(s, 2.0), (scores,))


def test_the_fixed_form_is_the_best_answer_of_a_player():
    """Gibbs: of all weights of mean 1, softmax(error / temperature) has the largest objective."""
    relative = relative_error(errors((1, 1, 9, 11)), torch.zeros(1, dtype=torch.float64))
    for temperature in (0.5, 1.0, 4.0):
        form = Perception(temperature=temperature, cap=1e6, smoothing=1)
        fixed = difference_weights(relative, torch.zeros_like(relative), form)
        best = objective(fixed, relative, temperature)
        log_mean = torch.exp(relative / temperature).mean().log()
        assert best.item() == pytest.approx(temperature * log_mean.item(), rel=1e-10)
        for seed in range(5):
            disturbed = capped_softmax(fixed.log() + 0.1 * errors((1, 1, 9, 11), seed), 1e6)
            assert objective(disturbed, relative, temperature) < best


def test_a_player_learns_to_look_where_the_error_is_and_a_partner_would_hide_it():
    torch.manual_seed(0)
    error = errors((1, 1, 17, 19))
    relative = relative_error(error, torch.zeros_like(error))

    def learned(sign):
        torch.manual_seed(0)
        player = Player(8, cap=1e3).double()
        assert (player(relative) - 1).abs().max() < 1e-12
        optimiser = torch.optim.Adam(player.parameters(), 1e-2)
        for _ in range(60):
            optimiser.zero_grad()
            (-objective(player(relative), sign * relative, 1.0)).backward()
            optimiser.step()
        return player(relative).detach()

    shown, hidden = learned(1), learned(-1)
    assert (hidden * relative).mean() < 0.9 < 1.1 < (shown * relative).mean()
    best = weights_of(error, Perception(cap=1e3, smoothing=1))
    values = [objective(weights, relative, 1.0) for weights in (hidden, best / best, shown, best)]
    assert values == sorted(values)
