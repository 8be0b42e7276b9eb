"""Heads files: trained heads of RAPID3, of `rapid+`, which begin with schedules, or of TPDM.

Metadata says what the heads are made like (`structure`, one of STRUCTURES) and their sizes; tensors
are theirs by name, and for `rapid+` those of a schedule file beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..engine.sparse import NAMES
from ..techniques.heads.network import Module
from ..techniques.heads.rapid3 import OUTPUTS, Heads, Rapid3Policy
from ..techniques.heads.rapid_plus import MODES, NUMBERS, RapidPlusPolicy
from ..techniques.heads.tpdm import FAMILY, KIND, TPDMHeads, TPDMPolicy
from ..types import Aim, Sparsity
from .format import PolicyFile, is_number
from .schedules import TENSORS, nearest_schedule, schedules_of

PLUS = "rapid+"  # heads that begin with a schedule
STRUCTURES = ("rapid3", PLUS, KIND)  # a file that names none has the first
MAX_SIZE = 65536  # of what heads are made of
DENSITIES = 3
# Where heads are made before they are filled: nothing is drawn, and sizes cost nothing.
NOWHERE = torch.device("meta")


def structure_of(file: PolicyFile) -> str:
    """What the heads of a file are made like, one of STRUCTURES. Raises PolicyError."""
    structure = file.metadata.get("structure", STRUCTURES[0])
    if structure not in STRUCTURES:
        raise file.refusal("structure", structure, f"one of {', '.join(STRUCTURES)}")
    return structure


def head_tensors(heads: Heads) -> dict[str, Tensor]:
    """Tensors of a heads file: what `heads_of` reads."""
    return {name: value.float() for name, value in heads.state_dict().items()}


def head_metadata(
    heads: Heads, prediction_order: int, densities: Sequence[float], backend: str = "auto"
) -> dict[str, Any]:
    """Metadata of a heads file beside what all files have. backend: of the sparse attention, if a
    head chooses it."""
    sparse = {"sparse_backend": backend} if "sparse" in heads.heads else {}
    return {
        "heads": list(heads.heads),
        "channels": heads.channels,
        "hidden": heads.hidden,
        "numbers": heads.numbers,
        "width": heads.width,
        "scales": heads.scales,
        "forecast_order": prediction_order,
        "densities": list(densities),
        **sparse,
    }


def tpdm_metadata(heads: TPDMHeads) -> dict[str, Any]:
    """Metadata of a file of TPDM's heads beside what all files have."""
    return {
        "structure": KIND,
        "heads": list(heads.heads),
        "hidden": heads.hidden,
        "side": heads.side,
        "width": heads.width,
    }


def heads_of(file: PolicyFile) -> Heads:
    """The heads of a file, for use only. Raises PolicyError."""
    names = file.json("heads")
    known = tuple(OUTPUTS)
    if not isinstance(names, list) or not names or any(name not in known for name in names):
        raise file.refusal("heads", names, f"a list of some of {', '.join(known)}")
    sizes = {
        field: file.whole(field, 1, MAX_SIZE)
        for field in ("channels", "hidden", "numbers", "width")
    }
    scales = file.json("scales")
    complete = isinstance(scales, dict) and set(scales) == set(names)
    if not complete or not all(map(_positive, scales.values())):
        accepted = f"a positive number for each of {', '.join(names)}"
        raise file.refusal("scales", scales, accepted)
    with NOWHERE:
        heads = Heads(heads=names, scales=scales, **sizes)
    return _filled(file, heads, TENSORS if structure_of(file) == PLUS else ())


def tpdm_of(file: PolicyFile) -> TPDMHeads:
    """TPDM's heads of a file, for use only. Raises PolicyError."""
    if file.architecture != FAMILY:
        accepted = f"{FAMILY!r}, whose tokens heads of structure {KIND} look at"
        raise file.refusal("architecture", file.architecture, accepted)
    names = file.json("heads")
    if names != ["step"]:
        raise file.refusal("heads", names, "the step head alone")
    hidden = file.whole("hidden", 1, 16384)
    side = file.whole("side", 1, 1024)
    width = file.whole("width", 1, 1024)
    if side % 2:
        raise file.refusal("side", side, "an even number of tokens")
    with NOWHERE:
        heads = TPDMHeads(hidden, side, width)
    return _filled(file, heads)


