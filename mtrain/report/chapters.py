"""The text of the other chapters of the report: model, use, speed, training, data, reproduction.

The page and the model card show the same chapters. Text is plain here; the templates escape it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from jinja2.filters import do_filesizeformat

from mtrain import console
from mtrain.config.literals import METRIC_NAMES
from mtrain.data.store import SIDES
from mtrain.evaluation.results import samples
from mtrain.evaluation.summary import differing_keys
from mtrain.languages import language
from mtrain.report.charts import System, length_chart, speed_charts, systems
from mtrain.report.facts import RunFacts, SideBySide
from mtrain.report.findings import Findings
from mtrain.report.scores import Fact, ScoreTable, interval


def rounded_count(n: int) -> str:
    """1965568 -> '1.97 million'; 28993 -> '28,993'"""
    for limit, unit in ((1_000_000_000, "billion"), (1_000_000, "million")):
        if n >= limit:
            return f"{n / limit:.3g} {unit}"
    return f"{n:,}"


# -- the model and its use -------------------------------------------------------------------


def languages(run: RunFacts) -> str:
    """English → German"""
    return f"{language(run.config.source).name} → {language(run.config.target).name}"


def summary(runs: Sequence[RunFacts]) -> str:
    """The subject of the page, in a sentence."""
    if len(runs) > 1:
        pairs = dict.fromkeys(map(languages, runs))
        return f"{len(runs)} models side by side: {' and '.join(pairs)}."
    (run,) = runs
    size = f"with {rounded_count(run.weights.n_parameters)} parameters, " if run.weights else ""
    return (
        f"A Transformer {size}trained on {run.manifest['n_train_pairs']:,} sentence pairs, that "
        f"translates {language(run.config.source).name} into {language(run.config.target).name}."
    )


def status(run: RunFacts) -> str:
    """The progress of training; empty when it has ended."""
    if run.is_finished:
        return ""
    trained = run.logged("train")
    if not trained:
        return "Training has not logged a step yet."
    last, train = trained[-1], run.config.train
    step, elapsed_s = last["step"], last.get("elapsed_s", 0.0)
    if train.budget_s is not None:
        left_s, of = train.budget_s - elapsed_s, f", with a budget of {train.budget}"
    else:
        last_step = train.max_steps or step
        left_s, of = elapsed_s / step * (last_step - step), f" of {last_step:,}"
    left = f", about {console.duration(left_s)} left" if left_s > 0 else ""
    return f"Not finished: step {step:,}{of}{left}."


def model_facts(run: RunFacts) -> list[Fact]:
    """Languages, sizes of the model and of its vocabulary."""
    model, tokenizer = run.config.model, run.config.tokenizer
    sizes = [f"{size:,}" for size in run.manifest["vocab_sizes"]]
    shared = "shared by both languages" if tokenizer.shared else "source and target"
    facts = [
        Fact("Languages", languages(run), f"{run.config.source} → {run.config.target}"),
        Fact(
            "Architecture",
            f"{model.n_encoder_layers} encoder and {model.n_decoder_layers} decoder layers, "
            f"width {model.d_model:,}, feed-forward {model.d_ff:,}, {model.n_heads} heads",
            f"{model.norm}-norm Transformer",
        ),
        Fact(
            "Vocabulary",
            f"{sizes[0] if tokenizer.shared else ' and '.join(sizes)} pieces",
            f"SentencePiece {tokenizer.type}, {shared}",
        ),
    ]
    if run.weights:
        size = f"{do_filesizeformat(run.weights.size_bytes)} on disk"
        facts.append(Fact("Parameters", f"{run.weights.n_parameters:,}", size))
    return facts


def tiles(run: RunFacts, table: ScoreTable) -> list[Fact]:
    """The few numbers at the top of a page about one run."""
    tiles = []
    for test_set in table.test_sets[:2]:
        for _, entry in test_set.rows:
            if score := entry.get(table.metrics[0]):
                note = f"{test_set.name}\n{interval(score)}".strip()
                tiles.append(Fact(METRIC_NAMES[table.metrics[0]], f"{score['score']:.2f}", note))
    if run.weights:
        number = rounded_count(run.weights.n_parameters)
        number = number.replace(" million", " M").replace(" billion", " G")
        size = f"{do_filesizeformat(run.weights.size_bytes)} on disk"
        tiles.append(Fact("Parameters", number, size))
    tiles.append(Fact("Training pairs", rounded_count(run.manifest["n_train_pairs"])))
    return tiles + [fact for fact in training_facts(run) if fact.name == "Training time"]


def choices(run: RunFacts) -> list[Fact]:
    """The values that were chosen for keys that are `auto`, with their reasons."""
    return [Fact(one["key"], str(one["value"]), one["reason"]) for one in run.run.read_choices()]


def examples(test_sets: Sequence[SideBySide]) -> dict[str, int]:
    """Lines of a good, a typical and a poor translation of the first run: quantiles of chrF."""
    if not test_sets or test_sets[0].outputs[0].run != 0:
        return {}
    return samples(test_sets[0].sources, test_sets[0].outputs[0].chrf)


def usage(run: RunFacts, test_sets: Sequence[SideBySide]) -> dict[str, str]:
    """Commands to copy."""
    sentence = test_sets[0].sources[0] if test_sets else "A sentence."
    translate, evaluate = (
        console.command("mtrain", word, run.path) for word in ("translate", "eval")
    )
    return {
        "command": f"{translate} input.txt -o output.txt\n"
        f"{translate}          # reads standard input\n"
        f"{evaluate}               # scores all test sets",
        "python": f"import mtrain\n\ntranslator = mtrain.load({json.dumps(str(run.path))})\n"
        f"translator.translate([{sentence!r}])",
    }


def missing(
    runs: Sequence[RunFacts], table: ScoreTable, found: Sequence[Findings]
) -> list[tuple[str, str]]:
    """Commands that complete the page, and what each of them adds."""
    scored = {number for test_set in table.test_sets for number, _ in test_set.rows}
    analysed = {output.run for one in found for output in one.outputs}
    commands = []
    for number, run in enumerate(runs):
        if run.run.is_exported:
            continue
        evaluate = console.command("mtrain", "eval", run.path)
        if number not in scored:
            commands.append((evaluate, "scores, faults, weak spots, sentences and attention"))
        elif number not in analysed:
            commands.append((evaluate, "faults and weak spots"))
        elif not run.run.read_attention():
            commands.append((evaluate, "attention"))
        if not run.run.read_sweep():
            commands.append((f"{evaluate} --sweep", "quality against speed"))
    return commands


# -- speed -----------------------------------------------------------------------------------


def speeds(runs: Sequence[RunFacts]) -> dict[str, list[Any]]:
    """What `eval --sweep` measured: `points` (run, way to decode), `systems` and their `charts`."""
    points: list[tuple[int, dict[str, Any]]] = []
    shown: list[System] = []
    for number, run in enumerate(runs):
        of_run = run.run.read_sweep()
        points += [(number, point) for point in of_run]
        shown += systems(of_run, f"{run.label}: " if len(runs) > 1 else "")
    return {
        "points": points,
        "systems": shown,
        "charts": speed_charts(shown) if shown else [],
    }


# -- training --------------------------------------------------------------------------------


def training_facts(run: RunFacts) -> list[Fact]:
    """Steps, time and the chosen checkpoint."""
    trained, facts = run.logged("train"), []
    last = trained[-1] if trained else {}
    if trained:
        epoch = f"reached epoch {last['epoch'] + 1:,}" if "epoch" in last else ""
        facts.append(Fact("Steps", f"{last['step']:,}", epoch))
    if "elapsed_s" in last:
        speeds = [record["tokens_per_s"] for record in trained if record.get("tokens_per_s")]
        speed = f"{median(speeds):,.0f} tokens/s" if speeds else ""
        facts.append(Fact("Training time", console.duration(last["elapsed_s"]), speed))
    return facts + _chosen_checkpoint(run)


def _chosen_checkpoint(run: RunFacts) -> list[Fact]:
    """The weights that `translate` uses, and their score on valid against the other candidates."""
    weights = run.weights
    if weights is None or weights.step is None:
        return []
    metric = run.config.train.best_metric
    best = [record for record in run.logged("valid") if record.get("is_best")]
    last_step = max((record["step"] for record in run.logged("valid")), default=0)
    rivals = [record for record in run.logged("rival") if record["step"] == last_step]
    records = {"best": best[-1]} if best else {}
    records |= {record["checkpoint"]: record for record in rivals if "checkpoint" in record}
    records[weights.checkpoint] = weights.valid
    scores = {
        name: f"{record[metric]:.2f}"
        for name, record in records.items()
        if record.get(metric) is not None
    }
    note = ""
    if (own := scores.pop(weights.checkpoint, None)) is not None:
        others = ", ".join(f"{score} of {name}" for name, score in scores.items())
        note = f"{METRIC_NAMES.get(metric, metric)} on valid: {own}"
        note += f", against {others}" if others else ""
    return [Fact("Chosen checkpoint", f"{weights.checkpoint}, of step {weights.step:,}", note)]


# -- data ------------------------------------------------------------------------------------


def data_chapters(runs: Sequence[RunFacts]) -> list[dict[str, Any]]:
    """One per set of prepared data."""
    by_data: dict[str, list[int]] = {}
    for number, run in enumerate(runs):
        by_data.setdefault(str(sorted(run.manifest["files"].items())), []).append(number)
    return [_data_chapter(runs[numbers[0]], numbers) for numbers in by_data.values()]


def _data_chapter(run: RunFacts, numbers: list[int]) -> dict[str, Any]:
    """The data of the runs that were trained on the same text; empty where it is not known."""
    manifest, report = run.manifest, run.run.read_data_report()
    rows = [(row["split"], row["reason"], row["pairs"]) for row in manifest.get("table", [])]
    train = [(reason, pairs) for split, reason, pairs in rows if split == "train"]
    n_read = max((pairs for _, pairs in train), default=0)
    lengths = [report["sides"][side]["lengths"] for side in SIDES] if report else []
    lists = ("suspicions", "entries", "near_matches", "repeated_targets")
    return {
        "runs": numbers,
        # training pairs read, dropped, kept: name, number, share
        "table": [(reason, pairs, pairs / n_read if n_read else 0.0) for reason, pairs in train],
        "splits": [(split, pairs) for split, _, pairs in rows if split != "train"],
        "sides": list(_side_facts(manifest)),
        "sources": [_source(entry) for entry in manifest.get("sources", [])],
        "report": {name: (report or {}).get(name, []) for name in lists},
        "lengths": length_chart("Sentence lengths", lengths) if lengths else "",
    }


def _side_facts(manifest: Mapping[str, Any]) -> Iterator[Fact]:
    for side in SIDES:
        if counts := manifest.get("sides", {}).get(side):
            yield Fact(
                f"{language(manifest[side]).name} ({side})",
                f"{counts['n_words']:,} words",
                f"{counts['n_tokens']:,} pieces, {counts['tokens_per_word']:.2f} per word, "
                f"{counts['byte_share']:.2%} of them single bytes",
            )
    ratio = manifest["length_ratio"]
    yield Fact(
        "Length of target over source",
        f"{ratio['mean']:.2f} ± {ratio['std']:.2f}",
        "in pieces: mean and standard deviation",
    )
    if "copied_share" in manifest:
        share = f"{manifest['copied_share']:.2%}"
        yield Fact("Pairs whose target is the source", share, "of those kept")


def _source(entry: Mapping[str, Any]) -> Fact:
    """An entry of the config, with the facts that `prepare` recorded about its files."""
    skipped = {"entry", "files", "sha256"}
    parts = [f"{key}: {value}" for key, value in entry.items() if key not in skipped and value]
    hashes = [
        f"{location.rsplit('/', 1)[-1]}: {facts['sha256']}"
        for location, facts in entry.get("files", {}).items()
        if "sha256" in facts
    ]
    hashes = hashes or [f"{side}: {value}" for side, value in entry.get("sha256", {}).items()]
    return Fact(entry["entry"], "\n".join(parts), "\n".join(hashes))


# -- how to repeat it ------------------------------------------------------------------------


def in_columns(groups: Sequence[Sequence[Fact]]) -> list[tuple[str, list[Fact | None]]]:
    """Facts of several runs as rows: a name, and the fact of this name of each run."""
    by_name = [{fact.name: fact for fact in group} for group in groups]
    names = dict.fromkeys(name for facts in by_name for name in facts)
    return [(name, [facts.get(name) for facts in by_name]) for name in names]


def config_differences(runs: Sequence[RunFacts]) -> list[tuple[str, list[str]]]:
    """The keys in which the configs of several runs differ, and each run's value."""
    return [
        (key, ["—" if value is None else str(value) for value in values])
        for key, values in differing_keys([run.config for run in runs]).items()
    ]


def repetition(run: RunFacts) -> dict[str, Any]:
    """Everything needed to train the run again."""
    path = f"runs/{run.config.name}-again"
    train = console.command("mtrain", "train", run.run.config, "--set", f"run={path}")
    hashes = []
    if run.weights:
        hashes.append(Fact(run.weights.name, run.weights.sha256, "the weights, as a file"))
    for name, sha256 in run.manifest.get("files", {}).items():
        if name.endswith(".model"):
            hashes.append(Fact(name, sha256))
    for name, sha256 in run.manifest["split_sha256"].items():
        hashes.append(Fact(f"data/{name}", sha256, "source and reference text"))
    return {
        "commands": f"{train}\n{console.command('mtrain', 'eval', path)}",
        "config": run.run.config.read_text(encoding="utf-8"),
        "hashes": hashes,
        "environments": [
            [Fact(name, value) for name, value in environment.items()]
            for environment in run.run.read_environments()
        ],
    }
