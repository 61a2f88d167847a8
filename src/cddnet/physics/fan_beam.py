"""Fan-beam projection, its exact adjoint and filtered back projection, equiangular detector.

A ray of fan angle gamma in the view beta is the line x cos(theta) + y sin(theta) = s with
theta = beta + gamma and s = (source to axis) sin(gamma); x runs along the columns, y down the rows,
both from the image's centre, which is the rotation axis (Kak and Slaney 1988, section 3.4.1).
"""

# Shapes: N image side, V view, J detector channel, F view a full turn / F apart from the next.

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

import numpy as np
import scipy.fft
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from cddnet.errors import GeometryError
from cddnet.physics.beam import READINGS

Image = NDArray[np.floating]
Sinogram = NDArray[np.floating]


@dataclass(frozen=True, kw_only=True)
class FanBeam:
    """size: image side in pixels; views: evenly over 360 degrees; channel_mm: pitch along the
    detector's arc; channel_offset: in channels, a quarter interleaves opposite rays.

    Raises GeometryError where the fan or the image reaches the source.
    Source of the distances and the pitch: the 736-channel detector described in the projections of
    the LDCT-and-Projection-data collection (Moen et al., Med. Phys. 48:902, 2021).
    """

    size: int
    pixel_mm: float
    views: int
    channels: int
    channel_mm: float = 1.2858
    channel_offset: float = 0.25
    source_to_axis_mm: float = 595.0
    source_to_detector_mm: float = 1085.6

    def __post_init__(self) -> None:
        corner_mm = self.size * self.pixel_mm * np.sqrt(0.5)
        if corner_mm >= self.source_to_axis_mm:
            raise GeometryError(
                f"the image reaches {corner_mm:.0f} mm from the axis, the source is at "
                f"{self.source_to_axis_mm:.0f} mm; use a smaller image or smaller pixels."
            )
        fan_degrees = np.degrees(self.channels * self.channel_angle)
        if fan_degrees >= 180:
            raise GeometryError(
                f"the detector spans {fan_degrees:.0f} degrees around the source, less than 180 "
                "are possible; use fewer or narrower channels."
            )

    @classmethod
    def calibrated(cls, size: int, pixel_mm: float) -> FanBeam:
        """The scanner for which `beam.Scanner` is calibrated."""
        return cls(size=size, pixel_mm=pixel_mm, views=READINGS, channels=736)

    @property
    def channel_angle(self) -> float:
        """Radians between neighbouring channels."""
        return self.channel_mm / self.source_to_detector_mm

    @property
    def channel_at_axis_mm(self) -> float:
        """Channel pitch at the rotation axis."""
        return self.channel_angle * self.source_to_axis_mm

    @property
    def angles(self) -> NDArray[np.float64]:
        """View angles in radians (V,)."""
        return np.linspace(0.0, 2 * np.pi, self.views, endpoint=False)

    @property
    def fan_angles(self) -> NDArray[np.float64]:
        """Fan angles of the channel centres in radians (J,)."""
        centred = np.arange(self.channels, dtype=np.float64) - (self.channels - 1) / 2
        return (centred + self.channel_offset) * self.channel_angle

    @property
    def distances_mm(self) -> NDArray[np.float64]:
        """Signed distances of the channels' rays from the axis (J,)."""
        return self.source_to_axis_mm * np.sin(self.fan_angles)

    @property
    def field_mm(self) -> float:
        """Radius of the circle that every view sees."""
        first, *_, last = self.distances_mm
        return float(max(min(-first, last), 0.0))


