"""Decoded studies on disk: memory-mapped 8-bit stacks, resumable, stale by content."""
