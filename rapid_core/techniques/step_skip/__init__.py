"""Whole evaluations that are skipped: by a schedule, or by a budget of estimated error."""
