"""Offline training of policies, on the graph that a user already runs. Nothing of the pack imports
this."""
