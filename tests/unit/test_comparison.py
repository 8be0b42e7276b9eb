"""How near two pictures are: figures against torchmetrics, what is refused, and what is by chance."""

import sys
from types import ModuleType

import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure as reference_ssim

from rapid_core import comparison
from rapid_core.comparison import EQUAL, compare, difference, lpips, pairs, psnr, ssim, totals


def pictures(number=1, height=24, width=32, channels=3, seed=0):
    made = torch.Generator().manual_seed(seed)
    return torch.rand(number, height, width, channels, generator=made)


def test_psnr_is_that_of_a_mean_square_error_one_can_work_out():
    black = torch.zeros(4, 4, 3)
    assert psnr(black, black + 0.1) == pytest.approx(20.0, abs=1e-4)
    assert psnr(black, black) == EQUAL


def test_ssim_is_that_of_torchmetrics():
    a, b = pictures()[0], pictures(seed=1)[0]
    for one, two in ((a, b), (a, (0.9 * a + 0.1 * b)), (a, a)):
        given = [p.permute(2, 0, 1)[None].double() for p in (one, two)]
        _, everywhere = reference_ssim(*given, data_range=1.0, return_full_image=True)
        whole = everywhere[..., 5:-5, 5:-5]  # windows that do not reach beyond the border
        assert ssim(one, two) == pytest.approx(float(whole.mean()), abs=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (7, 9), (10, 11)])
def test_pictures_smaller_than_a_window_have_a_likeness_too(size):
    a, b = pictures(1, *size)[0], pictures(1, *size, seed=1)[0]
    assert ssim(a, a) == pytest.approx(1.0) and ssim(a, b) < 1.0


def test_a_batch_is_compared_picture_by_picture_and_one_with_all():
    a, b = pictures(3), pictures(3, seed=1)
    b[1] = a[1]
    found = compare(*pairs(a, b))
    assert [pair.psnr == EQUAL for pair in found] == [False, True, False]
    assert totals(found)["psnr_worst"] == min(pair.psnr for pair in found)
    assert totals(found)["verdict"] == "poor" and totals(found)["equal"] is False
    for one, many in ((a[:1], b), (b, a[:1])):
        assert len(compare(*pairs(one, many))) == 3


def test_alpha_is_left_out_and_grey_is_taken_as_it_looks():
    a = pictures(channels=4)
    assert torch.equal(*pairs(a, a[..., :3]))
    grey = pictures(channels=1)
    assert torch.equal(*pairs(grey, grey.repeat(1, 1, 1, 3)))


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (pictures(), pictures(height=40), "picture_a of 32 x 24 and picture_b of 32 x 40 pixels"),
        (pictures(2), pictures(3), "2 pictures were given as picture_a and 3 as picture_b"),
        (pictures(channels=2), pictures(), "picture_a of 2 channels was given; accepted are 3"),
        (
            pictures(),
            torch.rand(8, 8, 3),
            r"picture_b = \(8, 8, 3\) was given; accepted is an IMAGE",
        ),
        (pictures(), torch.rand(0, 24, 32, 3), r"picture_b = \(0, 24, 32, 3\) was given"),
        (pictures() * float("nan"), pictures(), "picture_a has values that are not finite"),
        (None, pictures(), "picture_a = NoneType was given"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_both_sizes(a, b, words):
    with pytest.raises(ValueError, match=words):
        pairs(a, b)


def test_the_difference_map_is_dark_where_nothing_differs_and_bright_where_much_does():
    a = torch.zeros(1, 2, 2, 3)
    b = a.clone()
    b[0, 0, 0, 1] = 0.1
    seen = difference(a, b, 10.0)
    assert seen.shape == (1, 2, 2, 3) and torch.equal(seen[0, 1, 1], seen[0, 0, 1])
    assert seen[0, 0, 0].tolist() == pytest.approx(comparison.coloured(torch.tensor(1.0)).tolist())
    assert seen[0, 0, 0].sum() > seen[0, 1, 1].sum()


def test_left_and_right_of_a_blind_comparison_follow_from_the_pictures_alone():
    a, b = pictures(64, 4, 4), pictures(64, 4, 4, seed=1)
    first, again = compare(a, b), compare(a.clone(), b.clone())
    assert first == again
    assert 16 < sum(pair.swapped for pair in first) < 48
    assert len({pair.fingerprint for pair in first}) == 64


def test_lpips_is_left_out_where_its_package_or_its_weights_are_not_there(monkeypatch, tmp_path):
    a, b = pictures(2), pictures(2, seed=1)
    monkeypatch.setattr(comparison.torch.hub, "get_dir", lambda: str(tmp_path))
    assert lpips(a, b) is None
    package = ModuleType("lpips")
    package.__spec__ = sys.__spec__
    package.LPIPS = lambda **_: lambda x, y: (x - y).abs().mean()  # stands for the network
    monkeypatch.setitem(sys.modules, "lpips", package)
    assert lpips(a, b) is None  # or it would fetch them
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / comparison.LPIPS_WEIGHTS).touch()
    assert lpips(a, a) == [0.0, 0.0]
    assert lpips(a, b) == pytest.approx(
        [float((x - y).abs().mean()) * 2 for x, y in zip(a, b, strict=True)]
    )
