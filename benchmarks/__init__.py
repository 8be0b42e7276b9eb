"""Measurements on the demo models in the real ComfyUI, and the one row format of every table."""
