"""What the pack draws: hashes of latents and records of many small runs, to compare two states of the code.

    RAPID_HOST_TREE=... python -m rapid_testing.frozen --pack FOLDER --out FILE [--only TEXT]

`python3 dev.py frozen --against REVISION` runs it on that revision and on the working tree and compares both. Latents
are compared bit by bit, so both must run on the same machine.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from devkit.base_folder import REPOSITORY, link, remove_base_folder
from devkit.comfy_process import import_comfy

torch.set_num_threads(1)

# Settings by name: node, and what differs from its defaults. "guard" is off on random weights, whose predictions are
# bad; otherwise next to nothing would be skipped.
NODES: dict[str, tuple[str, dict[str, Any]]] = {
    "accelerate 2": ("RAPID_Accelerate", {"speedup": 2.0, "policy_file": "none"}),
    "accelerate 3": ("RAPID_Accelerate", {"speedup": 3.0, "policy_file": "none"}),
    "skip": ("RAPID_CacheReuse", {"reuse_threshold": 2.0, "guard": 0.0}),
    "skip order 2": (
        "RAPID_CacheReuse",
        {"reuse_threshold": 2.0, "guard": 0.5, "forecast_order": 2},
    ),
    "reuse": ("RAPID_CacheReuse", {"reuse_threshold": 2.0, "guard": 0.0, "level": "reuse"}),
    "per token": (
        "RAPID_RegionAdaptive",
        {"preset": "clocks", "keep_ratio": 0.75, "error_threshold": 2.0},
    ),
    "region": (
        "RAPID_RegionAdaptive",
        {"preset": "custom", "keep_ratio": 0.5, "error_threshold": 0.0},
    ),
    "paper": ("RAPID_RegionAdaptive", {"preset": "paper", "keep_ratio": 0.5}),
    "8 bit": (
        "RAPID_RegionAdaptive",
        {
            "preset": "custom",
            "keep_ratio": 0.5,
            "error_threshold": 0.0,
            "kv_cache": "8 bit",
            "inactive": "interpolate",
        },
    ),
    "sparse": (
        "RAPID_SparseAttention",
        {"density": 0.5, "backend": "gather", "tile": "16", "start_percent": 0.0},
    ),
    "sparse means": (
        "RAPID_SparseAttention",
        {"density": 0.5, "backend": "gather", "tile": "16", "left_out": "means"},
    ),
}
EVERY = ("accelerate 2", "skip", "reuse", "per token", "region", "sparse")
SAMPLERS = (
    "euler",
    "heun",
    "dpmpp_2m",
    "euler_ancestral",
    "lcm",
    "uni_pc",
    "res_multistep",
    "dpmpp_sde",
    "dpm_2",
    "heunpp2",
    "exp_heun_2_x0",
)


class Frozen:
    """The host with one state of the pack in it, and the runs to be made."""

    def __init__(self, pack: Path):
        base = Path(tempfile.mkdtemp(prefix="rapid-frozen-"))
        atexit.register(remove_base_folder, base)
        self.host = import_comfy(base)
        link(pack, base / "custom_nodes" / "rapid")
        for name in ("rapid", "rapid_demo"):
            self.host.load_pack(base / "custom_nodes" / name)
        self.host.load_core_nodes("nodes_flux.py")
        self.base = base
        self.models: dict[str, Any] = {}

    def tiny(self, kind: str) -> tuple[Any, tuple[int, ...]]:
        """A clone of a tiny model and the shape of its latents."""
        import comfy.sd

        from rapid_testing.families import FAMILIES, FROM_FILES
        from rapid_testing.tiny_models import save_tiny_model

        if kind not in self.models:
            if kind in FROM_FILES:
                path = save_tiny_model(kind, self.base / f"{kind}.safetensors")
                self.models[kind] = comfy.sd.load_diffusion_model(str(path))
            else:
                self.models[kind] = FAMILIES[kind].build()
        return self.models[kind].clone(), (16, 16, 24) if kind in FROM_FILES else FAMILIES[
            kind
        ].latent

    def demo(self, kind: str) -> Any:
        """A demo model."""
        if kind not in self.models:
            loader = "RAPIDDemoLumina" if kind == "demo lumina" else "UNETLoader"
            extra = {} if kind == "demo lumina" else {"weight_dtype": "default"}
            name = f"{kind.removeprefix('demo ')}.safetensors"
            (self.models[kind],) = self.host.run_node(loader, unet_name=name, **extra)
        return self.models[kind].clone()

    def patched(self, model: Any, *names: str, **changed: Any) -> Any:
        """`model` with nodes on it, by the names of NODES."""
        for name in names:
            node, settings = NODES[name]
            schema = self.host.nodes.NODE_CLASS_MAPPINGS[node].GET_SCHEMA()
            given = {
                i.id: i.default for i in schema.inputs if getattr(i, "default", None) is not None
            }
            known = {i.id for i in schema.inputs}
            given |= {key: value for key, value in {**settings, **changed}.items() if key in known}
            (model,) = self.host.run_node(node, model=model, **given)
        return model

    def policy(self, file: str) -> Any:
        """A policy file that comes with the pack or its benchmarks."""
        return self.host.run_node("RAPID_LoadPolicy", policy=file)[0]

    def drawn(self, model: Any, latent: torch.Tensor) -> dict[str, Any]:
        """Hash of a latent, and what the report's record says of its run."""
        found = self.host.nodes.NODE_CLASS_MAPPINGS["RAPID_Report"].PREPARE_CLASS_CLONE(None)
        shown = found.execute(model=model, latent={"samples": latent}).ui["rapid_record"]
        digest = hashlib.blake2b(latent.contiguous().numpy().tobytes(), digest_size=12).hexdigest()
        return {"latent": digest, "record": json.loads(shown[0]) if shown else None}


