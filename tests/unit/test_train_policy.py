"""Flags and prompts file of `training/train_policy.py`: what makes no sense is refused before
ComfyUI starts."""

import pytest

from training.train_policy import checked, host_flags, parser, read_prompts

BASE = ["--workflow", "a.json", "--prompts", "p.txt", "--out", "name"]


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "has 0 prompts; 3 are needed"),
        ("\n  \n", "has 0 prompts"),
        ("a\n\nb\n", "has 2 prompts; 3 are needed"),
    ],
)
def test_too_few_prompts_are_counted(tmp_path, text, said):
    (tmp_path / "prompts.txt").write_text(text)
    with pytest.raises(SystemExit, match=said):
        read_prompts(tmp_path / "prompts.txt", 3)


def test_prompts_are_lines_whatever_the_editor_put_before_them(tmp_path):
    (tmp_path / "prompts.txt").write_bytes("\ufeffa cat\r\n\r\n  a dog \n".encode())
    assert read_prompts(tmp_path / "prompts.txt", 2) == ["a cat", "a dog"]


def test_prompts_that_are_not_there_or_no_text_are_named(tmp_path):
    with pytest.raises(SystemExit, match=r"prompts\.txt: No such file"):
        read_prompts(tmp_path / "prompts.txt", 1)
    (tmp_path / "prompts.txt").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(SystemExit, match="is not UTF-8 text"):
        read_prompts(tmp_path / "prompts.txt", 1)


@pytest.mark.parametrize(
    "flags, said",
    [
        ("--speedups 3 2", "give rising numbers above 1"),
        ("--speedups 2 2", "give rising numbers above 1"),
        ("--speedups 1", "give rising numbers above 1"),
        ("--calibration 0", "--calibration 0: give 1 or more"),
        ("--kind rapid3 --heads pace", "rapid3 has step, cache and sparse"),
        ("--kind rapid+ --heads cache", "name pace, too"),
        (
            "--kind rapid+ --speedups 3",
            "the pace head chooses among the plans of several speed-ups; give --speedups",
        ),
        ("--kind rapid3 --group 1", "--group must be 2 or more"),
        ("--kind rapid3 --discount 1", "--discount between 0 and 1"),
        ("--reward beauty", "--reward: "),
        ("--kind rapid3 --omega -1", "--omega and --discriminator-warm-up must be 0 or more"),
        ("--train-prompts 0", "--train-prompts 0: give 1 or more"),
    ],
)
def test_flags_that_make_no_sense_are_refused(flags, said):
    with pytest.raises(SystemExit, match=said):
        checked(parser().parse_args([*BASE, *flags.split()]))


def test_quick_is_a_few_of_everything():
    args = checked(parser().parse_args([*BASE, "--kind", "rapid3", "--quick"]))
    assert (
        args.train_prompts == 2
        and args.iterations == 2
        and args.heads == ["step", "cache", "sparse"]
    )


def test_prompts_that_are_there_twice_count_once(tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("a\nb\na\u2028c\na\n", encoding="utf-8")
    assert read_prompts(tmp_path / "prompts.txt", 3) == ["a", "b", "a\u2028c"]
    assert "1 of 4 prompts are there twice" in capsys.readouterr().out


def test_flags_that_comfyui_obeys_only_as_a_server_are_refused():
    assert host_flags('--lowvram --base-directory "/a b"') == [
        "--lowvram",
        "--base-directory",
        "/a b",
    ]
    with pytest.raises(
        SystemExit, match="--cuda-device would do nothing here.*CUDA_VISIBLE_DEVICES"
    ):
        host_flags("--cuda-device 1")
