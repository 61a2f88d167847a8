"""HU and the ranges around it: stored values, network range, windows."""
