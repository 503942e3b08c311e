"""Source text to translations to scores: for validation, `eval`, and any pair of files.

All go through `_translate` and `metrics.score_all`, so that a validation, `mtrain eval` and the
scoring of a saved hypothesis file give equal numbers to the last digit. Scores of the run's own
test sets are kept in its scores.json; their translations, with what `analysis` says of them, in
its translations/. What is shown of them is made in `summary`.

Torch is imported only where something is translated: scoring a given file does not need it.
"""

from __future__ import annotations

import hashlib
import json
import time
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtrain import console
from mtrain.config.entries import SacrebleuEntry
from mtrain.config.load import read_run_config
from mtrain.config.root import Config, in_languages
from mtrain.data.catalogues import other_references
from mtrain.data.cleaning import MIN_WORDS_ALONE, count_words
from mtrain.data.downloads import Lock
from mtrain.data.files import StoredFile
from mtrain.data.lines import read_lines as read_stored_lines
from mtrain.data.sources import read_entry
from mtrain.errors import DataError, StorageError, UsageError
from mtrain.evaluation.analysis import Analysis, TrainingText, analyse
from mtrain.evaluation.comet import check_installed, comet_score
from mtrain.evaluation.comparison import Comparison, compare
from mtrain.evaluation.metrics import METRICS, Score, notices, score_all
from mtrain.evaluation.samples import keep_attention
from mtrain.run import RunDir, Split
from mtrain.storage import atomic_write, write_json

if TYPE_CHECKING:
    from mtrain.decoding.engine import Search
    from mtrain.decoding.translate import Progress, Translator

FILE = "file"  # what a given pair of files is called among the results; then file2, file3, ...


@dataclass(frozen=True)
class Evaluation:
    """One test set, translated and scored."""

    split: Split  # without sources where only a hypothesis was given
    scores: dict[str, Score]  # bleu, chrf, ter; comet where asked for
    hypotheses: list[str]
    model_scores: list[float] | None = None  # log-probability / length^p of each hypothesis
    facts: dict[str, Any] = field(default_factory=dict)  # beside the scores in JSON
    analysis: Analysis | None = None  # None in validation, and without sources
    comparison: Comparison | None = None  # where one was asked for
    kept_as: str | None = None  # its key in the run's scores.json


@dataclass(frozen=True)
class Decoding:
    """What the command line changes of a run's own way of translating; None changes nothing."""

    checkpoint: str | None = None
    beam_size: int | None = None
    length_penalty: float | None = None
    device: str = "auto"
    tag: str | None = None

    def search(self, config: Config) -> Search:
        """The search of a run with these changes."""
        from mtrain.decoding.engine import Search

        changes = {"beam_size": self.beam_size, "length_penalty": self.length_penalty}
        return Search.of(config.decode, **changes)


@dataclass(frozen=True)
class GivenFiles:
    """Line-aligned files: a source to be translated, or a hypothesis (perhaps with its source)."""

    references: tuple[Path, ...]  # of the same sentences
    source: Path | None = None
    hypothesis: Path | None = None


def evaluate_split(translator: Translator, split: Split, config: Config) -> Evaluation:
    """Validation: BLEU and chrF under the run's own decoding, without intervals."""
    result = _translate(translator, split, Decoding().search(config))
    return _with_scores(result, config, intervals=False, metrics=("bleu", "chrf"))


