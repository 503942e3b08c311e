"""The sections of a config: each key with its default, bounds and meaning.

Validation, the JSON schema for editors and configs/README.md all come from these declarations.
`root` puts the sections together.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    model_validator,
)

from mtrain.config.clean import CleanConfig, as_filters
from mtrain.config.entries import (
    DURATION,
    WITHOUT_SPACES,
    Automatic,
    Entry,
    Location,
    MonoEntry,
    Section,
    TestName,
    as_entries,
    as_list,
    as_test_sets,
    complaint,
)
from mtrain.config.literals import DeviceOrAuto, PenaltyForm, PrecisionOrAuto

MOST = 1 << 40  # of any count: far more than useful, and safe in 64-bit arithmetic
Count = Annotated[int, Field(ge=1, le=MOST)]

# -- data ------------------------------------------------------------------------------------


class DataConfig(Section):
    """Where the text comes from, and which pairs are used."""

    train: Annotated[
        tuple[Entry, ...],
        BeforeValidator(as_entries, json_schema_input_type=Entry | tuple[Entry, ...]),
    ] = Field(description="an entry or a list of entries")
    valid: Entry | None = Field(
        default=None,
        description="an entry; default: 2,000 pairs or 2 % of train, whichever is less, held out",
    )
    test: Annotated[
        dict[TestName, Entry],
        BeforeValidator(as_test_sets, json_schema_input_type=Entry | dict[TestName, Entry]),
    ] = Field(default={}, description="an entry (then named `test`) or a mapping of name to entry")
    mono: Annotated[
        tuple[MonoEntry, ...],
        BeforeValidator(as_list, json_schema_input_type=MonoEntry | tuple[MonoEntry, ...]),
    ] = Field(
        default=(),
        description="monolingual text, a `{mono, side}` entry or a list of them; the tokenizer is "
        "trained on its first `tokenizer.max_sentences` lines as well",
    )
    temperature: float | None = Field(
        default=None,
        gt=0,
        le=100,
        description="sampling temperature T: training entries of n pairs are sampled in proportion"
        " to n^(1/T); above 1, small entries are seen more often; the length of an epoch stays the"
        " same",
    )
    max_length: int = Field(
        default=256, ge=1, le=4096, description="longest side of a training pair, in pieces"
    )
    deduplicate: bool = Field(default=True, description="drop repeated training pairs")
    decontaminate: bool = Field(
        default=True, description="drop training pairs whose text occurs in valid or test"
    )
    max_unreadable: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="largest fraction of a training entry's lines that may be dropped because they"
        " are not UTF-8 or contain a NUL; more is an error, as is any such line in valid or test",
    )
    clean: Annotated[
        CleanConfig, BeforeValidator(as_filters, json_schema_input_type=CleanConfig | bool)
    ] = Field(
        default=CleanConfig(),
        description="filters for training pairs; `false` turns all of them off",
    )
    seed: int = Field(
        default=1,
        ge=0,
        le=4_294_967_295,
        description="random seed of held-out pairs and generated phrases",
    )


# -- tokenizer, model ------------------------------------------------------------------------


class TokenizerModels(Section):
    """A SentencePiece model for each side."""

    source: str = Field(description="path of the source's model")
    target: str = Field(description="path of the target's model")


def _free_symbols(symbols: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse existing pieces and text that cannot occur after normalisation."""
    for number, symbol in enumerate(symbols):
        if symbol in symbols[:number]:
            raise complaint(f"names `{symbol}` twice", "remove one of the two")
        if re.fullmatch(r"<(pad|unk|s|/s|0x[0-9A-Fa-f]{2})>|\u2581+", symbol):
            raise complaint(f"names `{symbol}`, which is already a piece", "remove it")
        if unicodedata.normalize("NFC", symbol) != symbol or not symbol.isprintable():
            raise complaint(
                f"names {symbol!r}, which never occurs: text is NFC, without control characters",
                "write its normalised form",
            )
    return symbols


Symbol = Annotated[str, Field(min_length=1, max_length=16, pattern=WITHOUT_SPACES)]


