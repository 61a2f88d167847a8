"""CNCL-U-Net: content and noise against a discriminator that sees both beside the noisy image.

Source: Geng et al., IEEE TMI 41(2), 2022: least squares, and 100 times the mean absolute error of
content and noise. As published, errors are of normalised values, so that noisy slices do not weigh
more than quiet ones.

Differs from the published training: crops are flipped and turned, as for every method here.
"""

# Shapes: B batch, H row, W column; images (B, 1, H, W) in network range.

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.optim import Optimizer

from cddnet.config import ConfigError, TrainConfig
from cddnet.losses.adversarial import least_squares_discriminator, least_squares_generator
from cddnet.losses.pixel import absolute
from cddnet.models import cncl
from cddnet.training.methods import Updates, adamw, frozen, like, options_of
from cddnet.training.pairs import Pair

# Below it, the discriminator's last features are one pixel, which has no deviation.
_SMALLEST_CROP = 32


class Options(BaseModel, frozen=True, extra="forbid"):
    pixel: float = Field(100.0, ge=0, description="weight of the mean absolute error")


class ContentNoise:
    def __init__(self, config: TrainConfig, denoiser: cncl.Generator) -> None:
        self._pixel = options_of(config, Options).pixel
        self._normaliser = denoiser.normaliser
        self.denoiser: nn.Module = denoiser
        self.discriminator = like(cncl.build_discriminator(denoiser.config), denoiser)
        self.networks: Mapping[str, nn.Module] = {
            "denoiser": denoiser,
            "discriminator": self.discriminator,
        }
        self.optimisers: Mapping[str, Optimizer] = {
            name: adamw(network.parameters(), config) for name, network in self.networks.items()
        }

    def step(self, pair: Pair, updates: Updates) -> Mapping[str, Tensor]:
        """The discriminator by what the denoiser gives, then the denoiser by the new one."""
        low_dose = pair.low_dose
        with updates.autocast():
            output = updates.network("denoiser")(low_dose)
        content, noise = (maps.to(low_dose.dtype) for maps in (output.image, output.estimation))
        full_dose, inserted = pair.full_dose, low_dose - pair.full_dose

        discriminator = updates.network("discriminator")
        with updates.autocast():
            real = discriminator(full_dose, inserted, low_dose)
            fake = discriminator(content.detach(), noise.detach(), low_dose)
        judging = least_squares_discriminator(real.to(low_dose.dtype), fake.to(low_dose.dtype))
        updates.minimise("discriminator", judging)

        with frozen(self.discriminator), updates.autocast():
            judged = self.discriminator(content, noise, low_dose)
        adversarial = least_squares_generator(judged.to(low_dose.dtype))
        pixel = absolute(
            self._normalised(content, noise, low_dose),
            self._normalised(full_dose, inserted, low_dose),
        )
        total = adversarial + self._pixel * pixel
        updates.minimise("denoiser", total)
        return {
            "discriminator": judging,
            "adversarial": adversarial,
            "pixel": pixel,
            "total": total,
        }

    def _normalised(self, content: Tensor, noise: Tensor, low_dose: Tensor) -> Tensor:
        """Content and noise (B, 2, H, W) as the networks see them."""
        statistics = self._normaliser.statistics(low_dose)
        return torch.cat(
            (
                self._normaliser.normalise(content, statistics),
                self._normaliser.normalise_noise(noise, statistics),
            ),
            dim=1,
        )


def build(config: TrainConfig, denoiser: nn.Module) -> ContentNoise:
    """Raises: ConfigError for another network than `cncl`, or a crop too small to be judged."""
    if not isinstance(denoiser, cncl.Generator):
        raise ConfigError(
            f"method 'cncl' trains a network that gives content and noise, and '{config.model}' "
            "does not; set model to cncl, or another method."
        )
    if config.crop < _SMALLEST_CROP:
        raise ConfigError(
            f"method 'cncl' cannot judge crops of {config.crop} pixels; set crop to at least "
            f"{_SMALLEST_CROP}."
        )
    return ContentNoise(config, denoiser)
