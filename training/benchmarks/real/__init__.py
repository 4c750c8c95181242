"""`make bench-real`: what phantom weights, real training and their combination are worth on real spines."""
