"""The entries of a config's `data`: the accepted forms of sentence pairs.

The kind of an entry follows from its keys: `{source, target}`, `{tsv}`, `{hub}` and so on. A new
kind is a section here, listed in `_Kinds`, and a class in `data.sources`.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args
from urllib.parse import quote, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    Tag,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

SHA256 = r"^[0-9a-f]{64}$"
SLUG = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
OPUS = r"^[A-Za-z0-9._+-]+/[A-Za-z0-9._-]+$"
HUB = r"^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)?$"
DURATION = r"^([0-9]+(\.[0-9]+)?(h|min|s))+$"
WITHOUT_SPACES = r"^\S+$"
Sha256 = Annotated[str, Field(pattern=SHA256)]


class Automatic:
    """Marks a key that may be `auto`, its default: `config.recipe` chooses the value.

    Until then, a config holds the default of the field.
    """

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        value = handler(schema)
        choices = value["anyOf"] if value.keys() == {"anyOf"} else [value]
        return {"anyOf": [*choices, {"const": "auto"}]}


class Section(BaseModel):
    """A part of the config: unknown keys are errors, nothing is coerced or changed later."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @classmethod
    def given(cls, value: dict[str, Any]) -> dict[str, Any]:
        """The keys with a value, without those that are `auto`."""
        auto = {
            key
            for key, field in cls.model_fields.items()
            if any(isinstance(mark, Automatic) for mark in field.metadata)
        }
        return {
            k: v
            for k, v in value.items()
            if not (v is None and k in cls.model_fields) and not (v == "auto" and k in auto)
        }

    @model_validator(mode="before")
    @classmethod
    def _null_is_default(cls, value: Any) -> Any:
        """Treat a key without a value, or with `auto` where it may be, as absent."""
        return cls.given(value) if isinstance(value, dict) else value


PATHS = (
    "A path may be a URL. Files may be compressed (gzip, xz, bzip2, zstandard; known by their "
    "first bytes). `corpus.tgz!train/a.en` is the file `train/a.en` in the archive `corpus.tgz` "
    "(zip, or tar with any compression), which is read without being extracted. Lines end at the "
    "line feed alone; a carriage return before it and a byte order mark at the start are dropped."
)


def complaint(message: str, fix: str | None) -> PydanticCustomError:
    """A problem found by our own checks; the message continues after the name of the key."""
    return PydanticCustomError("complaint", "{message}", {"message": message, "fix": fix})


URL_CHARACTERS = "%/:=&?~#+!$,;'@()*[]"  # not quoted in a URL, besides letters and digits


def is_url(location: str) -> bool:
    """Whether a location is downloaded rather than opened."""
    return location.lower().startswith(("http://", "https://"))


def check_url(url: str) -> None:
    """Raise a ValueError if a URL has no host, or one that cannot be a host name."""
    parts = urlsplit(url)
    if not parts.hostname:
        raise ValueError("it has no host")
    if parts.port == 0 or re.search(r"[\s\0]", url):
        raise ValueError("it has port 0 or white space")
    parts.hostname.encode("idna")


def _usable(location: str) -> str:
    """Raise a ValueError for a string that cannot be a URL or a path on any system."""
    try:
        if is_url(location):
            check_url(quote(location, safe=URL_CHARACTERS))
        elif any(len(part.encode()) > 255 for part in re.split("[/!]", location)):
            raise ValueError("a name in it has more than 255 bytes")
        elif len(location.encode()) > 4000:
            raise ValueError("it has more than 4,000 bytes")
        else:
            Path(location).expanduser()
    except (ValueError, RuntimeError) as error:
        kind = "URL" if is_url(location) else "path"
        raise complaint(f"is not a valid {kind}: {error}", "correct it") from error
    return location


Location = Annotated[str, Field(min_length=1), AfterValidator(_usable)]


def _free_tag(tag: str) -> str:
    if tag in ("s", "unk", "pad"):
        raise complaint("is a special symbol of its own", "choose another tag")
    return tag


def _sha256_field(what: str, key: str) -> Any:
    return Field(default={}, description=f"expected sha256 of the {what}, under the key `{key}`")


