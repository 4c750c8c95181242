"""Losses, and the registry that says which network is fitted with which."""
