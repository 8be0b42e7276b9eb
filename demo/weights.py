"""Reading weight files of the demo, with errors that say what to do."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from demo.pack.language import Language
from demo.pack.word_table import WordTableError, file_name, load


class WeightsError(RuntimeError):
    """Weights that are missing, damaged, or of something else."""


REPAIR = "Restore it from the repository (demo/models), or train it again"


def read(path: Path, what: str, repair: str = REPAIR) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a file, in float32. what: what it should be, for errors. Raises
    WeightsError."""
    try:
        with safe_open(path, framework="pt") as file:
            keys = list(file.keys())
            return file.metadata() or {}, {key: file.get_tensor(key).float() for key in keys}
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path}, {what}, cannot be read: it is missing, cut off or no weights file ({error}). {repair}."
        ) from error


def fill(module: nn.Module, tensors: dict[str, Tensor], path: Path, what: str) -> None:
    """Load tensors into a module. Raises WeightsError that names the first ones that do not fit."""
    own = module.state_dict()
    odd = [f"{key} is missing" for key in own if key not in tensors]
    odd += [f"{key} is not known" for key in tensors if key not in own]
    for key, value in tensors.items():
        if key in own and value.shape != own[key].shape:
            odd.append(f"{key} is {tuple(value.shape)}, {tuple(own[key].shape)} accepted")
    if odd:
        more = f", and {len(odd) - 3} more" if len(odd) > 3 else ""
        raise WeightsError(
            f"{path} is not {what}: {'; '.join(odd[:3])}{more}. Use weights and code of the same "
            "version of the demo."
        )
    module.load_state_dict(tensors)


def read_model(
    path: Path, language: Language, kinds: tuple[str, ...]
) -> tuple[str, dict[str, Tensor]]:
    """Kind and state of a `DemoModel` of exported weights: `path` is `<name>.safetensors`, its word
    table lies beside it. Raises WeightsError."""
    beside = path.with_name(file_name(path.stem))
    try:
        table = load(beside)
    except WordTableError as error:
        raise WeightsError(f"{path}, a demo model: {error}") from error
    meta, _ = read(beside, "a word table")
    kind = meta.get("model", "")
    if table.language is not language or kind not in kinds:
        raise WeightsError(
            f"{beside} is the word table of a {kind or 'nameless'} model of the world {table.language.name}, "
            f"accepted is one of {', '.join(kinds)} of the world {language.name}. Use "
            "`demo.world.world_of`, which takes the world from the file."
        )
    _, twin = read(path, f"the weights of a {kind}-like demo model")
    return kind, {**{f"twin.{key}": value for key, value in twin.items()}, "words": table.rows}