class TokenizerConfig(Section):
    """SentencePiece, trained on the training text or loaded from a file."""

    vocab_size: Annotated[int, Automatic()] = Field(
        default=8000,
        ge=300,
        le=1_000_000,
        description="pieces, special symbols included; auto: by the number of pairs",
    )
    type: Literal["unigram", "bpe", "char"] = Field(
        default="unigram",
        description="SentencePiece model type; char: one piece per character, up to vocab_size",
    )
    sampling: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="subword regularisation, drawn again in each epoch: for bpe, the dropout "
        "probability of merges (BPE-dropout; usually 0.1); for unigram, the smoothing exponent "
        "alpha (0.1 to 0.5; smaller is more random); 0: off",
    )
    user_defined_symbols: Annotated[tuple[Symbol, ...], AfterValidator(_free_symbols)] = Field(
        default=(), description="strings that are always a single piece"
    )
    model: Location | TokenizerModels | None = Field(
        default=None,
        description="path of an existing SentencePiece model, or {source, target} with `shared: "
        "false`; its pieces follow our special symbols in their order, and vocab_size, type "
        "(except for sampling), split_digits, character_coverage, max_sentences and "
        "user_defined_symbols are ignored",
    )
    shared: bool = Field(
        default=True, description="one vocabulary for both sides instead of one per side"
    )
    split_digits: bool = Field(default=False, description="make each digit a separate piece")
    character_coverage: Annotated[float, Automatic()] = Field(
        default=1.0,
        ge=0.98,
        le=1.0,
        description="fraction of characters in the vocabulary; the others are encoded as bytes; "
        "auto: 1, or 0.9995 where the text has more than 1,000 different ones",
    )
    max_sentences: int = Field(
        default=2_000_000,
        ge=1,
        le=MOST,
        description="sentences for training SentencePiece, at most 25 million characters",
    )


Preset = Literal["tiny", "small", "base", "big"]
PRESETS: dict[str, dict[str, int]] = {
    "tiny": {
        "d_model": 128,
        "d_ff": 256,
        "n_heads": 4,
        "n_encoder_layers": 4,
        "n_decoder_layers": 4,
    },
    "small": {
        "d_model": 256,
        "d_ff": 1024,
        "n_heads": 4,
        "n_encoder_layers": 3,
        "n_decoder_layers": 3,
    },
    "base": {
        "d_model": 512,
        "d_ff": 2048,
        "n_heads": 8,
        "n_encoder_layers": 6,
        "n_decoder_layers": 6,
    },
    "big": {
        "d_model": 1024,
        "d_ff": 4096,
        "n_heads": 16,
        "n_encoder_layers": 6,
        "n_decoder_layers": 6,
    },
}


class ModelConfig(Section):
    """The Transformer: a preset, any of whose sizes may be overridden."""

    preset: Annotated[Preset, Automatic()] = Field(
        default="small",
        description="default of the sizes below; auto: by the number of pairs and the time, or "
        "small if a size is given",
    )
    d_model: int = Field(ge=8, le=65_536, description="width D of embeddings and residual stream")
    d_ff: int = Field(ge=8, le=1_048_576, description="inner width F of the feed-forward layers")
    n_heads: int = Field(ge=1, le=1024, description="attention heads H; divides d_model")
    n_encoder_layers: int = Field(ge=1, le=1000, description="encoder layers")
    n_decoder_layers: int = Field(ge=1, le=1000, description="decoder layers")
    norm: Literal["pre", "post"] = Field(
        default="pre", description="normalise before each sub-layer or, as in the paper, after it"
    )
    norm_type: Literal["layernorm", "rmsnorm"] = Field(
        default="layernorm",
        description="layernorm as in the paper, or rmsnorm (no mean, no bias)",
    )
    activation: Literal["relu", "gelu", "swiglu"] = Field(
        default="relu",
        description="in the feed-forward layers; swiglu has a third matrix: use two thirds of d_ff"
        " for the same number of parameters",
    )
    dropout: Annotated[float, Automatic()] = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="dropout of embeddings and sub-layer outputs; auto: more with more epochs",
    )
    attention_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="dropout of attention weights"
    )
    activation_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="dropout in feed-forward layers"
    )
    tied: Literal["all", "output", "none"] = Field(
        default="all",
        description="weight tying: all: both embeddings and the output projection (needs a shared "
        "vocabulary; the default with one); output: target embedding and output projection",
    )

    @model_validator(mode="wrap")
    @classmethod
    def _fill_sizes(
        cls, value: Any, handler: ModelWrapValidatorHandler[ModelConfig]
    ) -> ModelConfig:
        """Take missing sizes from the preset; they do not count as given."""
        if not isinstance(value, dict):
            return handler(value)
        sizes = PRESETS.get(str(value.get("preset")), PRESETS["small"])
        missing = {key: size for key, size in sizes.items() if value.get(key) is None}
        model = handler(value | missing)
        model.model_fields_set.difference_update(missing)
        return model


