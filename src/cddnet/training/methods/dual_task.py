"""Two tasks in turns: estimate the depth of the restored image, and restore the image.

1. The estimator DE learns the radiological depth from the restored image, which is detached; the
   error of the image weights the error of the depth.
2. The denoiser learns as in `supervised`, its own depth head too; in addition the depth error of
   DE, which stays as it is, weights the error of the image, a small depth error passes through DE,
   and a contrastive term pulls towards the full dose and away from the low dose.

With interaction none, contrastive none and partner_depth 0 the denoiser learns exactly what it
learns by `supervised`. DE has the form of CDD-Net's depth head; after training nothing needs it.
Source: CDD-Net and DCMPNet (Zhang et al., CVPR 2024).
"""

# Shapes: B batch, C channel, H row, W column; images (B, 1, H, W) in network range.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from cddnet.config import ConfigError, TrainConfig
from cddnet.intensity.normalise import HU_PER_UNIT
from cddnet.losses.contrast import Contrast
from cddnet.losses.interaction import (
    Perception,
    Player,
    difference_weights,
    objective,
    relative_error,
    weighted_absolute,
)
from cddnet.losses.pixel import absolute
from cddnet.models._features import FeatureNetwork
from cddnet.models.cddnet import CDDNet, DepthHead, pad_to_stride
from cddnet.training.methods import Updates, adamw, frozen, like, options_of
from cddnet.training.methods._vgg19 import VGG19_SHA256, as_imagenet, read_weights
from cddnet.training.methods.supervised import losses, relative_to_noise
from cddnet.training.pairs import Pair

USES_LOSS = NEEDS_DEPTH = True

# The window of the published training images.
_BLACK_HU, _WHITE_HU = -700.0, 300.0
_POOLING = 8


class Options(BaseModel, frozen=True, extra="forbid"):
    """Besides the weights in `loss`, which mean the same as in `supervised`."""

    interaction: Literal["none", "fixed", "max_player"] = Field(
        "fixed", description="how one task's error weights the other's; max_player: it learns to"
    )
    contrastive: Literal["none", "own", "vgg19"] = Field(
        "own", description="features: a frozen copy of the denoiser's encoder, or VGG19"
    )
    weighted_image: float = Field(1.0, ge=0, description="error of the image, weighted by depth")
    weighted_depth: float = Field(1.0, ge=0, description="error of DE, weighted by the image")
    partner_depth: float = Field(0.01, ge=0, description="error of DE, to learn the image from")
    contrast: float = Field(0.01, ge=0, description="contrastive term")
    temperature: float = Field(1.0, gt=0, description="of the weights, in mean errors")
    cap: float = Field(10.0, gt=1, description="largest weight; their mean is 1")
    smoothing: int = Field(
        5, gt=0, description="side of the error's local mean, odd; of the fixed form"
    )
    estimator_width: int = Field(16, gt=0, description="channels of DE")
    player_width: int = Field(8, gt=0, description="channels of max_player")
    refresh_every: int = Field(
        1000, gt=0, description="steps between copies of the encoder; the term begins with one"
    )
    largest_ratio: float = Field(10.0, gt=0, description="bound of the contrastive ratio")
    vgg19_file: Path | None = Field(
        None, description="vgg19-dcbb9e9d.pth, or .safetensors with its keys; nothing is downloaded"
    )
    vgg19_sha256: str = Field(VGG19_SHA256, description="of that file; torchvision's by default")

    @model_validator(mode="after")
    def _fits_together(self) -> Options:
        if self.smoothing % 2 == 0:
            raise ValueError(f"smoothing is {self.smoothing}; give an odd number")
        if (self.contrastive == "vgg19") != (self.vgg19_file is not None):
            raise ValueError("contrastive vgg19 needs vgg19_file, and nothing else does")
        return self


