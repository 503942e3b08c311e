"""The key/value cache of a search: a decoder step computes only one new position.

Axes as in `transformer`: B sentences, K hypotheses per sentence, R = B*K rows, H heads, E head
width, L layers, S source length, n nodes of a sentence.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class Cache:
    """Keys and values of the tokens decoded so far, stored once per sentence.

    The K hypotheses of a sentence share prefixes, like paths in a tree. Every token fed to the
    decoder is a node with a key and a value in each layer, and a hypothesis attends to the nodes on
    its path. Reordering hypotheses therefore moves a few booleans and no keys; nodes that are no
    longer on any path are dropped when room is made for new ones. The keys and values of the source
    are projected once and never copied for the beam.
    """

    STEPS_OF_ROOM = 4  # larger: fewer copies, but attention reads more unused nodes

    def __init__(
        self, cross: list[tuple[Tensor, Tensor]], src_mask: Tensor | None, beam_size: int
    ) -> None:
        self.cross = cross  # one pair per layer: (B, H, S, E) each
        self.src_mask = src_mask  # (B, 1, 1, S) or None
        self.beam_size = beam_size
        self.step = 0
        keys = cross[0][0]
        batch, heads, _, d_head = keys.shape
        self.paths = keys.new_empty(batch, beam_size, 0, dtype=torch.bool)  # (B, K, n)
        self.past = keys.new_empty(batch, 0, len(cross), 2, heads, d_head)  # (B, n.., L, 2, H, E)
        self.mask: Tensor | None = None  # (B, 1, K, n) to be added to the scores: 0 or -inf

    def open_step(self, is_shared: bool) -> None:
        """Append a new node to each hypothesis, or a shared one to all of a sentence.

        `append` then stores their keys and values.
        """
        n_new = 1 if is_shared else self.beam_size
        if self.paths.shape[2] + n_new > self.past.shape[1]:
            self._make_room()
        own = torch.eye(n_new, dtype=torch.bool, device=self.paths.device)
        own = own.expand(self.beam_size, -1)  # (K, new)
        self.paths = torch.cat([self.paths, own.expand(len(self.paths), -1, -1)], 2)
        self.mask = None
        if n_new > 1:  # otherwise all hypotheses share one path
            zeros = torch.zeros(self.paths.shape, dtype=self.past.dtype, device=self.past.device)
            self.mask = zeros.masked_fill_(~self.paths, float("-inf")).unsqueeze(1)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values of the new nodes (B, H, new, E); -> those of all (B, H, n, E)"""
        end, n_new = self.paths.shape[2], k.shape[2]
        known = self.past[:, :end, layer]  # (B, n, 2, H, E)
        known[:, -n_new:, 0] = k.transpose(1, 2)
        known[:, -n_new:, 1] = v.transpose(1, 2)
        return known[:, :, 0].transpose(1, 2), known[:, :, 1].transpose(1, 2)

    def reorder(self, rows: Tensor) -> None:
        """Row r continues the former row `rows[r]` (R,), of the same sentence."""
        self.paths = self.paths.flatten(0, 1).index_select(0, rows).view_as(self.paths)

    def keep_sentences(self, sentences: Tensor) -> None:
        """Keep only these sentences (B',)."""
        self.cross = [
            (k.index_select(0, sentences), v.index_select(0, sentences)) for k, v in self.cross
        ]
        self.past = self.past.index_select(0, sentences)
        self.paths = self.paths.index_select(0, sentences)
        if self.src_mask is not None:
            self.src_mask = self.src_mask.index_select(0, sentences)

    def _make_room(self) -> None:
        """Drop unused nodes, as many as all sentences have, and append room for new ones."""
        batch, n_nodes = self.past.shape[:2]
        is_needed = self.paths.any(1)  # (B, n)
        n_needed = int(is_needed.sum(1).max()) if n_nodes else 0
        n_room = self.beam_size * max(self.STEPS_OF_ROOM, n_needed // (4 * self.beam_size))
        if not n_needed:
            self.past = self.past.new_empty(batch, n_room, *self.past.shape[2:])
            return
        order = torch.argsort(is_needed.byte(), dim=1, descending=True, stable=True)
        order = order[:, :n_needed]  # the needed nodes first
        self.paths = self.paths.gather(2, order.unsqueeze(1).expand(-1, self.beam_size, -1))
        first = torch.arange(0, batch * n_nodes, n_nodes, device=order.device).unsqueeze(1)
        chosen = F.pad(order, (0, n_room)) + first  # the contents of the new room are arbitrary
        moved = self.past.flatten(0, 1).index_select(0, chosen.flatten())
        self.past = moved.view(batch, n_needed + n_room, *self.past.shape[2:])
