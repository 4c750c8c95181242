"""Decoded studies and their crops on disk, memory-mapped, resumable, stale by content."""
