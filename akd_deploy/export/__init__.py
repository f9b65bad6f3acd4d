"""Shipping: parity, precision, lint, bundles."""
