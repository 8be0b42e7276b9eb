"""RAPID: acceleration of Diffusion Transformers, loaded by ComfyUI."""

from .nodes import comfy_entrypoint

__all__ = ["comfy_entrypoint"]
