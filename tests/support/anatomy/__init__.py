"""Studies, spines and phantoms with known truth."""
