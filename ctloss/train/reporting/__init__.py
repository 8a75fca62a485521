"""What a run reports: retrieval measures, logs, the table, the picture and the model card."""
