"""Thresholds found on a workflow: what they cost there and in the node, and going on after being
killed."""

import pytest
import torch

from rapid_core.policy_file.policies import policy_of
from rapid_testing.trainings import PROMPTS, job_of, small_graph, without_seconds
from training.graph import Graph
from training.host import attach, cost_share, last_record
from training.thresholds import train_thresholds

pytestmark = pytest.mark.main_host
STEPS = 8  # with 6 and fewer nothing is skipped
FLAGS = "--kind threshold --speedups 1.5 2 --calibration 2 --held-out 2"


@pytest.fixture(scope="module")
def graph(comfy_host, pack, demo_pack):
    for name in ("nodes_flux.py", "nodes_sd3.py"):
        comfy_host.load_core_nodes(name)
    return small_graph(STEPS)


def train(graph, folder, flags=FLAGS):
    return train_thresholds(job_of(graph, folder, flags))


def cost(graph, policy):
    """Mean cost on the prompts that thresholds were found on."""
    model, found = attach(graph.model, policy), []
    for i, prompt in enumerate(PROMPTS[:2]):
        graph.sample(prompt, i, model)
        found.append(cost_share(last_record(model)))
    return sum(found) / 2


def test_thresholds_cost_what_was_asked_for_within_a_step(graph, tmp_path):
    file, table = train(graph, tmp_path)
    low, high = file.tensors["thresholds"].tolist()
    assert 0 < low < high
    for speedup in (1.5, 2.0):
        policy = policy_of(file, speedup)
        assert policy.source == "policy.safetensors" and policy.max_consecutive == 8
        assert 1 / speedup - 1 / STEPS < cost(graph, policy) <= 1 / speedup
    assert "| 2 |" in table and table in (tmp_path / "policy.md").read_text()


def test_a_killed_search_goes_on_where_it_was(graph, tmp_path, monkeypatch):
    whole, _ = train(graph, tmp_path / "whole")
    sample, left = Graph.sample, [0]

    def mortal(self, *args, **named):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return sample(self, *args, **named)

    monkeypatch.setattr(Graph, "sample", mortal)
    kills, found = 0, None
    while found is None:
        left[0] = 3
        try:
            found, _ = train(graph, tmp_path / "killed")
        except KeyboardInterrupt:
            kills += 1
    assert kills >= 3 and without_seconds(found.metadata) == without_seconds(whole.metadata)
    assert torch.equal(found.tensors["thresholds"], whole.tensors["thresholds"])


def test_any_sampler_will_do_and_a_speed_out_of_reach_is_named(graph, comfy_host, tmp_path):
    nodes = {i: {**node, "inputs": dict(node["inputs"])} for i, node in graph.nodes.items()}
    nodes["sample"]["inputs"]["sampler_name"] = "heun"
    other = Graph(nodes)
    file, _ = train(
        other, tmp_path / "heun", "--kind threshold --speedups 1.3 --calibration 1 --held-out 1"
    )
    assert file.budgets == (1.3,)
    with pytest.raises(ValueError, match="the sampler euler is needed .* samples with heun"):
        train(other, tmp_path / "solution", FLAGS + " --target solution")
    with pytest.raises(
        ValueError,
        match=r"--speedups 6: with this workflow's steps Cache Reuse can be \d.* at most",
    ):
        train(
            graph, tmp_path / "fast", "--kind threshold --speedups 6 --calibration 1 --held-out 1"
        )
