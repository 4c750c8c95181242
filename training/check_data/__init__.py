"""`make check-data`: a data folder checked before any training, by its tables and the headers of its files."""
