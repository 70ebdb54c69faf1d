"""What a labelled photo is, and how it reaches the model."""
