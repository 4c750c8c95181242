"""Networks, runs and grids that take a moment; and processes of their own that run some."""
