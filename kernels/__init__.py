"""What runs on Kaggle: the runtime package `lumbar` and the builder of the one notebook that carries it."""
