"""Readers of the data: parallel and labelled files, the Hugging Face hub, and where each evaluation's data lie."""
