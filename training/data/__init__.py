"""Competition tables, folds, a cache of decoded stacks, targets, batches and augmentation."""
