"""Errors of networks."""

from __future__ import annotations


class NetworkError(Exception):
    """A network of a recipe that cannot be built, with the alternatives."""
