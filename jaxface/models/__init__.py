"""The encoder, the text tower and the heads: modules that know nothing of adapters, tasks or files."""