def evaluate_run(
    path: str | Path,
    names: Sequence[str] = (),
    files: Sequence[GivenFiles] = (),
    decoding: Decoding | None = None,
    comet: str | None = None,
    sacrebleu: Sequence[str] = (),
) -> dict[str, Evaluation]:
    """Translate and score splits of a run, by default all its test sets, and any other text.

    `sacrebleu` names test sets that sacreBLEU knows, such as wmt14/full. The run keeps texts and
    scores of its own splits, and nothing of others.
    """
    decoding = decoding or Decoding()
    run = RunDir.open(path)
    config = _read_config(run, comet)
    if not (names or files or sacrebleu):
        names = [name for name in run.splits() if name != "valid"]
        if not names:
            raise UsageError(f"{run.path} has no test set", "score its valid set: --split valid")
    splits = [
        *(run.read_split(name) for name in names),
        *_read_files(files),
        *(_read_sacrebleu(name, config) for name in sacrebleu),
    ]
    if decoding.tag is not None:
        splits = [replace(split, tag=decoding.tag) for split in splits]
    translator = _open_translator(run, decoding)
    training = TrainingText.of(run)
    if names:
        run.read_scores()  # damaged? better now than when all is translated
    results = {}
    for split in splits:
        result = _evaluate_checkpoint(run, translator, split, config, decoding)
        result = _analysed(result, config, training)
        result = _with_contamination(result, run, training)
        _give_notice(result, config)
        results[split.name] = _kept(result, run, config) if split.name in names else result
    _keep_attention(run, translator, results.values())
    return results


def evaluate_hypotheses(
    path: str | Path, files: Sequence[GivenFiles], comet: str | None = None
) -> dict[str, Evaluation]:
    """Score given translations under a run's languages and settings, without its model."""
    run = RunDir.open(path)
    config = _read_config(run, comet)
    training = TrainingText.of(run)
    results = {}
    for given, split in zip(files, _read_files(files), strict=True):
        assert given.hypothesis is not None
        hypotheses = read_lines(given.hypothesis)
        _check_aligned(given.hypothesis, hypotheses, given.references[0], split.references)
        facts = {"sentences": len(hypotheses), "hypothesis": str(given.hypothesis)}
        result = _with_scores(Evaluation(split, {}, hypotheses, facts=facts), config)
        result = _analysed(result, config, training) if split.sources else result
        _give_notice(result, config)
        results[split.name] = result
    return results


def compare_with(
    path: str | Path, results: dict[str, Evaluation], against: Path | None, device: str = "auto"
) -> dict[str, Evaluation]:
    """Test each result of a run against what another run, or a file, makes of the same text."""
    if against is None:
        return results
    run = RunDir.open(path)
    config = read_run_config(run)
    outputs = _baseline_outputs(results, against, device)
    compared = {}
    for name, result in results.items():
        split = result.split
        _check_aligned(against, outputs[name], Path(f"the reference of {name}"), split.references)
        comparison = compare(
            result.hypotheses,
            outputs[name],
            split.all_references,
            in_languages(config, split.languages).target,
            config.evaluate.tokenize,
            config.evaluate.lowercase,
            baseline_name=str(against),
        )
        compared[name] = replace(result, comparison=comparison)
        if result.kept_as is not None:
            with run.scores_locked():
                _write_score(run, result.kept_as, {"against": comparison.to_json()})
    return compared


def _baseline_outputs(
    results: Mapping[str, Evaluation], against: Path, device: str
) -> dict[str, list[str]]:
    """Test set -> translations by another run, or as a file holds them."""
    if against.is_dir():
        baseline = _Baseline(against, device)
        return {name: baseline.outputs(result.split) for name, result in results.items()}
    if len(results) > 1:
        raise UsageError(
            f"{against} is one file, and {len(results)} test sets are scored: {', '.join(results)}",
            "choose the test set that it translates, with --split",
        )
    lines = read_lines(against)
    return dict.fromkeys(results, lines)


def read_lines(path: Path) -> list[str]:
    """The lines of a given file, plain or compressed, as stored."""
    if path.is_dir() or not path.exists():
        raise DataError(
            f"{path} is a directory" if path.exists() else f"there is no file {path}",
            "correct the path; relative paths start at the current directory",
        )
    # No hash: it would read the file twice, which `<(zcat FILE)` does not allow.
    return list(read_stored_lines(StoredFile(str(path), path, sha256="")))


# -- translating and scoring -----------------------------------------------------------------


