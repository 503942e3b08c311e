"""What is known of languages: names and a few words, from CLDR; an identifier, where installed."""

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec
from typing import Any

from mtrain.errors import UsageError

WORD = re.compile(r"[^\W\d_]+")


def name_of_language(code: str) -> str:
    """`German` for `de`; the code itself where CLDR does not know it."""
    from babel import Locale

    names = Locale("en").languages
    return str(names.get(code.replace("-", "_")) or names.get(primary(code)) or code)


def words_of_language(code: str) -> set[str]:
    """CLDR's words for "and" and "or", the months and the days, in lower case; few or none."""
    from babel import Locale, UnknownLocaleError

    try:
        locale = Locale.parse(code.replace("-", "_"))
    except (UnknownLocaleError, ValueError):
        return set()
    texts = [text for pattern in locale.list_patterns.values() for text in pattern.values()]
    for names in (locale.months, locale.days):
        texts += [name for width in names.values() for name in width["wide"].values()]
    return {word for text in texts for word in WORD.findall(text.lower())}


class Identifier:
    """Tells the language of a text, by the model inside py3langid; loaded when first asked."""

    @staticmethod
    def is_installed() -> bool:
        """True where the extra `langid` is there."""
        return find_spec("py3langid") is not None

    @staticmethod
    def require() -> None:
        """A UsageError that names the extra where it is not there."""
        if not Identifier.is_installed():
            raise UsageError(
                "`data.clean.language` needs the language identifier py3langid",
                "install it with `pip install 'mtrain[langid]'`, or remove the key",
            )

    def knows(self, code: str) -> bool:
        """True if the model was trained on a language."""
        return primary(code) in _model().labels

    def identify(self, text: str) -> str:
        """The most probable language, by its two or three letters."""
        return str(_model().classify(text)[0])

    def probability(self, text: str, code: str) -> float:
        """Of a text to be in a language that the model knows."""
        return float(dict(_model().rank(text))[primary(code)])


@cache
def _model() -> Any:
    """One for the process: it takes half a second and some 100 MB."""
    Identifier.require()
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def primary(code: str) -> str:
    """`zh` of `zh-Hant`."""
    return re.split("[-_]", code)[0]
