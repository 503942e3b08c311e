"""The sections of a config: each key with its default, its bounds and its meaning.

They are declared here and nowhere else; validation, the JSON schema for editors and the reference
in the README all come from these declarations. `config` puts them together.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from mtrain.config.clean import CleanConfig, as_filters
from mtrain.config.entries import (
    DURATION,
    WITHOUT_SPACES,
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

# -- data ------------------------------------------------------------------------------------


class DataConfig(Section):
    """Where the text comes from, and what is kept of it."""

    train: Annotated[
        tuple[Entry, ...],
        BeforeValidator(as_entries, json_schema_input_type=Entry | tuple[Entry, ...]),
    ] = Field(description="an entry or a list of entries")
    valid: Entry | None = Field(
        default=None,
        description="an entry; without it the smaller of 2,000 pairs and 2 % is held out of train",
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
        description="text in one language, a `{mono, side}` or a list of them: the tokenizer "
        "learns from its first `tokenizer.max_sentences` lines too",
    )
    temperature: float | None = Field(
        default=None,
        gt=0,
        le=100,
        description="T: an epoch has as many pairs as there are, but of a training entry of n "
        "pairs in proportion to n^(1/T); above 1, small entries come more often than large ones",
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
        description="largest share of a training entry's lines that may be dropped because they "
        "are not UTF-8 or hold a NUL; more is an error, and so is any such line in valid or test",
    )
    clean: Annotated[
        CleanConfig, BeforeValidator(as_filters, json_schema_input_type=CleanConfig | bool)
    ] = Field(
        default=CleanConfig(),
        description="which training pairs are dropped for their text; `false`: none",
    )
    seed: int = Field(
        default=1,
        ge=0,
        le=4_294_967_295,
        description="seed of held-out pairs and generated phrases",
    )


# -- tokenizer, model ------------------------------------------------------------------------


class TokenizerModels(Section):
    """A SentencePiece model for each side."""

    source: str = Field(description="path of the source's model")
    target: str = Field(description="path of the target's model")


def _free_symbols(symbols: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse pieces that SentencePiece or mtrain has already, and text that never occurs."""
    for number, symbol in enumerate(symbols):
        if symbol in symbols[:number]:
            raise complaint(f"names `{symbol}` twice", "remove one of the two")
        if re.fullmatch(r"<(pad|unk|s|/s|0x[0-9A-Fa-f]{2})>|\u2581+", symbol):
            raise complaint(f"names `{symbol}`, which is a piece already", "remove it")
        if unicodedata.normalize("NFC", symbol) != symbol or not symbol.isprintable():
            raise complaint(
                f"names {symbol!r}, which no text holds: text is NFC, without control characters",
                "write it as it is in normalised text",
            )
    return symbols


Symbol = Annotated[str, Field(min_length=1, max_length=16, pattern=WITHOUT_SPACES)]


