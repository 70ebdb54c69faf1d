"""What a model meets in production: whether it still looks like what the model was made for."""
