"""ComfyUI pack used by demo, tests and benchmarks only: the Demo Prompt node. Never installed by
users."""


async def comfy_entrypoint():
    """ComfyUI's V3 entry point; the host is imported only here, so that training can use `words`
    without it."""
    from .nodes_demo import DemoExtension

    return DemoExtension()
