"""Pictures that explain: what goes wrong without the losses, which rows are negatives, which rank works on what."""