class DualTask:
    def __init__(self, config: TrainConfig, denoiser: nn.Module) -> None:
        self._options = options = options_of(config, Options)
        self._weights = config.loss
        self.denoiser = denoiser
        self._estimator = like(DepthEstimator(options.estimator_width), denoiser)
        learning: dict[str, nn.Module] = {"denoiser": denoiser, "estimator": self._estimator}
        if options.interaction == "max_player":
            for name in ("image_player", "depth_player"):
                learning[name] = like(Player(options.player_width, options.cap), denoiser)
        self.optimisers: Mapping[str, Optimizer] = {
            name: adamw(network.parameters(), config) for name, network in learning.items()
        }
        self._features = _features(options, denoiser)
        # The copy is no function of the recipe and the step, so it belongs into the checkpoints.
        copied = self._features if isinstance(self._features, OwnFeatures) else None
        self.networks: Mapping[str, nn.Module] = learning | ({"encoder": copied} if copied else {})

    def step(self, pair: Pair, updates: Updates) -> Mapping[str, Tensor]:
        with updates.autocast():
            output = updates.network("denoiser")(pair.low_dose)
        terms = losses(output, pair, self._weights)
        restored = output.image.to(pair.full_dose.dtype)
        estimated = self._learn_depth(restored.detach(), pair, updates)
        terms |= self._partner_terms(restored, pair, updates)
        terms |= self._contrast_term(restored, pair, updates)
        options = self._options
        for name, weight in (
            ("weighted_image", options.weighted_image),
            ("partner_depth", options.partner_depth),
            ("contrast", options.contrast),
        ):
            if name in terms and weight:
                terms["total"] = terms["total"] + weight * terms[name]
        updates.minimise("denoiser", terms["total"])
        return terms | estimated

    def _learn_depth(self, restored: Tensor, pair: Pair, updates: Updates) -> dict[str, Tensor]:
        """Step 1. restored: detached."""
        with updates.autocast():
            depth = updates.network("estimator")(restored)
        depth = depth.to(pair.depth.dtype)
        terms = {"estimator": absolute(depth, pair.depth)}
        total = terms["estimator"]
        weights = self._perceived("image_player", restored, pair.full_dose, updates)
        if weights is not None:
            terms["weighted_depth"] = weighted_absolute(depth, pair.depth, weights)
            total = total + self._options.weighted_depth * terms["weighted_depth"]
        updates.minimise("estimator", total)
        return terms

    def _partner_terms(self, restored: Tensor, pair: Pair, updates: Updates) -> dict[str, Tensor]:
        """What step 2 has from DE, which passes gradients on and learns nothing."""
        with frozen(self._estimator), updates.autocast():
            depth = self._estimator(restored)
        depth = depth.to(pair.depth.dtype)
        terms = {"partner_depth": absolute(depth, pair.depth)}
        weights = self._perceived("depth_player", depth.detach(), pair.depth, updates)
        if weights is not None:
            relative = relative_to_noise(restored, pair)
            terms["weighted_image"] = weighted_absolute(relative, pair.full_dose, weights)
        return terms

    def _perceived(
        self, player: str, prediction: Tensor, target: Tensor, updates: Updates
    ) -> Tensor | None:
        """Weights from one task's error for the other; a player learns from it as well."""
        options = self._options
        if options.interaction == "none":
            return None
        if options.interaction == "fixed":
            perception = Perception(
                temperature=options.temperature, cap=options.cap, smoothing=options.smoothing
            )
            return difference_weights(prediction, target, perception)
        relative = relative_error(prediction, target)
        weights: Tensor = updates.network(player)(relative)
        updates.minimise(player, -objective(weights, relative, options.temperature))
        return weights

    def _contrast_term(self, restored: Tensor, pair: Pair, updates: Updates) -> dict[str, Tensor]:
        features = self._features
        if features is None:
            return {}
        if isinstance(features, OwnFeatures):
            if updates.step % self._options.refresh_every == 0:
                features.copy(self.denoiser)
            # Features of an encoder that has not learned mean nothing.
            if updates.step < self._options.refresh_every:
                return {"contrast": restored.new_zeros(())}
        contrast = Contrast(features=features, largest=self._options.largest_ratio)
        with updates.autocast():
            return {"contrast": contrast(restored, pair.full_dose, pair.low_dose)}


def build(config: TrainConfig, denoiser: nn.Module) -> DualTask:
    """Raises: ConfigError for wrong options, or own features of a network that is no CDD-Net;
    ModelError for a file of VGG19 that is missing, another one than stated, or does not fit.
    """
    return DualTask(config, denoiser)


class DepthEstimator(nn.Module):
    """DE: radiological depth (B, 1, H, W) of a restored image (B, 1, H, W); any size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = DepthHead(width)

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        attenuation = pad_to_stride(image + 1.0).clamp(0.0, 4.0)
        depth = functional.interpolate(
            self.head(functional.avg_pool2d(attenuation, _POOLING)),
            scale_factor=_POOLING,
            mode="bilinear",
            align_corners=False,
        )
        return depth[..., :height, :width]


class OwnFeatures(nn.Module):
    """Frozen copy of a CDD-Net; gives the features of the three levels of its encoder."""

    def __init__(self, denoiser: CDDNet) -> None:
        super().__init__()
        self.network = deepcopy(denoiser).requires_grad_(False).eval()

    def copy(self, denoiser: nn.Module) -> None:
        """Become a copy of the denoiser as it is now."""
        self.network.load_state_dict(denoiser.state_dict())

    def forward(self, image: Tensor) -> Sequence[Tensor]:
        return self.network.encode(image)


class Vgg19Features(nn.Module):
    """VGG19 on an image in network range, shown to it as grey in the published window."""

    def __init__(self, network: FeatureNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Sequence[Tensor]:
        # Not cut at the window: what lies outside shall keep its gradient.
        grey = (image * HU_PER_UNIT - _BLACK_HU) / (_WHITE_HU - _BLACK_HU)
        found: Sequence[Tensor] = self.network(as_imagenet(grey))
        return found


def _features(options: Options, denoiser: nn.Module) -> nn.Module | None:
    if options.contrastive == "none":
        return None
    if options.vgg19_file is not None:
        state = read_weights(
            options.vgg19_file, options.vgg19_sha256, otherwise="set contrastive to own"
        )
        return like(Vgg19Features(FeatureNetwork("vgg19", state)), denoiser)
    if not isinstance(denoiser, CDDNet):
        raise ConfigError(
            f"contrastive own needs the encoder of cddnet, the model is {type(denoiser).__name__}; "
            "set contrastive to vgg19 or none."
        )
    return OwnFeatures(denoiser)
