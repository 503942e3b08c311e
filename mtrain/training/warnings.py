"""What an expert who watched the training would remark, in words, once each."""

from __future__ import annotations

import math
from typing import Any

from mtrain import console

FIRST_JUDGED_STEP = 500
LITTLE_LEARNT = 0.9  # of the loss of a model that knows nothing
RISE = 1.0  # nats above the lowest loss


class Watch:
    """Sees every record of the history; warns of what looks wrong."""

    def __init__(self, target_vocab_size: int, warmup_steps: int) -> None:
        self.loss_of_a_guess = math.log(target_vocab_size)
        self.first_step = max(FIRST_JUDGED_STEP, warmup_steps)
        self.lowest_nll = math.inf
        self.n_validations = 0
        self.told: set[str] = set()

    def see(self, record: dict[str, Any]) -> None:
        """A record of `kind` train or valid."""
        if record["kind"] == "train":
            self._see_loss(record["step"], record["nll"])
        else:
            self._see_validation(record)

    def _see_loss(self, step: int, nll: float) -> None:
        if math.isfinite(nll):
            self.lowest_nll = min(self.lowest_nll, nll)
        if step >= self.first_step and nll > LITTLE_LEARNT * self.loss_of_a_guess:
            self._tell(
                "the loss does not fall",
                f"at step {step} it is {nll:.2f} a piece, and guessing costs "
                f"{self.loss_of_a_guess:.2f}; try another train.optim.learning_rate, and look "
                "whether the lines of source and target belong together",
            )
        elif nll > self.lowest_nll + RISE:
            self._tell(
                "the loss has risen again",
                f"to {nll:.2f} a piece at step {step}, from {self.lowest_nll:.2f}; a lower "
                "train.optim.learning_rate or a longer warm-up keeps it down",
            )

    def _see_validation(self, record: dict[str, Any]) -> None:
        self.n_validations += 1
        step = record["step"]
        if record.get("n_distinct_outputs") == 1 and record.get("n_distinct_references", 1) > 1:
            self._tell(
                "every sentence of valid gets the same translation",
                f"at step {step}; where that stays, the model has not learnt to look at the "
                "source: lower train.optim.learning_rate, or train on more text",
            )
        copying = record.get("bleu_of_copying", 0.0)
        if self.n_validations > 1 and record["bleu"] < copying:
            self._tell(
                "copying the source scores higher on valid than the model",
                f"at step {step} ({copying:.1f} BLEU against {record['bleu']:.1f}); where that "
                "stays, look whether source and target are in the languages they should be",
            )

    def _tell(self, what: str, more: str) -> None:
        if what not in self.told:
            self.told.add(what)
            console.warn(f"{what}: {more}")
