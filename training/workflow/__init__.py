"""The grid of trainings as a DAG of files, run by Snakemake on this machine or on a cluster (README.md here)."""
