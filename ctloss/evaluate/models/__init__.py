"""The model under evaluation: an encoder that makes vectors, or one that is fine-tuned."""
