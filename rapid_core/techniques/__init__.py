"""Ways to compute less of a run, one package each; none knows of another."""
