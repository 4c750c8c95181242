"""Recipes: the typed schema, how a YAML file is read, and what is wrong with one."""
