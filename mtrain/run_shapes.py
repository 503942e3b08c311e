"""The shapes of the JSON files of a run. A file of another shape is damaged: see `storage`.

Other keys are allowed, and runs of older versions lack the newer ones.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from mtrain.config.entries import SHA256, SLUG

Name = Annotated[str, Field(pattern=SLUG, max_length=200)]  # of a split: part of a file name
ScoreName = Annotated[str, Field(pattern=SLUG[:-1] + r"(\[[^\]]*\])?$", max_length=1000)]
Stem = Annotated[str, Field(pattern=r"^[^/\\\x00]+$", max_length=250)]  # a file name
Hash = Annotated[str, Field(pattern=SHA256)]
Count = Annotated[int, Field(ge=0, lt=1 << 62)]
Real = Annotated[float, Field(allow_inf_nan=False)]
Ratio = Annotated[float, Field(ge=0, le=10_000, allow_inf_nan=False)]


class LengthRatio(TypedDict):
    """Of target over source, in pieces with EOS."""

    mean: Ratio
    std: Ratio


class Row(TypedDict):
    """The number of pairs of a split that were read, dropped for a reason, or kept."""

    split: str
    reason: str
    pairs: Count


class Side(TypedDict):
    """Counts of one side of the training text."""

    n_words: Count
    n_tokens: Count
    tokens_per_word: Real
    byte_share: Real


class Source(TypedDict):
    """An entry of the config as `prepare` found it."""

    entry: str
    files: NotRequired[dict[str, dict[str, Any]]]
    sha256: NotRequired[dict[str, str]]


class Choice(TypedDict):
    """A value that was chosen for a key of the config that is `auto`."""

    key: str
    value: str | float | int | bool
    reason: str


class Manifest(TypedDict):
    """data/manifest.json: what `prepare` recorded of the data."""

    splits: list[Name]
    split_sha256: dict[Name, Hash]
    files: dict[str, Hash]  # prepared file -> its sha256
    length_ratio: LengthRatio
    path: NotRequired[str | None]  # of the prepared data
    source: NotRequired[str]
    target: NotRequired[str]
    n_train_pairs: NotRequired[Count]
    vocab_sizes: NotRequired[Annotated[list[Count], Field(min_length=2, max_length=2)]]
    tags: NotRequired[dict[Name, str | None]]
    languages: NotRequired[dict[Name, tuple[str, str]]]  # of splits, if not the config's
    n_leaked: NotRequired[dict[Name, Count]]
    decontaminated: NotRequired[bool]
    copied_share: NotRequired[Real]
    sides: NotRequired[dict[str, Side]]
    table: NotRequired[list[Row]]
    sources: NotRequired[list[Source]]
    sizes: NotRequired[dict[str, Count]]  # prepared file -> bytes
    choices: NotRequired[list[Choice]]


class Score(TypedDict):
    """One metric on one test set."""

    score: Real
    low: NotRequired[Real | None]
    high: NotRequired[Real | None]
    signature: NotRequired[str]


class ScoreEntry(TypedDict, total=False):
    """An entry of scores.json: metrics and other facts."""

    bleu: Score
    chrf: Score
    ter: Score
    comet: Score
    checkpoint: Name
    translations: Stem
    test_set_sha256: str
    sentences: Count
    seconds: Real
    decode: dict[str, str | float | bool | None]
    contaminated: bool
    n_leaked: Count


class TrainRecord(TypedDict):
    """A logged step."""

    kind: Literal["train"]
    step: Annotated[int, Field(ge=1)]
    epoch: NotRequired[Count]
    elapsed_s: NotRequired[Real]
    tokens_per_s: NotRequired[Real | None]
    nll: NotRequired[Real | None]
    loss: NotRequired[Real | None]
    learning_rate: NotRequired[Real | None]
    grad_norm: NotRequired[Real | None]


class ValidRecord(TypedDict):
    """A validation; a rival is a checkpoint other than the best, scored at the end."""

    kind: Literal["valid", "rival"]
    step: Count
    is_best: NotRequired[bool]
    loss: NotRequired[Real | None]
    bleu: NotRequired[Real | None]
    chrf: NotRequired[Real | None]


class ConfigRecord(TypedDict):
    """A key of the config that was changed."""

    kind: Literal["config"]
    key: str


class Point(TypedDict):
    """One way to decode, in sweep.json."""

    beam: Count
    length_penalty: Real
    precision: str
    engine: str
    bleu: Real
    chrf: Real
    sentences_per_s: Real
    recommended: bool


class Weights(TypedDict):
    """Attention weights as base64 of bytes."""

    shape: list[Count]
    bytes: str


class Maps(TypedDict):
    """The attention of one sentence."""

    source: Annotated[list[str], Field(min_length=1)]
    written: list[str]
    read: Annotated[list[str], Field(min_length=1)]
    encoder: Weights
    decoder: Weights
    cross: Weights


class Head(TypedDict):
    """An attention head that shows word links; see decoding.alignment."""

    layer: Count
    head: Count | None
    is_next_row: bool
    agreement: Real


class Line(TypedDict):
    """A line of translations/*.jsonl."""

    source: str
    reference: str
    translation: str
    score: Real | None


class Dropped(TypedDict):
    """Training pairs dropped for one reason."""

    words: str
    n_pairs: Count
    examples: list[tuple[str, str]]


class Entry(TypedDict):
    """The pairs of an entry of data.train."""

    name: str
    n_read: Count
    n_kept: Count
    dropped: list[Dropped]


class NearMatches(TypedDict):
    """Training text that nearly equals a sentence of a split."""

    split: str
    n_pairs: Count
    examples: list[tuple[str, str]]


class Repeated(TypedDict):
    """A target shared by many pairs."""

    text: str
    n_pairs: Count


class Lengths(TypedDict):
    """One side of the kept pairs."""

    lengths: list[Count]  # by number of pieces


class DataReport(TypedDict):
    """data/report.json: see data.data_report."""

    entries: list[Entry]
    sides: dict[Literal["source", "target"], Lengths]
    repeated_targets: list[Repeated]
    near_matches: list[NearMatches]
    suspicions: list[str]


class Facts(TypedDict, total=False):
    """The facts about the weights in a safetensors file."""

    step: Count
    checkpoint: Annotated[str, Field(pattern=r"^(best|last|avg|avg-best|ema|step-[0-9]+)$")]
    files: dict[str, Hash]  # name -> sha256, in an exported file
    valid: dict[str, Any]  # the record of their validation


class Note(TypedDict):
    """The metadata `mtrain` of a safetensors file; see single_file."""

    format: int
    sha256: str
    facts: Facts


class LockedFile(TypedDict):
    """The state of a file when it was first read."""

    sha256: Hash
    size_bytes: NotRequired[Count]
    lines: NotRequired[Count]


class LockedSource(TypedDict, total=False):
    """The contents of an entry: see data.lock and data.hub."""

    name: str | None
    pairs: Count
    lines: Count
    revision: str
    format: str
    files: dict[str, Count]  # path in the repository -> size in bytes


class Lock(TypedDict):
    """The lock beside a config."""

    format: Literal[1]
    files: dict[str, LockedFile]
    sources: NotRequired[dict[str, LockedSource]]


Record = Annotated[TrainRecord | ValidRecord | ConfigRecord, Field(discriminator="kind")]


def _shape(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


DATA_REPORT = _shape(DataReport)
MANIFEST = _shape(Manifest)
CHOICES = _shape(list[Choice])
SCORES = _shape(dict[ScoreName, ScoreEntry])
RECORD = _shape(Record)
SWEEP = _shape(list[Point])
ATTENTION = _shape(list[Maps])
HEADS = _shape(dict[str, Head])
ENVIRONMENTS = _shape(list[dict[str, str]])
WORD_COUNTS = _shape(dict[Literal["source", "target"], dict[str, Count]])
ANY = _shape(dict[str, Any])
LOCK = _shape(Lock)
NOTE = _shape(Note)
TRANSLATED_LINE = _shape(Line)
