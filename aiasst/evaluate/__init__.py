"""Measuring a model on the runtime that will run it: perplexity, KL divergence, top-1 agreement."""
