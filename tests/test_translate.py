"""Lines, streams and files through a translator; mostly one whose model copies its source."""

import errno
import io
import json
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from torch import Tensor, nn

import mtrain
from mtrain.config.load import dump_config
from mtrain.config.root import Config
from mtrain.config.sections import TokenizerConfig
from mtrain.data.tokenizer import BOS, EOS, PAD, Tokenizer, load_tokenizers, train_tokenizers
from mtrain.decoding import scorers
from mtrain.decoding import stream as stream_stage
from mtrain.decoding.engine import Search, Segment, TorchEngine
from mtrain.decoding.search import Hypothesis
from mtrain.decoding.sentences import split_text
from mtrain.decoding.stream import Job, SecondFile, waiting_lines
from mtrain.decoding.translate import Translator
from mtrain.errors import DataError, ModelError, StorageError, UsageError
from mtrain.machine import runtime
from mtrain.model.transformer import Transformer
from mtrain.model.weights import save_tensors, weights_of
from mtrain.run import RunDir
from mtrain.storage import atomic_write, write_json

TEXT = [
    "A dog runs over the green grass.",
    "Two men are talking, and a woman listens.",
    "The little girl in a red dress is playing with a ball!",
    "Ein Hund läuft über die grüne Wiese; er ist müde.",
    "Where is the train station? It is over there.",
] * 4

LINES = ["A dog.", "", "Two men are talking, and a woman listens.", "Ein Hund läuft.", "ball"]


@pytest.fixture(scope="module")
def tokenizer_directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    config = TokenizerConfig(vocab_size=400, type="bpe")
    train_tokenizers(config, lambda: [(t, t) for t in TEXT], len(TEXT), directory, 1)
    return directory


@pytest.fixture(scope="module")
def tokenizer(tokenizer_directory):
    return load_tokenizers(tokenizer_directory)[0]


def config_with(max_length: int = 40, **decode: Any) -> Config:
    sections = {
        "name": "copy",
        "source": "en",
        "target": "de",
        "data": {"train": ({"source": "a", "target": "b"},), "max_length": max_length},
        "model": {
            "d_model": 16,
            "d_ff": 32,
            "n_heads": 2,
            "n_encoder_layers": 1,
            "n_decoder_layers": 1,
        },
        "decode": {"beam_size": 2} | decode,
    }
    return Config.model_validate(sections)


class Copy(nn.Module):
    """Stands for a model of `vocab_size` words; remembers the sources it was shown."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.vocab_size = vocab_size
        self.shown: list[tuple[Tensor, Tensor | None]] = []


@dataclass
class Copying:
    sources: Tensor  # (B, S + 1) ending in EOS
    beam_size: int
    n_steps: int = 0


class CopyScorer:
    """Says what the source says; the other hypotheses of a beam end too early."""

    def __init__(self, model: Copy) -> None:
        self.model = model

    def start(self, src: Tensor, src_mask: Tensor | None, beam_size: int) -> Copying:
        self.model.shown.append((src, src_mask))
        ended = torch.cat([src, torch.full((len(src), 1), EOS)], 1)
        return Copying(ended.masked_fill(ended == PAD, EOS), beam_size)

    def step(self, state: Copying, tokens: Tensor) -> tuple[Tensor, Tensor]:
        position = min(state.n_steps, state.sources.shape[1] - 1)
        wanted = state.sources[:, position].repeat_interleave(state.beam_size)  # (R,)
        state.n_steps += 1
        logits = torch.full((len(tokens), self.model.vocab_size), -20.0)
        logits[:, EOS] = 4.0
        logits.scatter_(1, wanted[:, None], 10.0)
        return logits, logits.logsumexp(-1)

    def reorder(self, state: Copying, rows: Tensor) -> None:
        """Nothing: all rows of a sentence copy the same source."""

    def keep(self, state: Copying, sentences: Tensor) -> None:
        state.sources = state.sources[sentences]


class WatchedEngine(TorchEngine):
    """Remembers what it was asked; may be killed after so many batches of lines."""

    def __init__(self, model: Any) -> None:
        super().__init__([model], "fp32", CopyScorer(model))
        self.asked: list[tuple[list[Segment], Search]] = []
        self.n_until_killed: int | None = None

    def search(
        self, batches: list[list[Segment]], search: Search
    ) -> Iterator[tuple[int, list[list[Hypothesis]]]]:
        if self.n_until_killed is not None:
            if self.n_until_killed == 0:
                raise KeyboardInterrupt
            self.n_until_killed -= 1
        self.asked.append(([segment for batch in batches for segment in batch], search))
        return super().search(batches, search)


@pytest.fixture
def make(tokenizer):
    """Translators that copy."""

    def make_translator(**settings: Any) -> Translator:
        engine = WatchedEngine(Copy(tokenizer.vocab_size))
        ratio = {"mean": 1.0, "std": 0.1}
        return Translator(engine, (tokenizer, tokenizer), config_with(**settings), ratio)

    return make_translator


def job_of(
    translator: Translator,
    source: bytes | BinaryIO,
    second: SecondFile | None = None,
    format: str = "text",
    **changes: Any,
) -> Job:
    """To translate bytes or a stream; `changes` are of the run's own search."""
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    search = Search.of(translator.config.decode, **changes)
    return Job(translator, stream, search, second, None, format)


