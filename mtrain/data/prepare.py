"""Corpora in; tokenizer, token store, test sets and a manifest out. Skipped if nothing changed.

    data/<name>/<hash>/            hash of everything that determines the content: see data.identity
      manifest.json                counts, hashes of all files, pairs dropped by each filter
      report.json                  the same in detail, with examples: see data.data_report
      word_counts.json             how often each word of valid and test occurs in training
      tokenizer*.model             see data.tokenizer
      train.*                      see data.store
      valid.source, valid.target   raw text, one sentence per line; the same for each test set
    data/<name>/<hash>.partial/    finished steps of an interrupted run, from which the next resumes

One process at a time prepares a directory.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from mtrain import console
from mtrain.config.recipe import choose_vocabulary, to_json, with_choices
from mtrain.config.root import Config
from mtrain.data.cleaning import TextPair
from mtrain.data.corpus import Cleaner, Corpus
from mtrain.data.data_report import UNREADABLE, DataReport, find_repeated, table_of_entries
from mtrain.data.encoding import Encoder, encode_corpus
from mtrain.data.filters import PairFilter
from mtrain.data.identity import (
    FORMAT,
    Inputs,
    describe_sources,
    identify,
    open_lock,
    spared_entries,
    split_languages,
    split_tags,
    train_names,
)
from mtrain.data.lock import Lock
from mtrain.data.sources import languages_of
from mtrain.data.statistics import Norms
from mtrain.data.store import SIDES, TokenStore, read_target_hashes
from mtrain.data.suspicions import check_sides, suspicions_of_report, suspicions_of_sample
from mtrain.data.tokenizer import (
    Tokenizer,
    load_tokenizers,
    model_files,
    n_characters,
    train_tokenizers,
)
from mtrain.errors import DataError, StorageError
from mtrain.run import RunDir
from mtrain.run_shapes import CHOICES, MANIFEST
from mtrain.storage import (
    atomic_write,
    lock_file,
    new_directory,
    parse_json,
    read_bytes,
    remove_partials,
    sha256_of,
    write_json,
)

_MANIFEST, _REPORT, _WORD_COUNTS = "manifest.json", "report.json", "word_counts.json"
_SIZES, _SIZES_SHAPE = "sizes.json", TypeAdapter(dict[str, int])
_CHOICES = "choices.json"  # of the step of the tokenizer
_STEPS = _TEXT, _TOKENIZER = "cleaned-text", "tokenizer"  # directories of finished steps


@dataclass(frozen=True)
class Prepared:
    """A complete directory of prepared data, and its manifest."""

    path: Path
    manifest: dict[str, Any]


def prepare(
    config: Config, config_path: Path, force: bool = False, n_processes: int | None = None
) -> Prepared:
    """Prepare the data of a config, unless it exists already (and `force` is not set).

    n_processes  by default one per core; does not affect the result
    """
    directory = Path("data", config.name)
    lock = open_lock(config, config_path)
    path = directory / identify(config, lock, download=True)
    if not force and (found := _open(path)) is not None:
        console.message(f"{path} is up to date")
        return found
    waiting = f"another process is preparing {path}: waiting for it"
    with lock_file(path.with_name(f".{path.name}.lock"), waiting):
        found = _open(path)
        if found is not None and not force:
            return found  # prepared by another process meanwhile
        if found is None and path.exists():
            console.warn(f"{path} is damaged: preparing it again")
        _remove_leftovers(directory, path.name)
        partial = path.with_name(f"{path.name}.partial")
        if force:
            shutil.rmtree(partial, ignore_errors=True)
        try:
            manifest, report = _prepare(config, lock, path, partial, n_processes)
        except (KeyboardInterrupt, StorageError):
            if finished := _finished_steps(partial):
                console.message(f"{partial} keeps what is finished: {', '.join(finished)}")
            else:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        shutil.rmtree(partial)
    _print_summary(path, manifest, report)
    return Prepared(path, manifest)


def find_prepared(config: Config, config_path: Path) -> Prepared | None:
    """The data of a config if it was prepared before; writes and downloads nothing."""
    lock = open_lock(config, config_path)
    return _open(Path("data", config.name, identify(config, lock, download=False)))


def verify(prepared: Prepared) -> None:
    """Raise a DataError if a file of prepared data has changed since it was written."""
    for name, sha256 in prepared.manifest["files"].items():
        path = prepared.path / Path(name).name
        if sha256_of(path) != sha256:
            raise DataError(
                f"the prepared data is damaged: {path} was changed since it was written",
                "make it again: mtrain prepare CONFIG --force",
            )


def copy_into_run(prepared: Prepared, run: RunDir) -> None:
    """Copy everything a run needs to translate and evaluate without the prepared data."""
    models = [path.name for path in model_files(prepared.path)]
    texts = [f"{split}.{side}" for split in prepared.manifest["splits"] for side in SIDES]
    for name in models:
        atomic_write(run.path / name, (prepared.path / name).read_bytes())
    for name in (*texts, _REPORT, _WORD_COUNTS, _MANIFEST):
        atomic_write(run.data / name, (prepared.path / name).read_bytes())


# -- directories -----------------------------------------------------------------------------


def _open(path: Path) -> Prepared | None:
    """Prepared data if all its files exist and have the sizes in its manifest."""
    try:
        manifest = parse_json(read_bytes(path / _MANIFEST), MANIFEST)
        sizes = {name: (path / name).stat().st_size for name in manifest["sizes"]}
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError):
        return None
    except OSError as error:
        raise DataError(
            f"cannot read the prepared data {path}: {error.strerror}", "check its permissions"
        ) from error
    return Prepared(path, manifest) if sizes == manifest["sizes"] else None


def _remove_leftovers(directory: Path, name: str) -> None:
    """Remove the leftovers of killed processes, except finished steps of the data `name`.

    Its lock is held; leftovers of other data stay if another process is working on it.
    """
    remove_partials(directory, f"{name}.*")
    remove_partials(directory / f"{name}.partial")
    folders = [path for path in directory.iterdir() if path.is_dir() and "." in path.name]
    for other in {path.name.split(".")[0] for path in folders} - {name}:
        with lock_file(directory / f".{other}.lock") as is_free:
            if is_free:
                remove_partials(directory, f"{other}.*")
                shutil.rmtree(directory / f"{other}.partial", ignore_errors=True)


def _do_step(partial: Path, name: str, work: Callable[[Path], object]) -> Path:
    """Let `work` fill the directory of a step, unless it is finished; returns the directory."""
    directory = partial / name
    if name not in _finished_steps(partial):
        with new_directory(directory) as unfinished:
            work(unfinished)
            write_json(unfinished / _SIZES, _sizes(unfinished))
    return directory


def _finished_steps(partial: Path) -> list[str]:
    """The steps whose files, and those of earlier steps, are complete."""
    finished = []
    with suppress(OSError, ValueError):
        for name in _STEPS:
            sizes = parse_json(read_bytes(partial / name / _SIZES), _SIZES_SHAPE)
            if not sizes.items() <= _sizes(partial / name).items():
                break
            finished.append(name)
    return finished


def _sizes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(directory.iterdir())}


# -- the steps -------------------------------------------------------------------------------


def _prepare(
    config: Config, lock: Lock, path: Path, partial: Path, n_processes: int | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Do the steps that are not finished yet; returns the manifest and the report."""
    if finished := _finished_steps(partial):
        console.message(f"resuming in {partial} after: {', '.join(finished)}")
    inputs = Inputs(config, lock)
    splits = inputs.splits()
    text = _do_step(
        partial,
        _TEXT,
        lambda directory: _clean(config, lock, inputs, splits, directory, n_processes),
    )
    corpus = Corpus.load(text)
    if config.data.valid is None:
        splits["valid"] = corpus.valid
    splits = {"valid": splits.pop("valid"), **splits}
    models = _do_step(
        partial, _TOKENIZER, lambda directory: _learn_pieces(config, inputs, corpus, directory)
    )
    lock.save(Path("data", config.name))
    with new_directory(path) as directory:
        for model in model_files(models):
            shutil.copy(model, directory)
        tokenizers = _encode(config, corpus, splits, directory, n_processes)
        report = _write_report(config, corpus.report, splits, directory, tokenizers[1])
        manifest = {
            "format": FORMAT,
            "path": str(path),
            "source": config.source,
            "target": config.target,
            "splits": list(splits),
            "split_sha256": {
                name: _write_split(directory, name, pairs) for name, pairs in splits.items()
            },
            "tags": split_tags(config),
            "languages": split_languages(config),
            "n_train_pairs": corpus.report.n_kept,
            "n_source_tokens": report["sides"]["source"]["n_tokens"],
            "n_target_tokens": report["sides"]["target"]["n_tokens"],
            "choices": parse_json(read_bytes(models / _CHOICES), CHOICES),
            "vocab_sizes": [tokenizer.vocab_size for tokenizer in tokenizers],
            "length_ratio": corpus.report.length_ratio(),
            "copied_share": corpus.report.copied_share,
            "sides": _summarize_sides(report),
            "decontaminated": config.data.decontaminate,
            "n_leaked": {name: corpus.report.n_leaked[name] for name in splits},
            "table": _table(corpus.report, splits),
            "sources": describe_sources(config, lock),
            "files": {name: sha256_of(directory / name) for name in _sizes(directory)},
            "sizes": _sizes(directory),
        }
        write_json(directory / _MANIFEST, manifest)
    return manifest, report


