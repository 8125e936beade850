"""The KV cache in int8: scales from a calibration text, and the attention nodes that round to them.

nodes (which caches a graph has) → observe (a text goes through the float layers) → scales (a scale a channel) → nodes (int8)
"""
