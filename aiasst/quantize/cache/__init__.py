"""The KV cache in int8: scales from a calibration text, and the attention nodes that round to them.

    nodes.py     which caches a graph has, and what becomes of its nodes
    scales.py    a scale a channel, from the largest magnitudes
    observe.py   the text goes through the float layers once, and every cache is looked at
"""
