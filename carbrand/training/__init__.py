"""From records and pretrained weights to a trained model: model, step, checkpoint, loop."""
