"""Checks that need a GPU: precision against the CPU, robustness (memory limit, kills), speed."""
