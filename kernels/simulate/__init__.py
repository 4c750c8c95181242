"""The built notebook run as Kaggle runs it: mounts, clock, memory, no network."""
