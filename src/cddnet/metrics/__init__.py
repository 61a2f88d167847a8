"""Image quality: NumPy arrays in HU in, figures out."""
