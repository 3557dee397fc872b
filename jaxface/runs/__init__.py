"""All that knows a run folder: its configuration, metrics, checkpoints, predictions, temperatures and trained model."""
