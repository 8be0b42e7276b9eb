"""What all kinds of training have in common: the same course, the same metadata, the same files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluation.plots import Panel
from rapid_core.policy_file.format import PolicyFile, write
from training.card import write_card
from training.clock import measured_speedups
from training.config import TrainConfig
from training.graph import Graph
from training.host import size_of, weights_of
from training.processes import broadcast_from_rank0, rank
from training.references import Reference, references
from training.state import open_state


@dataclass(frozen=True)
class Job:
    """One training. Its course: open the state folder, draw references, search or learn, measure on
    held-out prompts, and `finish`."""

    graph: Graph
    prompts: Sequence[str]
    config: TrainConfig
    state: Path
    """Folder of what is kept between runs."""
    out: Path
    """The policy file."""

    def open_state(self, prompts: Sequence[str], pictures: bool = False, **settings: Any) -> None:
        """Make the state folder or go on with it. pictures: whether any are looked at; settings:
        that it belongs to, beside the config's. Raises ValueError for that of another training."""
        open_state(
            self.state,
            self.graph.own_nodes(pictures),
            prompts,
            {**self.config.state_settings, **weights_of(self.graph.model), **settings},
        )

    def references(self, first: int, stop: int, euler: bool = True) -> list[Reference]:
        """Those of prompts first .. stop - 1, whose seeds follow from their numbers; see
        `references.reference`."""
        config = self.config
        return references(
            self.graph,
            self.prompts[first:stop],
            config.seed + first,
            self.state / "references",
            config.refined,
            euler,
        )

    def finish(self, result: Result) -> PolicyFile:
        """Measure by the clock, and write the policy and its card."""
        config = self.config
        speedups = measured_speedups(
            self.graph,
            result.policies,
            result.clock_prompt,
            result.clock_seed,
            self.state / result.clock_file,
        )
        metadata = {
            **size_of(self.graph.model),
            **weights_of(self.graph.model),
            "base_model": self.graph.model_name,
            "licence": config.licence,
            "training_command": config.command,
            "torch": torch.__version__,
            "target": config.target_in_words,
            "measured_prompts": config.held_out,
            "measured_speedup": speedups,
            **result.metadata,
        }
        file = self._write(result, metadata)
        if rank() == 0:
            write_card(file, result.about, result.table, result.panels, result.remarks)
        return file

    def _write(self, result: Result, metadata: Mapping[str, Any]) -> PolicyFile:
        """Written by process 0, and known to all, whether or not they see its disk."""

        def written() -> dict[str, Any]:
            file = write(self.out, result.kind, metadata, result.tensors)
            return {**vars(file), "path": str(file.path)}

        fields = broadcast_from_rank0(written)
        return PolicyFile(**{**fields, "path": Path(fields["path"])})


@dataclass(frozen=True)
class Result:
    """What a training came to."""

    kind: str
    """Of the policy file."""
    metadata: Mapping[str, Any]
    """Of the policy file, beside what all have."""
    tensors: Mapping[str, Tensor]
    policies: Mapping[str, Any]
    """Policies whose speed is measured, by names that differ where they do."""
    clock_prompt: str
    clock_seed: int
    clock_file: str
    """Where their times are kept, in the state folder."""
    about: str
    """The card's opening paragraph."""
    table: str
    """What was measured on held-out prompts, as Markdown."""
    panels: Sequence[Panel]
    remarks: str = ""
    """Markdown at the end of the card."""
