"""Words that help to tell an option's letter from an initial, and the end of a sentence from an abbreviation.

"B. two rabbits" is option B and "E. coli" is no option E; "Mt. Fuji" is one name and "B. It is red." is two sentences.
"""

import re
from collections.abc import Iterator

from avis.mathematics import canonical_expression
from avis.quantities import canonical_quantity
from avis.times import canonical_time

# Options have letters up to J; later letters are read only where they are named as options.
LETTER = "[A-Za-z]"

# Words that begin a sentence or the text of an option, and no name.
PLAIN_WORDS = frozenset(
    "a an the this that these those it its he she they we you i there here in on at as if since because so and "
    "but or both all none neither either every each some any no not only other another most many more less fewer "
    "one two three four five six seven eight nine ten zero yes true false therefore thus hence which what when "
    "where while although option options note let from to with without by for of is are was were have has had do "
    "does will would red orange yellow green blue purple pink brown black white gray grey dark light left right "
    "top bottom up down above below behind front inside outside between near far center middle circle square "
    "triangle increase decrease same different cannot unknown large small big first last my our their his her "
    "looking after before however also then now such given counting adding north south east west".split()
)
# Abbreviations that stand before what they belong to, and those that may end a sentence.
_BEFORE = frozenset(
    "mt st dr mr mrs ms prof sen rep gov gen col capt cpt lt sgt maj rev hon pres sr fr msgr pvt no nos nr vol "
    "fig figs eq ch sec art op pp pg p vs v approx ca cf e.g i.e ex ft avg max min est jan feb mar apr jun jul "
    "aug sept sep oct nov dec rte hwy rm apt bldg dept univ temp wt ht sq cu rs".split()
)
_MAY_END = frozenset(
    "etc jr sr inc ltd co corp llc bros ave blvd rd ln ct pl hwy a.m p.m am pm ph.d u.s u.k u.n d.c b.c a.d in ft "
    "lb lbs oz hr hrs sec min mi yd kg cm mm km m g st mt al".split()
)
_UNITS = frozenset("in ft lb lbs oz hr hrs sec min mi yd kg cm mm km m g etc al".split())
_TOKEN_BEFORE = re.compile(r"[^\W\d_](?:[^\W\d_.]|\.(?=[^\W\d_]))*\Z")
_WORD_AFTER = re.compile(r"[\s\"'“”‘’)\]*_$\\{]*([^\W_]+)")
# Few Latin names of species end in one of these letters, and many English words do.
_ENGLISH_ENDING = re.compile(r"[a-z]{2,}[bcdfghjklpqtvwyz]")
_ANOTHER_INITIAL = re.compile(r"[A-Za-z]\.")
_SURNAMES = frozenset("brown green white black gray grey west north small little long day".split())
_SYMBOLS = (canonical_quantity, canonical_time, canonical_expression)
MAX_SYMBOLS = 200
_INITIAL = re.compile(r"[^\W\d_](?:\.[^\W\d_])*\Z")


def is_option_text(text: str, is_lower: bool = False) -> bool:
    """Return whether what follows a letter and a point is the text of an option, and no name or species.

    Args:
        text: what follows "B.", such as "12", "two rabbits" or "coli".
        is_lower: the letter is in lower case, and the text may be: "b. franklin" is no option.
    """
    text = text.strip()
    if text.startswith(("$", "\\", '"', "'", "“", "(")):
        return True
    if len(text) <= MAX_SYMBOLS and any(read(text.rstrip(".")) for read in _SYMBOLS):
        return True
    words = re.findall(r"[^\W\d_]+", text[:80])
    if not words or _ANOTHER_INITIAL.match(text):
        return False
    if (
        words[0].casefold() in PLAIN_WORDS - _SURNAMES
        or words[0].casefold() in _SURNAMES
        and words[1:2]
        and words[1].islower()
    ):
        return True
    return not is_lower and len(words) == 1 and bool(_ENGLISH_ENDING.fullmatch(words[0]))


