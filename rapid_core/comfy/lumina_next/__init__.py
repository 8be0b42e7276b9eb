"""Lumina-Next-T2I (Gao et al. 2024), which ComfyUI does not have: network, files, text encoder.

Imported when a node asks for it, never with the pack."""
