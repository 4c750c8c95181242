"""The embedded data set: an analytic lumbar spine rendered to DICOM in the competition's exact layout.

`python -m training.phantom --out DIR --train N --test M` writes it.  Every anatomy is random, no patient is
behind it; the constants that shape it are aggregates of the public tables (aggregates.py).
"""
