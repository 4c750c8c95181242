"""Stacks and landmarks → the input tensors of a network, and those of the mirrored study."""
