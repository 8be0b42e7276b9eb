"""Training the decoder of the world of real drawings."""

import json

import torch

from demo.emoji.autoencoder import Trainer, flags
from demo.taesd import DECODER

SMALL = "--start {start} --batch 2 --crop 32 --pool 40 --steps {steps} --noise {noise} --out {out}"


def trained(out, steps, noise):
    """A training that ran to `steps`, and its decoder's weights."""
    line = SMALL.format(start=DECODER, steps=steps, noise=noise, out=out)
    trainer = Trainer(flags().parse_args(line.split()))
    trainer.run()
    return trainer, trainer.decoder().state_dict()


def test_it_goes_on_where_it_stopped_and_says_with_which_noise(tmp_path):
    first, before = trained(tmp_path, 1, 0.3)
    second, after = trained(tmp_path, 2, 0.3)
    assert (first.step, second.step) == (1, 2)
    assert any(not torch.equal(before[key], after[key]) for key in before)
    text = (tmp_path / "autoencoder.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["step"] for line in lines] == [0, 1]
    assert all(line["settings"]["noise"] == 0.3 for line in lines)


def test_noise_is_on_the_latents_and_not_on_the_pictures(tmp_path):
    noisy, _ = trained(tmp_path / "noisy", 1, 5.0)
    plain, _ = trained(tmp_path / "plain", 1, 0.0)
    ours, theirs = (t.crops.pixels[: t.crops.filled] for t in (noisy, plain))
    assert torch.equal(ours, theirs)
    assert noisy.update() > 2 * plain.update()  # it cannot see what it is to draw
