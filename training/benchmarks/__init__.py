"""Measurements that outgrow a test: each folder or module is a command line of its own."""
