"""What can be wrong with a network that a recipe asks for."""

from __future__ import annotations


class NetworkError(Exception):
    """A network that a recipe asks for and that cannot be made, with what could."""