# -- train, decode, evaluate -----------------------------------------------------------------


class OptimConfig(Section):
    """The optimizer and its schedule. A resumed run refuses changes of these."""

    optimizer: Annotated[Literal["adamw", "muon"], Automatic()] = Field(
        default="adamw",
        description="muon: orthogonalised momentum for the matrices of the layers, AdamW for the "
        "rest; needs fewer steps, each a little slower; auto: muon",
    )
    learning_rate: Annotated[float, Automatic()] = Field(
        default=7e-4,
        gt=0,
        description="peak, at the end of warm-up; auto: by the optimizer and the width",
    )
    schedule: Annotated[Literal["inverse_sqrt", "linear", "cosine", "constant"], Automatic()] = (
        Field(
            default="inverse_sqrt",
            description="decay after warm-up: inverse square root of the step (as in the paper), "
            "linear or cosine to zero at max_steps, or constant; auto: linear with `max_steps` or "
            "a `budget`, else inverse_sqrt",
        )
    )
    warmup_steps: Annotated[int, Automatic()] = Field(
        default=0,
        ge=0,
        le=MOST,
        description="steps of linear warm-up; auto: a twentieth of the steps, at most 4,000",
    )
    beta1: float = Field(default=0.9, ge=0, lt=1, description="decay rate of Adam's first moment")
    beta2: float = Field(default=0.98, ge=0, lt=1, description="decay rate of Adam's second moment")
    epsilon: float = Field(default=1e-9, gt=0, description="Adam's epsilon")
    momentum: float = Field(default=0.95, ge=0, lt=1, description="momentum of Muon")
    weight_decay: Annotated[float, Automatic()] = Field(
        default=0.01,
        ge=0,
        description="decoupled weight decay, of matrices only; auto: by the optimizer",
    )
    clip_norm: float = Field(default=1.0, ge=0, description="maximum gradient norm; 0: no clipping")
    label_smoothing: float = Field(
        default=0.1, ge=0, lt=1, description="probability distributed uniformly over the vocabulary"
    )
    consistency: Annotated[Literal["none", "rdrop", "simcut"], Automatic()] = Field(
        default="none",
        description="consistency loss between two passes over each batch: rdrop uses two dropout "
        "masks, simcut also removes words from the input of one; helps with small data, at twice "
        "the time per update; auto: simcut where there is time for many epochs",
    )
    consistency_weight: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="weight of the consistency loss; default: 5 for rdrop, 3 for simcut",
    )
    cut: float = Field(
        default=0.05, gt=0, lt=1, description="fraction of words that simcut removes"
    )
    ema_decay: Annotated[float, Automatic()] = Field(
        default=0.999,
        ge=0,
        lt=1,
        description="decay of the moving average of the weights, which validation and `best` use; "
        "0: no average; auto: averages over a fifteenth of the steps, at most 0.9995",
    )


