# SPDX-License-Identifier: Apache-2.0
"""`tetrominoes` and `ambiguous_tetrominoes`: bevelled pieces of four blocks on black.

A replica of the Tetrominoes of `multi_object_datasets` (Greff et al. 2019, App. B.3): three pieces
in six colours at any whole pixel, which may touch but not overlap. All 19 fixed tetrominoes are
used; the paper has 17, without saying which.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from oc_perception.worlds.scenes import Scenes, World

COLOURS = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1), (1, 0, 1), (1, 1, 0))
"""Red, green, blue, cyan, magenta, yellow."""

_CANDIDATES = 30  # shapes and places tried per piece before the whole picture is drawn anew
_LETTERS = ("####", "##/##", "###/.#.", "##./.##", ".##/##.", "#../###", "..#/###")


def _fixed_tetrominoes() -> tuple[tuple[tuple[int, int], ...], ...]:
    """The 19 tetrominoes told apart by rotation, as sorted (row, column) cells from (0, 0)."""
    found = set()
    for letter in _LETTERS:
        rows = letter.split("/")
        cells = [(r, c) for r, row in enumerate(rows) for c, mark in enumerate(row) if mark == "#"]
        for _ in range(4):
            cells = [(c, -r) for r, c in cells]
            top, left = min(r for r, _ in cells), min(c for _, c in cells)
            found.add(tuple(sorted((r - top, c - left) for r, c in cells)))
    return tuple(sorted(found))


TETROMINOES = _fixed_tetrominoes()


@dataclass(frozen=True)
class TetrominoesConfig:
    """With blocks of 5 px, pictures of 35x35 px are the published data; 3 px goes with 21x21, and
    flat blocks without `bevel` with so few pixels.
    """

    num_objects: int = 3
    block_px: int = 5
    bevel: bool = True

    def __post_init__(self) -> None:
        if self.num_objects < 1 or self.block_px < 2:
            raise ValueError("num_objects must be at least 1, block_px at least 2")


def _bevel(size: int, device: torch.device) -> Tensor:
    """Brightness `(size, size)` of a block in [0, 1]: lit from above, the left darker than the
    right, as in the published files.
    """
    middle = size - 2
    rows = [[191, *[255] * middle, 223]]
    rows += [[127, *[159] * middle, 191]] * middle
    rows += [[95, *[63] * middle, 127]]
    return torch.tensor(rows, device=device) / 255


def _paint(
    corners: Tensor, labels: Tensor, colours: Tensor, block: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Images and label maps from block corners `(B, M, 2)`, their labels `(B, M)`, `(B, M, 3)`
    colours and the brightness of a `block`. Blocks must not overlap.
    """
    batch = len(corners)
    inner = torch.arange(len(block), device=corners.device)
    rows = corners[..., 0, None, None] + inner[:, None]
    columns = corners[..., 1, None, None] + inner
    pixels = (rows * width + columns).flatten(1)
    label_map = torch.zeros(batch, height * width, dtype=torch.long, device=corners.device)
    label_map.scatter_(1, pixels, labels.repeat_interleave(block.numel(), 1))
    values = (colours[..., None, None] * block).transpose(1, 2)
    images = torch.zeros(batch, 3, height * width, device=corners.device)
    images.scatter_(2, pixels.unsqueeze(1).expand(-1, 3, -1), values.flatten(2))
    return images.view(batch, 3, height, width), label_map.view(batch, height, width)