def runs(frozen: Frozen) -> Iterator[tuple[str, Callable[[], tuple[Any, torch.Tensor]]]]:
    """Every run by name: what makes it gives the model and the latent."""
    from rapid_testing.families import FAMILIES
    from rapid_testing.sampling import sample

    def tiny(kind: str, *names: str, batch: int = 1, changed: dict | None = None, **how: Any):
        def run() -> tuple[Any, torch.Tensor]:
            model, shape = frozen.tiny(kind)
            model = frozen.patched(model, *names, **(changed or {}))
            return model, sample(model, latent=torch.zeros(batch, *shape), **{"steps": 10, **how})

        return run

    kinds = ("flux", "sd3", "sd35", *(kind for kind in FAMILIES if kind != "flux"))
    for kind in kinds:
        for name in EVERY:
            yield f"{kind}, {name}", tiny(kind, name, batch=2, cfg=1.0)
            yield f"{kind}, {name}, cfg", tiny(kind, name, cfg=3.0)
    for kind in ("flux", "sd3"):
        for name in NODES:
            if name not in EVERY:
                yield f"{kind}, {name}", tiny(kind, name, batch=2, cfg=3.0)
        for sampler in SAMPLERS:
            for name in ("accelerate 2", "skip", "per token", "region"):
                yield f"{kind}, {name}, {sampler}", tiny(kind, name, sampler=sampler, cfg=2.0)
        for names in (("skip", "region"), ("accelerate 2", "sparse"), ("per token", "sparse")):
            yield f"{kind}, {' and '.join(names)}", tiny(kind, *names, batch=2, cfg=3.0)
        for scheduler in ("beta", "karras"):
            yield (
                f"{kind}, accelerate 2, {scheduler}",
                tiny(kind, "accelerate 2", scheduler=scheduler),
            )
        yield (
            f"{kind}, part of the schedule",
            tiny(kind, "skip", changed={"start_percent": 0.3, "end_percent": 0.8}),
        )
        yield f"{kind}, image to image", tiny(kind, "accelerate 2", denoise=0.6)
    yield from _special(frozen, tiny)
    yield from _demo(frozen)


def _special(frozen: Frozen, tiny: Callable) -> Iterator[tuple[str, Callable]]:
    """Masks, ControlNets, conditions with a range or an area, and conditions that are not joined."""
    from comfy.patcher_extension import WrappersMP

    from rapid_testing.sampling import make_conditioning, sample

    def split(name: str, kind: str):
        def run() -> tuple[Any, torch.Tensor]:
            import comfy.samplers

            with mock.patch.object(comfy.samplers, "can_concat_cond", lambda a, b: a is b):
                return tiny(kind, name, batch=2, cfg=3.0)()

        return run

    def masked(name: str, kind: str):
        mask = torch.zeros(1, 1, 16, 24)
        mask[..., 4:12, 8:20] = 1
        return tiny(kind, name, noise_mask=mask, cfg=2.0)

    def ranged(name: str, kind: str, **limits: Any):
        return tiny(
            kind, name, cfg=2.0, positive=make_conditioning(0) + make_conditioning(2, **limits)
        )

    def controlled(name: str, kind: str):
        def wrapper(
            executor,
            x,
            t,
            c_concat=None,
            c_crossattn=None,
            control=None,
            transformer_options={},  # noqa: B006
            **extra,
        ):
            make = torch.Generator().manual_seed(5)
            tokens = x.shape[-1] * x.shape[-2] // 4
            residuals = [torch.randn(x.shape[0], tokens, 128, generator=make) for _ in range(4)]
            lists = {"input": residuals[:2], "output": residuals[2:]}
            return executor(x, t, c_concat, c_crossattn, lists, transformer_options, **extra)

        def run() -> tuple[Any, torch.Tensor]:
            model, shape = frozen.tiny(kind)
            model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "control", wrapper)
            model = frozen.patched(model, name)
            return model, sample(model, latent=torch.zeros(2, *shape), steps=10, cfg=2.0)

        return run

    def ending(name: str, kind: str):
        import comfy.controlnet

        class Silent(comfy.controlnet.ControlBase):
            def get_control(self, *_arguments):
                return None

        control = Silent()
        control.timestep_percent_range = (0.3, 0.6)
        return tiny(
            kind,
            name,
            cfg=2.0,
            positive=make_conditioning(0, control=control, control_apply_to_uncond=False),
        )

    for kind in ("flux", "sd3"):
        for name in EVERY:
            yield f"{kind}, {name}, split conditions", split(name, kind)
            yield f"{kind}, {name}, inpainting", masked(name, kind)
            yield (
                f"{kind}, {name}, a prompt that ends",
                ranged(name, kind, start_percent=0.0, end_percent=0.4),
            )
            yield f"{kind}, {name}, an area", ranged(name, kind, area=(8, 8, 0, 0), strength=1.0)
            yield f"{kind}, {name}, ControlNet", controlled(name, kind)
            yield f"{kind}, {name}, a ControlNet that ends", ending(name, kind)
        painted = torch.zeros(1, 64, 96)
        painted[:, :32] = 1
        for name in ("per token", "region"):
            yield (
                f"{kind}, {name}, mask input",
                tiny(kind, name, changed={"mask": painted}, batch=2),
            )


