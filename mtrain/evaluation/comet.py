"""COMET, a learnt metric that also reads the source: an optional extra, imported on request."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import numpy as np
from numpy.typing import NDArray

from mtrain.errors import UsageError
from mtrain.evaluation.metrics import BOOTSTRAP_SAMPLES, BOOTSTRAP_SEED, Score, check_counts

BATCH_SIZE = 16


def comet_score(
    sources: Sequence[str],
    hypotheses: Sequence[str],
    references: Sequence[str],
    model_name: str,
    intervals: bool = True,
) -> Score:
    """The mean of COMET's scores of all sentences, times 100, with a bootstrap interval.

    `model_name` is a model of Unbabel, such as Unbabel/wmt22-comet-da, which is downloaded once.
    The interval is computed as sacreBLEU does for the other metrics.
    """
    check_counts(len(hypotheses), len(references))
    check_installed()
    import torch
    from comet import (  # type: ignore[import-not-found,unused-ignore]
        download_model,
        load_from_checkpoint,
    )

    model = load_from_checkpoint(download_model(model_name))
    lines = [
        {"src": source, "mt": hypothesis, "ref": reference}
        for source, hypothesis, reference in zip(sources, hypotheses, references, strict=True)
    ]
    n_gpus = int(torch.cuda.is_available())
    found = model.predict(lines, batch_size=BATCH_SIZE, gpus=n_gpus, progress_bar=False)
    each = 100 * np.array(found.scores, dtype=float)
    signature = f"nrefs:1|model:{model_name}|version:{_version()}"
    if not intervals:
        return Score(float(each.mean()), None, None, signature)
    low, high = _interval(each)
    signature = f"nrefs:1|bs:{BOOTSTRAP_SAMPLES}|seed:{BOOTSTRAP_SEED}|{signature[8:]}"
    return Score(float(each.mean()), low, high, signature)


def check_installed() -> None:
    """Raise a UsageError if COMET is not installed, before anything is translated."""
    try:
        import comet  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "the metric COMET is not installed",
            'pip install "mtrain[comet]", or evaluate without --comet and `evaluate.comet`',
        ) from error


def _interval(each: NDArray[np.float64]) -> tuple[float, float]:
    """Mean of the resampled means, plus and minus half the distance of their outer percentiles."""
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    means = np.sort([rng.choice(each, len(each)).mean() for _ in range(BOOTSTRAP_SAMPLES)])
    outside = BOOTSTRAP_SAMPLES // 40
    half_width = (means[-outside - 1] - means[outside]) / 2
    return float(means.mean() - half_width), float(means.mean() + half_width)


def _version() -> str:
    try:
        return version("unbabel-comet")
    except PackageNotFoundError:
        return "unknown"
