"""What a run trains on: word positioned samples, built once, planned into batches and collated."""
