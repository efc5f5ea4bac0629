"""Cleans captions as LlamaGen's were cleaned for training: lower case, no web addresses, mark-up or file names.

The rules are those of the public LlamaGen code (which took them from PixArt-alpha and IF), written anew. That code
also uses two libraries, of which this module does what prompts need: it removes mark-up and replaces entities,
ligatures, full-width letters and curly quotes by plain signs. It does not repair text in a wrong charset.
"""

from __future__ import annotations

import html
import re
import unicodedata
from html.parser import HTMLParser
from urllib.parse import unquote_plus

_SITE = r"[a-z\d.\-]+\.(?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
_PICTURE = r"(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)"
_DASHES = (
    "\\-\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40"
    "\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63\uff0d"
)

_ADDRESSES = (
    ("<person>", "person"),
    (rf"\b(?:https?:(?:/{{1,3}}|[a-z\d%])|{_SITE})", ""),
    (rf"\b(?:www:(?:/{{1,3}}|[a-z\d%])|{_SITE})", ""),
)
_SIGNS = (
    (r"@\w+\b", ""),  # nicknames
    ("[\u31c0-\u9fff]+", ""),  # Chinese characters and their neighbours in Unicode
    (f"[{_DASHES}]+", "-"),
    ("[`´«»“”¨]", '"'),
    ("[‘’]", "'"),
    ("&quot;?|&amp", ""),
    (r"\d{1,3}(?:\.\d{1,3}){3}", " "),  # network addresses
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),  # a line break spelled as backslash and n
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.{_PICTURE}", ""),  # file names
    ("[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~()\[\]{}|\\/*]+", " "),
    (r"\s+\.\s+", " "),
)
_WASTE = (
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # three kinds of article numbers
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    (r"\b\d+[a-zA-Z]+\d+\b", ""),
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b{_PICTURE}(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),  # sizes; the second of the three signs is Cyrillic
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
)
_ENDS = (
    (r"^[\"'](.+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)
_COMPATIBLE = re.compile("[\ufb00-\ufb06\uff01-\uff5e\u3000]+")  # ligatures and full-width letters


def clean_caption(caption: str) -> str:
    """A caption, cleaned twice as in the public code; "" if nothing is left of it."""
    return _cleaned(_cleaned(caption))


def _cleaned(caption: str) -> str:
    text = _replaced(unquote_plus(caption).strip().lower(), _ADDRESSES)
    text = _replaced(_without_tags(text), _SIGNS)
    if len(re.findall("[-_]", text)) > 3:
        text = re.sub("[-_]", " ", text)
    return _replaced(_replaced(_plain(text), _WASTE), _ENDS).strip()


def _replaced(text: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text


def _plain(text: str) -> str:
    """Text with composed letters and plain quotes, without entities and control characters."""
    text = html.unescape(html.unescape(text))
    text = _COMPATIBLE.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)
    text = unicodedata.normalize("NFC", re.sub("[‘’‚‛]", "'", re.sub("[“”„‟]", '"', text)))
    return "".join(sign for sign in text if sign.isspace() or unicodedata.category(sign) != "Cc").strip()


class _Text(HTMLParser):
    """Collects the text between tags, except scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []
        self.hidden = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.hidden = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self.hidden = False

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.pieces.append(data)


def _without_tags(text: str) -> str:
    parser = _Text()
    parser.feed(text)
    parser.close()
    return "".join(parser.pieces)
