"""The search of another program, CTranslate2, in the place of ours.

The model is converted when it is loaded, into a directory that is gone again once CTranslate2 has
read it: so it always is the checkpoint asked for. Its beam search differs from ours in some rules:
it stops as soon as K hypotheses are finished, without asking whether a live one is better; and an
output cut off at the maximum length has no EOS to pay for. Padding and BOS, which ours never
writes, are not forbidden to it: that would change the probabilities of all other pieces.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from mtrain.data.tokenizer import EOS, Tokenizer
from mtrain.decoding.search import Hypothesis
from mtrain.errors import UsageError
from mtrain.model.convert import import_ctranslate2, save_ctranslate2
from mtrain.model.transformer import Transformer

BATCHES_AHEAD = 3  # waiting for each worker, so that none is ever idle


class CTranslate2:
    """A converted model; on a CPU with one thread a worker, and as many workers as threads."""

    def __init__(
        self,
        directory: Path,
        tokenizers: tuple[Tokenizer, Tokenizer],
        device: str = "cpu",
        quantization: str | None = None,
    ) -> None:
        """Read a model that `save_ctranslate2` wrote; `quantization` is that of the arithmetic,
        None: as the model is stored."""
        self.description = f"ctranslate2 {quantization or 'default'}"
        self.n_workers = torch.get_num_threads() if device == "cpu" else 1
        self.src_pieces, self.tgt_pieces = (t.all_pieces() for t in tokenizers)
        self.tgt_ids = {piece: i for i, piece in enumerate(self.tgt_pieces)}
        try:
            self.translator: Any = import_ctranslate2().Translator(
                str(directory),
                device,
                compute_type=quantization or "default",
                inter_threads=self.n_workers,
                intra_threads=1,
            )
        except (ValueError, RuntimeError) as error:
            raise UsageError(
                f"CTranslate2 cannot compute in `{quantization or 'default'}` on `{device}`: "
                f"{str(error).rstrip('.')}",
                "choose another --quantization, such as float32 or int8",
            ) from error
        self.compute_type: str = self.translator.compute_type  # what this machine makes of it

    @classmethod
    def of_model(
        cls,
        model: Transformer,
        tokenizers: tuple[Tokenizer, Tokenizer],
        n_positions: int,
        device: str = "cpu",
        quantization: str | None = None,
    ) -> CTranslate2:
        """The same weights under CTranslate2, which counts up to `n_positions`."""
        with tempfile.TemporaryDirectory() as name:
            pieces = tokenizers[0].all_pieces(), tokenizers[1].all_pieces()
            save_ctranslate2(model, pieces, Path(name), n_positions)
            return cls(Path(name), tokenizers, device, quantization)

    def search(
        self,
        batches: Iterable[tuple[Sequence[Sequence[int]], int]],
        beam_size: int,
        length_penalty: float,
        n_best: int = 1,
    ) -> Iterator[list[list[Hypothesis]]]:
        """Batch after batch: source ids (without EOS) and the most tokens of an output -> the
        hypotheses of each source, best first."""
        pending: deque[list[Any]] = deque()
        for sources, max_length in batches:
            pending.append(
                self.translator.translate_batch(
                    [[self.src_pieces[i] for i in ids] for ids in sources],
                    beam_size=beam_size,
                    num_hypotheses=n_best,
                    length_penalty=length_penalty,
                    max_decoding_length=max_length,
                    min_decoding_length=0,
                    max_input_length=0,
                    return_scores=True,
                    return_end_token=True,  # which makes it part of the length, as with us
                    asynchronous=True,
                )
            )
            if len(pending) > BATCHES_AHEAD * self.n_workers:
                yield self._hypotheses(pending.popleft(), length_penalty)
        while pending:
            yield self._hypotheses(pending.popleft(), length_penalty)

    def log_probs(
        self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """The log-probability of every target token and of EOS, given those before."""
        results = self.translator.score_batch(
            [[self.src_pieces[i] for i in ids] for ids in sources],
            [[self.tgt_pieces[i] for i in ids] for ids in targets],
            max_input_length=0,
        )
        return [result.log_probs for result in results]

    def _hypotheses(self, results: list[Any], length_penalty: float) -> list[list[Hypothesis]]:
        return [
            [
                self._hypothesis([self.tgt_ids[piece] for piece in pieces], score, length_penalty)
                for pieces, score in zip(found.hypotheses, found.scores, strict=True)
            ]
            for found in (waiting.result() for waiting in results)
        ]

    def _hypothesis(self, ids: list[int], score: float, length_penalty: float) -> Hypothesis:
        log_prob = score * len(ids) ** length_penalty
        return Hypothesis(ids[:-1] if ids[-1] == EOS else ids, score, log_prob)
