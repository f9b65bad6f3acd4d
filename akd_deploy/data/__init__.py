"""Datasets, read from files in published formats or bundled with scikit-learn."""
