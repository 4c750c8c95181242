"""One run over everything that only a GPU can show: is it right there, does it hold, how fast is it."""
