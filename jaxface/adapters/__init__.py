"""Parameter-efficient fine-tuning: kernels that adapt, the methods made of them, and PEFT's files."""