class NamedEntry(Section):
    """Keys that every entry can have."""

    file_keys: ClassVar[tuple[str, ...]] = ()  # those whose values are paths or URLs
    name: str | None = Field(
        default=None, pattern=SLUG, description="name of the entry in messages, lock and report"
    )
    weight: float = Field(
        default=1.0,
        gt=0,
        le=1000,
        description="how often an epoch contains a training entry: 0.5 is half of it (the other "
        "half in the next epoch), 2 all of it twice",
    )
    tag: Annotated[str, Field(pattern=SLUG), AfterValidator(_free_tag)] | None = Field(
        default=None,
        description="a symbol put in front of every source sentence of the entry: for a domain, "
        "for back-translated text, or for the target language of a model with several; valid and "
        "test sets are translated with their own tag, other text with that of `translate --tag`",
    )
    languages: tuple[str, str] | None = Field(
        default=None,
        description="the languages of the entry, if they are not the config's `source` and "
        "`target`, such as [en, ru] in a model with several target languages: the filters, the "
        "diagnostics and BLEU's tokenizer follow them, and the sides of a hub, OPUS, sacreBLEU or "
        "parquet entry are looked up by these codes",
    )
    clean: bool = Field(
        default=True,
        description="whether the filters of `data.clean` apply to a training entry; by default to "
        "all but generated ones (`{cldr}`), whose dates and amounts look like noise; repeats, text "
        "of valid or test, and over-long pairs are dropped in any case",
    )


class FilesEntry(NamedEntry):
    """Two line-aligned text files: line n of one translates line n of the other."""

    file_keys = ("source", "target")
    source: Location = Field(description="path or URL of the source sentences, one per line")
    target: Location = Field(description="path or URL of the target sentences, one per line")
    sha256: dict[Literal["source", "target"], Sha256] = Field(
        default={},
        description="expected sha256 of the files as stored (of an archive: the whole archive), "
        "under the same keys",
    )


class TsvEntry(NamedEntry):
    """A tab-separated file without quoting: every tab separates columns, quotes are text."""

    file_keys = ("tsv",)
    tsv: Location = Field(description="path or URL")
    columns: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] = Field(
        default=(0, 1), description="the source and the target column, counted from 0"
    )
    sha256: dict[Literal["tsv"], Sha256] = _sha256_field("file as stored", "tsv")


class JsonlEntry(NamedEntry):
    """JSON lines: one object per pair."""

    file_keys = ("jsonl",)
    jsonl: Location = Field(description="path or URL")
    source_field: str = Field(default="source", description="key of the source sentence")
    target_field: str = Field(default="target", description="key of the target sentence")
    sha256: dict[Literal["jsonl"], Sha256] = _sha256_field("file as stored", "jsonl")


class CodedEntry(NamedEntry):
    """An entry whose sides are found by their language codes."""


class TableEntry(CodedEntry):
    """An entry whose sides are columns."""

    source_column: str | None = Field(
        default=None,
        description="column of the source sentence, such as `text` or `translation.en`; by "
        "default the first of (for English) `translation.en`, `en`, `source` that exists",
    )
    target_column: str | None = Field(
        default=None, description="column of the target sentence, by default found in the same way"
    )


class ParquetEntry(TableEntry):
    """A parquet file: two columns of text, or a column `translation` with one text per language."""

    file_keys = ("parquet",)
    parquet: Location = Field(description="path or URL")
    sha256: dict[Literal["parquet"], Sha256] = _sha256_field("file as stored", "parquet")


class HubEntry(TableEntry):
    """A data set of the Hugging Face hub. The lock pins its revision and the sha256 of its files.

    Another hub is chosen by the environment variable HF_ENDPOINT.
    """

    hub: str = Field(pattern=HUB, description="its name, such as `wmt/wmt14`")
    config: str | None = Field(
        default=None, min_length=1, description="its configuration, such as `de-en`"
    )
    split: str = Field(default="train", min_length=1, description="its split")
    revision: str | None = Field(
        default=None,
        min_length=1,
        description="commit, branch or tag; by default the main branch when first read",
    )
    stream_above_gib: float = Field(
        default=10.0,
        ge=0,
        description="parquet files of more than this many GiB in all, and files of other formats, "
        "are read over the network and not kept",
    )


class OpusEntry(CodedEntry):
    """A corpus of OPUS (opus.nlpl.eu), downloaded in the Moses format, in either direction."""

    opus: str = Field(pattern=OPUS, description="corpus and version, such as `Europarl/v8`")
    sha256: dict[Literal["opus"], Sha256] = _sha256_field("archive", "opus")


class SacrebleuEntry(CodedEntry):
    """A test set by its name in sacreBLEU, as `sacrebleu` itself reads it; the first reference."""

    sacrebleu: str = Field(
        min_length=1, description="its name, such as `wmt14/full`; `sacrebleu --list` shows all"
    )


