"""Latency prediction: additive over executed kernels, with calibrated intervals."""
