"""Torch networks: students, teachers, supernets; and their ONNX."""
