"""Fuzzing of all that the kernel reads: damaged files in, nothing but the documented errors out.

    python -m tests.fuzz --minutes 10 --seed 1      # many cases, each named by seed and number
    python -m tests.fuzz --again FOLDER             # one that was kept

A case is written as files, so that what is kept of a find needs neither the seed nor this code's generators.
"""
