"""Competition tables, folds, crop caches, targets, batches and augmentation."""
