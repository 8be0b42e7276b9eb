"""A TAESD decoder that equals the inverse of a latent map, by construction; nothing is trained.

A cell of the latents becomes 8 x 8 pixels in three steps of nearest upsampling. What keeps a stack of
convolutions from being a linear map is that all pixels of a cell see the same: the place in the cell
has to be found. It is found by comparing with the neighbours. A pixel whose left neighbour differs is
the left one of its pair, a pixel whose right neighbour differs is the right one. That gives the sign of
a Walsh function, +1 or -1, for each step and axis; 0 where the neighbours are alike, and there hardly
anything varies within a cell either. A picture is a sum of Walsh functions times what is linear in the
latents, and `sign * u` is `relu(u + k * sign) - relu(u - k * sign) - k * sign` for every |u| up to k.
Where a sign is weaker than 1, that is `u` with a bound, so that nothing is far off.

Four thoughts make it fit into 64 channels. A constant that is added to a channel makes relu the
identity. In the first step signs are multiplied with latents, since these are fewer than what they
stand for; in the others with pixels. Products are added to what they belong to. And the soft limit of
TAESD's entry is undone by broken lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from demo.latents import CHANNELS, LatentMap
from demo.taesd import WIDTH, Decoder

LIMIT = 8.0  # of latents
# The largest that signs are multiplied with: combinations of latents of unit variance, and pixels.
REACH, RANGE = 16.0, 1.5
COMPARED = 8  # latents by which cells are compared; no more units are free
# Cells that differ by less, all compared latents together, have no sign; by thrice that, a full one.
ALIKE = 0.005
KNOTS = ((0.5, 1.0), (1.5, 2.0), (2.4, 2.7))  # of the broken lines, for each sign; those of a block
# Combinations of latents that vary from top to bottom, and in both directions.
VERTICAL, BOTH = 16, 13
MIDDLE = (1, 1)
# (row, column) of the neighbours before and after.
AXES = {"x": ((1, 0), (1, 2)), "y": ((0, 1), (2, 1))}
# What differences there say of x times y.
DIAGONALS = (((0, 2), 1), ((2, 0), 1), ((0, 0), -1), ((2, 2), -1))


@dataclass(frozen=True)
class Rows:
    """Consecutive channels. offset: what they hold beyond what they stand for."""

    first: int
    number: int
    offset: float = 0.0

    @property
    def at(self) -> Tensor:
        """Their numbers."""
        return torch.arange(self.first, self.first + self.number)


@dataclass
class Units:
    """The outputs of a convolution, given out one after the other."""

    layer: Any
    """Conv2d."""
    ones: Rows | None = None
    """A channel of ones before the convolution, in place of the bias that it does not have."""
    used: int = field(default=0)

    def take(self, number: int, offset: float = 0.0) -> Rows:
        """The next `number` outputs."""
        rows = Rows(self.used, number, offset)
        self.used += number
        if self.used > WIDTH:
            raise ValueError(f"{self.used} channels needed, {WIDTH} are there")
        self.add(rows, offset)
        return rows

    def add(self, rows: Rows, values: Tensor | float) -> None:
        """Add constants."""
        if self.ones is not None:
            self.layer.weight[rows.at, self.ones.first, 1, 1] += values
        elif self.layer.bias is not None:
            self.layer.bias[rows.at] += values

    def read(self, rows: Rows, source: Rows, matrix: Tensor, tap: tuple[int, int] = MIDDLE) -> None:
        """Add `matrix` times what `source` stands for, of the pixel at `tap`."""
        self.layer.weight[rows.at[:, None], source.at[None], tap[0], tap[1]] += matrix
        self.add(rows, -source.offset * matrix.sum(1))


class Stage:
    """A block: two layers of hidden units, whose outputs are added to the block's input."""

    def __init__(self, block: Any):
        first, second, third = block.conv[0], block.conv[2], block.conv[4]
        self.first, self.second, self.third = Units(first), Units(second), Units(third)

    def through(self) -> None:
        """Let the second layer be the identity."""
        self.second.read(Rows(0, WIDTH), Rows(0, WIDTH), torch.eye(WIDTH))