def forward(image: Image, beam: FanBeam) -> Sinogram:
    """Line integrals of an image.

    Parameters: image (N, N) values, float32 or float64.
    Returns: (V, J) values times mm, in the dtype of the image.
    Source: linear interpolation where a ray crosses each row or each column, whichever it crosses
    more steeply (Joseph, IEEE Trans. Med. Imaging 1:192, 1982).
    """
    turned = _turned(torch.from_numpy(np.ascontiguousarray(image)), beam)
    rays = turned.new_empty(_fold(beam), beam.views // _fold(beam), beam.channels)
    for view, angle in enumerate(_first_angles(beam)):
        rays[:, view] = _project(turned, beam, angle)
    sinogram: Sinogram = rays.reshape(beam.views, beam.channels).numpy()
    return sinogram


def adjoint(sinogram: Sinogram, beam: FanBeam) -> Image:
    """The transpose of `forward`: unfiltered back projection.

    Parameters: sinogram (V, J), float32 or float64.  Returns: (N, N) in its dtype.
    """
    rays = torch.from_numpy(np.ascontiguousarray(sinogram))
    rays = rays.reshape(_fold(beam), -1, beam.channels)
    turned = rays.new_zeros(_fold(beam), beam.size, beam.size, requires_grad=True)
    total = torch.zeros_like(turned)
    for view, angle in enumerate(_first_angles(beam)):
        with torch.enable_grad():
            projected = _project(turned, beam, angle)
        total += torch.autograd.grad(projected, turned, rays[:, view])[0]
    return _turned_back(total, beam)


def filtered_back_projection(
    sinogram: Sinogram, beam: FanBeam, response: NDArray[np.floating]
) -> Image:
    """Image of a full turn's sinogram, ramp filter times an apodisation.

    Parameters: sinogram (V, J) values times mm; response: apodisation at `frequencies(beam)`.
    Returns: (N, N) values; pixels beyond `field_mm` lack the views that miss them.
    The pixels read the filtered views by linear interpolation, which multiplies the response by
    sinc squared of the channel pitch; the response holds at the axis and scales with the distance
    from the source elsewhere.
    Source: Kak and Slaney 1988, section 3.4.1.
    """
    filtered = torch.from_numpy(_filtered(sinogram, beam, response))
    filtered = filtered.reshape(_fold(beam), -1, beam.channels)
    centred = _centred(beam, filtered) * beam.pixel_mm
    total = filtered.new_zeros(_fold(beam), beam.size, beam.size)
    scale = 2 / (beam.channels * beam.channel_angle)
    grid = filtered.new_zeros(1, beam.size, beam.size, 2)
    for view, angle in enumerate(_first_angles(beam)):
        cos, sin = np.cos(angle), np.sin(angle)
        across = centred * cos + centred[:, None] * sin
        along = beam.source_to_axis_mm + (centred * sin - centred[:, None] * cos)
        grid[0, :, :, 0] = torch.atan2(across, along).mul_(scale)
        grid[0, :, :, 0] -= 2 * beam.channel_offset / beam.channels
        seen = _sample(filtered[:, view, None, :], grid)
        total.addcdiv_(seen, across.square_().addcmul_(along, along))
    return _turned_back(total.mul_(2 * np.pi / beam.views), beam)


def frequencies(beam: FanBeam) -> NDArray[np.float64]:
    """Frequencies of a filter response in cycles per mm at the axis, 0 to Nyquist."""
    padded = _padded(beam)
    cycles = np.arange(padded // 2 + 1, dtype=np.float64) / padded
    return cycles / beam.channel_at_axis_mm


def _filtered(
    sinogram: Sinogram, beam: FanBeam, response: NDArray[np.floating]
) -> NDArray[np.floating]:
    """Weighted and filtered views (V, J)."""
    padded = _padded(beam)
    # The band-limited ramp, sampled in space: the sampled |f| would lose the mean.
    lag = np.arange(-(padded // 2), padded - padded // 2)
    ramp = np.zeros(padded)
    ramp[lag == 0] = 0.125 / beam.channel_angle
    odd = (lag % 2 == 1) & (np.abs(lag) < beam.channels)
    ramp[odd] = -0.5 * beam.channel_angle / (np.pi * np.sin(lag[odd] * beam.channel_angle)) ** 2
    transfer = scipy.fft.rfft(scipy.fft.ifftshift(ramp)).real * response
    weight = beam.source_to_axis_mm * np.cos(beam.fan_angles)
    spectrum = scipy.fft.rfft(sinogram * weight.astype(sinogram.dtype), padded, axis=1)
    spectrum *= transfer.astype(sinogram.dtype)
    filtered = scipy.fft.irfft(spectrum, padded, axis=1)[:, : beam.channels]
    return np.ascontiguousarray(filtered)


def _padded(beam: FanBeam) -> int:
    # A filtered view must not wrap onto itself; even, so that the last frequency is Nyquist.
    return int(scipy.fft.next_fast_len(2 * beam.channels, real=True) // 2 * 2)


def _fold(beam: FanBeam) -> int:
    """Views that see the image turned by whole quarters, and so share their geometry: 1, 2 or 4."""
    return gcd(beam.views, 4)


def _first_angles(beam: FanBeam) -> NDArray[np.float64]:
    return beam.angles[: beam.views // _fold(beam)]


def _turned(image: Tensor, beam: FanBeam) -> Tensor:
    """The image as each of the F views of one geometry sees it (F, N, N)."""
    fold = _fold(beam)
    return torch.stack([torch.rot90(image, turn * 4 // fold) for turn in range(fold)])


def _turned_back(turned: Tensor, beam: FanBeam) -> Image:
    """The transpose of `_turned`."""
    fold = _fold(beam)
    back = [torch.rot90(turned[turn], -turn * 4 // fold) for turn in range(fold)]
    image: Image = torch.stack(back).sum(dim=0).numpy()
    return image


def _centred(beam: FanBeam, like: Tensor) -> Tensor:
    """Pixel centres in pixels from the axis (N,)."""
    centres = np.arange(beam.size) - (beam.size - 1) / 2
    return torch.from_numpy(centres).to(like.dtype)


def _project(turned: Tensor, beam: FanBeam, angle: float) -> Tensor:
    """Line integrals (F, J) of the images (F, N, N) in the view of an angle."""
    theta = angle + beam.fan_angles
    cos, sin = np.cos(theta), np.sin(theta)
    down = np.abs(cos) >= np.abs(sin)
    # Along a ray, column and row (J, 2) grow by `slope` from `start` for each line crossed.
    steep = np.where(down, cos, -sin)
    slope = np.stack((-sin, cos), axis=-1) / steep[:, None]
    foot = beam.distances_mm[:, None] / beam.pixel_mm * np.stack((cos, sin), axis=-1)
    start = foot - slope * np.where(down, foot[:, 1], foot[:, 0])[:, None]
    # The sampler's unit is half an image side.
    begin, step = (torch.from_numpy(of * (2 / beam.size)).to(turned.dtype) for of in (start, slope))
    grid = torch.addcmul(begin, _centred(beam, turned)[:, None, None], step)  # (N, J, 2)
    length = torch.from_numpy(beam.pixel_mm / np.abs(steep)).to(turned.dtype)
    return _sample(turned, grid[None]).sum(dim=1) * length


def _sample(images: Tensor, grid: Tensor) -> Tensor:
    """Bilinear values of the images (F, rows, columns) at (1, A, B, 2); zero outside."""
    return functional.grid_sample(images[None], grid, align_corners=False)[0]
