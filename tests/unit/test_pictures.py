"""Pictures for rewards: the workflow's own decoder, found by its links, and references' pictures on
disk."""

import pytest
import torch

from training.graph import Graph, WorkflowError
from training.host import HOOK
from training.pictures import Drawn, Pictures
from training.references import Reference


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def workflow(**changes):
    """A toy in API form; changes: node id = node, None to leave it out."""
    nodes = {
        "model": node("Model"),
        "vae": node("VAE"),
        "empty": node("Empty"),
        "text": node("Text", text=""),
        "draw": node(
            "Sampler", model=["model", 0], latent_image=["empty", 0], positive=["text", 0], seed=0
        ),
        "show": node("Decode", samples=["draw", 0], vae=["vae", 0]),
    }
    return {k: v for k, v in {**nodes, **changes}.items() if v is not None}


SECOND = node("Sampler", model=["model", 0], latent_image=["draw", 0], positive=["text", 0], seed=0)


class ToyExecutor:
    """Latents of ones; the decoder multiplies them by the VAE. As the host's, it keeps outputs of
    nodes that do not depend on a hook, as long as they are in its prompt."""

    def __init__(self):
        self.ran = []
        self.outputs = {}

    def run(self, prompt, node, functions):
        self.outputs = {name: kept for name, kept in self.outputs.items() if name in prompt}
        self._output(prompt, node, functions, {})

    def _output(self, prompt, node, functions, known):
        """The node's output, and whether it depends on a hook."""
        if node in self.outputs:
            return self.outputs[node], False
        if node not in known:
            inputs, varies = dict(prompt[node]["inputs"]), prompt[node]["class_type"] == HOOK
            for name, value in inputs.items():
                if isinstance(value, list):
                    inputs[name], depends = self._output(prompt, value[0], functions, known)
                    varies |= depends
            if prompt[node]["class_type"] == HOOK:
                output = functions.get(inputs["name"], lambda x: x)(inputs.get("value"))
            else:
                output = self._made(prompt[node]["class_type"], inputs)
            known[node] = output, varies
            if not varies:
                self.outputs[node] = output
        return known[node]

    def _made(self, class_type, inputs):
        self.ran.append(class_type)
        if class_type == "VAE":
            return 0.25
        if class_type == "Double":
            return {"samples": 2 * inputs["samples"]["samples"]}
        if class_type in ("Decode", "Other"):
            sign = 1 if class_type == "Decode" else -1
            return (inputs["samples"]["samples"] * inputs["vae"] * sign).movedim(1, -1)
        raise AssertionError(f"{class_type} has nothing to do with a picture")


def graph_of(nodes, executor=None, sampler=None):
    return Graph(nodes, sampler, executor=ToyExecutor() if executor is None else executor)


def test_the_workflows_own_decoder_makes_the_picture_and_its_loader_runs_once():
    executor = ToyExecutor()
    graph = graph_of(workflow(), executor)
    for _ in range(2):
        found = graph.picture(torch.tensor([1.0, 2.0, 8.0]).view(3, 1, 1, 1).expand(3, 3, 4, 6))
        assert found.shape == (3, 3, 4, 6) and found[:, 0, 0, 0].tolist() == [0.25, 0.5, 1.0]
    assert executor.ran == ["VAE", "Decode", "Decode"]


@pytest.mark.parametrize(
    "changes, value",
    [
        (
            {
                "report": node("RAPID_Report", model=["model", 0], latent=["draw", 0]),
                "show": node("Decode", samples=["report", 0], vae=["vae", 0]),
            },
            0.25,
        ),
        (
            {
                "twice": node("Double", samples=["draw", 0]),
                "show": node("Decode", samples=["twice", 0], vae=["vae", 0]),
            },
            0.5,
        ),
        ({"show": node("Decode", samples=["draw", 1], vae=["vae", 0])}, 0.25),
        ({"second": SECOND, "last": node("Other", samples=["second", 0], vae=["vae", 0])}, 0.25),
    ],
)
def test_the_decoder_is_found_behind_the_sampler_that_is_trained_on(changes, value):
    """Past this pack's nodes and through others, at any output, and not behind another sampler."""
    graph = graph_of(workflow(**changes), sampler="draw")
    assert float(graph.picture(torch.ones(1, 3, 4, 4)).max()) == value


@pytest.mark.parametrize(
    "changes",
    [
        {"show": None},
        {
            "show": None,
            "second": SECOND,
            "last": node("Decode", samples=["second", 0], vae=["vae", 0]),
        },
    ],
)
def test_a_workflow_that_decodes_nothing_is_refused_with_what_to_do(changes):
    with pytest.raises(
        WorkflowError, match="no VAE Decode follows sampler draw; add one, or give --reward psnr"
    ):
        graph_of(workflow(**changes), sampler="draw").picture(torch.ones(1, 3, 4, 4))


def test_a_references_picture_is_decoded_once_and_kept_on_disk(tmp_path):
    executor = ToyExecutor()
    pictures = Pictures(graph_of(workflow(), executor), tmp_path)
    wanted = Reference("p", 0, torch.rand(1, 3, 4, 4), (1.0, 0.0), "euler", 1)
    first = pictures.of_reference(wanted)
    again = Pictures(graph_of(workflow(), executor), tmp_path).of_reference(wanted)
    assert torch.equal(first, again) and executor.ran.count("Decode") == 1
    assert torch.equal(
        first, pictures.of(wanted.latent)
    )  # rounded alike, so that rounding tells nobody anything
    other = Reference("q", 0, torch.rand(1, 3, 4, 4), (1.0, 0.0), "euler", 1)
    assert not torch.equal(pictures.of_reference(other), first)


def test_nothing_is_decoded_before_it_is_asked_for_and_then_once(tmp_path):
    executor = ToyExecutor()
    wanted = Reference("p", 0, torch.rand(1, 3, 4, 4), (1.0, 0.0), "euler", 1)
    drawn = Drawn(
        torch.rand(3, 3, 4, 4), wanted, Pictures(graph_of(workflow(), executor), tmp_path)
    )
    assert executor.ran == []
    assert (
        drawn.pictures.shape == drawn.reference_pictures.shape == (3, 3, 4, 4)
        and drawn.pictures is drawn.pictures
    )
    assert executor.ran.count("Decode") == 4


def test_a_workflow_that_gives_no_latents_or_several_is_refused(tmp_path):
    """A node may block what follows it, or give a list."""

    class Twice(ToyExecutor):
        def run(self, prompt, node, functions):
            super().run(prompt, node, functions)
            super().run(prompt, node, functions)

    class Blocked(ToyExecutor):
        def run(self, prompt, node, functions):
            return

    for executor, number in ((Twice(), 2), (Blocked(), 0)):
        with pytest.raises(WorkflowError, match=f"show .Decode. gives {number} values where one"):
            graph_of(workflow(), executor).picture(torch.ones(1, 3, 4, 4))