class Tetrominoes(World):
    """Batches of pictures, drawn anew each time; all randomness from one seeded generator."""

    Config = TetrominoesConfig

    def _prepare(self) -> None:
        self._cells = torch.tensor(TETROMINOES, device=self.device)  # (19, 4, 2) in blocks
        self._extent = self._cells.amax(1) + 1  # (19, 2) rows and columns of the bounding box
        self._colours = torch.tensor(COLOURS, device=self.device).float()
        block = _bevel(self.config.block_px, self.device)
        self._block = block if self.config.bevel else torch.ones_like(block)

    def sample(self, height: int, width: int) -> Scenes:
        """Factors: `shape` (index into TETROMINOES), `colour` (into COLOURS), `position` (centre
        of the bounding box). Raises ValueError when a piece does not fit the picture.
        """
        pieces, block_px = self.config.num_objects, self.config.block_px
        if min(height, width) < 4 * block_px or height * width < 8 * pieces * block_px**2:
            raise ValueError(
                f"{pieces} pieces of {block_px} px blocks do not fit {height}x{width} px:"
                " take a larger picture, or a smaller block_px."
            )
        shape, corner, placed = self._place(height, width)
        while not placed.all():
            again_shape, again_corner, again_placed = self._place(height, width)
            shape = torch.where(placed[:, None], shape, again_shape)
            corner = torch.where(placed[:, None, None], corner, again_corner)
            placed = placed | again_placed
        colour = self._integers(len(COLOURS), *shape.shape)
        label = torch.arange(1, pieces + 1, device=self.device).expand_as(shape)
        images, labels = _paint(
            self._blocks(shape, corner).flatten(1, 2),
            label.repeat_interleave(4, 1),
            self._colours[colour].repeat_interleave(4, 1),
            self._block,
            height,
            width,
        )
        centre = (corner + 0.5 * block_px * self._extent[shape]).flip(-1)
        factors = {
            "shape": shape,
            "colour": colour,
            "position": centre / centre.new_tensor([width, height]),
        }
        return Scenes(images, labels, torch.ones_like(shape, dtype=torch.bool), factors)

    def _blocks(self, shape: Tensor, corner: Tensor) -> Tensor:
        """Corners `(..., 4, 2)` in px of the blocks of pieces `shape` `(...)` at `corner` px."""
        return corner.unsqueeze(-2) + self.config.block_px * self._cells[shape]

    def _place(self, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Shapes `(B, N)`, corners `(B, N, 2)` in px, and whether all found room `(B,)`."""
        batch, block_px = self.batch_size, self.config.block_px
        size = torch.tensor([height, width], device=self.device)
        scene = torch.arange(batch, device=self.device)
        taken = torch.zeros(batch, 0, 2, dtype=torch.long, device=self.device)
        placed = torch.ones(batch, dtype=torch.bool, device=self.device)
        shapes, corners = [], []
        for _ in range(self.config.num_objects):
            shape = self._integers(len(TETROMINOES), batch, _CANDIDATES)
            draw = self._uniform(0, 1, batch, _CANDIDATES, 2)
            room = size - block_px * self._extent[shape] + 1
            corner = (draw * room).long()
            blocks = self._blocks(shape, corner)
            gap = (blocks.unsqueeze(3) - taken[:, None, None]).abs().amax(-1)
            free = (gap >= block_px).all(-1).all(-1)  # (B, candidates)
            chosen = free.float().argmax(1)
            placed &= free.any(1)
            taken = torch.cat([taken, blocks[scene, chosen]], 1)
            shapes.append(shape[scene, chosen])
            corners.append(corner[scene, chosen])
        return torch.stack(shapes, 1), torch.stack(corners, 1), placed


@dataclass(frozen=True)
class AmbiguousScenes(Scenes):
    """`alternatives` `(B, A, H, W)`: every valid label map, of which `labels` is one by chance."""

    alternatives: Tensor | None = None


@dataclass(frozen=True)
class AmbiguousTetrominoesConfig:
    """Size and look of a block."""

    block_px: int = 5
    bevel: bool = True

    def __post_init__(self) -> None:
        if self.block_px < 2:
            raise ValueError("block_px must be at least 2")


def tilings(rows: int, columns: int) -> list[list[list[int]]]:
    """All ways to cut a rectangle into tetrominoes, as label maps `rows x columns` with labels
    from 1.
    """
    found: list[list[list[int]]] = []
    board = [[0] * columns for _ in range(rows)]

    def fill(label: int) -> None:
        empty = next(
            (rc for rc in itertools.product(range(rows), range(columns)) if not _at(board, rc)),
            None,
        )
        if empty is None:
            found.append([list(row) for row in board])
            return
        for cells in TETROMINOES:
            # The first cell of a piece in reading order must cover the first empty cell.
            placed = [(empty[0] + r - cells[0][0], empty[1] + c - cells[0][1]) for r, c in cells]
            if all(0 <= r < rows and 0 <= c < columns and not board[r][c] for r, c in placed):
                for r, c in placed:
                    board[r][c] = label
                fill(label + 1)
                for r, c in placed:
                    board[r][c] = 0

    fill(1)
    return found


def _at(board: list[list[int]], cell: tuple[int, int]) -> int:
    return board[cell[0]][cell[1]]


class AmbiguousTetrominoes(World):
    """A one-coloured rectangle of 3x4 or 4x3 blocks that several triples of tetrominoes tile: the
    picture does not tell which (for multi-stability, Greff et al. 2019, section 4.4).
    """

    Config = AmbiguousTetrominoesConfig

    def _prepare(self) -> None:
        flat = torch.tensor(tilings(3, 4), device=self.device)
        self._tilings = (flat, flat.transpose(1, 2))

    def sample(self, height: int, width: int) -> AmbiguousScenes:
        """One rectangle per picture; the whole batch lies or stands alike by chance. Raises
        ValueError when it does not fit.
        """
        block_px = self.config.block_px
        if min(height, width) < 4 * block_px:
            raise ValueError(f"Blocks of {block_px} px do not fit {height}x{width} px.")
        upright = int(self._integers(2))
        cuts = self._tilings[upright]  # (A, R, C)
        count, rows, columns = cuts.shape
        batch = self.batch_size
        draw = self._uniform(0, 1, batch, 2)
        room = torch.tensor([height - block_px * rows, width - block_px * columns]) + 1
        corner = (draw * room.to(self.device)).long()
        cells = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).to(self.device)
        corners = corner.unsqueeze(1) + block_px * cells
        palette = torch.tensor(COLOURS, device=self.device).float()
        colour = self._integers(len(COLOURS), batch)
        colours = palette[colour].unsqueeze(1).expand(-1, rows * columns, -1)
        block = _bevel(block_px, self.device)
        if not self.config.bevel:
            block = torch.ones_like(block)
        maps = []
        for cut in cuts.flatten(1):
            images, labels = _paint(corners, cut.expand(batch, -1), colours, block, height, width)
            maps.append(labels)
        alternatives = torch.stack(maps, 1)
        chosen = self._integers(count, batch)
        labels = alternatives[torch.arange(batch, device=self.device), chosen]
        present = torch.ones(batch, 3, dtype=torch.bool, device=self.device)
        factors = {"colour": colour.unsqueeze(1).expand(-1, 3)}
        return AmbiguousScenes(images, labels, present, factors, alternatives)
