"""CDD-Net as its published code trains it, each known defect of that training by name.

The denoiser `cddnet_published` and the depth estimator DE learn together: the image by its mean
absolute error, 0.01 of the error of DE's depths and 0.01 of a contrastive term with features of
VGG19; DE by the error of its depths twice, plain and weighted by the error of the image. Adam for
both, 1e-3 (the recipe's) and 1e-4, each along half a cosine to 1e-6.

`_literal_options.DEFECTS` lists what is wrong with it; a name taken out of `defects` gives the
corrected form of that one thing. The corrected training of the native network is `dual_task`.
Weights of RA-Depth and VGG19 come from files of the user's; without them the target is the recipe's
depth, and there is no contrastive term. What ran is named for it (`label`): only all of it is
literal.

What else is wrong with the published code:
- In the network, which keeps it: D01 to D11.
- A choice of files: D17, D18, the depth of street scenes as a target.
- Without effect on any weight: D12. Features of a random network, weight 0.1, compare the input
  with the full dose, which the denoiser does not change; they are not computed.
- Bound to float16 and its loss scale, which the engine does not have: D22 (clipping before
  unscaling), D23.
- Impossible in the engine: D21 (a gradient that is not finite skips the step), D24 to D27
  (validation, resume and schedule), D31 to D34 (patients on two sides, pairs by position).
- Of other commands: D35 to D43; of the packaging: D44, D45.

Differs from the published training otherwise: crops are flipped and turned (D28), noise is drawn
anew each time, the rate falls with each step instead of each epoch, networks are averaged if the
recipe says so, the best one is chosen in HU instead of by JPEG files (D29). Where the description
is silent: weights pass no gradient; differences are spread over the range of the batch. A batch is
that of one process: several do not train as one.
"""

# Shapes: B batch, C channel, H row, W column; `pair` (B, 1, H, W) in network range, grey levels
# (B, 1, H, W) or (B, 3, H, W) in [0, 1] of the published window.

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from cddnet.config import ConfigError, TrainConfig
from cddnet.losses.interaction import weighted_absolute
from cddnet.losses.pixel import absolute
from cddnet.models import _depth_estimator
from cddnet.models._features import FeatureNetwork
from cddnet.models._grey_window import GreyWindow
from cddnet.models.cddnet_published import WINDOW, PublishedCddNet
from cddnet.training.methods import Updates, frozen, like, options_of
from cddnet.training.methods._literal_options import Options
from cddnet.training.methods._published_images import as_jpeg, truncated
from cddnet.training.methods._published_losses import (
    Perception,
    PublishedContrast,
    by_image,
    over_the_batch,
    random_projections,
    signed,
    softmax_over_everything,
    weights_of_mean_one,
)
from cddnet.training.methods._teacher import read_teacher
from cddnet.training.methods._vgg19 import as_imagenet, read_weights
from cddnet.training.pairs import Pair

NEEDS_DEPTH = True

_LOWEST_RATE = 1e-6
_PARTNER_DEPTH, _CONTRAST = 0.01, 0.01
_LARGEST_RATIO = 10.0


