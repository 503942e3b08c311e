"""Source text to translations to scores: for validation, `eval`, and any pair of files.

All go through `_translate` and `metrics.score_all`, so that a validation, `mtrain eval` and the
scoring of a saved hypothesis file give equal numbers to the last digit. Scores of the run's own
test sets are kept in its scores.json; their translations and analyses in its translations/.
`summary` turns them into text.

Torch is imported only to translate: scoring a given file does not need it.
"""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtrain import console
from mtrain.config.load import read_run_config
from mtrain.config.root import Config
from mtrain.data.cleaning import MIN_WORDS_ALONE, count_words
from mtrain.errors import DataError, UsageError
from mtrain.evaluation.analysis import TrainingText, analyse
from mtrain.evaluation.comparison import compare
from mtrain.evaluation.given import (
    GivenFiles,
    check_aligned,
    read_files,
    read_lines,
    read_sacrebleu,
)
from mtrain.evaluation.metrics import (
    METRICS,
    check_comet_installed,
    comet_score,
    notices,
    score_all,
    scoring_of,
)
from mtrain.evaluation.results import (
    Evaluation,
    keep,
    keep_attention,
    keep_comparison,
    own_checkpoint,
)
from mtrain.run import RunDir, Split

if TYPE_CHECKING:
    from mtrain.decoding.translate import Progress, Translator


def evaluate_split(
    translator: Translator, split: Split, config: Config, beam_size: int | None = None
) -> Evaluation:
    """Validation: BLEU and chrF under the run's own decoding, without intervals."""
    with console.bar(len(split.sources), "validating", " sentences") as bar:
        result = _translate(translator, split, config, bar.update, beam_size=beam_size)
    return _with_scores(result, config, intervals=False, metrics=("bleu", "chrf"))


def evaluate_run(
    path: str | Path,
    names: Sequence[str] = (),
    files: Sequence[GivenFiles] = (),
    comet: str | None = None,
    sacrebleu: Sequence[str] = (),
    checkpoint: str | None = None,
    device: str = "auto",
    tag: str | None = None,
    **changes: Any,
) -> dict[str, Evaluation]:
    """Translate and score splits of a run (by default all its test sets) and any given text.

    `sacrebleu` names test sets that sacreBLEU knows, such as wmt14/full; `changes` are of the run's
    own search, as `beam_size=1`. The run keeps texts and scores of its own splits, and nothing of
    others.
    """
    run = RunDir.open(path)
    config = _read_config(run, comet)
    if not (names or files or sacrebleu):
        names = [name for name in run.splits() if name != "valid"]
        if not names:
            raise UsageError(f"{run.path} has no test set", "score its valid set: --split valid")
    splits = [
        *(run.read_split(name) for name in names),
        *read_files(files),
        *(read_sacrebleu(name, config) for name in sacrebleu),
    ]
    if tag is not None:
        splits = [replace(split, tag=tag) for split in splits]
    translator = _open_translator(run, checkpoint, device)
    training = TrainingText.of(run)
    if names:
        run.read_scores()  # fails early if damaged
    results = {}
    for split in splits:
        result = _evaluate_checkpoint(run, translator, split, config, checkpoint, changes)
        result = _analysed(result, config, training)
        result = _with_contamination(result, run, training)
        _give_notice(result, config)
        results[split.name] = keep(result, run, config) if split.name in names else result
    own = [result for result in results.values() if result.kept_as == result.split.name]
    for result in own[:1]:
        keep_attention(run, translator, result)
    return results


def evaluate_hypotheses(
    path: str | Path, files: Sequence[GivenFiles], comet: str | None = None
) -> dict[str, Evaluation]:
    """Score given translations under a run's languages and settings, without its model."""
    run = RunDir.open(path)
    config = _read_config(run, comet)
    training = TrainingText.of(run)
    results = {}
    for given, split in zip(files, read_files(files), strict=True):
        assert given.hypothesis is not None
        hypotheses = read_lines(given.hypothesis)
        check_aligned(given.hypothesis, hypotheses, given.references[0], split.references)
        facts = {"sentences": len(hypotheses), "hypothesis": str(given.hypothesis)}
        result = _with_scores(Evaluation(split, {}, hypotheses, facts=facts), config)
        result = _analysed(result, config, training) if split.sources else result
        _give_notice(result, config)
        results[split.name] = result
    return results


