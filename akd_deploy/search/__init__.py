"""Student search: rewards, strategies behind NNI's Tuner, the journal, the drivers."""
