"""Files of weights that a node offers to choose from, in the host's folders."""

import re
from pathlib import Path

import folder_paths

NONE = "(no .safetensors files)"
LATER_SHARD = re.compile(r".*-(?!00001)\d{5}-of-\d{5}\.safetensors")


def fitting(folder: str) -> list[str]:
    """Names of the safetensors files in a folder of the host's, of shards the first ones; one that
    says so where there are none."""
    names = folder_paths.get_filename_list(folder)
    files = [name for name in names if name.endswith(".safetensors")]
    return [name for name in files if not LATER_SHARD.fullmatch(name)] or [NONE]


def path_of(folder: str, name: str, given: str) -> Path:
    """Where a file of this name lies. given: the node and its input, for the error. Raises
    ValueError."""
    path = folder_paths.get_full_path(folder, name)
    if path is None:
        raise ValueError(
            f"{given} = {name!r} was given; there is no such file in models/{folder}. Put it there, "
            f"and refresh the page's node definitions (R)."
        )
    return Path(path)


def refusal(folder: str, name: str | None, given: str) -> bool | str:
    """For `validate_inputs`: True, or why this file is refused. None stands for a name that comes
    over a link and is not known yet."""
    try:
        if name is not None:
            path_of(folder, name, given)
    except ValueError as error:
        return str(error)
    return True


def stamp_of(folder: str, name: str | None) -> tuple[str | None, int]:
    """Another one when the file of this name was changed. None stands for a name that comes over a
    link and is not known yet."""
    path = None if name is None else folder_paths.get_full_path(folder, name)
    return name, Path(path).stat().st_mtime_ns if path else 0
