"""Region-adaptive sampling: most evaluations compute some of the image tokens."""
