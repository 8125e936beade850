"""Calibration: what a text tells about the inputs of each product, and rounding that makes use of it, layer by layer."""
