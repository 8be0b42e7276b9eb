"""Ground of the integration tests: ComfyUI in this process, tiny models, sampling."""

CONTEXT = 64  # width of the tiny models' conditioning
POOLED = 64
CHANNELS = 16  # of their latents