@dataclass(frozen=True)
class Product:
    """Hidden units that make a product: of `u` plus and minus `reach` times the sign, and of the sign."""

    plus: Rows
    minus: Rows
    sign: Rows
    reach: float

    def added(self, units: Units, rows: Rows) -> None:
        """Add the product to `rows`."""
        number = rows.number
        units.read(rows, self.plus, torch.eye(number))
        units.read(rows, self.minus, -torch.eye(number))
        units.read(rows, self.sign, torch.full((number, 1), -self.reach))


Terms = Sequence[tuple[Rows, Tensor]]
"""Sources and the matrices that they are read by."""


def product(units: Units, u: Terms, sign: Terms, reach: float) -> Product:
    """Hidden units for a sign times each of `u`."""
    number = len(u[0][1])
    plus, minus, alone = units.take(number), units.take(number), units.take(1, 2.0)
    for source, matrix in u:
        units.read(plus, source, matrix)
        units.read(minus, source, matrix)
    for source, row in sign:
        units.read(plus, source, reach * row.expand(number, -1))
        units.read(minus, source, -reach * row.expand(number, -1))
        units.read(alone, source, row)
    return Product(plus, minus, alone, reach)


def differences(units: Units, sources: Sequence[Rows], tap: tuple[int, int]) -> Rows:
    """Units whose sum is how much the sum of the sources differs from that of a neighbour. Sources are
    taken with their offsets: beyond the border is zero, which has to differ."""
    number = sources[0].number
    rows = units.take(2 * number)
    both = torch.cat((torch.eye(number), -torch.eye(number)))
    for source in sources:
        raw = Rows(source.first, number)
        units.read(rows, raw, both)
        units.read(rows, raw, -both, tap)
    return rows


def find_signs(
    stage: Stage, sources: dict[str, Sequence[Rows]], alike: float, scale: float
) -> list[Rows]:
    """Signs of both axes, new channels of the block. A difference of `alike` or less gives none, one of
    `alike + 1 / scale` a full one."""
    found = []
    for axis, taps in AXES.items():
        sign = stage.third.take(1, 1.0)
        for side, tap in zip((1.0, -1.0), taps, strict=True):
            apart = differences(stage.first, sources[axis], tap)
            for bound, weight in ((alike, side), (alike + 1 / scale, -side)):
                unit = stage.second.take(1)
                stage.second.read(unit, apart, torch.full((1, apart.number), scale))
                stage.second.add(unit, -scale * bound)
                stage.third.read(sign, unit, torch.full((1, 1), weight))
        found.append(sign)
    return found


def walsh(values: Tensor, axis: int) -> Tensor:
    """Half sum and half difference along an axis of two."""
    first, second = values.unbind(axis)
    return torch.stack(((first + second) / 2, (first - second) / 2), axis)


def unlimited() -> tuple[float, list[float]]:
    """Slope at 0 and its changes at `KNOTS` of the broken line that undoes 3 tanh(x / 3) best, where
    latents are of about unit deviation with long tails."""
    x = torch.linspace(0, 6, 6001, dtype=torch.float64)
    y = 3 * torch.tanh(x / 3)
    knots = torch.tensor(KNOTS, dtype=torch.float64).flatten()
    base = torch.cat((y[:, None], (y[:, None] - knots).clamp_min(0)), 1)
    weight = (-0.5 * x).exp()[:, None]
    slopes = torch.linalg.lstsq(weight * base, weight * x[:, None]).solution[:, 0].tolist()
    return slopes[0], slopes[1:]


@dataclass(frozen=True)
class Combination:
    """Combinations of latents of unit variance (`of`), and what they are worth (`worth`): part = worth @ of."""

    of: Tensor
    worth: Tensor


