"""A local Kaggle that the real client talks to, and the steps that ship to it."""
