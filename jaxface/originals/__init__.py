"""The PyTorch originals (timm, open_clip, Meta's code), and comparisons with them."""
