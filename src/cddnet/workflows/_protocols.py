"""Named protocols of the field: in which window, and on how many grey levels, fidelity counts."""

# Shapes: H row, W column.

from __future__ import annotations

import numpy as np

from cddnet.errors import CddnetError
from cddnet.intensity.window import hu_to_window, window_to_hu
from cddnet.metrics.fidelity import VIF_WINDOW_HU
from cddnet.volume import SliceHU
from cddnet.workflows._evaluation import Protocol

_COMMON = ("PSNR", "SSIM", "SSIM-Gaussian", "RMSE", "MAE", "VIF")
# Of a grey level: what HU that were grey levels once lose in float32, and far less than whole HU.
_SLACK_LEVELS = 1e-3


def _protocol(name: str, low: float, high: float, *, bits: int | None = None) -> Protocol:
    return Protocol(
        name=name,
        window_hu=(low, high),
        bits=bits,
        vif_window_hu=VIF_WINDOW_HU,
        metrics=_COMMON,
    )


def _ldctbench(anatomy: str, centre_hu: float, width_hu: float) -> Protocol:
    """Of Eulig et al., Med. Phys. 2024: a display window, errors up to dense bone, VIF swapped."""
    return Protocol(
        name=f"ldctbench-{anatomy}",
        window_hu=(centre_hu - width_hu / 2, centre_hu + width_hu / 2),
        error_window_hu=VIF_WINDOW_HU,
        vif_window_hu=VIF_WINDOW_HU,
        metrics=(*_COMMON, "VIF-ldctbench"),
    )


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        _protocol("redcnn", -160, 240),
        _ldctbench("chest", -600, 1500),
        _ldctbench("abdomen", 50, 400),
        _ldctbench("neuro", 40, 80),
        _protocol("corediff", -1000, 1000),
        _protocol("full", -1024, 3071),
        _protocol("published", -700, 300, bits=8),
    )
}


def protocol_named(name: str) -> Protocol:
    """Raises CddnetError for an unknown name."""
    if name not in PROTOCOLS:
        raise CddnetError(f"no protocol '{name}'; choose one of {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]


def under(protocol: Protocol, hu: SliceHU) -> SliceHU:
    """A slice (H, W) in HU as the protocol measures it: grey levels are cut, not rounded."""
    if protocol.bits is None:
        return hu
    most = 2**protocol.bits - 1
    levels = np.floor(hu_to_window(hu, protocol.window_hu) * most + _SLACK_LEVELS)
    return window_to_hu(levels / most, protocol.window_hu)


def window_of(protocol: Protocol, metric: str, unit: str) -> tuple[float, float]:
    """The HU to which a metric clips its images."""
    if metric.startswith("VIF"):
        return protocol.vif_window_hu or protocol.window_hu
    return (protocol.error_window_hu if unit == "HU" else None) or protocol.window_hu
