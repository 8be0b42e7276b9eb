"""Load Policy: a policy file, for RAPID Accelerate."""

from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..rapid_core.comfy.learning import FOLDER, LEARNED
from ..rapid_core.policy_file.format import read
from ..rapid_core.policy_file.policies import policy_of
from .base import RapidNode, words_first
from .weight_files import stamp_of as file_stamp

SHIPPED = Path(__file__).parent.parent / "policies"
NONE = "(no policy files)"
Policy = io.Custom("RAPID_POLICY")


def add_folders() -> None:
    """Make the host look for policies in models/rapid_policies and in this pack."""
    for folder in (Path(folder_paths.models_dir) / FOLDER, SHIPPED):
        folder_paths.add_model_folder_path(FOLDER, str(folder))
    folder_paths.folder_names_and_paths[FOLDER][1].add(".safetensors")


def path_of(name: str, given: str = "RAPID Load Policy: policy") -> Path:
    """Where a policy of this name lies. given: the input that has the name. Raises ValueError."""
    path = folder_paths.get_full_path(FOLDER, name)
    if path is None:
        raise ValueError(
            f"{given} = {name!r} was given; there is {', '.join(names()) or 'nothing'}. Put policy "
            f"files into models/{FOLDER} and refresh the page's node definitions (R)."
        )
    return Path(path)


def names() -> list[str]:
    """All policies but what RAPID Accelerate learned; the user's own before those of the demo
    models, which fit no others."""
    try:
        found = folder_paths.get_filename_list(FOLDER)
    except FileNotFoundError:  # the host remembers a folder that was deleted
        folder_paths.filename_list_cache.pop(FOLDER, None)
        found = folder_paths.get_filename_list(FOLDER)
    shipped = {path.name for path in SHIPPED.glob("*.safetensors")}
    made = (name for name in found if Path(name).parts[0] != LEARNED)
    return sorted(made, key=lambda name: name in shipped)


def stamp_of(name: str | None) -> tuple[tuple[str | None, int], ...]:
    """Another one when the policy of this name was changed. None stands for a name that comes over
    a link and is not known yet: it may be that of any."""
    return tuple(file_stamp(FOLDER, one) for one in (names() if name is None else [name]))


class LoadPolicy(RapidNode):
    """Reads a policy file, and again when it has changed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RAPID_LoadPolicy",
            display_name="RAPID Load Policy",
            category="RAPID",
            description="Loads a policy file for RAPID Accelerate: a searched schedule, fitted thresholds "
            "or trained heads for one model, made by RAPID's training script. Policy files belong in "
            "models/rapid_policies. RAPID Accelerate finds newer ones by itself.",
            search_aliases=[
                "rapid3",
                "tpdm",
                "policy",
                "schedule",
                "heads",
                "load policy",
                "策略",
            ],
            inputs=[
                io.Combo.Input(
                    "policy",
                    options=names() or [NONE],
                    tooltip="A .safetensors file in models/rapid_policies. It must be made for the model "
                    "you sample with.",
                ),
            ],
            outputs=[
                Policy.Output(
                    display_name="policy",
                    tooltip="What the file holds, for RAPID Accelerate or RAPID Policy Sampler.",
                ),
                io.String.Output(
                    display_name="about",
                    tooltip="What the file says about itself, one entry per line: model, "
                    "speed-ups (budgets), measurements, licence.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, policy: Any = None) -> bool | str:
        try:
            if policy is not None:
                path_of(str(policy))
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, policy: Any) -> tuple:
        """Changes when the file does, so that the host reads it again."""
        return stamp_of(policy)

    @classmethod
    def execute(cls, policy: str) -> io.NodeOutput:
        with words_first():
            file = read(path_of(policy))
            policy_of(file, file.budgets[0])  # what a run would find wrong is said here
        about = (f"{name}: {value}" for name, value in sorted(file.metadata.items()))
        return io.NodeOutput(file, "\n".join(about))
