"""Make a policy file of TPDM's published weights for Stable Diffusion 3 medium (Ye et al. 2024,
arXiv 2412.01243).

    python training/convert_tpdm.py model.safetensors --out NAME

model.safetensors has the tensors time_predictor.*, alone or among those of a whole model, of which
nothing else is read; of a model in several files give its model.safetensors.index.json. The policy
appears in models/rapid_policies as NAME.safetensors. RAPID Accelerate uses it as any other
policy."""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

# Not first: ComfyUI has a module `nodes`, too.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from rapid_core.policy_file.format import PolicyFile, write  # noqa: E402
from rapid_core.policy_file.heads import heads_policy, tpdm_metadata  # noqa: E402
from rapid_core.techniques.heads.tpdm import FAMILY, TPDMHeads  # noqa: E402
from training.host import find_tree  # noqa: E402

# As published; as their training saves it.
PREFIXES = ("time_predictor.", "agent_model.time_predictor.")
TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# How their code samples: it ends below this sigma, or after so many evaluations.
MIN_SIGMA = 0.001
MAX_STEPS = 35


class ConversionError(ValueError):
    """A file that is not TPDM's; says which file and tensor, what was found and what is wanted."""


def tensor_files(path: Path) -> dict[str, Path]:
    """Where each tensor of a safetensors file lies, or of a model in several files whose index is
    given. Raises ConversionError."""
    if path.suffix == ".json":
        try:
            files = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
            return {name: path.parent / Path(file).name for name, file in files.items()}
        except OSError as error:
            raise ConversionError(f"{path.name}: cannot be read ({error.strerror})") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ConversionError(
                f"{path.name}: not the index of a model in several safetensors files"
            ) from None
    with opened(path) as file:
        return dict.fromkeys(file.keys(), path)


def opened(path: Path) -> safe_open:
    """A safetensors file. Raises ConversionError."""
    if not path.is_file():
        raise ConversionError(
            f"{path.name}: no such file in {path.parent}; give the path of a safetensors file"
        )
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ConversionError(
            f"{path.name}: not a whole safetensors file ({error}); fetch it again"
        ) from None


def published(path: Path) -> tuple[dict[str, Tensor], list[Path]]:
    """The tensors of the published head by their names in it, and the files they were read from.
    Raises ConversionError for one that is missing, of another shape or type, not finite, or
    unknown."""
    files = tensor_files(path)
    prefix = next((p for p in PREFIXES if any(name.startswith(p) for name in files)), None)
    state = empty_heads().heads["step"].state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    if prefix is None:
        raise ConversionError(
            f"{path.name}: has no tensor {PREFIXES[0]}*; TPDM's sd3/model.safetensors has "
            f"{len(shapes)} of them"
        )
    own = {
        name.removeprefix(prefix): file for name, file in files.items() if name.startswith(prefix)
    }
    for name in shapes:
        if name not in own:
            raise ConversionError(f"{path.name}: {prefix}{name} is missing")
    for name in own:
        if name not in shapes:
            raise ConversionError(
                f"{path.name}: {prefix}{name} is not a tensor of TPDM's head for Stable Diffusion 3"
            )
    tensors = {name: read(own[name], prefix + name, shape) for name, shape in shapes.items()}
    return tensors, sorted(set(own.values()))


def read(path: Path, name: str, shape: tuple[int, ...]) -> Tensor:
    """One tensor of this shape, float32. Raises ConversionError."""
    with opened(path) as file:
        if name not in file.keys():
            raise ConversionError(
                f"{path.name}: {name} is missing, although the index says it is there"
            )
        own_shape = tuple(file.get_slice(name).get_shape())
        if own_shape != shape:
            raise ConversionError(
                f"{path.name}: {name} has shape {own_shape}; the head for Stable Diffusion 3 medium has "
                f"{shape}"
            )
        value = file.get_tensor(name)
    if value.dtype not in TYPES:
        raise ConversionError(
            f"{path.name}: {name} has type {value.dtype}; wanted is one of "
            f"{', '.join(map(str, TYPES))}"
        )
    if not torch.isfinite(value).all():
        raise ConversionError(
            f"{path.name}: {name} holds NaN or infinite values; fetch the file again"
        )
    return value.float()


def heads_from(tensors: Mapping[str, Tensor]) -> TPDMHeads:
    """TPDM's heads of the published tensors. Their modulation has its shift first and its scale
    second, ours the other way round."""
    turned = dict(tensors)
    for name in ("norm1.linear.weight", "norm1.linear.bias"):
        shift, scale = tensors[name].chunk(2)
        turned[name] = torch.cat((scale, shift))
    heads = empty_heads()
    heads.heads["step"].load_state_dict(turned, assign=True)
    return heads


def empty_heads() -> TPDMHeads:
    """TPDM's heads of the published sizes without memory for their weights."""
    with torch.device("meta"):
        return TPDMHeads()


def sha256(path: Path) -> str:
    """Of a file's contents, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def convert(path: Path, out: Path, licence: str, base_model: str) -> PolicyFile:
    """Write a policy file of TPDM's weights, and read it as RAPID Accelerate will. Raises
    ConversionError."""
    tensors, files = published(path)
    heads = heads_from(tensors)
    arguments = ["--out", out.stem, "--licence", licence, "--base-model", base_model]
    metadata = {
        "architecture": FAMILY,
        "base_model": base_model,
        "method": "tpdm",
        "budgets": [1.0],
        "licence": licence,
        "reward": "ImageReward, discounted by the number of evaluations (TPDM's own training)",
        "training_command": "training/" + shlex.join(["convert_tpdm.py", path.name, *arguments]),
        "max_steps": MAX_STEPS,
        "min_sigma": MIN_SIGMA,
        "source_sha256": {file.name: sha256(file) for file in files},
        **tpdm_metadata(heads),
    }
    file = write(out, "heads", metadata, heads.state_dict())
    heads_policy(file, 1.0)
    return file


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "source", type=Path, help="TPDM's sd3/model.safetensors, or an index of several files"
    )
    made.add_argument("--out", required=True, help="name of the policy")
    made.add_argument(
        "--policies",
        type=Path,
        help="folder of the policy (default: ComfyUI's models/rapid_policies)",
    )
    made.add_argument(
        "--comfyui", type=Path, help="ComfyUI's folder (default: the one this pack lies in)"
    )
    made.add_argument(
        "--licence", default="unspecified", help="of the policy file: that of the weights"
    )
    made.add_argument(
        "--base-model", default="stable-diffusion-3-medium", help="model that the weights are for"
    )
    return made


def main() -> None:
    args = parser().parse_args()
    folder = args.policies or find_tree(args.comfyui) / "models" / "rapid_policies"
    try:
        file = convert(
            args.source, folder / f"{args.out}.safetensors", args.licence, args.base_model
        )
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    print(f"policy: {file.path}")


if __name__ == "__main__":
    main()
