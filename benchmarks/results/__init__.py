"""Tables of README and docs/results, made from the JSON in docs/results.

A page holds its words, and for each table two marks; what is between them is made here: one module for the
tables of a topic. After a file of figures has changed: python -m benchmarks.results
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from benchmarks.results.demo_report import demo, demo_models, trajectories
from benchmarks.results.dial import accelerate_clock, curve, few, quality_mode, samplers
from benchmarks.results.files import FOLDER
from benchmarks.results.gpu import gpu_flops, gpu_memory
from benchmarks.results.heads import heads_ablations, heads_trained
from benchmarks.results.host_models import host_models
from benchmarks.results.hosts import host_failed, host_runs, host_skipped, host_topics
from benchmarks.results.learning import learned, transferred
from benchmarks.results.quality import differences, quality
from benchmarks.results.readme import five_rows
from benchmarks.results.region import region_clock
from benchmarks.results.sparse import sparse_clock, sparse_mass
from devkit.base_folder import REPOSITORY

MARKED = re.compile(
    r"(?P<begin><!-- table (?P<name>[\w-]+): made by `python -m benchmarks\.results` -->\n)"
    r".*?"
    r"(?P<end><!-- end of table -->)",
    re.DOTALL,
)
COSTED_AS = ("flux-dev", "sd3-medium")
TABLES: dict[str, Callable[[], str]] = {
    "five_rows": five_rows,
    "demo": demo,
    "demo_models": demo_models,
    "trajectories": trajectories,
    "dial_flux": lambda: quality("dial", "flux", suite="dial_speed"),
    "dial_sd3": lambda: quality("dial", "sd3", suite="dial_speed"),
    "dial_differences_flux": lambda: differences("dial_speed", "flux"),
    "dial_differences_sd3": lambda: differences("dial_speed", "sd3"),
    "curve_flux": lambda: curve("flux"),
    "curve_sd3": lambda: curve("sd3"),
    "quality_flux": lambda: quality_mode("flux"),
    "quality_sd3": lambda: quality_mode("sd3"),
    "few_flux": lambda: few("flux"),
    "few_sd3": lambda: few("sd3"),
    "accelerate_clock": accelerate_clock,
    "policy_flux": lambda: quality("policy_flux", "flux"),
    "policy_sd3": lambda: quality("policy_sd3", "sd3"),
    "policy_differences_flux": lambda: differences("policy", "flux"),
    "policy_differences_sd3": lambda: differences("policy", "sd3"),
    "learned_flux": lambda: learned("flux"),
    "learned_sd3": lambda: learned("sd3"),
    "learned_lumina": lambda: learned("lumina"),
    "transferred": transferred,
    "samplers_flux": lambda: samplers("flux"),
    "samplers_sd3": lambda: samplers("sd3"),
    "region_sd3": lambda: quality("region_sd3", "sd3"),
    "region_flux": lambda: quality("region_flux", "flux"),
    "region_corrected_flux": lambda: quality("region_corrected", "flux"),
    "region_corrected_sd3": lambda: quality("region_corrected", "sd3"),
    "region_lumina_next": lambda: quality("region_lumina_next", "lumina_next"),
    "region_lumina": lambda: quality("region_lumina", "lumina"),
    "region_differences_sd3": lambda: differences("region", "sd3"),
    "region_differences_flux": lambda: differences("region", "flux"),
    "region_differences_lumina": lambda: differences("region", "lumina"),
    "region_clock": region_clock,
    "sparse_mass": sparse_mass,
    "sparse_clock": sparse_clock,
    "sparse_flux": lambda: quality("sparse_demo", "flux", COSTED_AS),
    "sparse_sd3": lambda: quality("sparse_demo", "sd3", COSTED_AS),
    "models_image": lambda: host_models("image"),
    "models_video": lambda: host_models("video"),
    "models_others": lambda: host_models("audio", "3D"),
    "models_unet": lambda: host_models("UNet", blocks=False),
    "host_runs": host_runs,
    "host_topics": host_topics,
    "host_skipped": host_skipped,
    "host_failed": host_failed,
    "gpu_memory": gpu_memory,
    "gpu_flops": gpu_flops,
    "heads_v2": lambda: quality("heads_v2", "flux"),
    "heads_trained": heads_trained,
    "heads_ablations": heads_ablations,
}


def pages() -> list[Path]:
    """Pages with tables that are made here."""
    return [REPOSITORY / "README.md", *sorted(FOLDER.glob("*.md"))]


def with_tables(page: str) -> str:
    """A page with its tables as they should be. Raises KeyError for a table that is not known."""

    def made(match: re.Match[str]) -> str:
        return f"{match['begin']}\n{TABLES[match['name']]()}\n\n{match['end']}"

    return MARKED.sub(made, page)


def make_pages() -> None:
    """Write all tables of all pages anew."""
    for path in pages():
        made = with_tables(path.read_text(encoding="utf-8"))
        path.write_text(made, encoding="utf-8", newline="\n")
