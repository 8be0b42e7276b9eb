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
LATENT_INPUTS, SEEDS, TEXTS = ("latent_image", "latent"), ("seed", "noise_seed"), ("text", "prompt", "t5xxl", "clip_l",
                                                                                   "clip_g")  # fmt: skip
OWN = "RAPID_"  # nodes of this pack are passed by: training begins with the model itself


class WorkflowError(ValueError):
    """A workflow that cannot be trained on; says what is missing and what to give."""


@dataclass(frozen=True)
class Site:
    """Where a workflow is taken hold of: its sampler node, links of model, latent and VAE (None: nothing is decoded),
    text and seed inputs as (node id, name)."""

    sampler: str
    model: Link
    latent: Link
    texts: tuple[tuple[str, str], ...]
    seed: tuple[str, str]
    vae: Link | None


class Graph:
    """A workflow in API form. Nodes that do not depend on what changes run once.

    sampler: id of the sampler node, where there are several; texts: inputs "id.name" that hold the prompt."""

    def __init__(self, workflow: dict, host: Host, sampler: str | None = None, texts: Sequence[str] = ()):
        self.nodes = {str(k): v for k, v in workflow.items() if isinstance(v, dict) and "class_type" in v}
        if not self.nodes:
            raise WorkflowError("not a workflow in API form: in ComfyUI choose Workflow > Export (API)")
        self.host = host
        self.site = self._find(sampler, [tuple(t.rsplit(".", 1)) for t in texts])
        self._kept: dict[str, tuple] = {}

    @classmethod
    def read(cls, path: Path, host: Host, sampler: str | None = None, texts: Sequence[str] = ()) -> Graph:
        """From a file. Raises WorkflowError."""
        try:
            workflow = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise WorkflowError(f"{path}: {error}") from None
        return cls(workflow if isinstance(workflow, dict) else {}, host, sampler, texts)

    # Finding.
    def _find(self, sampler: str | None, texts: list) -> Site:
        there = [i for i, n in self.nodes.items() if self._latent_input(i) and self._seed_input(i) is not None
                 and self._link(i, "model", "guider") is not None]  # fmt: skip
        if sampler is not None:
            there = [i for i in there if i == sampler]
        if len(there) != 1:
            listed = ", ".join(f"{i} ({self.nodes[i]['class_type']})" for i in there) or "none"
            asked = f"no sampler node {sampler}" if sampler else "one sampler node is needed; choose with --sampler ID"
            raise WorkflowError(f"{asked}; in this workflow: {listed if there else ', '.join(self._names())}")
        node = there[0]
        model = self._real_model(self._link(node, "model") or self._link(self._link(node, "guider")[0], "model"))
        if model is None:
            raise WorkflowError(f"sampler {node}: no model is connected to it or its guider")
        seed = self._seed_input(node)
        assert seed is not None
        latent = self._link(node, *LATENT_INPUTS)
        assert latent is not None
        return Site(node, model, latent, tuple(texts) or self._texts(node), seed, self._vae(node))

    def _names(self) -> list[str]:
        return [f"{i} ({n['class_type']})" for i, n in self.nodes.items()]

    def _link(self, node: str, *names: str) -> Link | None:
        inputs = self.nodes[node].get("inputs", {})
        for name in names:
            value = inputs.get(name)
            if isinstance(value, list) and len(value) == 2 and str(value[0]) in self.nodes:
                return str(value[0]), int(value[1])
        return None

    def _latent_input(self, node: str) -> bool:
        return self._link(node, *LATENT_INPUTS) is not None

    def _seed_input(self, node: str) -> tuple[str, str] | None:
        """Of the node itself or of the noise node before it."""
        noise = self._link(node, "noise")
        for where in filter(None, (node, noise and noise[0])):
            for name in SEEDS:
                if name in self.nodes[where].get("inputs", {}):
                    return where, name
        return None

    def _real_model(self, link: Link | None) -> Link | None:
        """Past nodes of this pack."""
        while link is not None and self.nodes[link[0]]["class_type"].startswith(OWN):
            link = self._link(link[0], "model")
        return link

    def _upstream(self, node: str) -> list[str]:
        found, todo = [], [node]
        while todo:
            here = todo.pop()
            if here in found:
                continue
            found.append(here)
            values = self.nodes[here].get("inputs", {}).values()
            todo += [str(v[0]) for v in values if isinstance(v, list) and len(v) == 2 and str(v[0]) in self.nodes]
        return found

    def _texts(self, sampler: str) -> tuple[tuple[str, str], ...]:
        """Text inputs before the positive conditioning that are not before the negative one."""
        guider = self._link(sampler, "guider")
        where = guider[0] if guider else sampler
        positive, negative = self._link(where, "positive", "conditioning"), self._link(where, "negative")
        if positive is None:
            raise WorkflowError(f"node {where} has no positive conditioning; name the prompt with --text ID.NAME")
        apart = set(self._upstream(negative[0])) if negative else set()
        found = [(i, name) for i in self._upstream(positive[0]) if i not in apart
                 for name, value in self.nodes[i].get("inputs", {}).items()
                 if name in TEXTS and isinstance(value, str)]  # fmt: skip
        if not found:
            raise WorkflowError("no prompt text found before the positive conditioning; name it with --text ID.NAME")
        return tuple(found)

    def _vae(self, sampler: str) -> Link | None:
        decoders = [i for i, n in self.nodes.items() if n["class_type"] == "VAEDecode" and sampler in self._upstream(i)]
        return self._link(decoders[0], "vae") if decoders else None

    # Running.
    def value(self, link: Link, changed: dict[Link, Any], inputs: dict[tuple[str, str], Any]) -> Any:
        """Output of a node, with other outputs and literal inputs put in their places."""
        return self._value(link, changed, inputs, {})

    def _value(self, link: Link, changed: dict, inputs: dict, known: dict[str, tuple]) -> Any:
        if link in changed:
            return changed[link]
        node, number = link
        moved = {i for i, _ in changed} | {i for i, _ in inputs}
        fixed = not moved.intersection(self._upstream(node))
        store = self._kept if fixed else known
        if node not in store:
            given = {}
            for name, value in self.nodes[node].get("inputs", {}).items():
                there = self._link(node, name)
                value = value if there is None else self._value(there, changed, inputs, known)
                given[name] = inputs.get((node, name), value)
            store[node] = self.host.run(self.nodes[node]["class_type"], given)
        return store[node][number]

    @property
    def model(self) -> Any:
        """The model before any node of this pack."""
        return self.value(self.site.model, {}, {})

    @property
    def model_name(self) -> str:
        """File that the model is loaded from, as far as the workflow says."""
        loader = self.nodes[self._upstream(self.site.model[0])[-1]]
        names = [v for v in loader.get("inputs", {}).values() if isinstance(v, str)]
        return names[0] if names else loader["class_type"]

    def sample(
        self, prompt: str, seed: int, model: Any = None, batch: int = 1, patch: Callable[[Any], Any] | None = None
    ) -> Tensor:
        """Latents (batch, ...) of one prompt, all from the same noise. model: instead of the workflow's own; patch: of
        it."""
        model = self.model if model is None else model
        model = patch(model) if patch else model
        latent = self.value(self.site.latent, {}, {})
        samples = latent["samples"][:1].expand(batch, *latent["samples"].shape[1:]).clone()
        latent = {**latent, "samples": samples, "batch_index": [0] * batch}
        inputs: dict[tuple[str, str], Any] = {(i, name): prompt for i, name in self.site.texts}
        inputs[self.site.seed] = seed
        changed = {self.site.model: model, self.site.latent: latent, **self._own(model)}
        with torch.inference_mode():
            return self.value((self.site.sampler, 0), changed, inputs)["samples"]

    def _own(self, model: Any) -> dict[Link, Any]:
        """Model outputs of this pack's nodes, which are passed by."""
        return {(i, 0): model for i, n in self.nodes.items()
                if n["class_type"].startswith(OWN) and self._link(i, "model") is not None}  # fmt: skip

    def decode(self, latents: Tensor) -> Tensor | None:
        """Pictures (B, 3, H, W) in 0 .. 1, float32; None where the workflow decodes nothing."""
        if self.site.vae is None:
            return None
        with torch.inference_mode():
            pictures = self.value(self.site.vae, {}, {}).decode(latents)
        return pictures.reshape(-1, *pictures.shape[-3:]).movedim(-1, 1).float().cpu()
