"""Rehearsal of a training: every network at its published size learns one fixed batch, and is exported.

What takes minutes here would take a day's training to notice: a network that cannot learn, does not fit the memory, or
cannot be exported.
"""
