"""Finished runs → packs of weights and a manifest."""
