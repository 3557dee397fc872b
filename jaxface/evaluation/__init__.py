"""Numbers from labels and logits, and nothing else."""
