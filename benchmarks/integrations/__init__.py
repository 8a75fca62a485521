"""The integrations next to the classes that they replace: time, memory and error of a forward and backward pass."""
