"""Cached crops → augmented batches on the device."""