def _clean(
    config: Config,
    lock: Lock,
    inputs: Inputs,
    splits: Mapping[str, Sequence[TextPair]],
    directory: Path,
    n_processes: int | None,
) -> None:
    names, spared = train_names(config), spared_entries(config)
    but_for = ", ".join(names[number] for number in spared)
    console.message("cleaning the training text" + (but_for and f", except that of {but_for}"))
    languages = [languages_of(entry, config) for entry in config.data.train]
    samples = inputs.samples()
    for pair, (key, sample) in zip(languages, samples.items(), strict=True):
        check_sides(sample, pair, key)
    norms = _norms(list(samples.values()), languages, spared)
    filters = {pair: PairFilter(config.data.clean, *pair, norms[pair]) for pair in norms}
    cleaner = Cleaner(config.data, [filters[pair] for pair in languages], splits, names)
    n_pairs = inputs.n_training_pairs()
    corpus = Corpus.clean(directory, inputs.training_chunks(), cleaner, n_pairs, n_processes)
    report = corpus.report
    for name, pair, sample in zip(names, languages, samples.values(), strict=True):
        report.suspicions += suspicions_of_sample(sample, pair, norms[pair], name)
    for number, n_unreadable in enumerate(inputs.n_unreadable):
        report.entries[number].n_read += n_unreadable
        if n_unreadable:
            report.add_dropped(number, UNREADABLE, n_pairs=n_unreadable)
    corpus.select(config.data)
    corpus.save()
    lock.save(Path("data", config.name))  # with the numbers of lines that were read


