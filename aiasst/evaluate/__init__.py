"""Measuring a model on the runtime that will run it: accuracy cards, and what they are made of.

The way in is `measure.measure_card`.
"""