def _evaluate_checkpoint(
    run: RunDir, translator: Translator, split: Split, config: Config, decoding: Decoding
) -> Evaluation:
    console.message(f"{split.name}: translating {len(split.sources):,} sentences")
    with console.bar(len(split.sources), split.name, "sentences") as bar:
        result = _translate(translator, split, decoding.search(config), bar.update)
    # A run that has not been validated yet translates with its last checkpoint.
    has_best = run.weights.exists() or bool(run.best_checkpoints())
    facts = {
        "checkpoint": decoding.checkpoint or (own_checkpoint(run) if has_best else "last"),
        "checkpoint_sha256": weights_sha256(translator),
        "test_set_sha256": split.sha256,
    }
    scored = _with_scores(result, config)
    return replace(scored, facts=scored.facts | facts)


def own_checkpoint(run: RunDir) -> str:
    """The name of the weights that a run translates with where none is named.

    It is what won at the end of training, such as `avg`; until then, and in an exported file, which
    does not know, `best`.
    """
    if not run.weights.exists():
        return "best"
    from mtrain.model.weights import read_facts

    return str(read_facts(run.weights).get("checkpoint", "best"))


def _translate(
    translator: Translator, split: Split, search: Search, progress: Progress | None = None
) -> Evaluation:
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
            "precision": translator.precision,
        },
        "seconds": round(elapsed_s, 2),
    }
    texts = [translation.text for translation in translations]
    scores = [translation.score for translation in translations]
    return Evaluation(split, {}, texts, scores, facts)


def _with_scores(
    result: Evaluation, config: Config, intervals: bool = True, metrics: Sequence[str] = METRICS
) -> Evaluation:
    references, config = result.split.all_references, in_languages(config, result.split.languages)
    scores = score_all(
        result.hypotheses,
        references,
        config.target,
        config.evaluate.tokenize,
        config.evaluate.lowercase,
        intervals,
        metrics,
    )
    # All text is compared in one form of Unicode; where the files are in another, that is said.
    lines = [*result.hypotheses, *chain.from_iterable(references)]
    n_changed = sum(not unicodedata.is_normalized("NFC", line) for line in lines)
    facts = {"normal_form": "NFC"} | ({"n_normalized": n_changed} if n_changed else {})
    return replace(result, scores=scores, facts=result.facts | facts)


def _analysed(result: Evaluation, config: Config, training: TrainingText) -> Evaluation:
    """With what needs the sources: diagnostics, breakdown, and COMET where it is asked for."""
    split, config = result.split, in_languages(config, result.split.languages)
    if config.evaluate.comet is not None:
        model = config.evaluate.comet
        score = comet_score(split.sources, result.hypotheses, split.references, model)
        result = replace(result, scores=result.scores | {"comet": score})
    analysis = analyse(
        split.sources,
        result.hypotheses,
        split.all_references,
        config,
        training,
        result.model_scores,
    )
    return replace(result, analysis=analysis)


def weights_sha256(translator: Translator) -> str:
    """What tells the weights in use from all others; the same in validation and `eval`."""
    from mtrain.model.weights import digest, weights_of

    weights = weights_of(translator.model)
    return digest({name: tensor.cpu() for name, tensor in weights.items()})


def _open_translator(run: RunDir, decoding: Decoding) -> Translator:
    from mtrain.decoding.translate import Translator

    return Translator.from_run(run.path, checkpoint=decoding.checkpoint, device=decoding.device)


class _Baseline:
    """Another run, whose kept translations are taken where they are those of its weights now."""

    def __init__(self, path: Path, device: str) -> None:
        self.run = RunDir.open(path)
        self.config = read_run_config(self.run)
        self.translator = _open_translator(self.run, Decoding(device=device))
        self.checkpoint_sha256 = weights_sha256(self.translator)

    def outputs(self, split: Split) -> list[str]:
        """The translations of a test set under this run's own settings."""
        if not split.sources:
            raise UsageError(
                f"{self.run.path} can be compared only where it has a source to translate",
                "add --source FILE, or give a translation of it: --against FILE",
            )
        name = split.name
        if name in self.run.splits() and self.run.read_split(name).sha256 != split.sha256:
            raise DataError(
                f"the test set `{name}` of {self.run.path} is another text",
                "compare the runs on the same files, with --source and --reference",
            )
        kept = self.run.read_scores().get(name, {})
        known = (kept.get("checkpoint_sha256"), kept.get("test_set_sha256"))
        if known == (self.checkpoint_sha256, split.sha256):
            return [line.translation for line in self.run.read_translations(name)]
        console.message(f"{name}: translating with {self.run.path}")
        return _translate(self.translator, split, Decoding().search(self.config)).hypotheses