class TrainConfig(Section):
    """The training loop."""

    max_steps: Count | None = Field(
        default=None,
        description="number of updates; default: with a `budget` no limit, else until `patience` "
        "ends, at most 100,000",
    )
    budget: str | None = Field(
        default=None,
        pattern=DURATION,
        description="time from the end of `prepare` to the end of `train`, such as 30min or "
        "1h30min: steps, warm-up, decay, validations and the choice of the best weights are "
        "planned to fit",
    )
    init_from: Location | None = Field(
        default=None,
        description="a run to take the initial weights from, and the tokenizer unless "
        "`tokenizer.model` is given",
    )
    both_directions: Annotated[float, Automatic()] = Field(
        default=0.0,
        ge=0,
        le=1,
        description="fraction of training (from the start, rounded up to whole epochs) in which "
        "half of the pairs are reversed, target to source; the halves alternate between epochs "
        "(Ding et al., 2021); auto: 0.4 for up to 200,000 pairs in one vocabulary and 10 epochs "
        "or more, else 0",
    )
    batch_tokens: Annotated[int, Automatic()] = Field(
        default=4096,
        ge=16,
        le=MOST,
        description="target tokens per update, EOS included, padding not; auto: by the number of "
        "pairs and the device",
    )
    micro_batch_tokens: Count | Literal["auto"] = Field(
        default="auto",
        description="limit of rows x longest side per forward pass; auto: an equal share of the "
        "update per thread on a CPU, as much as keeps the device busy on a GPU",
    )
    validate_every: Count | Literal["auto"] = Field(
        default="auto",
        description="steps between validations; auto: up to ten in a `budget`, in a tenth of its "
        "time; ten in `max_steps`; else after an epoch, or 500 steps",
    )
    save_every: int = Field(default=1000, ge=1, le=MOST, description="steps between checkpoints")
    log_every: int = Field(
        default=50, ge=1, le=MOST, description="steps between lines of metrics.jsonl"
    )
    keep: int = Field(
        default=2,
        ge=1,
        le=MOST,
        description="number of newest checkpoints to keep, besides the best",
    )
    keep_best: int = Field(
        default=1,
        ge=1,
        le=MOST,
        description="number of best checkpoints to keep; at the end, their average competes with "
        "`last`, `ema` and the average of the newest",
    )
    best_metric: Literal["chrf", "bleu", "loss"] = Field(
        default="chrf", description="the score on valid that selects the best checkpoint"
    )
    patience: Annotated[int, Automatic()] = Field(
        default=0,
        ge=0,
        le=MOST,
        description="stop after this many validations without improvement; 0: never; auto: 10 "
        "without `max_steps` and `budget`, else 0",
    )
    seed: int = Field(
        default=1, ge=0, le=4_294_967_295, description="random seed of weights, order and dropout"
    )
    device: DeviceOrAuto = Field(
        default="auto", description="where to train; auto: CUDA if available"
    )
    precision: PrecisionOrAuto = Field(
        default="auto",
        description="of matrix products; auto: bf16 if the hardware has it; fp32 never uses TF32",
    )
    compile: bool | Literal["auto"] = Field(
        default=False,
        description="compile the layers with torch.compile (not yet measured on a GPU); auto: on a"
        " GPU, if a training of ten minutes or more is faster with it",
    )
    threads: Annotated[int, Field(ge=1, le=256)] | Literal["auto"] = Field(
        default="auto", description="CPU threads"
    )
    tensorboard: bool = Field(
        default=False,
        description="also write the metrics for TensorBoard, into the run directory (needs the "
        "extra `tensorboard`)",
    )
    optim: OptimConfig = OptimConfig()

    @property
    def budget_s(self) -> float | None:
        """The budget in seconds."""
        if self.budget is None:
            return None
        parts = re.findall(r"([0-9.]+)(h|min|s)", self.budget)
        return sum(float(number) * {"h": 3600, "min": 60, "s": 1}[unit] for number, unit in parts)


class DecodeConfig(Section):
    """Beam search in validation, `eval` and `translate`."""

    beam_size: int = Field(default=5, ge=1, le=100, description="beam size; 1 is greedy search")
    length_penalty: float = Field(
        default=1.0, ge=0, le=10, description="p in: score = log-probability / length^p"
    )
    length_penalty_form: PenaltyForm = Field(
        default="power",
        description="gnmt: ((5 + length) / 6)^p instead of length^p, as in the Transformer paper",
    )
    batch_tokens: Count | Literal["auto"] = Field(
        default="auto",
        description="source tokens x beam size per batch; auto: 12,288 per thread on a CPU, 65,536"
        " on a GPU, or fewer if its free memory is small",
    )
    precision: PrecisionOrAuto = Field(
        default="auto", description="of matrix products; auto: bf16 if the hardware has it"
    )


BleuTokenizer = Literal[
    "auto",
    "13a",
    "intl",
    "zh",
    "ja-mecab",
    "ko-mecab",
    "char",
    "none",
    "spm",
    "flores101",
    "flores200",
    "spBLEU-1K",
]


class EvaluateConfig(Section):
    """How translations are scored (sacreBLEU)."""

    tokenize: BleuTokenizer = Field(
        default="auto", description="BLEU's tokenizer; auto: chosen by the target language"
    )
    lowercase: bool = Field(default=False, description="ignore case in BLEU and chrF")
    comet: str | None = Field(
        default=None,
        min_length=1,
        description="a COMET model that `eval` suggests, such as Unbabel/wmt22-comet-da; it is "
        "downloaded and used only with `eval --comet MODEL`",
    )