def combination(part: Tensor, root: Tensor, number: int) -> Combination:
    """The `number` combinations that are worth most to `part`. root: of the latents' covariance."""
    u, s, v = torch.linalg.svd(part @ root, full_matrices=False)
    return Combination(v[:number] @ torch.linalg.inv(root), u[:, :number] * s[:number])


class Maps:
    """The inverse of a latent map in Walsh functions; of indices (a, b) the first is that of y, 1 where
    the sign changes."""

    def __init__(self, latents: LatentMap):
        whole = torch.cat((latents.backward, latents.mean[:, None]), 1).double()
        whole = whole.view(3, 2, 2, 2, 2, 2, 2, -1)  # c, y in 4s, 2s, 1s, x in 4s, 2s, 1s
        halves = walsh(walsh(whole, 1), 4)
        halves = rearrange(halves, "c a y z b x w k -> a b (c y z x w) k")
        self.halves, self.means = halves[..., :-1], halves[..., -1]
        gram = latents.backward.double().T @ latents.backward.double()
        # The map is half whitened, so that the covariance of latents goes with this.
        values, vectors = torch.linalg.eigh(gram * CHANNELS / gram.trace())
        root = vectors * values.sqrt() @ vectors.T
        self.x = combination(self.halves[0, 1], root, CHANNELS)
        self.y = combination(self.halves[1, 0], root, VERTICAL)
        # Of the products of the sign of x, which are there already.
        self.xy = combination(
            self.halves[1, 1] @ torch.linalg.inv(self.x.of), torch.eye(CHANNELS).double(), BOTH
        )
        quarters = walsh(walsh(torch.eye(48).double().view(3, 2, 2, 2, 2, 48), 1), 3)
        self.quarters = rearrange(quarters, "c a z b w k -> a b (c z w) k")
        eighths = walsh(walsh(torch.eye(12).double().view(3, 2, 2, 12), 1), 2)
        self.eighths = rearrange(eighths, "c a b k -> a b c k")


def _enter(decoder: nn.Sequential) -> tuple[Rows, Rows]:
    """Latents and a channel of ones, on the latents' own grid."""
    slope, changes = unlimited()
    units = Units(decoder[1])
    soft, latents, ones = units.take(CHANNELS, 3.0), units.take(CHANNELS, LIMIT), units.take(1)
    given = Rows(0, CHANNELS)
    units.read(soft, given, torch.eye(CHANNELS))
    units.read(latents, given, slope * torch.eye(CHANNELS))
    units.add(ones, 1.0)
    for block, knots in zip((3, 4, 5), KNOTS, strict=True):
        stage = Stage(decoder[block])
        stage.through()
        for knot in knots:
            for side in (1.0, -1.0):
                beyond = stage.first.take(CHANNELS)
                stage.first.read(beyond, soft, side * torch.eye(CHANNELS))
                stage.first.add(beyond, -knot)
                stage.third.read(latents, beyond, side * changes[0] * torch.eye(CHANNELS))
            changes = changes[1:]
    return latents, ones


def _copied(units: Units, sources: Sequence[Rows]) -> list[Rows]:
    """The sources as they are."""
    made = []
    for source in sources:
        rows = Rows(units.used, source.number, source.offset)
        units.used += source.number
        raw = Rows(source.first, source.number)
        units.read(rows, raw, torch.eye(source.number))
        made.append(rows)
    return made


