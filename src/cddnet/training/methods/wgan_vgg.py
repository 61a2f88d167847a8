"""WGAN-VGG: a denoiser against a Wasserstein critic, held to the full dose by features.

Source: Yang et al., IEEE TMI 37(6), 2018. Features are those of VGG19 after its 16th convolution
and ReLU, from a file of the user's; or those of our own shipped network, which need nothing; or
none. What ran is named for it (`label`): without VGG19 it is not WGAN-VGG.

Differs from the paper: the critic's updates of one step see the same crops, each between other
points of real and fake. The generator has no shortcut and starts black, where the critic teaches it
nothing: in the first `warm_up` of the steps it learns by the mean absolute error alone. Differs
from public PyTorch forms: the critic's gradient is that of one update, not the sum over them;
images enter VGG19 with ImageNet's mean and deviation, as torchvision trained it. The authors give
it grey levels times 255, less a mean, with weights of Caffe: features then have another scale, so
that equal weights of the loss are not equal trainings.
"""

# Shapes: B batch, H row, W column; images (B, 1, H, W) in network range; `grey` is 0..1 of the
# critic's range.

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn
from torch.optim import Optimizer

from cddnet.config import TrainConfig
from cddnet.losses.adversarial import gradient_penalty, wasserstein_critic, wasserstein_generator
from cddnet.losses.perceptual import Convention, feature_distance
from cddnet.losses.pixel import absolute
from cddnet.models import _weights, wgan_vgg
from cddnet.models._features import FeatureNetwork
from cddnet.training.methods import Updates, adamw, frozen, like, options_of
from cddnet.training.methods._vgg19 import VGG19_SHA256, as_imagenet, read_weights
from cddnet.training.pairs import Pair

_OWN = "cddnet@1"


class Options(BaseModel, frozen=True, extra="forbid"):
    warm_up: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the steps, the first, in which the denoiser learns by the mean "
        "absolute error alone; 0 as published",
    )
    critic_updates: int = Field(4, gt=0, description="of the critic for each of the denoiser")
    penalty: float = Field(10.0, ge=0, description="weight of the gradient penalty, in grey levels")
    perceptual: float = Field(0.1, ge=0, description="weight of the distance of features")
    distance: Convention = Field("paper", description="of features; see losses/perceptual.py")
    features: Literal["own", "vgg19", "none"] = Field("own", description="that are compared")
    vgg19_file: Path | None = Field(
        None, description="vgg19-dcbb9e9d.pth, or .safetensors with its keys; nothing is downloaded"
    )
    vgg19_sha256: str = Field(VGG19_SHA256, description="of that file; torchvision's by default")

    @model_validator(mode="after")
    def _file_where_it_is_used(self) -> Options:
        if (self.features == "vgg19") != (self.vgg19_file is not None):
            raise ValueError("features vgg19 needs vgg19_file, and nothing else does")
        return self

    @property
    def label(self) -> str:
        """What tables call it."""
        return {
            "vgg19": "WGAN-VGG",
            "own": "WGAN + own features",
            "none": "WGAN without features",
        }[self.features]


