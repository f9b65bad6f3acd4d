"""The whole way: the only place besides recipes/ and cli/ that knows the order of the stages."""
