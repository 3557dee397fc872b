"""Checkpoints of the Perception Encoder family: read from and written to Meta's, timm's, open_clip's and this project's layout.

Needs numpy only: neither torch nor jax.
"""
