"""Policies: one file each, all over the same observation and action."""
