"""Corpora in; tokenizer, token store, test sets and a manifest out; nothing when nothing changed.

    data/<name>/<hash>/            hash of what determines the content: see data.identity
      manifest.json                counts, hashes of all files, what was dropped and why
      report.json                  the same at length, with examples: see data.data_report
      word_counts.json             how often each word of valid and test occurs in training
      tokenizer*.model             see data.tokenizer
      train.*                      see data.store
      valid.source, valid.target   raw text, one sentence a line; the same for each test set

The work is done in steps (`_Steps`) in `<hash>.partial`, which is renamed when all is there. What
a killed or interrupted process leaves is gone on from after the last whole step; one process at a
time works there.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from mtrain import console
from mtrain.config.root import Config
from mtrain.data.corpus import UNREADABLE, Cleaner, Corpus, TextPair
from mtrain.data.data_report import find_repeated, table_of_entries
from mtrain.data.encoding import Encoder, PairStatistics, encode_corpus
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
    train_tags,
)
from mtrain.data.lock import Lock
from mtrain.data.sources import languages_of
from mtrain.data.statistics import Norms
from mtrain.data.store import SIDES, StoreCounts, TokenStore, read_target_hashes
from mtrain.data.suspicions import check_sides, suspicions
from mtrain.data.tokenizer import Tokenizer, load_tokenizers, model_files, train_tokenizers
from mtrain.errors import DataError, StorageError
from mtrain.run import RunDir
from mtrain.run_shapes import DATA_REPORT, MANIFEST
from mtrain.storage import (
    atomic_write,
    lock_file,
    parse_json,
    read_bytes,
    read_json,
    sha256_of,
    storage_errors,
    write_json,
)

_STEPS = TypeAdapter(dict[str, dict[str, int]])  # step -> file -> bytes
_MANIFEST, _REPORT, _WORD_COUNTS = "manifest.json", "report.json", "word_counts.json"
_COPIED_SHARE = 0.1  # of training pairs whose target is the source: worth a warning
_TOKENIZED_SHARE = 0.5  # of references that end in " .": worth a warning


@dataclass(frozen=True)
class Prepared:
    """A complete directory of prepared data, and its manifest."""

    path: Path
    manifest: dict[str, Any]


def prepare(
    config: Config, config_path: Path, force: bool = False, n_processes: int | None = None
) -> Prepared:
    """Make the data that a config asks for, unless it is there already (and `force` is not set).

    By default as many processes as cores; their number changes no byte of the result.
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
            return found  # by another process, meanwhile
        if found is None and path.exists():
            console.warn(f"{path} is damaged and is prepared again")
        partial = path.with_name(f"{path.name}.partial")
        _remove_leftovers(directory, partial)
        steps = _Steps(partial, fresh=force)
        try:
            manifest = _Build(config, lock, path, steps, n_processes).run()
            _install(partial, path)
        except (KeyboardInterrupt, StorageError):
            steps.keep_whole_ones()
            raise
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    _report(path, manifest)
    return Prepared(path, manifest)


def find_prepared(config: Config, config_path: Path) -> Prepared | None:
    """The data of a config if it was prepared before; writes and downloads nothing."""
    lock = open_lock(config, config_path)
    return _open(Path("data", config.name, identify(config, lock, download=False)))


def verify(prepared: Prepared) -> None:
    """A DataError where a file of prepared data is not the one that was written, to the bit."""
    for name, sha256 in prepared.manifest["files"].items():
        path = prepared.path / Path(name).name
        if sha256_of(path) != sha256:
            raise DataError(
                f"the prepared data is damaged: {path} was changed since it was written",
                "make it again: mtrain prepare CONFIG --force",
            )


def copy_into_run(prepared: Prepared, run: RunDir) -> None:
    """Give a run what it needs to translate and evaluate without the prepared data."""
    models = [path.name for path in model_files(prepared.path)]
    texts = [f"{split}.{side}" for split in prepared.manifest["splits"] for side in SIDES]
    for name in models:
        atomic_write(run.path / name, (prepared.path / name).read_bytes())
    for name in (*texts, _REPORT, _WORD_COUNTS, _MANIFEST):
        atomic_write(run.data / name, (prepared.path / name).read_bytes())


