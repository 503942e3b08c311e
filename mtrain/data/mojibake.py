"""Text that was decoded with the wrong encoding: UTF-8 read as Windows-1252 or Latin-1.

There each character beyond ASCII becomes a letter with an accent, for its first byte, and a sign
for each of the others: `Ã¼` for `ü`, `â€œ` for a quote. Correct text has such pairs too, where
typography follows a letter: `É—E`, `À’s`, `CAFÉ”`, `NESTLÉ®`. So a pattern below excludes such
typography, or has to be found twice.
"""

from __future__ import annotations

import re

# Insides of character classes: a letter for the first byte, a sign for each of the others.
_FIRST = "Â-ô"
_JOINING = "–—’´…•·\u00ad"  # typography between two words
_CLOSING = "“”„‘‚†‡‹›€™«»¡¿£©®ªº°§¹²³"  # typography behind a word: no letter follows
_LETTERS = "ŠšŽžŒœŸƒ"
_RARE = "\u0080-\u009f\u00a0¢¤¥¦¨¬¯±µ¶¸¼½¾ˆ˜‰"  # no typography behind a letter
_SIGNS = _JOINING + _CLOSING + _LETTERS + _RARE

_NO_LETTER_BEFORE = r"(?<![^\W\d_])"
_CHARACTER = f"(?:[Â-ß][{_SIGNS}]|[à-ï][{_SIGNS}]{{2}}|ð[{_SIGNS}]{{3}})"  # of 2, 3 or 4 bytes

_SURE = re.compile(
    "\ufffd"  # the decoder could not read it
    "|â€|ï»¿|ðŸ"  # quotes and dashes, a byte order mark, emoji
    f"|[à-ï](?:[{_RARE}][{_SIGNS}]|[{_CLOSING}{_JOINING}][{_RARE}])"  # à¤¨ for न
    f"|[Â-ÅÈ-ËÐÑâã][{_RARE}]|Ã[{_LETTERS}]"  # Ã¤ for ä, ÃŸ for ß
    f"|(?=[{_SIGNS}{_FIRST}]{{0,4}}[{_RARE}]){_CHARACTER}{{2}}"  # two characters in a row
    f"|(?:[{_FIRST}]{{1,4}}[{_SIGNS}]{{1,3}}){{3}}"  # three of which bytes are lost
    f"|[a-z][Â-Í][{_SIGNS}]"  # a capital behind a small letter
    # A letter behind a sign that closes or joins: Ã©t, Ã–s, Â£5.
    f"|(?:[ÃÄÅ][{_CLOSING}{_LETTERS}]|(?:É|á[º»¸¹])[{_CLOSING}])(?=[a-zÂ-Å])"
    rf"|{_NO_LETTER_BEFORE}(?:Ã[–—…•](?=[a-zÂ-Å])|Â[{_CLOSING}](?=\w))|\dÂ[{_CLOSING}]"
)
_LIKELY = re.compile(  # where found twice
    f"[Â-Þ][{_RARE}]|(?<![A-ZÀ-Þ]{{2}})Ã[¡-¿]|{_NO_LETTER_BEFORE}Â[°£§«»´]"
    "|(?<=[a-z])(?:Ã(?= |$)|[Ã-Å](?=[a-z]))"  # a sign is lost: voilÃ for voilà, groÃe for große
)
_SUSPECT = re.compile(f"[{_FIRST}][{_SIGNS}]|[Ã-Å][a-z]|[a-z]Ã(?: |$)|\ufffd")  # fast


def is_mojibake(text: str) -> bool:
    """True if a place of the text is mojibake, or two are likely to be."""
    if text.isascii() or not _SUSPECT.search(text):
        return False
    return bool(_SURE.search(text)) or len(_LIKELY.findall(text)) > 1
