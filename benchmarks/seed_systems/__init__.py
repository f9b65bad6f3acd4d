"""The published systems' claims, each tried with paired seeds; `benchmarks/seeds.py` runs them."""