# -- the directory ---------------------------------------------------------------------------


def _open(path: Path) -> Prepared | None:
    """A prepared directory whose files are all there, in the sizes they were written in."""
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


def _install(partial: Path, path: Path) -> None:
    """Rename a complete directory into its place; what stood there goes."""
    with storage_errors(path):
        if path.exists():
            old = partial.with_name(f"{path.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            os.rename(path, old)
            shutil.rmtree(old, ignore_errors=True)
        os.rename(partial, path)


def _remove_leftovers(directory: Path, partial: Path) -> None:
    """Remove what killed processes left of other data, unless one is at work there."""
    for path in [*directory.glob("*.partial"), *directory.glob("*.old")]:
        lock = path.with_name(f".{path.stem}.lock")
        if path != partial and not (lock.exists() and _is_locked(lock)):
            shutil.rmtree(path, ignore_errors=True)
            lock.unlink(missing_ok=True)


def _is_locked(lock: Path) -> bool:
    with open(lock) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


class _Steps:
    """A directory under construction, made in steps; those that are whole are not done again.

    A step is noted with the sizes of the files there are after it. What the steps work with lies in
    a folder that goes at the end.
    """

    def __init__(self, directory: Path, fresh: bool) -> None:
        self.directory = directory
        self.work = directory / "work"
        self._notes = self.work / "steps.json"
        if fresh:
            shutil.rmtree(directory, ignore_errors=True)
        self._done = self._whole_ones()
        with storage_errors(directory):
            self.work.mkdir(parents=True, exist_ok=True)
        self._remove_unfinished()
        if self._done:
            console.message(f"going on in {directory} after: {', '.join(self._done)}")

    def do(self, name: str, work: Callable[[], None]) -> None:
        """Do a step, unless it was done before."""
        if name in self._done:
            return
        work()
        self._done[name] = self._sizes()
        write_json(self._notes, self._done)

    def finish(self) -> None:
        """Remove what only the steps worked with."""
        shutil.rmtree(self.work)

    def keep_whole_ones(self) -> None:
        """After a failure: leave nothing half-written, and nothing at all if no step is whole."""
        if self._done and self.work.exists():
            self._remove_unfinished()
            console.message(f"{self.directory} keeps what is whole: {', '.join(self._done)}")
        else:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _whole_ones(self) -> dict[str, dict[str, int]]:
        """The steps whose files are there in their sizes, and so are those of the steps before."""
        try:
            noted = parse_json(read_bytes(self._notes), _STEPS)
        except (OSError, ValueError):
            return {}
        sizes = self._sizes()
        done = {}
        for name, files in noted.items():
            if not files.items() <= sizes.items():
                break
            done[name] = files
        return done

    def _sizes(self) -> dict[str, int]:
        files = [path for path in self.directory.rglob("*") if path.is_file()]
        names = {str(path.relative_to(self.directory)): path for path in files}
        return {name: p.stat().st_size for name, p in names.items() if p != self._notes}

    def _remove_unfinished(self) -> None:
        """Remove the files of a step that was not finished."""
        known = {name for files in self._done.values() for name in files}
        for name in self._sizes():
            if name not in known:
                (self.directory / name).unlink()


# -- the work --------------------------------------------------------------------------------


class _Build:
    """The steps from the text of the entries to a directory of prepared data."""

    def __init__(
        self, config: Config, lock: Lock, path: Path, steps: _Steps, n_processes: int | None
    ) -> None:
        self.config, self.lock, self.path, self.steps = config, lock, path, steps
        self.n_processes = n_processes
        self.inputs = Inputs(config, lock)
        self.names = train_names(config)

    def run(self) -> dict[str, Any]:
        """Do what is not done yet; returns the manifest, which is written last."""
        config, directory = self.config, self.steps.directory
        splits = self.inputs.splits()
        self.steps.do("cleaning the text", lambda: self._clean(splits))
        corpus = Corpus.load(self.steps.work)
        if config.data.valid is None:
            splits["valid"] = corpus.valid
        splits = {"valid": splits.pop("valid"), **splits}
        self.steps.do("learning the pieces", lambda: self._learn_pieces(corpus))
        tokenizers = load_tokenizers(directory)
        vocab_sizes = (tokenizers[0].vocab_size, tokenizers[1].vocab_size)
        console.message(f"encoding {corpus.counts.n_kept:,} pairs")
        encoder = Encoder(
            tokenizers,
            config.data.max_length,
            self.names,
            train_tags(config),
            splits,
            keeps_text=config.tokenizer.sampling > 0,
        )
        stored, statistics = encode_corpus(
            corpus, encoder, directory, vocab_sizes, self.n_processes
        )
        split_sha256 = {
            name: _write_split(directory, name, pairs) for name, pairs in splits.items()
        }
        corpus.report.repeated_targets = _repeated_targets(directory, tokenizers[1])
        report = corpus.report.to_json()
        spared = spared_entries(config)
        for number, entry in enumerate(report["entries"]):
            entry["is_spared"] = number in spared
        report["suspicions"] += _suspicions_of_kept(splits, statistics)
        for suspicion in report["suspicions"]:
            console.warn(suspicion)
        write_json(directory / _REPORT, report)
        write_json(directory / _WORD_COUNTS, _sorted_counts(statistics))
        self.lock.save(Path("data", config.name))
        self.steps.finish()
        manifest = {
            "format": FORMAT,
            "path": str(self.path),
            "source": config.source,
            "target": config.target,
            "splits": list(splits),
            "split_sha256": split_sha256,
            "tags": split_tags(config),
            "languages": split_languages(config),
            "n_train_pairs": stored.n_pairs,
            "n_source_tokens": stored.n_source_tokens,
            "n_target_tokens": stored.n_target_tokens,
            "vocab_sizes": list(vocab_sizes),
            "length_ratio": statistics.length_ratio(),
            "copied_share": statistics.copied_share,
            "sides": _summaries(report),
            "decontaminated": config.data.decontaminate,
            "n_leaked": {name: corpus.counts.n_leaked.get(name, 0) for name in splits},
            "table": _table(corpus, splits),
            "sources": describe_sources(config, self.lock),
            **_describe_files(directory, stored),
        }
        write_json(directory / _MANIFEST, manifest)
        return manifest

    def _clean(self, splits: Mapping[str, Sequence[TextPair]]) -> None:
        config, inputs = self.config, self.inputs
        spared = spared_entries(config)
        but_for = ", ".join(self.names[number] for number in spared)
        console.message("cleaning the training text" + (but_for and f", but sparing {but_for}"))
        languages = [languages_of(entry, config) for entry in config.data.train]
        samples = inputs.samples()
        for pair, (key, sample) in zip(languages, samples.items(), strict=True):
            check_sides(sample, pair, key)
        norms = _norms(list(samples.values()), languages, spared)
        filters = {pair: PairFilter(config.data.clean, *pair, norms[pair]) for pair in norms}
        cleaner = Cleaner(config.data, [filters[pair] for pair in languages], splits, self.names)
        corpus = Corpus.clean(
            self.steps.work,
            inputs.training_chunks(),
            cleaner,
            inputs.n_training_pairs(),
            self.n_processes,
        )
        for name, pair, sample in zip(self.names, languages, samples.values(), strict=True):
            corpus.report.suspicions += suspicions(sample, pair, norms[pair], name)
        for number, n_pairs in enumerate(inputs.n_unreadable):
            corpus.drop_unread(number, UNREADABLE, n_pairs)
        corpus.select(config.data)
        corpus.save()
        self.lock.save(Path("data", config.name))  # it has learnt how many lines were read

    def _learn_pieces(self, corpus: Corpus) -> None:
        train_tokenizers(
            self.config.tokenizer,
            corpus.kept,
            corpus.counts.n_kept,
            self.steps.directory,
            self.config.data.seed,
            sorted({tag for tag in train_tags(self.config) if tag is not None}),
            self.inputs.mono_texts,
        )
        self.lock.save(Path("data", self.config.name))


def _norms(
    samples: Sequence[Sequence[TextPair]], languages: Sequence[tuple[str, str]], spared: list[int]
) -> dict[tuple[str, str], Norms]:
    """The norms of each two languages, from their entries, if possible those that are judged."""
    norms = {}
    for pair in dict.fromkeys(languages):
        numbers = [number for number, found in enumerate(languages) if found == pair]
        judged = [number for number in numbers if number not in spared]
        norms[pair] = Norms.learn(
            chain.from_iterable(samples[number] for number in judged or numbers)
        )
    return norms


def _summaries(report: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The numbers of each side that fit into a manifest."""
    kept = ("n_tokens", "n_words", "tokens_per_word", "byte_share")
    return {side: {key: report["sides"][side][key] for key in kept} for side in SIDES}


def _repeated_targets(directory: Path, tokenizer: Tokenizer) -> list[tuple[str, int]]:
    """The most repeated targets of the store, and how often each is there."""
    hashes = read_target_hashes(directory)
    assert hashes is not None  # just written
    store = TokenStore.open(directory)
    found = find_repeated(hashes)
    texts = tokenizer.decode([store.tgt(index).tolist() for index, _ in found])
    return [(text, n) for text, (_, n) in zip(texts, found, strict=True)]


def _sorted_counts(statistics: PairStatistics) -> dict[str, dict[str, int]]:
    return {
        side: dict(sorted(counts.items()))
        for side, counts in zip(SIDES, statistics.word_counts, strict=True)
    }


def _describe_files(directory: Path, stored: StoreCounts) -> dict[str, Any]:
    """sha256 and size of every file."""
    paths = sorted(directory.iterdir())
    return {
        "files": {path.name: stored.sha256.get(path.name) or sha256_of(path) for path in paths},
        "sizes": {path.name: path.stat().st_size for path in paths},
    }


def _write_split(directory: Path, name: str, pairs: list[TextPair]) -> str:
    """Store a valid or test set as text; returns the sha256 of both sides, as a run checks it."""
    contents = []
    for side, texts in zip(SIDES, zip(*pairs, strict=True), strict=True):
        contents.append("".join(f"{text}\n" for text in texts).encode())
        atomic_write(directory / f"{name}.{side}", contents[-1])
    return hashlib.sha256(b"\0".join(contents)).hexdigest()


# -- what is said about it -------------------------------------------------------------------


def _table(corpus: Corpus, splits: dict[str, list[TextPair]]) -> list[dict[str, Any]]:
    """Rows of what was read, dropped for each reason, and kept."""
    train = corpus.counts.rows()
    rows = [{"split": "train", "reason": reason, "pairs": n} for reason, n in train.items()]
    return rows + [
        {"split": name, "reason": "kept", "pairs": len(pairs)} for name, pairs in splits.items()
    ]


def _suspicions_of_kept(
    splits: Mapping[str, Sequence[TextPair]], statistics: PairStatistics
) -> list[str]:
    """What an expert would notice in what is left, and in the sets to be scored on."""
    found = []
    if statistics.copied_share > _COPIED_SHARE:
        found.append(
            f"in {statistics.copied_share:.0%} of the training pairs the target is the source: "
            "the model will learn to copy"
        )
    for name, pairs in splits.items():
        share = sum(target.rstrip().endswith(" .") for _, target in pairs) / len(pairs)
        if share > _TOKENIZED_SHARE:
            found.append(
                f"{share:.0%} of the references of `{name}` end in ` .`: they look tokenised, and "
                "scores on them cannot be compared with those on raw text"
            )
    return found


def _report(path: Path, manifest: dict[str, Any]) -> None:
    report = read_json(path / _REPORT, DATA_REPORT, "make it again: mtrain prepare CONFIG --force")
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