class WganVgg:
    """The critic judges crops of the recipe's size, in the range of the denoiser's `Config`."""

    def __init__(self, config: TrainConfig, denoiser: nn.Module) -> None:
        self._options = options_of(config, Options)
        self._warm_up_steps = int(self._options.warm_up * config.steps)
        self.label = self._options.label
        whose = denoiser.config if isinstance(denoiser, wgan_vgg.Generator) else wgan_vgg.Config()
        critic = wgan_vgg.build_critic(whose, config.crop)
        self.denoiser = denoiser
        self.critic = like(critic, denoiser)
        self._range = critic.range
        features = _features(self._options, critic)
        self._features = None if features is None else like(features, denoiser)
        self.networks: Mapping[str, nn.Module] = {"denoiser": denoiser, "critic": self.critic}
        self.optimisers: Mapping[str, Optimizer] = {
            name: adamw(network.parameters(), config) for name, network in self.networks.items()
        }

    def step(self, pair: Pair, updates: Updates) -> Mapping[str, Tensor]:
        """The critic some times by what the denoiser gives, then the denoiser by the new critic."""
        with updates.autocast():
            output = updates.network("denoiser")(pair.low_dose)
        denoised = output.image.to(pair.full_dose.dtype)
        if updates.step <= self._warm_up_steps:
            error = absolute(denoised, pair.full_dose)
            updates.minimise("denoiser", error)
            return {"absolute": error, "total": error}
        for _ in range(self._options.critic_updates):
            terms = self._teach_critic(pair.full_dose, denoised.detach(), updates)
        return terms | self._teach_denoiser(pair.full_dose, denoised, updates)

    def _teach_critic(self, real: Tensor, fake: Tensor, updates: Updates) -> dict[str, Tensor]:
        critic = updates.network("critic")
        with updates.autocast():
            scores = [critic(images).to(real.dtype) for images in (real, fake)]
        distance = wasserstein_critic(*scores)
        # The norm 1 that it asks for is of scores per grey level, as published.
        penalty = gradient_penalty(
            lambda grey: critic(self._range.from_unit(grey)),
            self._range.to_unit(real),
            self._range.to_unit(fake),
            updates.uniform(len(real), 1, 1, 1),
        )
        loss = distance + self._options.penalty * penalty
        updates.minimise("critic", loss)
        return {"critic": loss, "wasserstein": -distance, "penalty": penalty}

    def _teach_denoiser(
        self, full_dose: Tensor, denoised: Tensor, updates: Updates
    ) -> dict[str, Tensor]:
        with frozen(self.critic), updates.autocast():
            scores = self.critic(denoised)
        adversarial = wasserstein_generator(scores.to(full_dose.dtype))
        terms, total = {"adversarial": adversarial}, adversarial
        if self._features is not None:
            with updates.autocast():
                distance = feature_distance(
                    self._features, denoised, full_dose, convention=self._options.distance
                )
            terms["perceptual"] = distance
            total = total + self._options.perceptual * distance
        updates.minimise("denoiser", total)
        return terms | {"total": total}


def build(config: TrainConfig, denoiser: nn.Module) -> WganVgg:
    """Raises: ConfigError for wrong options; ModelError for a crop too small for the critic, or a
    file of VGG19 that is missing, another one than stated, or does not fit.
    """
    return WganVgg(config, denoiser)


def _features(options: Options, critic: wgan_vgg.Critic) -> nn.Module | None:
    if options.vgg19_file is not None:
        state = read_weights(
            options.vgg19_file, options.vgg19_sha256, otherwise="set features to own"
        )
        return Vgg19Features(FeatureNetwork("vgg19", state), critic)
    return None if options.features == "none" else OwnFeatures()


class OwnFeatures(nn.Module):
    """Frozen: images (B, 1, H, W) to the deepest features of the shipped network, at an eighth of
    the resolution.
    """

    def __init__(self) -> None:
        super().__init__()
        path = Path(str(files("cddnet") / "weights" / f"{_OWN}.safetensors"))
        self.network, _ = _weights.load(path)
        self.network.requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        found: list[Tensor] = []
        deepest = self.network.get_submodule("body.bottom")
        with deepest.register_forward_hook(lambda *call: found.append(call[-1])):
            self.network(image)
        return found[0]


class Vgg19Features(nn.Module):
    """Frozen: images (B, 1, H, W) to the features after the 16th convolution and ReLU of VGG19.

    The grey level of the critic's range is each of the three colours.
    """

    def __init__(self, network: FeatureNetwork, critic: wgan_vgg.Critic) -> None:
        super().__init__()
        self.network, self._range = network, critic.range

    def forward(self, image: Tensor) -> Tensor:
        found: Tensor = self.network.features(as_imagenet(self._range.to_unit(image)))
        return found