# -- what is said of it ----------------------------------------------------------------------


def _with_contamination(result: Evaluation, run: RunDir, training: TrainingText) -> Evaluation:
    """Say so where the training data gives the test set away, as far as that can be known."""
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
        what = f"{n_leaked:,} of its references stand in the training data"
    if facts["contaminated"]:
        console.warn(f"{name} is contaminated: {what}, so these scores are too good")
    return replace(result, facts=result.facts | facts)


def leaks_in(manifest: dict[str, Any], split: str) -> dict[str, Any]:
    """`n_leaked`, training pairs that give sentences of a set away, and whether they stayed.

    Empty for data prepared before they were counted.
    """
    n_leaked = manifest.get("n_leaked", {}).get(split)
    if n_leaked is None:
        return {}
    stayed = n_leaked > 0 and not manifest.get("decontaminated", True)
    return {"contaminated": stayed, "n_leaked": n_leaked}


def _give_notice(result: Evaluation, config: Config) -> None:
    """Warn of what an expert would see in the texts of one test set."""
    references, tokenize = result.split.references, config.evaluate.tokenize
    target = in_languages(config, result.split.languages).target
    for notice in notices(result.hypotheses, references, target, tokenize):
        console.warn(f"{result.split.name}: {notice}")


def _read_config(run: RunDir, comet: str | None) -> Config:
    """A run's config with the COMET model of the command line, or with none.

    Loading such a model downloads and unpickles it, which a run from a stranger must not decide.
    """
    config = read_run_config(run)
    named = config.evaluate.comet
    if comet is not None:
        check_installed()
    elif named is not None:
        console.message(
            f"the config of this run names the COMET model {named}, which is only loaded where the "
            f"command line names it: add {console.command('--comet', named)}"
        )
    evaluate = config.evaluate.model_copy(update={"comet": comet})
    return config.model_copy(update={"evaluate": evaluate})


# -- files -----------------------------------------------------------------------------------


def _read_files(files: Sequence[GivenFiles]) -> Iterator[Split]:
    for number, given in enumerate(files, start=1):
        name = FILE if number == 1 else f"{FILE}{number}"
        first, *others = given.references
        references = read_lines(first)
        more = tuple(map(read_lines, others))
        for path, lines in zip(others, more, strict=True):
            _check_aligned(path, lines, first, references)
        sources = []
        if given.source is not None:
            sources = read_lines(given.source)
            _check_aligned(given.source, sources, first, references)
        digest = _digest(sources, references, *more)
        yield Split(name, sources, references, digest, more_references=more)


def _read_sacrebleu(name: str, config: Config) -> Split:
    """A test set by its name in sacreBLEU, in a run's languages; fetched if it is not there."""
    entry = SacrebleuEntry(sacrebleu=name, languages=(config.source, config.target))
    where, lock = f"--sacrebleu {name}", Lock(Path("sacrebleu.lock"), {})
    pairs = list(read_entry(entry, where, lock))
    sources, references = [pair.src for pair in pairs], [pair.tgt for pair in pairs]
    others = other_references(entry, where, lock)
    more = tuple([line.rstrip("\n") for line in read_stored_lines(file)] for file in others)
    digest = _digest(sources, references, *more)
    return Split(name, sources, references, digest, more_references=more)


def _check_aligned(
    first: Path, first_lines: Sequence[str], second: Path, second_lines: Sequence[str]
) -> None:
    """Two files of which line n of the one belongs to line n of the other."""
    if len(first_lines) != len(second_lines):
        raise DataError(
            f"{first} has {len(first_lines):,} lines, but {second} has {len(second_lines):,}",
            "give two files of which line n of the one belongs to line n of the other",
        )
    if not first_lines:
        raise DataError(f"{first} and {second} are empty", "give files with at least one sentence")