def check_baseline(paths: Sequence[Path], names: Sequence[str], against: Path | None) -> None:
    """Raise a UsageError, before any work, if the baseline has other texts or is not a run."""
    if against is None or not is_run(against):
        return
    baseline = RunDir.open(against)
    read_run_config(baseline)
    for run in map(RunDir.open, paths):
        for name in names or [name for name in run.splits() if name != "valid"]:
            if not (run.is_exported or baseline.is_exported):
                _check_same_text(baseline, run.read_split(name))


def is_run(path: Path) -> bool:
    """A run directory or an exported file, not a file of translations."""
    return path.is_dir() or path.suffix == ".safetensors"


def compare_with(
    path: str | Path, results: Mapping[str, Evaluation], against: Path | None, device: str = "auto"
) -> Mapping[str, Evaluation]:
    """Test each result of a run against the translation by another run, or in a file."""
    if against is None:
        return results
    run = RunDir.open(path)
    config = read_run_config(run)
    outputs = _baseline_outputs(results, against, device)
    compared = {}
    for name, result in results.items():
        split = result.split
        check_aligned(against, outputs[name], Path(f"the reference of {name}"), split.references)
        comparison = compare(
            result.hypotheses,
            outputs[name],
            split.all_references,
            *scoring_of(config, split.languages),
            baseline_name=str(against),
        )
        compared[name] = replace(result, comparison=comparison)
        keep_comparison(compared[name], run)
    return compared


def _baseline_outputs(
    results: Mapping[str, Evaluation], against: Path, device: str
) -> dict[str, list[str]]:
    """Test set -> translations by another run, or from a file."""
    if is_run(against):
        baseline = _Baseline(against, device)
        return {name: baseline.outputs(result.split) for name, result in results.items()}
    if len(results) > 1:
        raise UsageError(
            f"{against} is one file, and {len(results)} test sets are scored: {', '.join(results)}",
            "choose the test set that it is a translation of, with --split",
        )
    lines = read_lines(against)
    return dict.fromkeys(results, lines)


# -- translating and scoring -----------------------------------------------------------------


def _evaluate_checkpoint(
    run: RunDir,
    translator: Translator,
    split: Split,
    config: Config,
    checkpoint: str | None,
    changes: Mapping[str, Any],
) -> Evaluation:
    console.message(f"{split.name}: translating {len(split.sources):,} sentences")
    with console.bar(len(split.sources), split.name, "sentences") as bar:
        result = _translate(translator, split, config, bar.update, **changes)
    # A run that has not been validated yet translates with its last checkpoint.
    has_best = run.weights.exists() or bool(run.best_checkpoints())
    facts = {
        "checkpoint": checkpoint or (own_checkpoint(run) if has_best else "last"),
        "checkpoint_sha256": weights_sha256(translator),
        "test_set_sha256": split.sha256,
    }
    scored = _with_scores(result, config)
    return replace(scored, facts=scored.facts | facts)


def _translate(
    translator: Translator,
    split: Split,
    config: Config,
    progress: Progress | None = None,
    **changes: Any,
) -> Evaluation:
    """Translate by a run's own search with some changes; None changes nothing."""
    from mtrain.decoding.engine import Search

    search = Search.of(config.decode, **changes)
    started_at = time.monotonic()
    if split.tag is not None:
        translator = translator.tagged(split.tag)
    translations = translator.translate_detailed(split.sources, search, progress)
    elapsed_s = time.monotonic() - started_at
    facts = {
        "sentences": len(translations),
        "decode": {
            "beam_size": search.beam_size,
            "length_penalty": search.length_penalty,
            "length_penalty_form": search.length_penalty_form,
            "precision": translator.engine.precision,
        },
        "seconds": round(elapsed_s, 2),
    }
    texts = [translation.text for translation in translations]
    scores = [translation.score for translation in translations]
    return Evaluation(split, {}, texts, scores, facts)


def _with_scores(
    result: Evaluation, config: Config, intervals: bool = True, metrics: Sequence[str] = METRICS
) -> Evaluation:
    references, settings = result.split.all_references, scoring_of(config, result.split.languages)
    scores = score_all(result.hypotheses, references, *settings, intervals, metrics)
    # All text is compared in one form of Unicode; `summary` reports lines that were in another.
    lines = [*result.hypotheses, *chain.from_iterable(references)]
    n_changed = sum(not unicodedata.is_normalized("NFC", line) for line in lines)
    facts = {"normal_form": "NFC"} | ({"n_normalized": n_changed} if n_changed else {})
    return replace(result, scores=scores, facts=result.facts | facts)


