"""The script for a card, in small on a CPU; and what cards would have to hold, on fake tensors."""

import json

import pytest
import torch

from benchmarks import announced, gpu

pytestmark = pytest.mark.main_host
NAMES = ("z_image", "flux_dev", "sd35_large", "qwen_image", "ltx2", "wan_14b")


def tiny(out, *flags):
    """The command's flags for tiny models on a CPU."""
    return gpu.parser().parse_args(["--tiny", "--device", "cpu", "--out", str(out), *flags])


def written(out, name="gpu.json"):
    """What it wrote."""
    return json.loads((out / name).read_text(encoding="utf-8"))


def test_the_script_for_a_card_measures_every_model(comfy_host, pack, tmp_path):
    gpu.run(comfy_host, tiny(tmp_path, "--minutes", "60"))
    found = written(tmp_path)
    assert found["machine"]["torch"] == torch.__version__ and found["machine"]["name"]
    assert [entry["model"] for entry in found["models"]] == list(NAMES)
    for entry in found["models"]:
        rows = {row["method"]: row for row in entry["rows"]}
        assert list(rows) == ["full", "2x", "3x", "region"], entry
        assert not any("not_measured" in row for row in rows.values()), rows
        assert rows["full"]["seconds"] > 0 and rows["full"]["peak_mib"] is None
        assert rows["2x"]["computed"] == 5 and 1.5 < rows["2x"]["speedup_theoretical"] <= 2.1
        assert rows["2x"]["speedup_measured"] > 0
        assert rows["3x"]["computed"] < rows["2x"]["computed"]
        assert rows["2x"]["waits"]["most_of_ours"] == 1
        region = rows["region"]
        if region["partial"]:
            assert region["announced_mib"] > 0 and region["waits"]["most_of_ours"] == 1
        else:
            assert region["notes"]  # says why
    kernels = {row["kernel"]: row for row in found["kernels"]}
    assert kernels["attention, dense"]["milliseconds"] > 0
    assert kernels["merge, predict"]["milliseconds"] > 0
    assert "CUDA" in kernels["attention, xformers, density 0.5"]["not_measured"]


def test_what_does_not_fit_into_the_budget_is_named(comfy_host, pack, tmp_path):
    gpu.run(comfy_host, tiny(tmp_path, "--minutes", "0", "--models", "flux_dev", "ltx2"))
    found = written(tmp_path)
    assert [entry["not_measured"] for entry in found["models"]] == [gpu.SHORT] * 2
    assert {row["not_measured"] for row in found["kernels"]} == {gpu.SHORT}


def test_a_model_that_cannot_be_built_is_a_row_with_its_reason(
    comfy_host, pack, tmp_path, monkeypatch
):
    from evaluation.real_sizes import TINY, RealModel

    build = RealModel.build

    def built(self, device, dtype):
        if self is TINY["flux_dev"]:
            raise torch.OutOfMemoryError("no more memory\nand a long story")
        return build(self, device, dtype)

    monkeypatch.setattr(RealModel, "build", built)
    flags = ("--minutes", "60", "--models", "flux_dev", "sd35_large")
    gpu.run(comfy_host, tiny(tmp_path, *flags))
    first, second = written(tmp_path)["models"]
    assert first["not_measured"] == "OutOfMemoryError: no more memory"
    assert len(second["rows"]) == 4


# On fake tensors.


@pytest.fixture
def real(comfy_host, pack):
    """Models of real sizes by name."""
    from evaluation.real_sizes import REAL

    return REAL


@pytest.mark.parametrize("case", ["accelerate 2x", "reuse", "region, last value"])
@pytest.mark.parametrize("name", ["z_image", "sd35_large"])
def test_memory_and_cost_of_a_real_size_are_what_is_counted(name, case, comfy_host, real):
    model, forward = announced.fake_model(real[name])
    counting = case in announced.COUNTED
    row = announced.count_case(comfy_host, model, forward, real[name], case, counting)
    assert row["announced"] == pytest.approx(row["held"], rel=0.1), row
    kinds = {"reuse": {"run", "reuse"}, "region, last value": {"run", "some of the tokens"}}
    assert {found["kind"] for found in row.get("flops", ())} == kinds.get(case, set())
    for found in row.get("flops", ()):
        assert found["cost"] == pytest.approx(found["counted"], rel=0.01), found


def test_a_video_with_audio_is_counted_and_announces_nothing_it_cannot_keep(comfy_host, pack):
    from evaluation.real_sizes import TINY

    model, forward = announced.fake_model(TINY["ltx2"])
    row = announced.count_case(comfy_host, model, forward, TINY["ltx2"], "accelerate 2x")
    assert row["skipped"] > 0 and row["announced"] == pytest.approx(row["held"], rel=0.1)


def test_the_command_writes_what_it_counted(comfy_host, pack, tmp_path):
    gpu.run(comfy_host, tiny(tmp_path, "--fake", "--models", "flux_dev"))
    (row,) = written(tmp_path, "gpu_announced.json")["rows"]
    assert row["parameters"] > 1e6 and len(row["cases"]) == len(announced.CASES)
    assert not any("failed" in case for case in row["cases"])
