"""Binding to ComfyUI: the only folder of the core that imports comfy."""