def _norms(
    samples: Sequence[Sequence[TextPair]], languages: Sequence[tuple[str, str]], spared: list[int]
) -> dict[tuple[str, str], Norms]:
    """The corpus statistics of each language pair, from filtered entries if there are any."""
    norms = {}
    for pair in dict.fromkeys(languages):
        numbers = [number for number, found in enumerate(languages) if found == pair]
        judged = [number for number in numbers if number not in spared]
        norms[pair] = Norms.learn(
            chain.from_iterable(samples[number] for number in judged or numbers)
        )
    return norms


def _learn_pieces(config: Config, inputs: Inputs, corpus: Corpus, directory: Path) -> None:
    """Train SentencePiece; the directory also gets what was chosen for it."""

    def text_pairs() -> Iterator[TextPair]:
        return (pair for pairs in corpus.kept() for pair in zip(pairs.src, pairs.tgt, strict=True))

    n_pairs = corpus.report.n_kept
    chosen = choose_vocabulary(config, n_pairs, n_characters(text_pairs()))
    write_json(directory / _CHOICES, to_json(chosen))
    config = with_choices(config, chosen)
    train_tokenizers(
        config.tokenizer,
        text_pairs,
        n_pairs,
        directory,
        config.data.seed,
        sorted({entry.tag for entry in config.data.train if entry.tag is not None}),
        inputs.mono_texts,
    )