class TokenizerConfig(Section):
    """SentencePiece, trained on the training text, or taken over."""

    vocab_size: int = Field(
        default=8000, ge=300, le=1_000_000, description="pieces, special symbols included"
    )
    type: Literal["unigram", "bpe", "char"] = Field(
        default="unigram",
        description="how pieces are learnt; char: every character is one, up to vocab_size",
    )
    sampling: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="cut the training text into other pieces in every epoch: for bpe, the share "
        "of merges that are left out (BPE-dropout; 0.1 is usual); for unigram, the exponent of the "
        "probabilities that are drawn from (0.1 to 0.5; the smaller, the more random); 0: always "
        "the best pieces",
    )
    user_defined_symbols: Annotated[tuple[Symbol, ...], AfterValidator(_free_symbols)] = Field(
        default=(), description="texts that are never cut, each a piece of its own"
    )
    model: Location | TokenizerModels | None = Field(
        default=None,
        description="path of a SentencePiece model to take over, or {source, target} with "
        "`shared: false`; pieces keep their order behind our special symbols, and vocab_size, type "
        "(but for sampling), split_digits, character_coverage, max_sentences and "
        "user_defined_symbols mean nothing then",
    )
    shared: bool = Field(default=True, description="one vocabulary for both sides, or one a side")
    split_digits: bool = Field(default=False, description="every digit is a piece of its own")
    character_coverage: float = Field(
        default=1.0,
        ge=0.98,
        le=1.0,
        description="share of characters with a piece of their own; the rest is spelled in bytes",
    )
    max_sentences: int = Field(
        default=2_000_000,
        ge=1,
        description="sentences to learn the pieces from, of at most 25 million characters",
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
    """The Transformer: a preset, and any of its sizes overridden beside it."""

    preset: Preset = Field(default="small", description="the sizes below, where not given")
    d_model: int = Field(ge=8, le=65_536, description="width D of embeddings and residual stream")
    d_ff: int = Field(ge=8, le=1_048_576, description="inner width F of the feed-forward layers")
    n_heads: int = Field(ge=1, le=1024, description="attention heads H; divides d_model")
    n_encoder_layers: int = Field(ge=1, le=1000, description="encoder layers")
    n_decoder_layers: int = Field(ge=1, le=1000, description="decoder layers")
    norm: Literal["pre", "post"] = Field(
        default="pre", description="normalise before each sub-layer, or after it as in the paper"
    )
    norm_type: Literal["layernorm", "rmsnorm"] = Field(
        default="layernorm",
        description="centre and scale, as in the paper, or scale alone (no mean, no bias)",
    )
    activation: Literal["relu", "gelu", "swiglu"] = Field(
        default="relu",
        description="inside feed-forward; swiglu multiplies with a third matrix: take two thirds "
        "of d_ff for as many weights",
    )
    dropout: float = Field(default=0.1, ge=0, lt=1, description="on embeddings and sub-layers")
    attention_dropout: float = Field(default=0.0, ge=0, lt=1, description="on attention weights")
    activation_dropout: float = Field(default=0.0, ge=0, lt=1, description="inside feed-forward")
    tied: Literal["all", "output", "none"] = Field(
        default="all",
        description="share weights: both embeddings and the output projection (needs a shared "
        "vocabulary, and is the default where there is one), target embedding and output "
        "projection, or nothing",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_sizes(cls, value: Any) -> Any:
        """Sizes that are not given are the preset's."""
        if not isinstance(value, dict):
            return value
        sizes = PRESETS.get(str(value.get("preset")), PRESETS["small"])
        return value | {key: size for key, size in sizes.items() if value.get(key) is None}


# -- train, decode, evaluate -----------------------------------------------------------------


class OptimConfig(Section):
    """The optimizer and its schedule. A change of these is refused when a run resumes."""

    optimizer: Literal["adamw", "muon"] = Field(
        default="adamw",
        description="muon: momentum made orthogonal for the matrices of the layers, AdamW for "
        "the rest; fewer steps, each a little slower",
    )
    learning_rate: float = Field(default=7e-4, gt=0, description="the peak, reached by warm-up")
    schedule: Literal["inverse_sqrt", "linear", "cosine", "constant"] = Field(
        default="inverse_sqrt",
        description="after warm-up: with the inverse square root of the step (the paper), linearly "
        "or by half a cosine to zero at max_steps, or as it is",
    )
    warmup_steps: int = Field(default=4000, ge=0, description="steps of linear warm-up")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="decay of Adam's mean gradient")
    beta2: float = Field(
        default=0.98, ge=0, lt=1, description="decay of Adam's mean squared gradient"
    )
    epsilon: float = Field(default=1e-9, gt=0, description="keeps Adam from dividing by zero")
    momentum: float = Field(default=0.95, ge=0, lt=1, description="of Muon")
    weight_decay: float = Field(default=0.01, ge=0, description="decoupled, on matrices only")
    clip_norm: float = Field(
        default=1.0, ge=0, description="longest gradient of an update; 0 is no limit"
    )
    label_smoothing: float = Field(
        default=0.1, ge=0, lt=1, description="probability spread evenly over all pieces"
    )
    consistency: Literal["none", "rdrop", "simcut"] = Field(
        default="none",
        description="a second pass over each batch whose predictions should agree with the "
        "first's: R-Drop draws other dropout masks, SimCut also cuts words out of its inputs; "
        "better on small data, at twice the time an update",
    )
    consistency_weight: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="of their divergence; without it 5 for rdrop and 3 for simcut"
    )
    cut: float = Field(default=0.05, gt=0, lt=1, description="share of words that simcut cuts out")
    ema_decay: float = Field(
        default=0.999,
        ge=0,
        lt=1,
        description="moving average of the weights, which validation scores and `best` holds; "
        "0 is none",
    )


