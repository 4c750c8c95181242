"""TorchScript files: found, verified, loaded on a device, and run with test-time augmentation."""