class CddNetLiteral:
    """Where both learn by one gradient, one optimiser holds both, with the rate of each."""

    def __init__(self, config: TrainConfig, denoiser: nn.Module) -> None:
        self._published = _published_within(denoiser)
        options = options_of(config, Options)
        self.label = options.label(config.depth_target)
        self._config, self._defects = config, frozenset(options.defects)
        self.denoiser = denoiser
        self._estimator = like(_depth_estimator.build(_depth_estimator.Config()), denoiser)
        self.networks: Mapping[str, nn.Module] = {
            "denoiser": denoiser,
            "estimator": self._estimator,
        }
        rates = {"denoiser": config.learning_rate, "estimator": options.estimator_rate}
        groups = {
            name: {"params": list(network.parameters()), "lr": rates[name]}
            for name, network in self.networks.items()
        }
        self.optimisers: Mapping[str, Optimizer] = (
            {"both": _adam(list(groups.values()), config)}
            if "joint_backward" in self._defects
            else {name: _adam([group], config) for name, group in groups.items()}
        )
        self._perception = Perception(
            size=signed if "signed_difference" in self._defects else torch.abs,
            spread=softmax_over_everything
            if "softmax_over_everything" in self._defects
            else weights_of_mean_one,
        )
        self._contrast = _contrast(options, denoiser)
        self._teacher: nn.Module | None = None
        if options.teacher_encoder is not None and options.teacher_decoder is not None:
            teacher = read_teacher(options.teacher_encoder, options.teacher_decoder)
            self._teacher = like(teacher.requires_grad_(False), denoiser)

    def step(self, pair: Pair, updates: Updates) -> Mapping[str, Tensor]:
        self._set_rates(updates.step)
        low_dose, full_dose = (self._as_published(maps) for maps in (pair.low_dose, pair.full_dose))
        restored = self._restored(low_dose, updates)
        wanted = self._target(full_dose, pair.depth, updates)
        joint = "joint_backward" in self._defects
        if joint:
            depth = self._depth(updates.network("estimator"), restored, updates)
            of_depth = self._depth_terms(depth, wanted, restored, full_dose)
        else:
            apart = restored.detach()
            depth = self._depth(updates.network("estimator"), apart, updates)
            of_depth = self._depth_terms(depth, wanted, apart, full_dose)
            updates.minimise("estimator", of_depth["estimator"] + of_depth["weighted_depth"])
            with frozen(self._estimator):
                depth = self._depth(self._estimator, restored, updates)
        terms, total = self._image_terms(restored, full_dose, (depth, wanted))
        if self._contrast is not None:
            with updates.autocast():
                contrast = self._contrast(restored, _three(full_dose), _three(low_dose))
            terms["contrast"] = contrast
            total = total + _CONTRAST * contrast
        if joint:
            total = total + of_depth["estimator"] + of_depth["weighted_depth"]
        updates.minimise("both" if joint else "denoiser", total)
        return terms | of_depth | {"total": total}

    def _set_rates(self, step: int) -> None:
        if self._config.schedule == "constant":
            return
        fallen = 0.5 * (1 + math.cos(math.pi * (step - 1) / self._config.steps))
        for optimiser in self.optimisers.values():
            for group in optimiser.param_groups:
                group["lr"] = _LOWEST_RATE + fallen * (group["initial_lr"] - _LOWEST_RATE)

    def _as_published(self, image: Tensor) -> Tensor:
        """Grey levels (B, 1, H, W) of an image in network range."""
        grey = WINDOW.to_unit(image).clamp(0, 1)
        if "eight_bit" in self._defects:
            grey = truncated(grey)
        return as_jpeg(grey) if "jpeg" in self._defects else grey

    def _restored(self, low_dose: Tensor, updates: Updates) -> Tensor:
        """What the published network itself gives, three channels (B, 3, H, W)."""
        found: list[Tensor] = []
        denoise = updates.network("denoiser")
        # Around it, the common forward returns the mean of the channels, which is cut.
        with (
            self._published.register_forward_hook(lambda *call: found.append(call[-1])),
            updates.autocast(),
        ):
            denoise(WINDOW.from_unit(low_dose))
        restored = found[0].to(low_dose.dtype)
        return restored.clamp(0, 1) if "clamped_before_loss" in self._defects else restored

    def _target(self, full_dose: Tensor, depth: Tensor, updates: Updates) -> Tensor:
        """Normalised depth (B, 1, H, W) to be learned: the teacher's of the full dose, or ours."""
        if self._teacher is not None:
            with torch.no_grad(), updates.autocast():
                depth = self._teacher(_three(full_dose)).to(full_dose.dtype)
        return self._normalised(depth)

    def _depth(self, estimator: nn.Module, image: Tensor, updates: Updates) -> Tensor:
        with updates.autocast():
            depth = estimator(image)
        return self._normalised(depth.to(image.dtype))

    def _normalised(self, depth: Tensor) -> Tensor:
        batch = "batch_normalised_depth" in self._defects
        return over_the_batch(depth) if batch else by_image(depth)

    def _depth_terms(
        self, depth: Tensor, wanted: Tensor, restored: Tensor, full_dose: Tensor
    ) -> dict[str, Tensor]:
        weights = self._perception(restored, _three(full_dose))
        return {
            "estimator": absolute(depth, wanted),
            "weighted_depth": weighted_absolute(depth, wanted, weights),
        }

    def _image_terms(
        self, restored: Tensor, full_dose: Tensor, depths: tuple[Tensor, Tensor]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """depths: of the restored image, and to be learned."""
        target = _three(full_dose)
        terms = {"image": absolute(restored, target), "partner_depth": absolute(*depths)}
        total = terms["image"] + _PARTNER_DEPTH * terms["partner_depth"]
        if "one_way_perception" not in self._defects:
            weights = self._perception(*depths)
            terms["weighted_image"] = weighted_absolute(restored, target, weights)
            total = total + terms["weighted_image"]
        return terms, total


def build(config: TrainConfig, denoiser: nn.Module) -> CddNetLiteral:
    """Raises: ConfigError for wrong options or another network than cddnet_published; ModelError
    for a file of RA-Depth or VGG19 that is missing, another one than stated, or does not fit.
    """
    return CddNetLiteral(config, denoiser)


class Vgg19Colours(nn.Module):
    """Frozen: grey images (B, 3, H, W) to five maps of VGG19, raw or as ImageNet's pictures."""

    def __init__(self, network: FeatureNetwork, prepare: nn.Module) -> None:
        super().__init__()
        self.network, self.prepare = network, prepare

    def forward(self, image: Tensor) -> Sequence[Tensor]:
        found: Sequence[Tensor] = self.network(self.prepare(image))
        return found


class _AsImagenet(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return as_imagenet(image)


def _contrast(options: Options, denoiser: nn.Module) -> PublishedContrast | None:
    if options.vgg19_file is None:
        return None
    state = read_weights(
        options.vgg19_file, options.vgg19_sha256, otherwise="take it out for no contrastive term"
    )
    prepare = nn.Identity() if "raw_vgg_input" in options.defects else _AsImagenet()
    anchor, positive, negative = (
        like(random_projections(), denoiser).children()
        if "random_projections" in options.defects
        else [nn.Identity()] * 3
    )
    return PublishedContrast(
        features=like(Vgg19Colours(FeatureNetwork("vgg19", state), prepare), denoiser),
        projections=(anchor, positive, negative),
        largest=math.inf if "unbounded_ratio" in options.defects else _LARGEST_RATIO,
    )


def _published_within(denoiser: nn.Module) -> PublishedCddNet:
    if isinstance(denoiser, GreyWindow) and isinstance(denoiser.network, PublishedCddNet):
        return denoiser.network
    raise ConfigError(
        f"method cddnet_literal trains the published network, the model is "
        f"{type(denoiser).__name__}; set model to cddnet_published."
    )


def _adam(groups: list[dict[str, object]], config: TrainConfig) -> Adam:
    """Adam, as published; its weight decay is an L2 penalty."""
    named = [group | {"initial_lr": group["lr"]} for group in groups]
    return Adam(named, betas=config.betas, weight_decay=config.weight_decay)


def _three(grey: Tensor) -> Tensor:
    return grey.expand(-1, 3, -1, -1)
