"""Laws of the losses of two networks against each other, and of distances of features."""

import pytest
import torch

from cddnet.losses.adversarial import (
    gradient_penalty,
    least_squares_discriminator,
    least_squares_generator,
    wasserstein_critic,
    wasserstein_generator,
)
from cddnet.losses.perceptual import feature_distance

SHAPE = (3, 2, 5, 7)


def drawn(*shape, seed=0, kind=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(kind)


def linear(weight):
    return lambda images: (images * weight).sum((1, 2, 3))


def images():
    return drawn(*SHAPE, seed=1), drawn(*SHAPE, seed=2), torch.rand(3, 1, 1, 1).double()


@pytest.mark.parametrize("length", [0.25, 1.0, 3.0])
def test_the_penalty_of_a_linear_critic_is_that_of_its_length(length):
    """The norm is over all channels and pixels; any part of them would give another."""
    weight = drawn(*SHAPE[1:])
    weight = length * weight / weight.norm()
    found = gradient_penalty(linear(weight), *images())
    assert found.item() == pytest.approx((length - 1) ** 2, abs=1e-14)


def test_the_penalty_has_one_norm_per_sample():
    """Slopes of length 0, 1, 2 give (1 + 0 + 1) / 3; one norm over the batch would give another."""
    unit = drawn(*SHAPE[1:]) / drawn(*SHAPE[1:]).norm()
    slopes = torch.arange(3).view(3, 1, 1, 1) * unit
    assert gradient_penalty(linear(slopes), *images()).item() == pytest.approx(2 / 3, abs=1e-14)


def test_the_penalty_is_taken_between_real_and_fake():
    """By a critic whose slope is the image: its length at the point that the share names."""
    real, fake, share = images()
    between = share * real + (1 - share) * fake
    expected = (between.square().sum((1, 2, 3)).sqrt() - 1).square().mean()
    found = gradient_penalty(lambda maps: 0.5 * maps.square().sum((1, 2, 3)), real, fake, share)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)


def test_the_penalty_teaches_the_critic_by_its_second_derivative():
    real, fake, share = images()

    def of_weights(first, second):
        return gradient_penalty(
            lambda maps: torch.tanh(maps.flatten(1) @ first) @ second, real, fake, share
        )

    weights = [drawn(70, 4, seed=3) / 8, drawn(4, seed=4)]
    weights = [weight.requires_grad_() for weight in weights]
    assert torch.autograd.gradcheck(of_weights, weights)
    gradients = torch.autograd.grad(of_weights(*weights), weights)
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_a_flat_critic_has_a_penalty_of_one_and_a_finite_gradient():
    weight = torch.zeros(SHAPE[1:], dtype=torch.float64, requires_grad=True)
    penalty = gradient_penalty(linear(weight), *images())
    assert penalty.item() == 1
    assert torch.isfinite(torch.autograd.grad(penalty, weight)[0]).all()


def test_no_gradient_of_the_penalty_reaches_the_images():
    real, fake, share = images()
    real.requires_grad_()
    fake.requires_grad_()
    weight = drawn(*SHAPE[1:]).requires_grad_()
    gradient_penalty(linear(weight), real, fake, share).backward()
    assert weight.grad.abs().max() > 0
    assert real.grad is fake.grad is None


def test_the_penalty_is_in_float32_where_the_rest_is_not():
    layer = torch.nn.Linear(70, 1).requires_grad_(False)
    maps = [maps.to(torch.bfloat16) for maps in images()]
    seen = []

    def critic(mixed):
        seen.append(layer(mixed.flatten(1)).dtype)
        return layer(mixed.flatten(1))

    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gradient_penalty(critic, *maps)
    assert seen == [torch.float32]
    expected = (layer.weight.double().norm() - 1).square()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_wasserstein_terms_are_opposed():
    """The denoiser gains what the critic loses by the fakes."""
    real, fake = drawn(6, seed=1), drawn(6, seed=2)
    assert wasserstein_critic(real, fake).item() == pytest.approx(
        (fake.mean() - real.mean()).item()
    )
    assert wasserstein_critic(real + 1, fake) < wasserstein_critic(real, fake)
    assert wasserstein_generator(fake + 1) < wasserstein_generator(fake)
    critic, generator = (
        torch.func.grad(loss)(fake)
        for loss in (lambda scores: wasserstein_critic(real, scores), wasserstein_generator)
    )
    assert torch.equal(critic, -generator)


def test_least_squares_are_least_at_their_targets():
    ones, zeros = torch.ones(2, 1, 3, 4).double(), torch.zeros(2, 1, 3, 4).double()
    assert least_squares_discriminator(ones, zeros).item() == 0
    assert least_squares_generator(ones).item() == 0
    # Undecided scores cost half of the half of both, and a quarter.
    assert least_squares_discriminator(ones / 2, ones / 2).item() == 0.25
    assert least_squares_generator(ones / 2).item() == 0.25
    for seed in range(5):
        off = drawn(*ones.shape, seed=seed)
        near, far = (least_squares_discriminator(ones + s * off, zeros - s * off) for s in (1, 2))
        assert far.item() == pytest.approx(4 * near.item(), rel=1e-12)
        assert near.item() == pytest.approx(off.square().mean().item(), rel=1e-12)
        assert least_squares_generator(ones + off).item() == pytest.approx(
            off.square().mean().item(), rel=1e-12
        )


@pytest.mark.parametrize("convention", ["paper", "authors", "ports"])
def test_distances_of_features_are_those_of_their_convention(convention):
    features = torch.nn.Conv2d(2, 4, 3).double().requires_grad_(False)
    prediction, target = drawn(*SHAPE, seed=1), drawn(*SHAPE, seed=2)
    error = (features(prediction) - features(target)).numpy()
    expected = {
        "paper": (error**2).mean(),
        "authors": (error**2).sum() / 6,
        "ports": abs(error).mean(),
    }[convention]
    prediction.requires_grad_()
    target.requires_grad_()
    found = feature_distance(features, prediction, target, convention=convention)
    assert found.item() == pytest.approx(expected, rel=1e-12)
    found.backward()
    assert prediction.grad.abs().max() > 0
    assert target.grad is None
    assert feature_distance(features, target, target, convention=convention).item() == 0
