"""Ground of the integration tests: ComfyUI in this process, tiny models, sampling."""
