"""cddnet: low-dose CT denoising. Research use only."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cddnet.formats import read_volume, write_volume
    from cddnet.workflows.denoise import denoise_hu, denoise_volume

__version__ = "0.1.0"
__all__ = ["__version__", "denoise_hu", "denoise_volume", "read_volume", "write_volume"]

# Looked up late, so that the command line answers before torch is imported.
_HOMES = {
    "read_volume": "cddnet.formats",
    "write_volume": "cddnet.formats",
    "denoise_volume": "cddnet.workflows.denoise",
    "denoise_hu": "cddnet.workflows.denoise",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'cddnet' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