def is_abbreviation(text: str, point: int) -> bool:
    """Return whether a full stop belongs to the word before it and ends no sentence.

    Args:
        text: the whole text.
        point: the index of the full stop.
    """
    found = _TOKEN_BEFORE.search(text[max(0, point - 12) : point])
    after = _WORD_AFTER.match(text[point + 1 : point + 60])
    if found is None or after is None:
        return False
    word, following = found[0], after[1]
    folded = word.casefold()
    is_initial = len(following) == 1 and text.startswith(".", point + 1 + after.end())
    starts_sentence = following[0].isupper() and following.casefold() in PLAIN_WORDS and not is_initial
    if folded in ("no", "nos"):
        return following[0].isdigit()
    if folded in _BEFORE and folded not in _MAY_END:
        return True
    if word in _UNITS and following[0].isupper():
        return False
    if folded in _MAY_END or _INITIAL.fullmatch(word):
        return not starts_sentence
    # Any other short word with a capital, before a name or a number: Pvt. Ryan.
    is_title = word[0].isupper() and len(word) <= 5 and not re.search("[aeiouy]", word[1:], re.IGNORECASE)
    return is_title and not starts_sentence and (following[0].isupper() or following[0].isdigit())


def first_word(text: str) -> str:
    """Return the first word of a text in lower case; empty when it begins with something else."""
    found = re.match(r"\s*([^\W\d_]+)", text[:60])
    return found[1].casefold() if found else ""


_END = re.compile(
    r"[.!?](?=[\s\"”’)*_$\]]|\Z)|[。！？]|\n|[;:](?=\s)|\s[–—-]\s|,?\s(?:because|since)\b|,\s(?:which|where|as|given|not)\b",
    re.IGNORECASE,
)
_CAPITAL = re.compile(r"\s{0,3}[A-Z]")
_CONTINUES = re.compile(r"[ \t]*\n\s*(?:and|or|&)\b", re.IGNORECASE)


def sentence_ends(text: str, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
    """Yield where sentences end, and where the next ones begin.

    Args:
        text: of which a part is read.
        start: the index where the part begins.
        end: the index where it ends; None: with the text.
    """
    head = text[start : start + 1000]
    begin = start + len(head) - len(head.lstrip()) if end is None else start  # no sentence ends before it has begun
    for found in _END.finditer(text, start, len(text) if end is None else end + 60):
        mark, position = found[0], found.start()
        if end is not None and position >= end:
            return
        if mark == "." and is_abbreviation(text, position):
            continue
        if mark in "!?" and _is_name_with_mark(text, position):
            continue
        if mark == "!" and text[position - 1 : position].isdigit() and not _CAPITAL.match(text, position + 1):
            continue  # a factorial
        if (mark in ";:" or mark.strip() in "–—-" and mark != "\n") and not _starts_reason(text, found.end()):
            continue
        if mark == "\n" and (position < begin or _CONTINUES.match(text, position) or _is_open(text, position)):
            continue
        yield position, found.end()


def _is_open(text: str, position: int) -> bool:
    """Return whether the line before an index ends with a sign that the next line goes on from."""
    return text[max(0, position - 20) : position].rstrip(" \t$").endswith((",", "&", "=", "+", "\\\\", " and", " or"))


def _starts_reason(text: str, position: int) -> bool:
    """Return whether what follows a semicolon or colon is a sentence, not another value."""
    return first_word(text[position : position + 60]) in PLAIN_WORDS - {"a", "an", "the", "and", "or", "yes", "no"}


def _is_name_with_mark(text: str, position: int) -> bool:
    """Return whether a mark stands within a name, as in Yahoo! Finance."""
    following = re.match(r" ([^\W\d_]+)", text[position + 1 : position + 60])
    before = re.search(r"[^\W\d_]+\Z", text[max(0, position - 30) : position])
    return bool(
        following
        and before
        and following[1][0].isupper()
        and before[0][0].isupper()
        and following[1].casefold() not in PLAIN_WORDS
    )
