"""Distil a student that provably meets a latency budget on a device, and ship it as an engine."""

__version__ = "0.1.0.dev0"
