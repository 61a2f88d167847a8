"""Run a trained network: find its weights, choose a device, denoise slices."""
