"""Policies in files: how they are read and written, and what they become."""
