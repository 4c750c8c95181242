"""A study folder → stacks of parallel slices in patient millimetres, and named problems."""
