"""Sparse attention: image tokens attend to the parts of the picture that matter to them."""