class TrainConfig(Section):
    """The training loop."""

    max_steps: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="updates of the weights; 100,000 unless there is a `budget`, of which it is "
        "the most that are made",
    )
    budget: str | None = Field(
        default=None,
        pattern=DURATION,
        description="time to train, such as 30min or 1h30min: steps, warm-up, decay and "
        "validations are laid out so that the last checkpoint is written then; the schedule is "
        "linear unless given",
    )
    init_from: Location | None = Field(
        default=None,
        description="a run whose weights this one begins with, and whose tokenizer it takes over "
        "unless `tokenizer.model` names another copy",
    )
    both_directions: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="the share of training, from its beginning and up to the end of an epoch, in "
        "which half of the pairs, the others in every next epoch, are translated from target to "
        "source (Ding et al., 2021); for small data",
    )
    batch_tokens: int = Field(
        default=4096, ge=16, description="real target tokens (EOS included) in one update"
    )
    micro_batch_tokens: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default="auto",
        description="most rows x longest side in one forward pass; auto: an equal share of the "
        "update for every thread, or what keeps a GPU busy",
    )
    validate_every: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default="auto",
        description="steps between validations; auto: 1,000, or ten times in a `budget`",
    )
    save_every: int = Field(default=1000, ge=1, description="steps between checkpoints")
    log_every: int = Field(default=50, ge=1, description="steps between lines of metrics.jsonl")
    keep: int = Field(default=2, ge=1, description="newest checkpoints kept, beside the best")
    keep_best: int = Field(
        default=1,
        ge=1,
        description="best weights on valid that are kept; with more than one, their average is "
        "compared at the end, as `last`, `ema` and the average of the newest are",
    )
    best_metric: Literal["chrf", "bleu", "loss"] = Field(
        default="chrf", description="the score on valid that chooses the best checkpoint"
    )
    patience: int = Field(
        default=0, ge=0, description="stop after so many validations without a better one; 0: never"
    )
    seed: int = Field(
        default=1, ge=0, le=4_294_967_295, description="of initial weights, order and dropout"
    )
    device: DeviceOrAuto = Field(
        default="auto", description="where to train; auto: CUDA where there is one"
    )
    precision: PrecisionOrAuto = Field(
        default="auto",
        description="of matrix products; auto: bf16 where the hardware has it; fp32 is never TF32",
    )
    compile: bool | Literal["auto"] = Field(
        default=False,
        description="compile the layers (torch.compile), which has not been measured on a GPU yet; "
        "auto: on a GPU, where a training of ten minutes or more is faster by it",
    )
    threads: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default="auto", description="CPU threads"
    )
    tensorboard: bool = Field(
        default=False,
        description="write the numbers of metrics.jsonl for TensorBoard too, into the run "
        "directory (needs the extra `tensorboard`)",
    )
    optim: OptimConfig = OptimConfig()

    @property
    def budget_s(self) -> float | None:
        """The budget in seconds."""
        if self.budget is None:
            return None
        parts = re.findall(r"([0-9.]+)(h|min|s)", self.budget)
        return sum(float(number) * {"h": 3600, "min": 60, "s": 1}[unit] for number, unit in parts)

    @model_validator(mode="before")
    @classmethod
    def _end_somewhere(cls, value: Any) -> Any:
        """Without a budget there is a number of steps; with one, the rate reaches zero."""
        if not isinstance(value, dict):
            return value
        if value.get("budget") is None:
            steps = value.get("max_steps")
            return value | {"max_steps": 100_000 if steps is None else steps}
        optim = value.get("optim")
        if optim is None or isinstance(optim, dict):
            return value | {"optim": {"schedule": "linear"} | given(optim or {})}
        return value


class DecodeConfig(Section):
    """Beam search, in validation, `eval` and `translate` alike."""

    beam_size: int = Field(default=5, ge=1, le=100, description="hypotheses kept; 1 is greedy")
    length_penalty: float = Field(
        default=1.0, ge=0, description="p in: score = log-probability / length^p"
    )
    length_penalty_form: PenaltyForm = Field(
        default="power",
        description="gnmt: ((5 + length) / 6)^p in place of length^p, as in the Transformer paper",
    )
    batch_tokens: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default="auto",
        description="source tokens x beam decoded at a time; auto: 12,288 on a CPU, in each "
        "thread, and 65,536 on a GPU; there fewer where its free memory is small",
    )
    precision: PrecisionOrAuto = Field(
        default="auto", description="of matrix products; auto: bf16 where the hardware has it"
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
    lowercase: bool = Field(default=False, description="score without regard to case")
    comet: str | None = Field(
        default=None,
        min_length=1,
        description="a COMET model that `eval` reminds of, such as Unbabel/wmt22-comet-da; it is "
        "downloaded and used only where the command line names it: `eval --comet MODEL`",
    )


def given(section: dict[str, Any]) -> dict[str, Any]:
    """The keys that have a value, so that a default may stand in for the others."""
    return {key: value for key, value in section.items() if value is not None}
