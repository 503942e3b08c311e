"""Tells the language of a text, where the extra `langid` is installed."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

from mtrain.errors import UsageError
from mtrain.languages import language, primary, scripts_of


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
        """True if the model was trained on a language, and in the script that the code names."""
        usual = language(primary(code)).script or ""
        has_usual = scripts_of(language(code).script or "") == scripts_of(usual)
        return primary(code) in _labels() and has_usual

    def identify(self, text: str) -> str:
        """The most probable language, by its two or three letters."""
        return primary(_model().classify(text)[0])

    def probability(self, text: str, code: str) -> float:
        """Of a text to be in a language that the model knows."""
        return float(dict(_model().rank(text))[_labels()[primary(code)]])


@cache
def _labels() -> dict[str, str]:
    """The shortest code of each language -> what the model calls it: `fil` is its `tl`."""
    return {primary(label): label for label in _model().labels}


@cache
def _model() -> Any:
    """One for the process: it takes half a second and some 100 MB."""
    Identifier.require()
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