def _filled(file: PolicyFile, heads: Module, others: tuple[str, ...] = ()) -> Module:
    """Heads with the file's tensors in them, which must be theirs and no others but those that
    begin with `others`."""
    own = heads.state_dict()
    for name in sorted(file.tensors):
        if name not in own and not name.startswith(others):
            raise file.field_error(name, "is not a tensor of these heads")
    tensors = {name: file.tensor(name, tuple(value.shape)).float() for name, value in own.items()}
    heads.requires_grad_(False).load_state_dict(tensors, assign=True)
    return heads.train(False)


def _positive(value: Any) -> bool:
    return is_number(value, 1e-6, 1e6) and 1e-6 < value < 1e6


def heads_policy(file: PolicyFile, speedup: float) -> Rapid3Policy:
    """The policy of a heads file. Raises PolicyError."""
    structure = structure_of(file)
    if structure == KIND:
        return TPDMPolicy(heads=tpdm_of(file), speedup=speedup, source=file.name)
    heads = heads_of(file)
    settings = {
        "heads": heads,
        "speedup": speedup,
        "densities": _densities(file),
        "prediction_order": file.whole("forecast_order", 0, 2),
        "sparsity": Sparsity(_backend(file)) if "sparse" in heads.heads else None,
        "source": file.name,
    }
    if structure == PLUS:
        _check_plus(file, heads)
        return RapidPlusPolicy(
            **settings,
            mode=_mode(file),
            learned_aim=_aim(file),
            schedule=nearest_schedule(file, speedup),
            ladder=tuple(reversed(schedules_of(file))),
        )
    if heads.numbers != 1:
        raise file.refusal("numbers", heads.numbers, "1, sigma")
    if "pace" in heads.heads:
        accepted = f"a list without pace, which needs schedules (structure {PLUS})"
        raise file.refusal("heads", list(heads.heads), accepted)
    return Rapid3Policy(**settings)


def _check_plus(file: PolicyFile, heads: Heads) -> None:
    if heads.numbers != NUMBERS:
        raise file.refusal("numbers", heads.numbers, f"{NUMBERS} for structure {PLUS}")
    if "pace" not in heads.heads or "step" in heads.heads:
        accepted = f"a list with pace and without step for structure {PLUS}"
        raise file.refusal("heads", list(heads.heads), accepted)


def _densities(file: PolicyFile) -> tuple[float, ...]:
    densities = file.json("densities")
    numbers = isinstance(densities, list) and all(_positive(d) and d < 1 for d in densities)
    if not numbers or len(densities) != DENSITIES:
        raise file.refusal("densities", densities, f"{DENSITIES} numbers between 0 and 1")
    return tuple(densities)


def _backend(file: PolicyFile) -> str:
    """What computes the sparse attention that heads choose."""
    backend = file.metadata.get("sparse_backend", "auto")
    if backend not in NAMES:
        raise file.refusal("sparse_backend", backend, f"one of {', '.join(NAMES)}")
    return backend


def _mode(file: PolicyFile) -> str:
    """How `rapid+` spends its budget."""
    mode = file.metadata.get("mode", "cap")
    if mode not in MODES:
        raise file.refusal("mode", mode, f"one of {', '.join(MODES)}")
    return mode


def _aim(file: PolicyFile) -> Aim:
    """Which picture `rapid+` learned to come near; of older files the full one."""
    aim = file.metadata.get("aim", Aim.FULL_PICTURE.value)
    names = [one.value for one in Aim]
    if aim not in names:
        raise file.refusal("aim", aim, f"one of {', '.join(names)}")
    return Aim(aim)


def jumps_policy(file: PolicyFile, speedup: float) -> Rapid3Policy:
    """The policy of a heads file whose step head is to choose sigmas. Raises PolicyError."""
    instead = "connect it to RAPID Accelerate instead"
    no_step = f"has no step head to choose sigmas with; {instead}"
    if file.kind != "heads":
        raise file.field_error("kind", f"= {file.kind!r} {no_step}")
    blind = {
        KIND: "a sampler does not see the tokens that it looks at",
        PLUS: "its jumps are from step to step of a schedule",
    }
    structure = structure_of(file)
    if structure in blind:
        raise file.field_error("structure", f"= {structure!r}: {blind[structure]}; {instead}")
    policy = heads_policy(file, speedup)
    if "step" not in policy.heads.heads:
        names = ", ".join(policy.heads.heads)
        raise file.field_error("heads", f"= {names}: {no_step}")
    return policy
