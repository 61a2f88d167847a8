"""cddnet: low-dose CT denoising. Research use only."""

__version__ = "0.1.0"