def _encode(
    config: Config,
    corpus: Corpus,
    splits: Mapping[str, Sequence[TextPair]],
    directory: Path,
    n_processes: int | None,
) -> tuple[Tokenizer, Tokenizer]:
    """Store the kept pairs as ids; returns the tokenizers, whose models are in the directory."""
    tokenizers = load_tokenizers(directory)
    console.message(f"encoding {corpus.report.n_kept:,} pairs")
    encoder = Encoder(
        tokenizers,
        config.data.max_length,
        train_names(config),
        [entry.tag for entry in config.data.train],
        splits,
        keeps_text=config.tokenizer.sampling > 0,
    )
    encode_corpus(corpus, encoder, directory, n_processes)
    return tokenizers


# -- the files -------------------------------------------------------------------------------


def _write_split(directory: Path, name: str, pairs: list[TextPair]) -> str:
    """Write a valid or test set as text; returns the sha256 of both sides, as a run checks it."""
    contents = []
    for side, texts in zip(SIDES, zip(*pairs, strict=True), strict=True):
        contents.append("".join(f"{text}\n" for text in texts).encode())
        atomic_write(directory / f"{name}.{side}", contents[-1])
    return hashlib.sha256(b"\0".join(contents)).hexdigest()


def _write_report(
    config: Config,
    report: DataReport,
    splits: Mapping[str, Sequence[TextPair]],
    directory: Path,
    tokenizer: Tokenizer,
) -> dict[str, Any]:
    """Complete the report, print its suspicions and write it; returns its JSON."""
    hashes, store = read_target_hashes(directory), TokenStore.open(directory)
    assert hashes is not None  # just written
    repeated = find_repeated(hashes)
    texts = tokenizer.decode([store.tgt(index).tolist() for index, _ in repeated])
    report.repeated_targets = [(text, n) for text, (_, n) in zip(texts, repeated, strict=True)]
    report.suspicions += suspicions_of_report(report, splits)
    for suspicion in report.suspicions:
        console.warn(suspicion)
    tree, spared = report.to_json(), spared_entries(config)
    for number, entry in enumerate(tree["entries"]):
        entry["is_spared"] = number in spared
    write_json(directory / _REPORT, tree)
    words = [dict(sorted(side.evaluation_words.items())) for side in report.sides]
    write_json(directory / _WORD_COUNTS, dict(zip(SIDES, words, strict=True)))
    return tree


def _summarize_sides(report: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The short statistics of each side, for the manifest."""
    kept = ("n_tokens", "n_words", "tokens_per_word", "byte_share")
    return {side: {key: report["sides"][side][key] for key in kept} for side in SIDES}


def _table(report: DataReport, splits: Mapping[str, Sequence[TextPair]]) -> list[dict[str, Any]]:
    """Rows of the pairs that were read, dropped for each reason, and kept."""
    rows = [{"split": "train", "reason": key, "pairs": n} for key, n in report.rows().items()]
    return rows + [
        {"split": name, "reason": "kept", "pairs": len(pairs)} for name, pairs in splits.items()
    ]


def _print_summary(path: Path, manifest: dict[str, Any], report: dict[str, Any]) -> None:
    console.table(*table_of_entries(report))
    n_pairs = {row["split"]: row["pairs"] for row in manifest["table"] if row["reason"] == "kept"}
    n_near = {found["split"]: found["n_pairs"] for found in report["near_matches"]}
    console.table(
        ("evaluation text", "pairs", "also in training", "nearly"),
        [
            (name, n_pairs[name], manifest["n_leaked"][name], n_near.get(name, 0))
            for name in manifest["splits"]
        ],
    )
    console.message(
        f"{path}: {manifest['n_train_pairs']:,} training pairs, "
        f"{manifest['n_source_tokens']:,} source and {manifest['n_target_tokens']:,} target tokens"
    )
