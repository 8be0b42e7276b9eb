"""What sampling is like on demo models: the solvers, and figures that are kept."""

import json
import math

import pytest
import torch

from demo import trajectories
from demo.demo_model import DemoModel, export
from demo.emoji import demo_model as emoji_model


def linear(x, sigma):
    return -x * (1 + sigma)  # dx / dsigma; from 1 to 0 the solution grows by exp(1.5)


@pytest.mark.parametrize(("solver", "steps"), [(trajectories.heun, 40), (trajectories.adams, 80)])
def test_the_solvers_are_of_second_order(solver, steps):
    start = torch.ones(1, 1)
    wanted = math.exp(1.5)
    coarse, fine = (abs(float(solver(linear, start, n)) - wanted) for n in (steps // 2, steps))
    assert fine < 1e-3 * wanted
    assert coarse / fine > 3


def test_changes_are_those_of_the_velocity_relative_to_the_one_before():
    _, changes = trajectories.euler(lambda x, sigma: x * 0 + 1 + sigma, torch.ones(1, 4), 8)
    v = [1 + sigma for sigma in trajectories.grid(8)[:-1]]
    wanted = [(a - b) / a for a, b in zip(v[:-1], v[1:], strict=True)]
    assert changes == pytest.approx(wanted, rel=1e-4)


def test_as_many_evaluations_are_needed_as_do_and_one_fewer_does_not():
    found = []
    for size in (0.03, 1.0):  # the error goes with it
        start = torch.full((1, 4), size)
        truth = trajectories.heun(linear, start, 101)
        number = trajectories.needed(linear, start, lambda x: x, 40.0)
        assert trajectories.psnr(trajectories.adams(linear, start, number), truth) >= 40
        if number > trajectories.LEAST:
            assert trajectories.psnr(trajectories.adams(linear, start, number - 1), truth) < 40
        found.append(number)
    assert found[0] < found[1] < trajectories.MOST


@pytest.mark.parametrize(
    ("model", "export_model"), [(DemoModel, export), (emoji_model.DemoModel, emoji_model.export)]
)
def test_figures_of_a_model_of_either_world_are_kept_and_gone_on_from(
    model, export_model, tmp_path, monkeypatch
):
    torch.manual_seed(0)
    made = model("flux")
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.02 * torch.randn_like(p))
    monkeypatch.setattr(trajectories, "MOST", 4)
    monkeypatch.setattr(trajectories, "STEPS", 4)
    weights, out = tmp_path / "flux.safetensors", tmp_path / "flux.json"
    export_model("flux", made.state_dict(), weights, 0)
    flags = ["--weights", str(weights), "--size", "32", "--truth", "4", "--json", str(out)]
    first = trajectories.measure(trajectories.parser().parse_args([*flags, "--prompts", "1"]))
    assert len(first["velocity_change"]) == 3 and first["pictures"][0]["needed"] in (3, 4)
    both = trajectories.measure(trajectories.parser().parse_args([*flags, "--prompts", "2"]))
    assert both["pictures"][0] == first["pictures"][0] and both["prompts"] == 2
    assert json.loads(out.read_text()) == both
    monkeypatch.setattr(trajectories, "picture", None)
    assert (
        trajectories.measure(trajectories.parser().parse_args([*flags, "--prompts", "2"])) == both
    )
    with pytest.raises(SystemExit, match="of other weights or settings"):
        trajectories.measure(trajectories.parser().parse_args([*flags, "--goal", "30"]))


def test_a_model_is_told_the_guidance_that_its_file_names(tmp_path, monkeypatch):
    torch.manual_seed(0)
    made = emoji_model.DemoModel("flux")
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.02 * torch.randn_like(p))
    monkeypatch.setattr(trajectories, "MOST", 3)
    changes = []
    for guidance in (1.0, 3.0):
        weights = tmp_path / f"{guidance:g}" / "flux.safetensors"
        weights.parent.mkdir()
        emoji_model.export("flux", made.state_dict(), weights, 0, guidance)
        flags = ["--weights", str(weights), "--size", "32", "--truth", "3", "--prompts", "1"]
        found = trajectories.measure(trajectories.parser().parse_args(flags))
        assert found["settings"]["guidance"] == guidance
        changes.append(found["velocity_change"])
    assert changes[0] != changes[1]
