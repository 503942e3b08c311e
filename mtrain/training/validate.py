"""Validation: the loss on valid, and translations scored like those of `mtrain eval`."""

from __future__ import annotations

import time
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

BATCH_TOKENS = 4096


class Validation:
    """The valid set, and a second model for the weights to be scored."""

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
        self.batches = valid_batches(self.split, source, target, config)
        copies = score_all(
            self.split.sources,
            self.split.references,
            in_languages(config, self.split.languages).target,
            config.evaluate.tokenize,
            config.evaluate.lowercase,
            intervals=False,
            metrics=("bleu",),
        )
        self.bleu_of_copying = copies["bleu"].score


def validate(validation: Validation, weights: dict[str, Tensor], step: int) -> dict[str, Any]:
    """loss (nats per token, without smoothing), perplexity, bleu, chrf, and the time it took."""
    started_at = time.perf_counter()
    set_weights(validation.model, weights, Path(f"step {step}"))
    loss = validation_loss(validation)
    engine = TorchEngine([validation.model], validation.config.decode.precision)
    translator = Translator(
        engine, validation.tokenizers, validation.config, validation.length_ratio
    )
    result = evaluate_split(translator, validation.split, validation.config)
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
        "n_distinct_outputs": len(set(result.hypotheses)),
        "n_distinct_references": len(set(validation.split.references)),
        "bleu_of_copying": validation.bleu_of_copying,
        **validation.leaks,
        "validation_s": round(time.perf_counter() - started_at, 3),
    }


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
