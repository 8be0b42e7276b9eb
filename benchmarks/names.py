"""Names of models, methods and targets as tables show them, and the order of rows."""

from __future__ import annotations

from collections.abc import Iterable

from evaluation.tables import Row

MODELS = {
    "flux": "FLUX-like",
    "sd3": "SD3-like",
    "lumina": "Lumina-like",
    "lumina_next": "Lumina-Next-like",
}
METHODS = {
    "full": "full",
    "full_noise1": "full, other noise",
    "full_noise2": "full, other noise (2)",
    "full_noise3": "full, other noise (3)",
    "full_dpmpp_2m": "full, dpmpp_2m",
    "schedule_gaps": "**RAPID Accelerate, schedule by measured gaps**",
    "schedule_solution": "**RAPID Accelerate, searched schedule**",
    "schedule_dense": "RAPID Accelerate, schedule searched towards the full picture",
    "default_schedule": "**RAPID Accelerate, no policy file**",
    "plus": "heads on the searched schedule (`rapid+`)",
    "plus_shuffled": "the same heads, decisions of other pictures",
    "pace_1": "heads on the searched schedule (`rapid+`), seed 50000",
    "pace_2": "heads on the searched schedule (`rapid+`), seed 60000",
    "full_3": "heads on schedules of their own, seed 70000",
    "schedule_full-3-plan": "these schedules without heads",
    "pace": "heads on the shipped schedule (`rapid+`)",
    "pace_shuffled": "heads on the shipped schedule, decisions of other pictures",
    "pace_untrained": "the same, untrained",
    "rapid3": "RAPID3's heads",
    "rapid3_shuffled": "RAPID3's heads, decisions of other pictures",
    "full_picture": "**RAPID Accelerate, full picture**",
    "full_picture_policy": "**RAPID Accelerate, full picture, with a policy file**",
    "best_picture": "**RAPID Accelerate, best picture**",
    "best_picture_policy": "**RAPID Accelerate, best picture, with a policy file**",
    "accelerate": "**RAPID Accelerate**, `speedup` 2",
    "accelerate_equal": "**RAPID Accelerate**, at this cost",
    "as_it_comes": "RAPID Accelerate as it comes",
    "spectrum": "Spectrum",
    "taylorseer": "TaylorSeer",
    "hicache": "HiCache",
    "teacache": "TeaCache",
    "static_mask": "evaluations searched at random",
    "easycache": "EasyCache",
    "lazycache": "LazyCache",
    "random": "as many evaluations, at random steps",
    "sparse": "**RAPID Sparse Attention, difference predicted**",
    "sparse_last_value": "RAPID Sparse Attention, last difference",
    "sparse_means": "RAPID Sparse Attention, means",
    "sparse_none": "RAPID Sparse Attention, nothing stands in",
    "region_error": "**RAPID Region Adaptive, per-token error**",
    "region": "RAPID Region Adaptive, fixed share",
    "region_rounds": "tokens in turn, same schedule",
    "region_random": "random tokens, same schedule",
    "region_attention": "tokens by received attention, same schedule",
    "region_paper_equal": "published method (`paper`), at this cost",
    "region_paper": "published method (`paper`)",
    "cache_reuse": "**RAPID Cache Reuse**",
    "cache_reuse_unguarded": "RAPID Cache Reuse, no safety check",
    "fewer_steps": "fewer Euler steps",
    "fewer_euler": "fewer Euler steps",
    "fewer_dpmpp_2m": "fewer steps of dpmpp_2m",
    "fewer_res_multistep": "fewer steps of res_multistep",
    "fewer_uni_pc": "fewer steps of uni_pc",
    "fewer_deis": "fewer steps of deis",
    "fewer_ipndm": "fewer steps of ipndm",
    "fewer_heun": "fewer steps of heun",
    "region_error_dpmpp_2m": "RAPID Region Adaptive, per-token error, on dpmpp_2m",
    "cache_reuse_dpmpp_2m": "RAPID Cache Reuse, on dpmpp_2m",
}
SPEEDUPS = ("1.2x", "1.5x", "2x", "2.5x", "3x", "4x", "5x")
DIAL = {"1.0": "-", **{speedup: speedup for speedup in SPEEDUPS}}
FEW = {"1.0": "-", "2x": "2x", "1 skipped": "1 skipped", "2 skipped": "2 skipped"}
TARGETS = {
    "dial_speed": DIAL,
    "dial_speed_50": DIAL,
    **{f"dial_few_{steps}": FEW for steps in (4, 6, 8, 12)},
    "region": {
        "1.0": "-",
        "0.5": "1/2 of the tokens",
        "0.25": "1/4 of the tokens",
        "headline": "3/16, 6 full evaluations",
    },
    "policy": {"1.0": "-", "1.1x": "1.1x", "2x": "2x", "2.8x": "2.8x", "3x": "3x", "4x": "4x"},
    "sparse": {"1.0": "-", "0.5": "0.5", "0.25": "0.25", "0.125": "0.125"},
    "demo": {"half": "half"},
}


def in_order(rows: Iterable[Row]) -> list[Row]:
    """Rows of quality by target, then by method, as METHODS and TARGETS have them."""
    methods = list(METHODS)

    def place(row: Row) -> tuple[int, int]:
        return list(TARGETS[row["suite"]]).index(row["target"]), methods.index(row["method"])

    return sorted(rows, key=place)


# Releases of ComfyUI that tests are run on, from the oldest that the pack asks for.
RELEASES = ("0.16.3", "0.18.2", "0.24.1", "0.27.0", "0.30.0")
# Files of integration tests, in the order in which `dev.py bench hosts` runs and shows them.
TOPICS = {
    "ground": "loading the pack, sampling",
    "every_node": "every node once",
    "nodes": "inputs of nodes",
    "words": "words and languages",
    "accelerate": "RAPID Accelerate",
    "safety": "samplers, and where skipping is not safe",
    "cache_reuse": "RAPID Cache Reuse",
    "region_runs": "Region Adaptive: whole runs",
    "region_exact": "Region Adaptive: exactness",
    "region_conditions": "Region Adaptive: prompts, areas, ControlNets",
    "region_memory": "Region Adaptive: memory",
    "sparse": "RAPID Sparse Attention",
    "company": "other packs and nodes on the same model",
    "fallbacks": "what is computed in full, and why",
    "defects": "set-ups that once went wrong",
    "cost": "FLOPs beside torch's counter",
    "compare": "RAPID Compare, and reports without a record",
    "learn": "learning of a model",
    "calibrate": "RAPID Calibrate",
    "model_key": "telling models apart",
    "policy_auto": "policy files that are found by themselves",
    "policy_sampler": "RAPID Policy Sampler",
    "tpdm": "TPDM's heads",
    "lumina_next": "Lumina-Next",
    "demo_lumina_next": "the Lumina-Next-like demo model",
    "emoji_model": "the emoji model",
    "examples": "example workflows",
    "demo_workflows": "the demo's workflows, through a server",
    "server": "a server with the nodes",
    "install": "installed beside ComfyUI-Manager",
    "readme": "what README says to type",
    "training": "training a policy",
}
