"""The demo's loader of the Lumina-Next-like model, in the real ComfyUI."""

import importlib

import pytest
import torch
from safetensors.torch import save_file

from demo.demo_model import DemoModel, export
from demo.twins.lumina_next import SIZE
from evaluation.subjects import LUMINA_NEXT
from rapid_testing.sampling import sample


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A model that was not trained, in which nothing is zero."""
    torch.manual_seed(0)
    model = DemoModel("lumina_next")
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    path = tmp_path_factory.mktemp("demo") / "lumina_next.safetensors"
    export("lumina_next", model.state_dict(), path, seen=0)
    return path


@pytest.fixture
def loader(pack, demo_pack):
    return importlib.import_module(f"{demo_pack.__name__}.lumina_next")


def test_its_latents_are_those_of_the_demos_world_and_its_size_that_of_the_file(loader, file):
    patcher = loader.load(str(file))
    assert patcher.model.latent_format.latent_channels == 16
    assert patcher.model.latent_format.scale_factor == pytest.approx(0.3611)
    network = patcher.model.diffusion_model
    assert type(network).__name__ == "LuminaNextDiT" and vars(network.config) == vars(SIZE)
    reload, given = patcher.cached_patcher_init
    assert vars(reload(*given, disable_dynamic=True).model.diffusion_model.config) == vars(SIZE)


def test_the_published_preset_computes_six_of_its_thirty_evaluations_in_full(
    comfy_host, loader, file
):
    (model,) = comfy_host.run_node(
        "RAPID_RegionAdaptive", model=loader.load(str(file)), preset="paper", keep_ratio=0.5
    )
    sample(model, steps=LUMINA_NEXT.steps)
    totals = model.model_options["transformer_options"]["rapid"].log.records[-1].totals
    assert (totals["evaluations"], totals["partial"]) == (30, 24)


def test_other_files_are_refused_with_what_to_pick(loader, tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    wanted = r"Demo Lumina-Next Loader: .*other.safetensors is not .*pick lumina_next.safetensors"
    with pytest.raises(ValueError, match=wanted):
        loader.load(str(path))
    path.write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"other.safetensors cannot be read \(.*restore it"):
        loader.load(str(path))


def test_a_file_that_lacks_tensors_is_called_incomplete(loader, file, tmp_path):
    from safetensors import safe_open

    path = tmp_path / "part.safetensors"
    with safe_open(file, framework="pt") as whole:
        names = [name for name in whole.keys() if "layers.6" not in name]  # noqa: SIM118 no dict
        save_file({n: whole.get_tensor(n) for n in names}, path, metadata=whole.metadata())
    with pytest.raises(ValueError, match=r"part.safetensors lacks 26 of the .* incomplete"):
        loader.load(str(path))


def test_without_rapid_it_says_what_is_missing(loader, comfy_host, file, monkeypatch):
    monkeypatch.delitem(comfy_host.nodes.NODE_CLASS_MAPPINGS, "RAPID_LoadLuminaNext")
    with pytest.raises(RuntimeError, match=r"RAPID_LoadLuminaNext is not there.*install RAPID"):
        loader.load(str(file))
