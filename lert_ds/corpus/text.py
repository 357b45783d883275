r"""A document's text to sentences that join back to it, and words to their places in a sentence.

For example, with the line end written as \n:

    他说：“走吧。”然后走了3.5公里。\n  →  他说：“走吧。” | 然后走了3.5公里。\n
    locate_words("你好 世界", ["你好", "世界"])  →  [(0, 2), (3, 5)]
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence

_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_STRONG = "。！？；…｡‼⁇⁈⁉"
"""End a sentence wherever they stand, as line ends do."""
_ALWAYS = frozenset(_STRONG + _LINE_ENDS)
_CLOSERS = r"”’」』）)】》〉〕］\]}｝〗〙〛＂＇»›"
"""Stay with the sentence that they close; straight quotes are looked at one by one."""
_CJK = (
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)

# Possessive throughout: a run is tried once, so a line of marks costs linear time.
_END = re.compile(
    rf"(?:[{_STRONG}!?;.](?:[{_STRONG}!?;.{_CLOSERS}\"]|'(?!\w))*+|[{_LINE_ENDS}])(\s*+)"
)
_HAS_STRONG = re.compile(f"[{_STRONG}]")
_LINE_END = re.compile(f"[{_LINE_ENDS}]")
_LATIN_AFTER = re.compile(rf"(?![{_CJK}\u3040-\u30ff\uff00-\uffef])\w|[/\\@#&=%~+*^|:,_-]")
"""A character that, right after a Latin mark, continues a number, a name or an address."""
_NO_SENTENCE = re.compile(
    # An initial or abbreviation of single letters (U.S., e.g., J.K.), a title, a list number.
    r"(?:(?<![A-Za-z0-9])[A-Za-z]|\b(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|cf|No|Nos|Fig|Figs|Eq|Vol|pp|"
    r"ed|eds|al|Inc|Ltd|Co|Corp|approx|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec))\Z"
)
_LIST_NUMBER = re.compile(r"\s*[(（\[]?(?:[0-9]{1,3}|[A-Za-z])\Z")
_LONGEST_ABBREVIATION = 8

_COMMA = re.compile(rf"(?:[，、：﹐､]|[,:](?=\s|[^\x00-\x7f]))[{_CLOSERS}]*+")
_SPACE = re.compile(r"\s")
_LATIN_WORD = re.compile(rf"(?:(?![{_CJK}])[\w.,'’@/:%-])*+")

_PLAIN_WORD = re.compile(rf"[{_CJK}]|(?:(?![{_CJK}])\w)+|\S")

_BLANK = (
    r"\s\x00-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b-\u200f"
    r"\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb\U000110bd\U000110cd"
    r"\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0001\U000e0020-\U000e007f"
)
_BLANK_RUN = re.compile(f"[{_BLANK}]*+")
_BLANK_LINE = re.compile(f"(?:^|\n)[{_BLANK}]*(?:\n|$)")


def split_sentences(text: str, limit_characters: int) -> list[str]:
    """Return the sentences of `text`, none longer than the limit; joined they are `text` again.

    A sentence ends at a Chinese mark or a line end, and at a Latin mark that does not stand
    inside a number, an abbreviation, a file name or an address. Closing quotes, brackets and the
    white space that follow stay with it. A longer one is cut on at a comma, else at a space,
    else between two characters that belong to no common word, number or combining sequence.
    Takes time linear in the length of the text, however long a line.
    """
    assert limit_characters >= 1
    pieces: list[str] = []
    start = 0
    for end in _sentence_ends(text):
        if end - start <= limit_characters:
            pieces.append(text[start:end])
        else:
            pieces.extend(_cut_long(text[start:end], limit_characters))
        start = end
    return pieces


def is_blank(text: str) -> bool:
    """Return whether `text` is white space, control and format characters only, or empty."""
    match = _BLANK_RUN.match(text)
    return match is not None and match.end() == len(text)


def has_blank(words: Sequence[str]) -> bool:
    """Return whether any of the words is blank, as `is_blank` says."""
    # A word that is blank is so as a line; one with a line end in it only may seem to be.
    return _BLANK_LINE.search("\n".join(words)) is not None and any(map(is_blank, words))


def trim_blank(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the span of `text[start:end]` without the blank characters at its two ends."""
    while start < end and is_blank(text[start]):
        start += 1
    while end > start and is_blank(text[end - 1]):
        end -= 1
    return start, end


