"""An API workflow as a function: prompt, seed, batch and model patch in, latents out.

The host's own executor runs it. Training takes hold of it in a few places by links that lead
through a `host.Hook`, which hands on what a function makes of a value."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from training.host import Executor, hook

Link = tuple[str, int]  # node id, output
LATENT_INPUTS = ("latent_image", "latent")
SEED_INPUTS = ("seed", "noise_seed")
TEXT_INPUTS = ("text", "prompt", "user_prompt", "t5xxl", "clip_l", "clip_g")
OWN = "RAPID_"  # nodes of this pack are passed by: training begins with the model itself

# Ids of hooks among the workflow's nodes: where the model and the latent come in, where the
# sampler's latents go on to the decoder, and where values come out.
MODEL_HOOK = "rapid model"
LATENT_HOOK = "rapid latent"
SAMPLED_HOOK = "rapid sampled"
RESULT_HOOK = "rapid result"


class WorkflowError(ValueError):
    """A workflow that cannot be trained on; says what is missing and what to give."""


@dataclass(frozen=True)
class Site:
    """Where a workflow is taken hold of."""

    sampler: str
    """Id of its sampler node."""
    model: Link
    latent: Link
    texts: tuple[tuple[str, str], ...]
    """Inputs (node id, name) that hold the prompt."""
    seed: tuple[str, str]
    """Input (node id, name) that holds the seed."""


class Graph:
    """A workflow in API form. Nodes that do not depend on what changes run once.

    sampler: id of the sampler node, where there are several; texts: inputs "id.name" that hold the
    prompt; executor: what runs it, the host's own for None. Raises WorkflowError."""

    def __init__(
        self,
        workflow: dict,
        sampler: str | None = None,
        texts: Sequence[str] = (),
        executor: Executor | None = None,
    ):
        self.nodes = {
            str(node_id): node
            for node_id, node in workflow.items()
            if isinstance(node, dict) and "class_type" in node
        }
        if not self.nodes:
            raise WorkflowError(
                "not a workflow in API form: in ComfyUI choose Workflow > Export (API)"
            )
        self.executor = Executor() if executor is None else executor
        self.site = self._find_site(sampler, texts)
        self._model: Any = None
        self._decodes = False  # whether a picture was asked for, so that the decoder has to run

    @classmethod
    def read(cls, path: Path, sampler: str | None = None, texts: Sequence[str] = ()) -> Graph:
        """From a file. Raises WorkflowError."""
        try:
            workflow = json.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as error:  # not there, not UTF-8, not JSON
            raise WorkflowError(f"{path}: {error}") from None
        return cls(workflow if isinstance(workflow, dict) else {}, sampler, texts)

    # Finding the site.

    def _find_site(self, sampler: str | None, texts: Sequence[str]) -> Site:
        node = self._find_sampler(sampler)
        guider = self._link(node, "guider")
        model = self._link(node, "model") or (self._link(guider[0], "model") if guider else None)
        seed = self._seed_input(node)
        latent = self._link(node, *LATENT_INPUTS)
        if model is None:
            raise WorkflowError(f"sampler {node}: no model is connected to it or its guider")
        assert seed is not None and latent is not None
        earlier = [i for i in self._upstream(latent[0]) if self._is_sampler(i)]
        if earlier:
            raise WorkflowError(
                f"the latent of sampler {node} comes from sampler {earlier[0]}; train on that one "
                "alone"
            )
        return Site(node, model, latent, self._named_texts(texts) or self._find_texts(node), seed)

    def _find_sampler(self, name: str | None) -> str:
        samplers = [i for i in self.nodes if self._is_sampler(i) and name in (None, i)]
        if len(samplers) == 1:
            return samplers[0]
        if name is None:
            problem = "one sampler node is needed; choose with --sampler ID"
        else:
            problem = f"no sampler node {name}"
        listed = self._titles(samplers or list(self.nodes))
        raise WorkflowError(f"{problem}; in this workflow: {listed}")

    def _is_sampler(self, node: str) -> bool:
        latent = self._link(node, *LATENT_INPUTS)
        model = self._link(node, "model", "guider")
        return latent is not None and model is not None and self._seed_input(node) is not None

    def _named_texts(self, names: Sequence[str]) -> tuple[tuple[str, str], ...]:
        """Text inputs by the names that were given. Raises WorkflowError for one that is not
        there."""
        inputs = []
        for name in names:
            node, _, field = name.rpartition(".") if "." in name else (name, "", "")
            if field not in self.nodes.get(node, {}).get("inputs", {}):
                raise WorkflowError(
                    f"--text {node}.{field}: the workflow has no such input; give ID.NAME, ID one of "
                    f"{self._titles(list(self.nodes))}"
                )
            inputs.append((node, field))
        return tuple(inputs)

    def _titles(self, nodes: Sequence[str]) -> str:
        return ", ".join(f"{i} ({self.nodes[i]['class_type']})" for i in nodes)

    def _link(self, node: str, *names: str) -> Link | None:
        """The first of these inputs that is connected, past nodes of this pack."""
        inputs = self.nodes[node].get("inputs", {})
        for name in names:
            value = inputs.get(name)
            if isinstance(value, list) and len(value) == 2 and str(value[0]) in self.nodes:
                link = str(value[0]), int(value[1])
                own = self.nodes[link[0]]["class_type"].startswith(OWN) and link[1] == 0
                return (self._link(link[0], "latent", "model") or link) if own else link
        return None

    def _seed_input(self, node: str) -> tuple[str, str] | None:
        """Of the node itself or of the noise node before it."""
        noise = self._link(node, "noise")
        for place in (node, noise[0]) if noise else (node,):
            for name in SEED_INPUTS:
                if name in self.nodes[place].get("inputs", {}):
                    return place, name
        return None

    def _links(self, node: str) -> dict[str, Link]:
        """Inputs of a node that are connected."""
        links = {name: self._link(node, name) for name in self.nodes[node].get("inputs", {})}
        return {name: link for name, link in links.items() if link is not None}

    def _upstream(self, node: str) -> list[str]:
        """A node and all that it depends on."""
        reached: list[str] = []
        todo = [node]
        while todo:
            here = todo.pop()
            if here not in reached:
                reached.append(here)
                todo += [link[0] for link in self._links(here).values()]
        return reached

    def _find_texts(self, sampler: str) -> tuple[tuple[str, str], ...]:
        """Text inputs before the positive conditioning that are not before the negative one."""
        guider = self._link(sampler, "guider")
        node = guider[0] if guider else sampler
        positive = self._link(node, "positive", "conditioning")
        negative = self._link(node, "negative")
        if positive is None:
            raise WorkflowError(
                f"node {node} has no positive conditioning; name the prompt with --text ID.NAME"
            )
        of_negative = self._texts_before(negative, set()) if negative else []
        texts = [text for text in self._texts_before(positive, set()) if text not in of_negative]
        if not texts:
            raise WorkflowError(
                "no prompt text found before the positive conditioning; name it with --text ID.NAME"
            )
        return tuple(texts)

    def _texts_before(self, link: Link, seen: set[Link]) -> list[tuple[str, str]]:
        """Text inputs that a conditioning is made from. A node with a positive and a negative side
        gives the first of them as its first output and the other as its second; what is zeroed out
        says nothing."""
        node, output = link
        if link in seen or self.nodes[node]["class_type"] == "ConditioningZeroOut":
            return []
        seen.add(link)
        links = self._links(node)
        if "positive" in links and "negative" in links:
            return self._texts_before(links["positive" if output == 0 else "negative"], seen)
        texts = []
        for name, value in self.nodes[node].get("inputs", {}).items():
            if name in TEXT_INPUTS and (isinstance(value, str) or name in links):
                texts.append((node, name))
        for name, before in links.items():
            if name not in TEXT_INPUTS:
                texts += self._texts_before(before, seen)
        return texts

    @property
    def decoder(self) -> str:
        """The nearest node that decodes the sampler's latents with a VAE, not another's. Raises
        WorkflowError."""
        decoders = {
            i: self._upstream(i) for i in self.nodes if {"samples", "vae"} <= self._links(i).keys()
        }
        own = [
            i
            for i, upstream in decoders.items()
            if [node for node in upstream if self._is_sampler(node)] == [self.site.sampler]
        ]
        if not own:
            raise WorkflowError(
                f"no VAE Decode follows sampler {self.site.sampler}; add one, or give --reward psnr "
                "--omega 0, which need no pictures"
            )
        return min(own, key=lambda i: len(decoders[i]))

    def own_nodes(self, pictures: bool = False) -> dict:
        """What decides the latents, or the pictures: all nodes before, without those of this pack
        that are passed by, and without titles."""
        upstream = self._upstream(self.decoder if pictures else self.site.sampler)
        free = {*self.site.texts, self.site.seed}
        out = {}
        for i in sorted(upstream):
            node = self.nodes[i]
            links = self._links(i)
            inputs = {
                name: links.get(name, value)
                for name, value in node.get("inputs", {}).items()
                if (i, name) not in free
            }
            out[i] = [node["class_type"], inputs]
        return out

    @property
    def model_name(self) -> str:
        """File that the model is loaded from, as far as the workflow says."""
        node = self.site.model[0]
        while (before := self._link(node, "model", "model1")) is not None:
            node = before[0]
        loader = self.nodes[node]
        names = [v for v in loader.get("inputs", {}).values() if isinstance(v, str)]
        return names[0] if names else loader["class_type"]

    # Running.

    @property
    def model(self) -> Any:
        """The model before any node of this pack."""
        if self._model is None:
            self._model = self._run(self.site.model, {}, {})
        return self._model

    def sample(
        self,
        prompt: str,
        seed: int,
        model: Any = None,
        batch: int = 1,
        patch: Callable[[Any], Any] | None = None,
    ) -> Tensor:
        """Latents (batch, ...) of one prompt, all from the same noise. model: instead of the
        workflow's own; patch: of it."""

        def patched(own_model: Any) -> Any:
            chosen = own_model if model is None else model
            return patch(chosen) if patch else chosen

        def same_noise(latent: dict) -> dict:
            samples = latent["samples"][:1]
            samples = samples.expand(batch, *samples.shape[1:]).clone()
            return {**latent, "samples": samples, "batch_index": [0] * batch}

        inputs: dict[tuple[str, str], Any] = dict.fromkeys(self.site.texts, prompt)
        inputs[self.site.seed] = seed
        functions = {MODEL_HOOK: patched, LATENT_HOOK: same_noise}
        return self._run((self.site.sampler, 0), inputs, functions)["samples"]

    def picture(self, latents: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in 0 .. 1, float32, of latents in place of the sampler's; of videos
        frame by frame. Raises WorkflowError where nothing is decoded."""
        decoder = self.decoder
        self._decodes = True
        images = self._run((decoder, 0), {}, {SAMPLED_HOOK: lambda _: {"samples": latents}})
        frames = images.reshape(-1, *images.shape[-3:])[..., :3]
        return frames.movedim(-1, 1).float().cpu().clamp(0, 1)

    def _run(
        self,
        link: Link,
        inputs: dict[tuple[str, str], Any],
        functions: dict[str, Callable[[Any], Any]],
    ) -> Any:
        """Output of a node. inputs: in place of the workflow's; functions: by hook."""
        results: list[Any] = []
        prompt = self._prompt(link[0], inputs)
        prompt[RESULT_HOOK] = hook(RESULT_HOOK, link)
        self.executor.run(prompt, RESULT_HOOK, {**functions, RESULT_HOOK: results.append})
        if len(results) != 1:
            raise WorkflowError(
                f"{self._titles([link[0]])} gives {len(results)} values where one is needed"
            )
        return results[0]

    def _prompt(self, end: str, inputs: dict[tuple[str, str], Any]) -> dict[str, dict]:
        """The workflow for the executor, up to a node: with it always all nodes that are ever run,
        since the executor forgets the outputs of those that are not in its prompt."""
        site = self.site
        through = {
            site.model: MODEL_HOOK,
            site.latent: LATENT_HOOK,
            (site.sampler, 0): SAMPLED_HOOK,
            (site.sampler, 1): SAMPLED_HOOK,
        }
        ends = [end, site.sampler, *([self.decoder] if self._decodes else [])]
        prompt = {
            MODEL_HOOK: hook(MODEL_HOOK, site.model),
            LATENT_HOOK: hook(LATENT_HOOK, site.latent),
            SAMPLED_HOOK: hook(SAMPLED_HOOK),
        }
        for node in {i: None for end in ends for i in self._upstream(end)}:
            links = self._links(node)
            given = dict(self.nodes[node].get("inputs", {}))
            for name, value in given.items():
                if (node, name) in inputs:
                    given[name] = inputs[node, name]
                elif name in links:
                    link = links[name]
                    given[name] = [through[link], 0] if link in through else list(link)
                elif isinstance(value, dict) and "__value__" in value:  # as the page wraps lists
                    given[name] = value["__value__"]
            prompt[node] = {"class_type": self.nodes[node]["class_type"], "inputs": given}
        return prompt
