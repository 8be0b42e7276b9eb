"""FLOPs of one attention, dense and sparse, and the constants of sparse attention that they depend
on; imports nothing of the pack."""

from __future__ import annotations

from dataclasses import dataclass

RUNS = 8  # runs of tokens of a key tile that stand in for it when sparse attention chooses tiles
QUERY_RUNS = 4  # the same of as many queries
# Neighbouring key tiles make a query tile: half the choices, and matrix products of a better shape.
PAIR = 2


def attention_flops(queries: int, keys: int, hidden: int) -> int:
    """Scores and weighted values of one attention."""
    return 4 * queries * keys * hidden


def tiles_kept(density: float, tiles: int) -> int:
    """Key tiles that a query tile attends to in sparse attention, at least one."""
    return min(tiles, max(1, round(density * tiles)))


@dataclass(frozen=True)
class SparseShape:
    """One sparse attention as its cost depends on it."""

    hidden: int
    """Channels of all heads together."""
    queries: int
    """Image tokens that are queries in whole query tiles; a multiple of PAIR * size."""
    tiles: int
    """Key tiles."""
    kept: int
    """Key tiles that each query tile attends to."""
    size: int
    """Tokens of a key tile."""
    always: int
    """Keys that every query attends to: text, and what is in no tile."""
    means: bool
    """Whether the means of key tiles stand in for those that are not attended to."""

    def flops(self, choosing: bool = True) -> int:
        """Scores and values of the tiles that are kept, of the keys that are always there and of
        the means; with `choosing` the choice of tiles, too."""
        attended = self.kept * self.size + self.always + (self.tiles if self.means else 0)
        flops = attention_flops(self.queries, attended, self.hidden)
        if not choosing:
            return flops
        query_runs = self.queries * QUERY_RUNS // self.size
        key_runs = self.tiles * RUNS + self.always
        return flops + self.hidden * 2 * query_runs * key_runs

    def saving(self, choosing: bool = True) -> int:
        """FLOPs of dense attention for these queries less those of sparse attention."""
        keys = self.tiles * self.size + self.always
        return attention_flops(self.queries, keys, self.hidden) - self.flops(choosing)
