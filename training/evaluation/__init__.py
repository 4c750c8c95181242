"""Metric, validation through the kernel, pictures and tables."""
