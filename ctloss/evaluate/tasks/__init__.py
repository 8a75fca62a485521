"""The tasks: each a function from a model and its data to scores and predictions."""