def _kept(result: Evaluation, run: RunDir, config: Config) -> Evaluation:
    """Keep the translations, the scores and the analysis of a split in the run.

    Scores stand under the name of the split; those made with another checkpoint or decoding than
    the run's own under the name and what differs, as `flickr[beam_size=1]`. The same settings
    replace what they scored before. A run that cannot be written keeps nothing, with a warning.
    """
    try:
        with run.scores_locked():
            return replace(result, kept_as=_keep(result, run, config))
    except StorageError as error:
        console.warn(f"the scores of {result.split.name} are not kept in the run: {error.message}")
        return result


def _keep(result: Evaluation, run: RunDir, config: Config) -> str:
    """The key in scores.json under which it is kept."""
    name, checkpoint = result.split.name, result.facts["checkpoint"]
    own = {"beam_size": config.decode.beam_size, "length_penalty": config.decode.length_penalty}
    used = result.facts["decode"]
    changed = [f"{key}={used[key]}" for key in own if used[key] != own[key]]
    is_own = checkpoint == own_checkpoint(run)
    settings = ([] if is_own else [f"checkpoint={checkpoint}"]) + changed
    key = f"{name}[{','.join(settings)}]" if settings else name
    stem = ".".join([name, checkpoint, *changed])
    _warn_of_another_text(run, key, result)
    _keep_translations(run, stem, result)
    _write_score(run, key, scores_and_facts(result) | {"translations": stem}, is_new=True)
    return key


def _keep_attention(run: RunDir, translator: Translator, results: Iterable[Evaluation]) -> None:
    """Of a few sentences of the first test set that was scored in the run's own way."""
    own = [result for result in results if result.kept_as == result.split.name]
    for result in own[:1]:
        assert result.analysis is not None
        chrf = result.analysis.breakdown.sentence_chrf
        try:
            keep_attention(run, translator, result.split.sources, result.hypotheses, chrf)
        except StorageError as error:
            console.warn(f"the attention of {result.split.name} is not kept: {error.message}")


def _write_score(run: RunDir, key: str, entry: dict[str, Any], is_new: bool = False) -> None:
    """Put an entry into scores.json, or add to the one that is there."""
    scores = run.read_scores()
    scores[key] = entry if is_new else scores[key] | entry
    write_json(run.scores, scores)


def _keep_translations(run: RunDir, stem: str, result: Evaluation) -> None:
    """As text, as JSON lines beside their sources, and what was found in them."""
    assert result.model_scores is not None
    assert result.analysis is not None
    split = result.split
    columns = (split.sources, split.references, result.hypotheses, result.model_scores)
    keys = ("source", "reference", "translation", "score")
    rows = (dict(zip(keys, values, strict=True)) for values in zip(*columns, strict=True))
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    for suffix, texts in (("txt", result.hypotheses), ("jsonl", lines)):
        atomic_write(run.translations / f"{stem}.{suffix}", "".join(f"{t}\n" for t in texts))
    write_json(run.translations / f"{stem}.analysis.json", result.analysis.to_json())


def _warn_of_another_text(run: RunDir, key: str, result: Evaluation) -> None:
    sha256 = result.split.sha256
    before = run.read_scores().get(key, {}).get("test_set_sha256", sha256)
    if before != sha256:
        console.warn(
            f"the text of `{key}` was changed since it was last scored (sha256 {before[:12]}, now "
            f"{sha256[:12]}): its old scores in {run.scores} are replaced, and cannot be compared "
            "with the new ones"
        )


def scores_and_facts(result: Evaluation) -> dict[str, Any]:
    """Metric -> score, low, high, signature; facts, and a comparison, stand beside the metrics."""
    scores = {name: asdict(score) for name, score in result.scores.items()}
    facts = result.facts
    if result.comparison is not None:
        facts = facts | {"against": result.comparison.to_json()}
    return scores | facts


def _digest(*files: list[str]) -> str:
    """The hash of given files, as `prepare` makes it of the two sides of its splits."""
    sides = ("".join(f"{line}\n" for line in side).encode() for side in files)
    return hashlib.sha256(b"\0".join(sides)).hexdigest()