@torch.no_grad()
def linear_decoder(latents: LatentMap) -> Decoder:
    """A decoder that gives what `latents.decode` gives before its values are cut to 0 .. 1."""
    maps = Maps(latents)
    decoder = Decoder()
    for parameter in decoder.parameters():
        parameter.zero_()
    given, ones = _enter(decoder)

    # 4 x 4 pixels a pixel. Signs times latents.
    units = Units(decoder[7])
    z, ones = _copied(units, (given, ones))
    seek, across, down = (Stage(decoder[block]) for block in (8, 9, 10))
    seek.third.used = units.used
    compared = (Rows(z.first, COMPARED),)
    x, y = find_signs(seek, {"x": compared, "y": compared}, ALIKE, 0.5 / ALIKE)
    across.through()
    across.third.used = seek.third.used
    of_x = across.third.take(CHANNELS, REACH)
    one = torch.ones(1, 1)
    product(across.first, [(z, maps.x.of)], [(x, one)], REACH).added(across.third, of_x)
    down.through()
    down.third.used = across.third.used
    of_y, of_xy = down.third.take(VERTICAL, REACH), down.third.take(BOTH, REACH)
    product(down.first, [(z, maps.y.of)], [(y, one)], REACH).added(down.third, of_y)
    product(down.first, [(of_x, maps.xy.of)], [(y, one)], REACH).added(down.third, of_xy)

    # 2 x 2 pixels a pixel. Signs times pixels.
    units = Units(decoder[12], ones)
    parts = {(a, b): units.take(12, RANGE) for a in (0, 1) for b in (0, 1)}
    for index, rows in parts.items():
        turn = maps.quarters[index]
        for source, matrix in (
            (z, maps.halves[0, 0]),
            (of_x, maps.x.worth),
            (of_y, maps.y.worth),
            (of_xy, maps.xy.worth),
            (x, maps.means[0, 1][:, None]),
            (y, maps.means[1, 0][:, None]),
        ):
            units.read(rows, source, turn @ matrix)
        units.add(rows, turn @ maps.means[0, 0])
    ones, x, y = _copied(units, (ones, x, y))
    seek, across, down = (Stage(decoder[block]) for block in (13, 14, 15))
    seek.third.used = units.used
    x, y = find_signs(seek, {"x": (x, ones), "y": (y, ones)}, 0.0, 1.0)
    across.through()
    for source, target in (((0, 1), (0, 0)), ((1, 1), (1, 0))):
        made = product(across.first, [(parts[source], torch.eye(12))], [(x, one)], RANGE)
        made.added(across.third, parts[target])
    down.through()
    down.third.used = seek.third.used
    xy = down.third.take(1, 1.0)
    made = product(down.first, [(parts[1, 0], torch.eye(12))], [(y, one)], RANGE)
    made.added(down.third, parts[0, 0])
    product(down.first, [(x, one)], [(y, one)], 1.0).added(down.third, xy)

    # Pixels.
    units = Units(decoder[17], ones)
    pixels = {(a, b): units.take(3, RANGE) for a in (0, 1) for b in (0, 1)}
    for index, rows in pixels.items():
        units.read(rows, parts[0, 0], maps.eighths[index])
    ones, x, y, xy = _copied(units, (ones, x, y, xy))
    last = Stage(decoder[18])
    passed = {index: last.first.take(3, RANGE) for index in pixels if index != (0, 0)}
    for index, rows in passed.items():
        last.first.read(rows, pixels[index], torch.eye(3))
    signs: dict[tuple[int, int], list[tuple[Rows, Tensor]]] = {}
    for index, sign, taps in (
        ((0, 1), x, [(tap, side) for tap, side in zip(AXES["x"], (2, -2), strict=True)]),
        ((1, 0), y, [(tap, side) for tap, side in zip(AXES["y"], (2, -2), strict=True)]),
        ((1, 1), xy, DIAGONALS),
    ):
        apart = [(differences(last.first, (sign, ones), tap), side) for tap, side in taps]
        signs[index] = [(rows, torch.full((1, 2), side / 4)) for rows, side in apart]
    for index, rows in passed.items():
        made = product(last.second, [(rows, torch.eye(3))], signs[index], RANGE)
        made.added(last.third, pixels[0, 0])
    Units(decoder[19]).read(Rows(0, 3), pixels[0, 0], torch.eye(3))
    return decoder.requires_grad_(False)