def written(translator: Translator, source: bytes | BinaryIO, **settings: Any) -> list[str]:
    """The lines that a stream of bytes becomes."""
    out = io.StringIO()
    job = job_of(translator, source, **settings)
    n_lines = job.to_stream(out)
    text = out.getvalue()
    assert text == "" or text.endswith("\n")
    lines = text.split("\n")[:-1]
    assert n_lines * job.lines_per_answer == len(lines)
    return lines


# -- lines -----------------------------------------------------------------------------------


def test_every_line_comes_back_in_its_place(make):
    assert make().translate(LINES) == LINES


def test_lines_are_normalised_as_in_training(make):
    assert make().translate(["  A\tdog.\u2028 a\u0308 "]) == ["A dog. ä"]


def test_symbols_never_seen_survive(make):
    assert make().translate(["犬 \u2581 🐕 \x00", "Ω"]) == ["犬 \u2581 🐕", "Ω"]


def test_blank_lines_are_never_decoded(make):
    translator = make()
    [blank, control] = translator.translate_detailed([" \t ", "\x00"])
    assert translator.model.shown == []
    assert (blank.text, blank.score, control.text) == ("", 0.0, "")
    assert [h.text for h in blank.hypotheses] == [""]


def test_batches_keep_the_budget_and_are_masked_only_where_padded(make):
    translator = make(batch_tokens=60)
    lines = [" ".join(["dog"] * (n // 12 + 1)) for n in range(40)]
    assert translator.translate(lines) == lines
    assert len(translator.model.shown) > 3
    is_masked = set()
    for src, mask in translator.model.shown:
        assert src.numel() * 2 <= 60
        is_padded = bool((src == PAD).any())
        assert (mask is not None) == is_padded
        if mask is not None:
            assert torch.equal(mask[:, 0, 0], src != PAD)
        is_masked.add(is_padded)
    assert is_masked == {True, False}
    assert sum(len(src) for src, _ in translator.model.shown) == 40


def run_out_above(monkeypatch: pytest.MonkeyPatch, most: int, kind: Any) -> list[int]:
    """Let memory run out in a search of more sentences; -> of how many each was."""
    start, sizes = CopyScorer.start, []

    def start_within(scorer: CopyScorer, src: Tensor, *rest: Any) -> Copying:
        sizes.append(len(src))
        if len(src) > most:
            raise kind("CUDA error: out of memory")
        return start(scorer, src, *rest)

    monkeypatch.setattr(CopyScorer, "start", start_within)
    return sizes


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_a_batch_for_which_memory_runs_out_is_halved(make, monkeypatch, kind):
    translator, lines = make(), [*TEXT[:7], "", "dog"]
    expected = translator.translate_detailed(lines)
    monkeypatch.setattr("mtrain.machine.runtime.n_workers", lambda device: 1)
    sizes = run_out_above(monkeypatch, 2, kind)
    assert translator.translate_detailed(lines) == expected
    assert sizes == [8, 4, 2, 2, 4, 2, 2]
    run_out_above(monkeypatch, 0, kind)
    with pytest.raises(kind):  # not even one sentence fits
        translator.translate(lines)


@pytest.mark.parametrize("free_mib", [10_000, 1, 0])
def test_on_a_gpu_batches_fit_into_what_is_free(make, monkeypatch, free_mib):
    translator, lengths = make(batch_tokens=10_000), [30] * 20 + [3] * 20
    by_budget = list(translator._batches(lengths, 2))
    monkeypatch.setattr("mtrain.machine.runtime.free_bytes", lambda device: free_mib << 20)
    batches = list(translator._batches(lengths, 2))
    assert sorted(i for batch in batches for i in batch) == list(range(40))
    assert (batches == by_budget) == (free_mib == 10_000)
    for batch in batches:
        needed = 2 * len(batch) * translator._bytes_of_a_row(max(lengths[i] for i in batch))
        assert len(batch) == 1 or needed <= free_mib << 19


def test_a_row_needs_more_memory_with_more_words_models_and_length(make, monkeypatch):
    translator = make()
    n_bytes = translator._bytes_of_a_row(10)
    assert n_bytes > 3 * 4 * translator.tgt_tokenizer.vocab_size  # three times its logits
    assert translator._bytes_of_a_row(20) > n_bytes
    translator.engine.models = [*translator.engine.models] * 2
    assert translator._bytes_of_a_row(10) == 2 * n_bytes


def test_an_over_long_line_is_split_and_rejoined_with_a_warning(make):
    translator = make(max_length=20)
    line = " ".join(TEXT[:3])
    [short, long] = translator.translate_detailed(["A dog.", line])
    assert short.warnings == []
    assert long.text == line
    [warning] = long.warnings
    n_pieces = len(translator.src_tokenizer.encode([line])[0])
    assert warning.startswith(f"{n_pieces} pieces are more than the 20 the model was trained with")
    assert all(src.shape[1] <= 21 for src, _ in translator.model.shown)


def test_a_split_lines_score_is_that_of_the_whole(make):
    """Each part pays for its own EOS."""
    translator = make(max_length=20, length_penalty=1.0)
    [long] = translator.translate_detailed([" ".join(TEXT[:3])], n_best=2)
    n_parts = sum(len(src) for src, _ in translator.model.shown)
    length = sum(int((src != PAD).sum()) for src, _ in translator.model.shown)
    assert n_parts > 2
    others = [-20.0] * (translator.model.vocab_size - 2)
    of_token = float(Tensor([10.0, 4.0, *others]).log_softmax(0)[0])
    of_eos = float(Tensor([10.0, -20.0, *others]).log_softmax(0)[0])
    log_prob = (length - n_parts) * of_token + n_parts * of_eos
    assert long.score == pytest.approx(log_prob / length, rel=1e-3)
    assert [h.score for h in long.hypotheses] == sorted(
        (h.score for h in long.hypotheses), reverse=True
    )
    assert long.hypotheses[0].tokens[0] == "\u2581A"


def test_a_line_of_100000_characters(make):
    translator = make(batch_tokens=4096)
    line = "x" * 100_000
    [result] = translator.translate_detailed([line], beam_size=1)
    assert result.text.replace(" ", "") == line
    assert all(src.shape[1] <= 41 for src, _ in translator.model.shown)


def test_n_best_hypotheses_have_scores_and_pieces(make):
    [result] = make().translate_detailed(["A dog."], beam_size=3, n_best=3)
    assert result.text == result.hypotheses[0].text == "A dog."
    assert result.score == result.hypotheses[0].score
    assert "".join(result.hypotheses[0].tokens).replace("\u2581", " ").strip() == "A dog."
    scores = [h.score for h in result.hypotheses]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)


def test_settings_of_the_run_hold_unless_others_are_given(make):
    translator = make(beam_size=3, length_penalty=0.5)
    translator.translate(["A dog."])
    translator.translate(["A dog."], beam_size=1, length_penalty=0.0)
    searches = [search for _, search in translator.engine.asked]
    assert searches == [Search(3, 0.5), Search(1, 0.0)]


def test_the_maximum_length_is_learnt(make):
    translator = make(max_length=100)
    long = " ".join(["dog"] * 30)
    n = len(translator.src_tokenizer.encode([long])[0]) + 1
    translator.length_ratio = {"mean": 1.1, "std": 0.25}
    translator.translate([long, "dog"])
    n_short = len(translator.src_tokenizer.encode(["dog"])[0]) + 1
    [(segments, _)] = translator.engine.asked
    assert [s.max_length for s in segments] == [-int(-2.1 * n // 1), n_short + 10]


def test_one_string_is_no_list_of_lines(make):
    with pytest.raises(TypeError, match="list of lines"):
        make().translate("A dog.")


def test_no_lines_give_no_translations(make):
    assert make().translate([]) == []


def test_progress_counts_lines_not_parts(make):
    counts: list[int] = []
    make(max_length=20).translate_detailed([" ".join(TEXT), "", "A dog."], progress=counts.append)
    assert sum(counts) == 3


# -- a real Transformer ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def network(tokenizer):
    torch.manual_seed(3)
    config = config_with()
    model = Transformer(config.model, tokenizer.vocab_size, tokenizer.vocab_size).eval()
    ratio = {"mean": 1.0, "std": 0.1}
    return Translator(TorchEngine([model], "fp32"), (tokenizer, tokenizer), config, ratio)


@pytest.mark.parametrize("beam_size", [1, 4])
def test_companions_change_no_translation(network, beam_size):
    together = network.translate_detailed(LINES, beam_size=beam_size)
    for line, expected in zip(LINES, together, strict=True):
        [alone] = network.translate_detailed([line], beam_size=beam_size)
        assert alone.hypotheses[0].tokens == expected.hypotheses[0].tokens
        assert alone.score == pytest.approx(expected.score, abs=1e-4)


def test_weights_that_are_not_finite_are_reported(network, tokenizer):
    model = Transformer(network.config.model, tokenizer.vocab_size, tokenizer.vocab_size)
    with torch.no_grad():
        model.output.weight.fill_(float("nan"))
    broken = network.with_engine(TorchEngine([model.eval()]))
    for beam_size in (1, 3):
        with pytest.raises(ModelError, match="probabilities are not finite"):
            broken.translate(["A dog."], beam_size=beam_size)


def test_a_run_directory_translates_as_its_parts_do(network, tmp_path, tokenizer_directory):
    run = RunDir(tmp_path / "run")
    manifest = {"splits": ["valid"], "split_sha256": {}, "files": {}}
    write_json(run.manifest, manifest | {"length_ratio": network.length_ratio})
    atomic_write(run.config, dump_config(network.config))
    shutil.copy(tokenizer_directory / "tokenizer.model", run.path)
    save_tensors(run.weights, weights_of(network.model), {})
    loaded = Translator.from_run(run.path, device="cpu", precision="fp32")
    assert loaded.translate(LINES) == network.translate(LINES)
    assert len(mtrain.load(run.path, device="cpu").translate(LINES)) == len(LINES)


def test_a_beginning_that_is_given_stands_at_the_beginning(network):
    prefixes = ["Ein Hund", "", "", "The  train", ""]
    found = network.translate_detailed(LINES, prefixes=prefixes, beam_size=3)
    free = network.translate_detailed(LINES, beam_size=3)
    assert found[0].text.startswith("Ein Hund")
    assert found[3].text.startswith("The train")
    assert (found[1].text, found[2].text, found[4].text) == (
        "",
        free[2].text,
        free[4].text,
    )


def test_a_beginning_of_bytes_is_warned_of(network):
    [found] = network.translate_detailed(["A dog."], prefixes=["犬"])
    assert found.text.startswith("犬")
    assert found.warnings == [
        "the prefix `犬` has characters that the vocabulary only has as bytes; the translation "
        "after them may be poor"
    ]


def test_a_beginning_longer_than_the_model_knows_is_refused(network):
    with pytest.raises(DataError, match=r"prefix of line 8 has \d+ pieces, more than the 40"):
        network.translate_detailed(["A dog."], prefixes=["dog ball " * 30], first_line=7)


@pytest.mark.parametrize("method", ["sample", "mbr", "diverse"])
def test_other_methods_give_the_same_alone_as_in_company(network, method):
    changes = {"n_best": 2, "samples": 5, "beam_size": 3, "temperature": 0.5, "seed": 4}
    search = Search.of(network.config.decode, method=method, **changes)
    together = network.translate_detailed(LINES, search)
    for i, line in enumerate(LINES):
        [alone] = network.translate_detailed([line], search, first_line=i)
        assert [h.tokens for h in alone.hypotheses] == [h.tokens for h in together[i].hypotheses]
    other = network.translate_detailed(LINES, replace(search, seed=5))
    assert (other == together) == (method == "diverse")


def test_what_agrees_most_is_chosen(network, monkeypatch):
    texts = iter(["cats sleep", "a dog runs", "a dog ran", "a dog runs"])
    monkeypatch.setattr(Tokenizer, "decode", lambda self, ids: [next(texts) for _ in ids])
    [found] = network.translate_detailed(["A dog."], method="mbr", samples=4, n_best=2)
    assert [h.text for h in found.hypotheses] == ["a dog runs", "a dog ran"]


def test_given_translations_are_scored_by_teacher_forcing(network):
    targets = ["Ein Hund läuft.", "", "ball", "A dog.", "The little girl"]
    scored = network.score(LINES, targets, Search(1, length_penalty=0.7))
    for line, target, found in zip(LINES, targets, scored, strict=True):
        [src], [tgt] = network.src_tokenizer.encode([line]), network.tgt_tokenizer.encode([target])
        with torch.no_grad():
            logits = network.model(torch.tensor([[*src, EOS]]), torch.tensor([[BOS, *tgt]]), None)
        expected = logits[0].log_softmax(-1)[range(len(tgt) + 1), [*tgt, EOS]].tolist()
        assert found.token_log_probs == pytest.approx(expected, abs=1e-4)
        assert found.tokens == [*network.tgt_tokenizer.pieces(tgt), "</s>"]
        assert found.log_prob == pytest.approx(sum(expected), abs=1e-4)
        assert found.score == pytest.approx(sum(expected) / len(expected) ** 0.7, abs=1e-4)


def test_given_translations_are_scored_in_pieces_of_a_size(network, monkeypatch):
    """All logits of a batch at once would not fit into a GPU."""
    expected = [pair.token_log_probs for pair in network.score(LINES, LINES)]
    monkeypatch.setattr(scorers, "LOGITS_BYTES", 4 * network.tgt_tokenizer.vocab_size * 3)
    sizes, project = [], Transformer.project

    def note(model: Transformer, x: Tensor) -> Tensor:
        sizes.append(len(x))
        return project(model, x)

    monkeypatch.setattr(Transformer, "project", note)
    found = [pair.token_log_probs for pair in network.score(LINES, LINES)]
    assert max(sizes) == 3
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_an_ensemble_of_equals_is_each_of_them(network):
    twin = network.with_engine(TorchEngine([network.model] * 2, "fp32"))
    expected = network.translate_detailed(LINES)
    for one, other in zip(twin.translate_detailed(LINES), expected, strict=True):
        assert one.text == other.text
        assert one.score == pytest.approx(other.score, abs=1e-4)
    pairs = [t.score(LINES, LINES)[0].log_prob for t in (twin, network)]
    assert pairs[0] == pytest.approx(pairs[1], abs=1e-4)


def test_threads_that_share_the_work_change_nothing(network, monkeypatch):
    alone = network.translate_detailed(LINES * 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    shared = network.translate_detailed(LINES * 8)
    assert [t.text for t in shared] == [t.text for t in alone]
    assert [t.score for t in shared] == pytest.approx([t.score for t in alone], abs=1e-4)


# -- splitting -------------------------------------------------------------------------------


def words(texts: list[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def characters(texts: list[str]) -> list[int]:
    return [len(text) for text in texts]


@pytest.mark.parametrize(
    ("text", "limit", "parts"),
    [
        ("One two. Three four.", 4, ["One two. Three four."]),
        ("One two. Three four.", 3, ["One two.", "Three four."]),
        ('He said "no!" Then he left.', 4, ['He said "no!"', "Then he left."]),
        ("Dr. Who met J. Smith on 3. Mai there. They spoke.", 9,
         ["Dr. Who met J. Smith on 3. Mai there.", "They spoke."]),
        ("a b, c d, e f, g h", 5, ["a b, c d,", "e f, g h"]),
        ("pi is 3.14 or 1,000 so", 4, ["pi is 3.14", "or 1,000 so"]),
        ("a b c d e f g", 3, ["a b", "c d e", "f g"]),
    ],
)  # fmt: skip
def test_a_long_text_is_cut_where_it_hurts_least(text, limit, parts):
    assert split_text(text, words, limit) == parts


def test_text_without_spaces_is_cut_at_its_own_punctuation_and_then_anywhere():
    text = "今日は。雨が降る、風も吹く。雪も降るかもしれない、寒い。" + "あ" * 25
    parts = split_text(text, characters, 10)
    assert parts[:2] == ["今日は。", "雨が降る、風も吹く。"]
    assert parts[-1 - 3] == "寒い。"
    assert "".join(parts) == text
    assert all(len(part) <= 10 for part in parts)


# -- streams ---------------------------------------------------------------------------------


def test_n_lines_in_n_lines_out(make):
    source = b"A dog.\r\n\n  \nball\xe2\x80\xa8dog\x0bball\x00\n\xff\xfe dog\nlast"
    expected = ["A dog.", "", "", "ball dog ball", "\ufffd\ufffd dog", "last"]
    assert written(make(), source) == expected


def test_an_empty_stream_gives_nothing(make):
    assert written(make(), b"") == []


def test_bytes_that_are_no_utf8_are_reported_with_their_line(make, capsys):
    written(make(), b"A dog.\nball \xff\nball")
    assert capsys.readouterr().err == (
        "warning: line 2: not valid UTF-8 (byte 0xff at position 6); invalid bytes were "
        "replaced by U+FFFD\n"
    )


def test_a_split_line_is_reported_with_its_number(make, capsys):
    written(make(max_length=20), b"A dog.\n" + " ".join(TEXT[:3]).encode())
    assert capsys.readouterr().err.startswith("warning: line 2: ")


def test_a_flood_of_warnings_is_summed_up(make, capsys):
    assert len(written(make(), b"\xff\n" * 50)) == 50
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == stream_stage.WARNINGS_SHOWN + 1
    assert lines[-1].startswith("warning: 30 more such warnings")


def test_n_best_as_text_gives_that_many_lines_for_each(make):
    lines = written(make(), b"A dog.\n\nball\n", n_best=2)
    fields = [line.split("\t") for line in lines]
    assert [number for number, _, _ in fields] == ["1", "1", "2", "2", "3", "3"]
    assert [text for _, _, text in fields[::2]] == ["A dog.", "", "ball"]
    assert float(fields[0][1]) > float(fields[1][1])


def test_json_lines_hold_everything(make):
    lines = written(make(), b"\xff\n\nA dog.", n_best=2, format="jsonl")
    replaced, blank, dog = map(json.loads, lines)
    assert [o["line"] for o in (replaced, blank, dog)] == [1, 2, 3]
    assert list(dog) == ["line", "source", "translation", "score", "hypotheses", "warnings"]
    assert (dog["source"], dog["translation"], dog["warnings"]) == ("A dog.", "A dog.", [])
    assert [list(h) for h in dog["hypotheses"]] == [["text", "score", "tokens"]] * 2
    assert dog["hypotheses"][0]["score"] == dog["score"]
    assert "not valid UTF-8" in replaced["warnings"][0]
    assert (blank["translation"], blank["score"]) == ("", 0.0)
    assert "\\u" not in written(make(), "Läuft".encode(), format="jsonl")[0]


@pytest.fixture
def pipe():
    """A reading and a writing end, the latter unbuffered."""
    read, write = os.pipe()
    with open(read, "rb") as reader, open(write, "wb", buffering=0) as writer:
        yield reader, writer


def test_a_typed_line_is_answered_at_once(make, pipe):
    reader, writer = pipe
    answers, out = os.pipe()
    translator = make()

    def run() -> None:
        with open(out, "w", encoding="utf-8") as stream:
            job_of(translator, reader).to_stream(stream)

    thread = threading.Thread(target=run)
    thread.start()
    with open(answers, encoding="utf-8") as lines:
        for line in ("A dog.", "", "ball"):
            writer.write(f"{line}\n".encode())
            assert lines.readline() == f"{line}\n"  # before the next is typed, and before the end
        writer.write(b"last")
        writer.close()
        assert lines.read() == "last\n"
    thread.join(10)


def test_a_full_pipe_is_taken_at_once(make, pipe):
    reader, writer = pipe
    writer.write(b"ball\n" * 700)
    writer.close()
    translator = make()
    assert written(translator, reader) == ["ball"] * 700
    assert [len(segments) for segments, _ in translator.engine.asked] == [700]


def test_lines_are_read_in_pieces_of_any_size(tmp_path, monkeypatch):
    monkeypatch.setattr(stream_stage, "READ_BYTES", 7)
    monkeypatch.setattr(stream_stage, "LINES_AT_A_TIME", 2)
    text = b"a\nb\r\n\nc\n\n\n" + b"long" * 10 + b"\r\n\xc3\xa4\r\r\nend"
    path = tmp_path / "text"
    path.write_bytes(text)
    with open(path, "rb") as file:
        batches = list(waiting_lines(file))
    assert all(1 <= len(batch) <= 2 for batch in batches)
    lines = [line for batch in batches for line in batch]
    assert lines == [b"a", b"b", b"", b"c", b"", b"", b"long" * 10, b"\xc3\xa4\r", b"end"]
    without_descriptor = [line for batch in waiting_lines(io.BytesIO(text)) for line in batch]
    assert without_descriptor == lines


def test_memory_is_given_back_after_many_lines_and_not_after_each(make, monkeypatch):
    given_back_at = []
    out = io.StringIO()
    monkeypatch.setattr(stream_stage, "LINES_AT_A_TIME", 2)
    monkeypatch.setattr(
        runtime, "give_memory_back", lambda: given_back_at.append(out.getvalue().count("\n"))
    )
    job_of(make(), b"A dog.\n" * 5).to_stream(out)
    assert given_back_at == [2, 4]


def test_a_reader_that_goes_away_is_left_to_the_caller(make):
    read, write = os.pipe()
    os.close(read)
    out = open(write, "w", encoding="utf-8")  # noqa: SIM115 (closing it fails too)
    with pytest.raises(BrokenPipeError):
        job_of(make(), b"A dog.\n").to_stream(out)
    with pytest.raises(BrokenPipeError):
        out.close()


def second(text: bytes, role: str = "prefix") -> SecondFile:
    return SecondFile(io.BytesIO(text), role)


def test_prefixes_are_read_from_a_second_file(network):
    prefixes = second(b"Ein Hund\n\nThe")
    lines = written(network, b"A dog.\n\nball\n", second=prefixes)
    assert lines[0].startswith("Ein Hund")
    assert lines[2].startswith("The")


def test_given_pairs_are_scored_one_per_line(network):
    source, targets = b"A dog.\nball\n\n", b"Ein Hund.\nball\nball"
    text = written(network, source, second=second(targets, "target"), n_best=2)
    objects = written(network, source, second=second(targets, "target"), format="jsonl")
    scores = [float(line) for line in text]
    found = [json.loads(line) for line in objects]
    assert [o["line"] for o in found] == [1, 2, 3]
    assert [o["log_prob"] for o in found] == pytest.approx(scores, abs=1e-4)
    assert (found[0]["source"], found[0]["target"]) == ("A dog.", "Ein Hund.")
    assert found[0]["tokens"][-1] == "</s>"
    assert sum(found[0]["token_log_probs"]) == pytest.approx(found[0]["log_prob"])


@pytest.mark.parametrize(("other", "fact"), [(b"a\n", "fewer"), (b"a\nb\nc\n", "more")])
def test_a_second_file_of_another_length_is_refused(network, other, fact, tmp_path):
    lines = b"A dog.\nball\n"
    with pytest.raises(DataError, match=f"{fact} lines than the input"):
        job_of(network, lines, second(other)).to_stream(io.StringIO())
    for name, content in (("in.txt", lines), ("prefixes", other)):
        (tmp_path / name).write_bytes(content)
    out = io.StringIO()
    with (
        open(tmp_path / "in.txt", "rb") as file,
        open(tmp_path / "prefixes", "rb") as prefixes,
        pytest.raises(DataError, match=rf"prefixes has {len(other) // 2} lines, but the .* 2"),
    ):
        job_of(network, file, SecondFile(prefixes, "prefix")).to_stream(out)
    assert out.getvalue() == ""  # reported before any work


# -- files -----------------------------------------------------------------------------------


@pytest.fixture
def job(tmp_path, make, monkeypatch):
    monkeypatch.setattr(stream_stage, "LINES_AT_A_TIME", 2)
    return FileJob(tmp_path, make())


class FileJob:
    """Five lines of input, translated two at a time; can be killed on the way."""

    def __init__(self, directory: Path, translator: Translator) -> None:
        self.translator = translator
        self.source, self.output = directory / "input.txt", directory / "output.txt"
        self.part = directory / "output.txt.part"
        self.note = directory / "output.txt.part.json"
        self.source.write_text("\n".join(LINES) + "\n", encoding="utf-8")

    def run(self, **options: Any) -> int:
        """How many lines the input had."""
        with open(self.source, "rb") as source:
            return job_of(self.translator, source, **options).to_file(self.output)

    def kill_after(self, n_batches: int, **options: Any) -> None:
        self.translator.engine.n_until_killed = n_batches
        with pytest.raises(KeyboardInterrupt):
            self.run(**options)
        self.translator.engine.n_until_killed = None
        self.translator.model.shown.clear()

    @property
    def n_decoded(self) -> int:
        return sum(len(src) for src, _ in self.translator.model.shown)

    @property
    def result(self) -> list[str]:
        assert not self.part.exists()
        assert not self.note.exists()
        return self.output.read_text(encoding="utf-8").split("\n")[:-1]


def test_a_file_becomes_a_file(job, capsys):
    assert job.run() == 5
    assert job.result == LINES
    assert capsys.readouterr().err == ""


def test_an_empty_file_becomes_an_empty_file(job):
    job.source.write_bytes(b"")
    assert job.run() == 0
    assert job.result == []


def test_a_killed_job_is_resumed_where_it_stopped(job, capsys):
    job.kill_after(1)
    assert job.part.read_text() == "A dog.\n\n"
    assert not job.output.exists()
    with open(job.part, "ab") as file:
        file.write(b"Two men a")  # killed within a line
    assert job.run() == 5
    assert job.result == LINES
    assert job.n_decoded == 3  # of five lines two were done
    assert f"resuming at line 3: {job.part} holds the lines before it" in capsys.readouterr().err


def test_a_killed_job_with_n_best_resumes_with_whole_answers(job):
    job.run(n_best=2)
    expected = job.result
    job.kill_after(1, n_best=2)
    lines = job.part.read_bytes().splitlines(keepends=True)
    job.part.write_bytes(b"".join(lines[:3]))
    job.run(n_best=2)
    assert job.result == expected
    assert job.n_decoded == 3


@pytest.mark.parametrize("changed", ["input", "model", "options"])
def test_another_job_starts_over_and_says_why(job, capsys, changed):
    job.kill_after(1)
    if changed == "input":
        job.source.write_text("ball\n" * 3)
    if changed == "model":
        with torch.no_grad():
            job.translator.model.weight.fill_(1.0)
    job.run(**({"beam_size": 1} if changed == "options" else {}))
    assert job.result == (["ball"] * 3 if changed == "input" else LINES)
    assert f"starting over instead of resuming {job.part}: the {changed} changed" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("note", [None, "{", "{}", "[" * 200_000], ids=lambda x: str(x)[:4])
def test_a_partial_file_of_others_is_kept(job, note):
    job.part.write_text("mine")
    if note is not None:
        job.note.write_text(note)
    with pytest.raises(UsageError, match="was not written by mtrain"):
        job.run()
    assert job.part.read_text() == "mine"


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_link_or_pipe_in_place_of_the_partial_file(job, tmp_path, kind):
    (tmp_path / "victim").write_text("mine")
    if kind == "link":
        job.part.symlink_to(tmp_path / "victim")
    else:
        os.mkfifo(job.part)
    with pytest.raises(UsageError, match="was not written by mtrain"):
        job.run()
    assert (tmp_path / "victim").read_text() == "mine"


@pytest.mark.parametrize("suffix", [".part", ".part.json"])
def test_an_input_with_the_name_of_the_partial_file(job, suffix):
    job.source = job.source.rename(f"{job.output}{suffix}")
    with pytest.raises(UsageError, match="is an input"):
        job.run()
    assert job.source.read_text(encoding="utf-8") == "\n".join(LINES) + "\n"


def test_a_lock_file_of_others_is_kept(job):
    lock = job.output.with_name(f".{job.output.name}.lock")
    lock.write_text("mine")
    job.run()
    assert lock.read_text() == "mine"
    assert job.result == LINES


def test_standard_output_that_is_the_input(job):
    with (
        open(job.source, "rb") as source,
        open(job.source, "a", encoding="utf-8") as out,
        pytest.raises(UsageError, match="input is standard output as well"),
    ):
        job_of(job.translator, source).to_stream(out)


def test_a_pipe_starts_over(job, pipe):
    reader, writer = pipe
    job.kill_after(1)
    writer.write(b"ball\n")
    writer.close()
    job_of(job.translator, reader).to_file(job.output)
    assert job.result == ["ball"]


def test_output_that_is_no_regular_file_is_written_as_it_is(job):
    os.mkfifo(job.output)
    received: list[str] = []
    thread = threading.Thread(
        target=lambda: received.append(job.output.read_text(encoding="utf-8"))
    )
    thread.start()
    job.run()
    thread.join(10)
    assert received == ["\n".join(LINES) + "\n"]
    assert job.output.is_fifo()


def test_a_full_disk_is_one_sentence(job, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"no space left .*output\.txt\.part"):
        job.run()


@pytest.mark.parametrize(
    ("output", "problem"), [("missing/out", "its directory does not exist"), ("", "a directory")]
)
def test_a_place_that_cannot_be_written_is_one_sentence(job, tmp_path, output, problem):
    job.output = tmp_path / output
    with pytest.raises(StorageError, match=problem):
        job.run()
    assert job.translator.model.shown == []


def test_an_unwritable_directory_is_one_sentence(job, monkeypatch):
    def refuse(*arguments: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "output.txt.part.json")

    monkeypatch.setattr(os, "replace", refuse)  # root may write anywhere
    with pytest.raises(StorageError, match="permission denied"):
        job.run()
