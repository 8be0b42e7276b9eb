"""An API workflow as a function: prompt, seed, batch and model patch in, latents out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.host import Host

Link = tuple[str, int]  # node id, output
LATENT_INPUTS, SEEDS = ("latent_image", "latent"), ("seed", "noise_seed")
TEXTS = ("text", "prompt", "user_prompt", "t5xxl", "clip_l", "clip_g")
OWN = "RAPID_"  # nodes of this pack are passed by: training begins with the model itself


class WorkflowError(ValueError):
    """A workflow that cannot be trained on; says what is missing and what to give."""


@dataclass(frozen=True)
class Site:
    """Where a workflow is taken hold of: its sampler node, links of model and latent, text and seed
    inputs as (node id, name)."""

    sampler: str
    model: Link
    latent: Link
    texts: tuple[tuple[str, str], ...]
    seed: tuple[str, str]


class Graph:
    """A workflow in API form. Nodes that do not depend on what changes run once.

    sampler: id of the sampler node, where there are several; texts: inputs "id.name" that hold the
    prompt."""

    def __init__(
        self, workflow: dict, host: Host, sampler: str | None = None, texts: Sequence[str] = ()
    ):
        self.nodes = {
            str(k): v for k, v in workflow.items() if isinstance(v, dict) and "class_type" in v
        }
        if not self.nodes:
            raise WorkflowError(
                "not a workflow in API form: in ComfyUI choose Workflow > Export (API)"
            )
        self.host = host
        self.site = self._find(sampler, texts)
        self._kept: dict[str, tuple] = {}

    @classmethod
    def read(
        cls, path: Path, host: Host, sampler: str | None = None, texts: Sequence[str] = ()
    ) -> Graph:
        """From a file. Raises WorkflowError."""
        try:
            workflow = json.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as error:  # not there, not UTF-8, not JSON
            raise WorkflowError(f"{path}: {error}") from None
        return cls(workflow if isinstance(workflow, dict) else {}, host, sampler, texts)

    # Finding.
    def _find(self, sampler: str | None, texts: Sequence[str]) -> Site:
        there = [i for i in self.nodes if self._is_sampler(i)]
        if sampler is not None:
            there = [i for i in there if i == sampler]
        if len(there) != 1:
            listed = ", ".join(f"{i} ({self.nodes[i]['class_type']})" for i in there) or "none"
            asked = (
                f"no sampler node {sampler}"
                if sampler
                else "one sampler node is needed; choose with --sampler ID"
            )
            raise WorkflowError(
                f"{asked}; in this workflow: {listed if there else ', '.join(self._names())}"
            )
        node = there[0]
        guider = self._link(node, "guider")
        model = self._link(node, "model") or (self._link(guider[0], "model") if guider else None)
        seed, latent = self._seed_input(node), self._link(node, *LATENT_INPUTS)
        if model is None:
            raise WorkflowError(f"sampler {node}: no model is connected to it or its guider")
        assert seed is not None and latent is not None
        before = [i for i in self._upstream(latent[0]) if self._is_sampler(i)]
        if before:
            raise WorkflowError(
                f"the latent of sampler {node} comes from sampler {before[0]}; train on that one alone"
            )
        return Site(node, model, latent, self._given(texts) or self._texts(node), seed)

    def _is_sampler(self, node: str) -> bool:
        latent, model = self._link(node, *LATENT_INPUTS), self._link(node, "model", "guider")
        return latent is not None and model is not None and self._seed_input(node) is not None

    def _given(self, texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
        """Text inputs by the names that were given. Raises WorkflowError for one that is not
        there."""
        found = [tuple(text.rsplit(".", 1)) if "." in text else (text, "") for text in texts]
        for node, name in found:
            if name not in self.nodes.get(node, {}).get("inputs", {}):
                raise WorkflowError(
                    f"--text {node}.{name}: the workflow has no such input; give ID.NAME, ID one of "
                    f"{', '.join(self._names())}"
                )
        return tuple((node, name) for node, name in found)

    def _names(self) -> list[str]:
        return [f"{i} ({n['class_type']})" for i, n in self.nodes.items()]

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
        for where in filter(None, (node, noise and noise[0])):
            for name in SEEDS:
                if name in self.nodes[where].get("inputs", {}):
                    return where, name
        return None

    def _links(self, node: str) -> dict[str, Link]:
        """Inputs of a node that are connected."""
        found = {name: self._link(node, name) for name in self.nodes[node].get("inputs", {})}
        return {name: link for name, link in found.items() if link is not None}

    def _upstream(self, node: str) -> list[str]:
        found, todo = [], [node]
        while todo:
            here = todo.pop()
            if here not in found:
                found.append(here)
                todo += [link[0] for link in self._links(here).values()]
        return found

    def _texts(self, sampler: str) -> tuple[tuple[str, str], ...]:
        """Text inputs before the positive conditioning that are not before the negative one."""
        guider = self._link(sampler, "guider")
        where = guider[0] if guider else sampler
        positive, negative = (
            self._link(where, "positive", "conditioning"),
            self._link(where, "negative"),
        )
        if positive is None:
            raise WorkflowError(
                f"node {where} has no positive conditioning; name the prompt with --text ID.NAME"
            )
        apart = self._before(negative, set()) if negative else []
        found = [text for text in self._before(positive, set()) if text not in apart]
        if not found:
            raise WorkflowError(
                "no prompt text found before the positive conditioning; name it with --text ID.NAME"
            )
        return tuple(found)

    def _before(self, link: Link, seen: set[Link]) -> list[tuple[str, str]]:
        """Text inputs that a conditioning is made from. A node with a positive and a negative side
        gives the first of them as its first output and the other as its second; what is zeroed out
        says nothing."""
        node, number = link
        if link in seen or self.nodes[node]["class_type"] == "ConditioningZeroOut":
            return []
        seen.add(link)
        inputs, links = self.nodes[node].get("inputs", {}), self._links(node)
        if "positive" in links and "negative" in links:
            sides = (
                {"positive": links["positive"]} if number == 0 else {"negative": links["negative"]}
            )
            return [text for side in sides.values() for text in self._before(side, seen)]
        found = [
            (node, name)
            for name, value in inputs.items()
            if name in TEXTS and (isinstance(value, str) or name in links)
        ]
        return found + [
            text
            for name, there in links.items()
            if name not in TEXTS
            for text in self._before(there, seen)
        ]

    @property
    def decoder(self) -> str:
        """The nearest node that decodes the sampler's latents with a VAE, not another's. Raises
        WorkflowError."""
        there = {
            i: self._upstream(i) for i in self.nodes if {"samples", "vae"} <= self._links(i).keys()
        }
        own = [
            i for i in there if [s for s in there[i] if self._is_sampler(s)] == [self.site.sampler]
        ]
        if not own:
            raise WorkflowError(
                f"no VAE Decode follows sampler {self.site.sampler}; add one, or give --reward psnr "
                "--omega 0, which need no pictures"
            )
        return min(own, key=lambda i: len(there[i]))

    # Running.
    def value(
        self, link: Link, changed: dict[Link, Any], inputs: dict[tuple[str, str], Any]
    ) -> Any:
        """Output of a node, with other outputs and inputs put in their places."""
        varying: dict[str, bool] = {}
        moved = {node for node, _ in inputs}

        def varies(node: str) -> bool:
            """Whether a node's outputs depend on what changes. To be replaced itself does not
            count: a checkpoint's text encoder stays what it is when its model is another."""
            if node not in varying:
                varying[node] = False
                varying[node] = node in moved or any(
                    there in changed or varies(there[0]) for there in self._links(node).values()
                )
            return varying[node]

        return self._value(link, changed, inputs, {}, varies)

    def _value(
        self,
        link: Link,
        changed: dict,
        inputs: dict,
        known: dict[str, tuple],
        varies: Callable[[str], bool],
    ) -> Any:
        if link in changed:
            return changed[link]
        node, number = link
        store = known if varies(node) else self._kept
        if node not in store:
            given, links = dict(self.nodes[node].get("inputs", {})), self._links(node)
            for name in given:
                if (node, name) in inputs:
                    given[name] = inputs[node, name]
                elif name in links:
                    given[name] = self._value(links[name], changed, inputs, known, varies)
            store[node] = self.host.run(self.nodes[node]["class_type"], given)
        return store[node][number]

    def own_nodes(self, pictures: bool = False) -> dict:
        """What decides the latents, or the pictures: all nodes before, without this pack's, and
        without titles."""
        there = self._upstream(self.decoder if pictures else self.site.sampler)
        there = [i for i in there if not self.nodes[i]["class_type"].startswith(OWN)]
        free = {*self.site.texts, self.site.seed}
        return {
            i: [
                self.nodes[i]["class_type"],
                {
                    name: self._links(i).get(name, value)
                    for name, value in self.nodes[i].get("inputs", {}).items()
                    if (i, name) not in free
                },
            ]
            for i in sorted(there)
        }

    @property
    def model(self) -> Any:
        """The model before any node of this pack."""
        return self.value(self.site.model, {}, {})

    @property
    def model_name(self) -> str:
        """File that the model is loaded from, as far as the workflow says."""
        node = self.site.model[0]
        while (before := self._link(node, "model", "model1")) is not None:
            node = before[0]
        loader = self.nodes[node]
        names = [v for v in loader.get("inputs", {}).values() if isinstance(v, str)]
        return names[0] if names else loader["class_type"]

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
        model = self.model if model is None else model
        model = patch(model) if patch else model
        latent = self.value(self.site.latent, {}, {})
        samples = latent["samples"][:1].expand(batch, *latent["samples"].shape[1:]).clone()
        latent = {**latent, "samples": samples, "batch_index": [0] * batch}
        inputs: dict[tuple[str, str], Any] = {(i, name): prompt for i, name in self.site.texts}
        inputs[self.site.seed] = seed
        changed = {self.site.model: model, self.site.latent: latent}
        with torch.inference_mode():
            return self.value((self.site.sampler, 0), changed, inputs)["samples"]

    def picture(self, latents: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in 0 .. 1, float32, of latents in place of the sampler's; of videos
        frame by frame."""
        drawn = {"samples": latents}
        changed = {(self.site.sampler, output): drawn for output in (0, 1)}
        with torch.inference_mode():
            found = self.value((self.decoder, 0), changed, {})
        return (
            found.reshape(-1, *found.shape[-3:])[..., :3].movedim(-1, 1).float().cpu().clamp(0, 1)
        )
