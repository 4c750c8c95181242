"""What relabelling is worth on a phantom with planted label errors."""