def _demo(frozen: Frozen) -> Iterator[tuple[str, Callable]]:
    """The demo models, with their prompts, and with policy files."""
    from demo.world import weights_of
    from evaluation.subjects import ALL_FAMILIES, guidance_of
    from rapid_testing.sampling import sample
    from rapid_testing.texts import text

    def drawn(
        kind: str,
        patch: Callable,
        steps: int = 28,
        size: int = 16,
        sampler: str = "euler",
        batch: int = 2,
    ):
        def run() -> tuple[Any, torch.Tensor]:
            name = kind.removeprefix("demo ")
            prompts = "\n".join([text("grid", name), text("green", name)][:batch])
            (positive,) = frozen.host.run_node("RAPIDDemoPrompt", text=prompts, model=name)
            (negative,) = frozen.host.run_node("RAPIDDemoPrompt", text="", model=name)
            family = ALL_FAMILIES[name]
            if family.guided:
                guidance = guidance_of(weights_of(name))
                (positive,) = frozen.host.run_node(
                    "FluxGuidance", conditioning=positive, guidance=guidance
                )
            model = patch(frozen.demo(kind))
            latent = torch.zeros(batch, 16, size, size)
            return model, sample(
                model,
                latent=latent,
                steps=steps,
                cfg=family.cfg,
                positive=positive,
                negative=negative,
                sampler=sampler,
            )

        return run

    own = {"reuse_threshold": 0.1, "guard": 0.5, "error_threshold": 0.04}
    for kind in ("demo flux", "demo sd3", "demo lumina"):
        for name in (
            "accelerate 2",
            "accelerate 3",
            "skip",
            "reuse",
            "per token",
            "region",
            "paper",
            "sparse",
        ):
            yield f"{kind}, {name}", drawn(kind, lambda m, n=name: frozen.patched(m, n, **own))
        yield (
            f"{kind}, accelerate 2, dpmpp_2m",
            drawn(kind, lambda m: frozen.patched(m, "accelerate 2"), sampler="dpmpp_2m"),
        )
        yield (
            f"{kind}, per token, 256 px",
            drawn(
                kind, lambda m: frozen.patched(m, "per token", **own), size=32, batch=1, steps=20
            ),
        )
    files = {
        "demo flux": (
            "demo-flux-gaps",
            "demo-flux-solution",
            "demo-flux-pace-1",
            "demo-flux-rapid3",
        ),
        "demo sd3": ("demo-sd3-gaps", "demo-sd3-solution", "demo-sd3-plus"),
    }
    for kind, names in files.items():
        for file in names:
            for speedup in (2.0, 3.0):
                yield (
                    f"{kind}, {file} at {speedup:g}",
                    drawn(
                        kind,
                        lambda m, f=file, s=speedup: frozen.host.run_node(
                            "RAPID_Accelerate",
                            model=m,
                            speedup=s,
                            policy=frozen.policy(f"{f}.safetensors"),
                        )[0],
                    ),
                )


def main() -> None:
    """Make the runs and write what came out, a run at a time."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pack", type=Path, default=REPOSITORY, help="folder of the pack's state")
    parser.add_argument("--out", type=Path, required=True, help="JSON file of hashes and records")
    parser.add_argument("--only", default="", help="runs whose name holds this text")
    args = parser.parse_args()
    frozen = Frozen(args.pack.resolve())
    import comfy.utils
    import folder_paths

    comfy.utils.PROGRESS_BAR_ENABLED = False
    folder_paths.add_model_folder_path(
        "rapid_policies", str(REPOSITORY / "benchmarks" / "policies")
    )
    out: dict[str, Any] = {}
    started = time.monotonic()
    for name, run in runs(frozen):
        if args.only not in name:
            continue
        torch.manual_seed(0)
        try:
            with contextlib.redirect_stdout(None):
                out[name] = frozen.drawn(*run())
        except Exception as error:
            out[name] = {"error": f"{type(error).__name__}: {error}"}
    args.out.write_text(json.dumps(out, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    failed = [name for name, found in out.items() if "error" in found]
    print(
        f"{len(out)} runs in {time.monotonic() - started:.0f} s, {len(failed)} with an error: {args.out}"
    )


if __name__ == "__main__":
    main()
