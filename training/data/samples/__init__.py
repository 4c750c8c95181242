"""Stacks → augmented batches of a network."""
