"""How images are parted: splits in folders, drawn splits, folds of a cross-validation, and images left out."""
