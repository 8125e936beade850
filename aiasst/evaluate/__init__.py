"""Measuring a model on the runtime that will run it: accuracy cards, and what they are made of. `measure.measure_card` is the way in."""
