"""Defects of the published training by name, and what else its recipe may say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, Field, field_validator, model_validator

from cddnet.config import nearest
from cddnet.training.methods._vgg19 import VGG19_SHA256

DEFECTS: Mapping[str, str] = {
    "eight_bit": "D30: low and full dose are truncated to 256 levels of -700 to 300 HU",
    "jpeg": "D30: and coded as JPEG of quality 75",
    "clamped_before_loss": "D19: the output is cut to [0, 1] first: no gradient outside",
    "joint_backward": "D19: DE's losses reach the denoiser, and the denoiser's reach DE",
    "one_way_perception": "D13: the error of the image weights the depth, not the other way round",
    "signed_difference": "D15: what is too dark weighs least, not what is right",
    "softmax_over_everything": "D14: weights have the sum 1 instead of the mean 1",
    "batch_normalised_depth": "D16: depths are spread over the range of the batch, not by image",
    "random_projections": "D20: the deepest features go through three different random networks",
    "raw_vgg_input": "D20: VGG19 sees grey levels without ImageNet's mean and deviation",
    "unbounded_ratio": "D20: the contrastive ratio may be of any size, not 10 at most",
}
_OF_CONTRAST = ("random_projections", "raw_vgg_input", "unbounded_ratio")


class Options(BaseModel, frozen=True, extra="forbid"):
    defects: tuple[str, ...] = Field(
        tuple(DEFECTS), description="names of DEFECTS that are kept, or all"
    )
    estimator_rate: float = Field(1e-4, gt=0, description="learning rate of DE at its largest")
    teacher_encoder: Path | None = Field(
        None, description="encoder.pth of RA-Depth, for non-commercial use; nothing is downloaded"
    )
    teacher_decoder: Path | None = Field(None, description="depth.pth of RA-Depth")
    vgg19_file: Path | None = Field(
        None, description="vgg19-dcbb9e9d.pth, or .safetensors with its keys; nothing is downloaded"
    )
    vgg19_sha256: str = Field(VGG19_SHA256, description="of that file; torchvision's by default")

    @field_validator("defects", mode="before")
    @classmethod
    def _all_of_them(cls, given: object) -> object:
        return tuple(DEFECTS) if given == "all" else given

    @field_validator("defects")
    @classmethod
    def _known(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for name in given:
            if name not in DEFECTS:
                raise ValueError(
                    f"there is no defect '{name}'{nearest(name, DEFECTS)}; choose of: all, "
                    f"{', '.join(DEFECTS)}"
                )
        return tuple(name for name in DEFECTS if name in given)

    @model_validator(mode="after")
    def _both_parts_of_the_teacher(self) -> Options:
        if (self.teacher_encoder is None) != (self.teacher_decoder is None):
            raise ValueError("give both teacher_encoder and teacher_decoder, or neither")
        return self

    def label(self, depth_target: str) -> str:
        """What tables call it; literal only with both files and every defect."""
        acting = [
            name for name in DEFECTS if self.vgg19_file is not None or name not in _OF_CONTRAST
        ]
        removed = [name for name in acting if name not in self.defects]
        if self.teacher_encoder is not None and self.vgg19_file is not None and not removed:
            return "CDD-Net literal"
        depth = "" if self.teacher_encoder is not None else f" + {depth_target} depth"
        contrast = "" if self.vgg19_file is not None else ", no contrastive term"
        without = f", without {', '.join(removed)}" if removed else ""
        return f"CDD-Net published losses{depth}{contrast}{without}"
