"""What tests of the training data share."""