class CldrEntry(NamedEntry):
    """Phrase pairs generated from Unicode CLDR for the entry's two languages; no download."""

    cldr: int = Field(ge=1, le=10_000_000, description="number of pairs")
    clean: bool = Field(default=False, description="true: the filters apply to these too")


class MonoEntry(Section):
    """A text file in one language, in `data.mono`."""

    file_keys: ClassVar[tuple[str, ...]] = ("mono",)
    name: str | None = Field(
        default=None, pattern=SLUG, description="name of the text in messages and lock"
    )
    mono: Location = Field(description="path or URL of sentences, one per line")
    side: Literal["source", "target"] = Field(description="the side whose language it is in")
    sha256: dict[Literal["mono"], Sha256] = _sha256_field("file as stored", "mono")


def _kind_of_entry(value: Any) -> str | None:
    """The tag of an entry, by its keys or its type."""
    if isinstance(value, dict):
        return next((tag for key, tag in _KIND_OF_KEY.items() if key in value), None)
    return next((tag for tag, entry in ENTRIES.items() if isinstance(value, entry)), None)


def _one_kind_of_entry(value: Any) -> Any:
    """Refuse a value that is not an entry, or that mixes two kinds of entry."""
    keys = list(value) if isinstance(value, dict) else []
    by_kind = {_KIND_OF_KEY[key]: key for key in keys if key in _KIND_OF_KEY}
    if len(by_kind) > 1:
        mixed = " and ".join(f"`{key}`" for key in by_kind.values())
        raise complaint(
            f"mixes two kinds of entry (it has {mixed})", f"an entry is one of {_ENTRY_FORMS}"
        )
    if _kind_of_entry(value) is None:
        near = [match for key in keys for match in get_close_matches(key, _KIND_OF_KEY, 1)]
        raise complaint(
            f"must be an entry ({_ENTRY_FORMS})" + ("" if keys else ", not {shown}"),
            f"did you mean `{near[0]}`?" if near else None,
        )
    return value


_Kinds = (
    Annotated[FilesEntry, Tag("<files>")]
    | Annotated[TsvEntry, Tag("<tsv>")]
    | Annotated[JsonlEntry, Tag("<jsonl>")]
    | Annotated[ParquetEntry, Tag("<parquet>")]
    | Annotated[HubEntry, Tag("<hub>")]
    | Annotated[OpusEntry, Tag("<opus>")]
    | Annotated[SacrebleuEntry, Tag("<sacrebleu>")]
    | Annotated[CldrEntry, Tag("<cldr>")]
)
Entry = Annotated[_Kinds, Discriminator(_kind_of_entry), BeforeValidator(_one_kind_of_entry)]

ENTRIES: dict[str, type[Section]] = {  # pydantic's tag -> kind of entry
    kind.__metadata__[0].tag: kind.__origin__ for kind in get_args(_Kinds)
}
_REQUIRED = {  # the keys that make an entry one of a kind
    tag: [key for key, field in kind.model_fields.items() if field.is_required()]
    for tag, kind in ENTRIES.items()
}
_KIND_OF_KEY = {key: tag for tag, keys in _REQUIRED.items() for key in keys}
_ENTRY_KEYS = {key for entry in ENTRIES.values() for key in entry.model_fields}
_FORMS = [f"`{{{', '.join(keys)}}}`" for keys in _REQUIRED.values()]
_ENTRY_FORMS = f"{', '.join(_FORMS[:-1])} or {_FORMS[-1]}"


def as_entries(value: Any) -> Any:
    """A single entry is a list of one."""
    if value == ():
        raise complaint("is empty", "give an entry or a list of entries")
    return as_list(value)


def as_list(value: Any) -> Any:
    """A single item is a list of one."""
    return (value,) if isinstance(value, dict | Section) else value


def as_test_sets(value: Any) -> Any:
    """A single entry is the test set named `test`; a name without an entry is ignored."""
    if isinstance(value, Section):
        return {"test": value}
    if not isinstance(value, dict):
        raise complaint("must be an entry, or a mapping of names to entries, not {shown}", None)
    if any(key in _ENTRY_KEYS and not isinstance(item, dict) for key, item in value.items()):
        return {"test": value}
    return {name: item for name, item in value.items() if item is not None}


def _free_name(name: str) -> str:
    if name in _ENTRY_KEYS:
        raise complaint("is a key of entries, so it cannot name a test set", "choose another name")
    if name.lower() in ("valid", "train"):
        raise complaint("is reserved", "choose another name")
    return name


TestName = Annotated[str, Field(pattern=SLUG, max_length=100), AfterValidator(_free_name)]