def _analysed(result: Evaluation, config: Config, training: TrainingText) -> Evaluation:
    """Add the parts that need sources: diagnostics, breakdown, and COMET if requested."""
    split = result.split
    if config.evaluate.comet is not None:
        model = config.evaluate.comet
        score = comet_score(split.sources, result.hypotheses, split.references, model)
        result = replace(result, scores=result.scores | {"comet": score})
    analysis = analyse(split, result.hypotheses, config, training, result.model_scores)
    return replace(result, analysis=analysis)


def weights_sha256(translator: Translator) -> str:
    """An identifier of the weights in use; the same in validation and `eval`."""
    from mtrain.model.weights import digest, weights_of

    weights = weights_of(translator.model)
    return digest({name: tensor.cpu() for name, tensor in weights.items()})


def _open_translator(run: RunDir, checkpoint: str | None, device: str) -> Translator:
    from mtrain.decoding.translate import Translator

    return Translator.from_run(run.path, checkpoint, device)


def _check_same_text(baseline: RunDir, split: Split) -> None:
    name = split.name
    if name in baseline.splits() and baseline.read_split(name).sha256 != split.sha256:
        raise DataError(
            f"the test set `{name}` of {baseline.path} is another text",
            "compare the runs on the same files, with --source and --reference",
        )


class _Baseline:
    """Another run; its kept translations are used if they come from its present weights."""

    def __init__(self, path: Path, device: str) -> None:
        self.run = RunDir.open(path)
        self.config = read_run_config(self.run)
        self.translator = _open_translator(self.run, None, device)
        self.checkpoint_sha256 = weights_sha256(self.translator)

    def outputs(self, split: Split) -> list[str]:
        """The translations of a test set under this run's own settings."""
        if not split.sources:
            raise UsageError(
                f"{self.run.path} can be compared only if it has a source to translate",
                "add --source FILE, or give a translation of it: --against FILE",
            )
        name = split.name
        _check_same_text(self.run, split)
        kept = self.run.read_scores().get(name, {})
        known = (kept.get("checkpoint_sha256"), kept.get("test_set_sha256"))
        if known == (self.checkpoint_sha256, split.sha256):
            return [line.translation for line in self.run.read_translations(name)]
        console.message(f"{name}: translating with {self.run.path}")
        return _translate(self.translator, split, self.config).hypotheses


# -- warnings --------------------------------------------------------------------------------


def _with_contamination(result: Evaluation, run: RunDir, training: TrainingText) -> Evaluation:
    """Warn if the training data contains sentences of the test set, as far as that is known."""
    name, split = result.split.name, result.split
    manifest = run.read_manifest()
    if manifest["split_sha256"].get(name) == split.sha256:
        facts = leaks_in(manifest, name)
        if not facts:
            return result
        what = f"{facts['n_leaked']:,} training pairs give sentences of it away"
    elif training.was_seen is None:
        return result
    else:
        long = [line for line in split.references if count_words(line) >= MIN_WORDS_ALONE]
        n_leaked = sum(map(training.was_seen, long))
        facts = {"contaminated": n_leaked > 0, "n_leaked": n_leaked}
        what = f"{n_leaked:,} of its references are in the training data"
    if facts["contaminated"]:
        console.warn(f"{name} is contaminated: {what}, so these scores are too good")
    return replace(result, facts=result.facts | facts)


def leaks_in(manifest: dict[str, Any], split: str) -> dict[str, Any]:
    """`n_leaked`, the number of training pairs with sentences of a set, and whether they stayed.

    Empty for data prepared before they were counted.
    """
    n_leaked = manifest.get("n_leaked", {}).get(split)
    if n_leaked is None:
        return {}
    stayed = n_leaked > 0 and not manifest.get("decontaminated", True)
    return {"contaminated": stayed, "n_leaked": n_leaked}


def _give_notice(result: Evaluation, config: Config) -> None:
    """Warn about oddities in the texts of one test set that an expert would notice."""
    target, tokenize, _ = scoring_of(config, result.split.languages)
    for notice in notices(result.hypotheses, result.split.references, target, tokenize):
        console.warn(f"{result.split.name}: {notice}")


def _read_config(run: RunDir, comet: str | None) -> Config:
    """A run's config with the COMET model of the command line, or with none.

    Loading such a model downloads and unpickles it, and a run may come from a stranger.
    """
    config = read_run_config(run)
    named = config.evaluate.comet
    if comet is not None:
        check_comet_installed()
    elif named is not None:
        console.message(
            f"the config of this run names the COMET model {named}, which is only loaded where the "
            f"command line names it: add {console.command('--comet', named)}"
        )
    evaluate = config.evaluate.model_copy(update={"comet": comet})
    return config.model_copy(update={"evaluate": evaluate})
