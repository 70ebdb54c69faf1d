"""A trained model outside of training: export and prediction."""
