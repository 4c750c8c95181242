"""Mixtures of finished graders, compared and fitted on out-of-fold answers."""
