"""Distillation losses: pure functions on tensors."""
