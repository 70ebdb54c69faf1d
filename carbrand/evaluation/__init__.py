"""A trained model over a split: metrics and the report."""
