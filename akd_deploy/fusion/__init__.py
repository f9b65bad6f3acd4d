"""What an engine makes of a graph, by rules: the kernels it would execute, on a machine that does not have it."""