def locate_words(text: str, words: Sequence[str]) -> list[tuple[int, int]] | None:
    """Return the span (start, end) of every word in `text`, or None when they do not fit.

    They fit when they stand in `text` in order and only blank characters lie between them.
    """
    spans: list[tuple[int, int]] = []
    at = 0
    for word in words:
        start = text.find(word, at)
        if start < 0 or not word or (start > at and not is_blank(text[at:start])):
            return None
        at = start + len(word)
        spans.append((start, at))
    return spans if is_blank(text[at:]) else None


def plain_words(text: str) -> list[str]:
    """Return words that need no analysis; only blank characters lie between them.

    They are every Han character, every run of other letters and digits, every other mark.
    """
    return [word for word in _PLAIN_WORD.findall(text) if not is_blank(word)]


def _sentence_ends(text: str) -> Iterator[int]:
    """Yield where each sentence ends, the end of the text last."""
    start = counted = 0
    quote_open = False  # a straight quote closes the one that was opened in the same line
    straight_quotes = '"' in text
    for match in _END.finditer(text):
        if not _ends_sentence(text, start, match):
            continue
        end = match.end()
        if straight_quotes:
            quote_open ^= text.count('"', counted, match.start()) % 2 == 1
            end, quote_open = _close_straight_quotes(match, quote_open)
            counted = end
        yield end
        start = end
    if start < len(text):
        yield len(text)


def _ends_sentence(text: str, start: int, match: re.Match[str]) -> bool:
    """Return whether a run of marks ends the sentence that began at `start`."""
    at = match.start()
    if text[at] in _ALWAYS or _HAS_STRONG.search(text, at, match.start(1)):
        return True
    if match.end() > match.start(1):
        if _LINE_END.search(text, match.start(1), match.end()):
            return True
    elif _LATIN_AFTER.match(text, match.end()):
        return False
    if text[at] != "." or text.startswith("..", at):
        return True
    if _NO_SENTENCE.search(text[max(start, at - _LONGEST_ABBREVIATION) : at]):
        return False
    # "1." and "(a)." open a list item when nothing of the sentence stands before them.
    return at - start > _LONGEST_ABBREVIATION or not _LIST_NUMBER.match(text[start:at])


def _close_straight_quotes(match: re.Match[str], quote_open: bool) -> tuple[int, bool]:
    """Return where the sentence of a run of marks ends, and whether a quote stays open.

    `。"` ends a quotation when one is open; otherwise its quote opens the next sentence.
    """
    run = match.group()
    for place, mark in enumerate(run):
        if mark == '"':
            if not quote_open:
                return match.start() + place, False
            quote_open = False
        elif mark in _LINE_ENDS:
            return match.end(), False
    return match.end(), quote_open


def _cut_long(sentence: str, limit: int) -> Iterator[str]:
    """Yield pieces of a sentence that is longer than `limit`, cut at the best marks."""
    start = 0
    while len(sentence) - start > limit:
        end = _best_cut(sentence, start, start + limit)
        yield sentence[start:end]
        start = end
    yield sentence[start:]


def _best_cut(sentence: str, start: int, last: int) -> int:
    """Return the best place to cut in (start, last], where start < last < len(sentence)."""
    # A mark in the first quarter would leave a stump and, repeated, cost quadratic time.
    first = start + (last - start) // 4
    for mark in (_COMMA, _SPACE):
        places = [match.end() for match in mark.finditer(sentence, first, last)]
        for place in reversed(places):
            if not _combines(sentence[place - 1], sentence[place]):
                return place
    one_word = _LATIN_WORD.match(sentence, start, last + 1)
    stop = start if one_word is None or one_word.end() <= last else last
    for place in range(last, stop, -1):
        if not _glued(sentence[place - 1], sentence[place]):
            return place
    for place in range(last, start, -1):  # a word of more than `limit` letters
        if not _combines(sentence[place - 1], sentence[place]):
            return place
    return last  # nothing but combining marks


def _glued(left: str, right: str) -> bool:
    """Return whether two neighbours are of one Latin word or number, or of one character."""
    if _combines(left, right):
        return True
    return _LATIN_WORD.fullmatch(left + right) is not None


def _combines(left: str, right: str) -> bool:
    """Return whether `right` continues the character that `left` is or ends."""
    if left == "\u200d" or right == "\u200d" or unicodedata.category(right)[0] == "M":
        return True
    if "\U0001f3fb" <= right <= "\U0001f3ff" or "\U000e0020" <= right <= "\U000e007f":
        return True  # skin tones and tags of flags
    if "\U0001f1e6" <= right <= "\U0001f1ff":
        return "\U0001f1e6" <= left <= "\U0001f1ff"
    return "\ud800" <= left <= "\udbff" and "\udc00" <= right <= "\udfff"
