"""The card beside a policy: its parts, its plots, and what it does without matplotlib."""

import sys

import pytest
import torch
from PIL import Image

from evaluation.plots import Panel
from rapid_core.policy_file.format import write
from training.card import write_card

PANELS = [
    Panel(
        "held out",
        "cost",
        "PSNR, dB",
        {"mean": ([0.5, 0.25], [50, 40]), "worst": ([0.5, 0.25], [40, 30])},
    ),
    Panel("search", "tried", "PSNR, dB", {"2x": (range(100), range(100))}),
]


@pytest.fixture
def file(tmp_path):
    about = {
        "architecture": "flux",
        "base_model": "a model",
        "budgets": [2.0],
        "reward": "psnr",
        "training_command": "train",
        "licence": "Apache-2.0",
    }
    return write(
        tmp_path / "mine.safetensors", "threshold", about, {"thresholds": torch.tensor([0.1])}
    )


def test_a_card_has_its_table_its_plots_and_what_the_file_says(file, tmp_path):
    write_card(file, "What it is.", "| a |\n|---|", PANELS, "Something else.")
    text = (tmp_path / "mine.md").read_text()
    parts = [
        "# mine",
        "What it is.",
        "| a |",
        "![held out, search](mine.png)",
        "Something else.",
        "- base_model",
    ]
    assert [text.index(part) for part in parts] == sorted(text.index(part) for part in parts)
    picture = Image.open(tmp_path / "mine.png")
    assert picture.size == (900, 320) and len(picture.convert("RGB").getcolors(2**20)) > 50
    before = (tmp_path / "mine.png").read_bytes()
    write_card(file, "What it is.", "| a |\n|---|", PANELS, "Something else.")
    assert (
        before == (tmp_path / "mine.png").read_bytes()
        and (tmp_path / "mine.md").read_text() == text
    )


def test_without_matplotlib_there_is_a_card_all_the_same(file, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    write_card(file, "What it is.", "| a |\n|---|", PANELS)
    assert "pip install matplotlib" in capsys.readouterr().err
    assert "![" not in (tmp_path / "mine.md").read_text() and not (tmp_path / "mine.png").exists()
