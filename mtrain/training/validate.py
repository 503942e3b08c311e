"""Validation: the loss on valid, and translations scored like those of `mtrain eval`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtrain.config.root import Config, in_languages
from mtrain.data.batching import Batch, BatchPlan, batch_of
from mtrain.data.cleaning import normalize
from mtrain.data.micro_batches import cut
from mtrain.data.tokenizer import Tokenizer, tokenizers_of
from mtrain.decoding.engine import TorchEngine
from mtrain.decoding.translate import Translator
from mtrain.evaluation.evaluate import evaluate_split, leaks_in, weights_sha256
from mtrain.evaluation.metrics import score_all
from mtrain.machine import runtime
from mtrain.model.loss import label_smoothed_loss
from mtrain.model.transformer import Transformer
from mtrain.model.weights import set_weights
from mtrain.run import RunDir, Split
from mtrain.training.schedule import Clock

BATCH_TOKENS = 4096
MEASURED_LINES = 64
FEWEST_LINES = 100


def size_of_validation(
    validation: Validation, weights: dict[str, Tensor], allowance_s: float, clock: Clock
) -> tuple[int, int, float]:
    """(lines, beam size, expected seconds): all lines with the beam of the config if they fit.

    If not, as many lines as fit with greedy search, but at least 100.
    """
    n_lines, beam_size = len(validation.split.sources), validation.beam_size
    greedy_s = validation.cost_per_line(weights, 1, clock)
    if greedy_s * n_lines <= allowance_s:
        beam_s = validation.cost_per_line(weights, beam_size, clock)
        if beam_s * n_lines <= allowance_s:
            return n_lines, beam_size, beam_s * n_lines
    n = min(n_lines, max(FEWEST_LINES, int(allowance_s / greedy_s)))
    return n, 1, greedy_s * n


class Validation:
    """The valid set, or evenly spaced lines of it, and a second model for the weights."""

    def __init__(
        self, config: Config, run: RunDir, device: torch.device, precision: runtime.Precision
    ) -> None:
        self.config, self.device, self.precision = config, device, precision
        self.split = run.read_split("valid")
        source, target = tokenizers_of(run)
        source = source.tagged(self.split.tag)
        self.model = Transformer(config.model, source.vocab_size, target.vocab_size)
        self.model.eval().to(device)
        manifest = run.read_manifest()
        self.leaks = leaks_in(manifest, "valid")
        self.tokenizers, self.length_ratio = (source, target), manifest["length_ratio"]
        self.beam_size = config.decode.beam_size
        self.take(len(self.split.sources))

    def take(self, n_lines: int, beam_size: int | None = None) -> None:
        """Validate on so many lines, evenly spaced, and with this beam size from now on."""
        split, config = self.split, self.config
        n_all = len(split.sources)
        kept = [i * n_all // n_lines for i in range(n_lines)]
        sources, references = (
            [side[i] for i in kept] for side in (split.sources, split.references)
        )
        self.split = replace(split, sources=sources, references=references)
        self.beam_size = beam_size or self.beam_size
        self.batches = valid_batches(self.split, *self.tokenizers, config)
        copies = score_all(
            sources,
            references,
            in_languages(config, split.languages).target,
            config.evaluate.tokenize,
            config.evaluate.lowercase,
            intervals=False,
            metrics=("bleu",),
        )
        self.bleu_of_copying = copies["bleu"].score

    def translator(self) -> Translator:
        """Translates with the present weights."""
        engine = TorchEngine([self.model], self.config.decode.precision)
        return Translator(engine, self.tokenizers, self.config, self.length_ratio)

    def cost_per_line(self, weights: dict[str, Tensor], beam_size: int, clock: Clock) -> float:
        """Seconds per line, from a few, if outputs are as long as the references.

        Untrained weights translate up to the longest output that is allowed, unlike trained ones.
        """
        set_weights(self.model, weights, Path("the trial"))
        n = min(len(self.split.sources), MEASURED_LINES)
        lines = [self.split.sources[i * len(self.split.sources) // n] for i in range(n)]
        translator = self.translator().tagged(self.split.tag)
        began_at = clock()
        translator.translate_detailed(lines, beam_size=beam_size)
        mean, std = self.length_ratio["mean"], self.length_ratio["std"]
        share = max(0.5, float(mean / (mean + 4 * std)))
        return (clock() - began_at) / n * share


def validate(validation: Validation, weights: dict[str, Tensor], step: int) -> dict[str, Any]:
    """loss (nats per token, without smoothing), perplexity, bleu, chrf, and the time it took."""
    started_at = time.perf_counter()
    set_weights(validation.model, weights, Path(f"step {step}"))
    loss = validation_loss(validation)
    translator = validation.translator()
    result = evaluate_split(translator, validation.split, validation.config, validation.beam_size)
    scores = result.scores
    return {
        "loss": loss,
        "perplexity": float(np.exp(loss)),
        "bleu": scores["bleu"].score,
        "chrf": scores["chrf"].score,
        "signatures": {name: score.signature for name, score in scores.items()},
        "checkpoint_sha256": weights_sha256(translator),
        "test_set_sha256": validation.split.sha256,
        "decode": result.facts["decode"],
        "sentences": len(validation.split.sources),
        "samples": samples(validation.split, result.hypotheses),
        "n_distinct_outputs": len(set(result.hypotheses)),
        "n_distinct_references": len(set(validation.split.references)),
        "bleu_of_copying": validation.bleu_of_copying,
        **validation.leaks,
        "validation_s": round(time.perf_counter() - started_at, 3),
    }


def samples(split: Split, outputs: Sequence[str]) -> list[list[str]]:
    """[source, reference, output] of two sentences of usual length, the same in each validation."""
    by_length = sorted(range(len(outputs)), key=lambda i: len(split.sources[i]))
    chosen = dict.fromkeys(by_length[len(by_length) * share // 10] for share in (3, 6))
    return [[split.sources[i], split.references[i], outputs[i]] for i in chosen]


@torch.inference_mode()
def validation_loss(validation: Validation) -> float:
    """-log p of the references, in nats per target token (EOS included)."""
    nll = torch.zeros((), device=validation.device)
    n_tokens = 0
    for batch in validation.batches:
        on_device = batch.to(validation.device)
        with runtime.autocast(validation.device, validation.precision):
            memory = validation.model.encode(on_device.src, on_device.src_mask)
            x = validation.model.decode(on_device.tgt_in, memory, on_device.src_mask)
            weight = validation.model.output.weight
            nll += label_smoothed_loss(x, weight, on_device.tgt_out, smoothing=0.0).nll
        n_tokens += batch.n_target_tokens
    return float(nll) / n_tokens


def valid_batches(
    split: Split, source: Tokenizer, target: Tokenizer, config: Config
) -> list[Batch]:
    """All pairs of a split, grouped by length; sides that are too long are cut off."""
    longest = config.data.max_length
    src, tgt = (
        [np.array(ids[:longest], dtype=np.int64) for ids in side.encode([*map(normalize, texts)])]
        for side, texts in ((source, split.sources), (target, split.references))
    )
    src_lengths, tgt_lengths = (np.array([len(ids) + 1 for ids in side]) for side in (src, tgt))
    plan = BatchPlan(src_lengths, tgt_lengths, BATCH_TOKENS, seed=0, epoch=0)
    return [
        batch_of([src[i] for i in rows], [tgt[i] for i in rows])
        for update in plan.updates
        for rows in cut(update, src_lengths, tgt_lengths, max(BATCH_TOKENS, longest + 1))
    ]
