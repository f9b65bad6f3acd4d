"""The published systems as short compositions of stages."""
