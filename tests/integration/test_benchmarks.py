"""The suites run end to end, in small; how well is not asked here."""

import json

import pytest

from benchmarks import region


@pytest.fixture
def ready(comfy_host, pack, demo_pack):
    for name in ("nodes_easycache.py", "nodes_flux.py"):
        comfy_host.load_core_nodes(name)
    return comfy_host


def test_the_region_suite_writes_its_rows_and_goes_on_where_it_stopped(ready, tmp_path):
    text = region.run(ready, ["flux"], 2, tmp_path, quick=True)
    log = (tmp_path / "region-flux.jsonl").read_text(encoding="utf-8")
    rows = {(r["method"], r["target"]): r for r in json.loads((tmp_path / "region.json").read_text())["rows"]}
    assert rows["dense", "1.0"]["equal"] == 2 and rows["dense", "1.0"]["cost"] == pytest.approx(1.0)
    assert {r["prompts"] for r in rows.values()} == {2}
    for share in ("0.5", "0.25"):
        found = rows["region", share]
        assert float(share) < found["cost"] < 1 and found["psnr"] > rows["region_paper", share]["psnr"]
        assert rows["cache_reuse", share]["cost"] <= found["cost"] + 0.05
        assert f"flux: region/{share} - fewer_heun/{share}, psnr_ode" in text
    region.run(ready, ["flux"], 2, tmp_path, cost_of="flux-dev", quick=True)
    assert (tmp_path / "region-flux.jsonl").read_text(encoding="utf-8") == log


def test_figures_of_other_weights_are_not_mixed_in(ready, tmp_path):
    (tmp_path / "region-flux.json").write_text('{"weights": "of another time"}')
    with pytest.raises(SystemExit, match="other flux weights"):
        region.run(ready, ["flux"], 2, tmp_path, quick=True)
