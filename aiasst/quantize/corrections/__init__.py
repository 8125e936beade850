"""Corrections: what surrounds rounding and earns accuracy back. Arrays in, arrays out; knows no graph.

equalization   scales between a norm and the products behind it, before rounding
target         the weights that undo what earlier layers lost, before rounding
descent        better integers and scales for the same target, after rounding
bias           the mean error of the outputs, after rounding
"""
