"""Where the answer stands in what a model wrote: boxes, JSON, final-answer phrases, and the lines of the text.

Each function takes the text after the thought and returns the answer in the model's own spelling, or None. All are
linear in the length of the text: patterns have bounded repeats, and no part is searched twice from different starts.
"""

import json
import re
from collections import deque
from collections.abc import Mapping

from avis.canonical import canonical_answer
from avis.quantities import canonical_quantity
from avis.words import PLAIN_WORDS, first_word, is_option_text, sentence_ends

# --------------------------------------------------------------------------------------------------- boxes

_BOX = re.compile(r"\\f?boxed? {0,3}\{|\\fbox {0,3}\{")
_BARE_BOX = re.compile(r"\\boxed ?([^\s$\\{}]{1,100})")
_BRACE_OR_ESCAPE = re.compile(r"\\.|[{}]", re.DOTALL)


def find_boxes(text: str) -> str | None:
    """Return the contents of the boxes of the last sentence that has a closed one, joined by commas."""
    contents: list[str] = []
    end, later = len(text), -1
    for opening in reversed(list(_BOX.finditer(text))):
        closing = _find_closing_brace(text, opening.end(), end)
        # An earlier box around an unclosed one would be unclosed as well, so it has to end before it.
        # The windows scanned are disjoint, which keeps the search linear.
        end = opening.start()
        if closing is None:
            continue
        if later >= 0 and _has_sentence_end(text, closing + 1, later):
            break
        contents.append(text[opening.end() : closing].strip())
        later = opening.start()
    if contents:
        return ", ".join(reversed(contents))
    bare = deque(_BARE_BOX.finditer(text), maxlen=1)
    return bare[0][1].rstrip(".,;") if bare else None


def _find_closing_brace(text: str, start: int, end: int) -> int | None:
    depth = 1
    for brace in _BRACE_OR_ESCAPE.finditer(text, start, end):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return brace.start()
    return None


def _has_sentence_end(text: str, start: int, end: int) -> bool:
    """Return whether a sentence ends between two boxes."""
    return any(True for _ in sentence_ends(text, start, end)) or bool(re.search(r"\n\s*\n", text[start:end]))


# --------------------------------------------------------------------------------------------------- JSON

_JSON_KEY = re.compile(r"""[{,]\s{0,99}["'](?:final[ _-]?)?answers?["']\s{0,9}:\s{0,9}""", re.IGNORECASE)
_JSON_VALUE = re.compile(
    r""""((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)'|\[([^\[\]{}]*)\]|([-+]?[\w.]+)(?=\s{0,99}[,}])""", re.DOTALL
)
_LATEX_COMMAND = re.compile(r"(?<!\\)(?:\\\\)*\\[A-Za-z]{2}")


def find_json_answer(text: str) -> str | None:
    """Return the value of the last key named answer; an empty text for null."""
    key = deque(_JSON_KEY.finditer(text), maxlen=1)
    value = _JSON_VALUE.match(text, key[0].end()) if key else None
    if value is None:
        return None
    double, single, items, bare = value.groups()
    if double is not None:
        return _unescape(double)
    if items is not None:
        return ", ".join(item.strip().strip("\"'") for item in items.split(","))
    return single if bare is None else "" if bare in ("null", "None") else bare


def _unescape(literal: str) -> str:
    """Return the text of a JSON string; one with LaTeX in it stays, because \\frac would become a form feed."""
    if _LATEX_COMMAND.search(literal):
        return literal
    try:
        return json.loads(f'"{literal}"', strict=False)
    except ValueError:
        return literal


# ------------------------------------------------------------------------------------------------- phrases

_MARKS = r"[\s*_`]{0,9}"
_COPULA = (
    r"(?:(?:is|are|was|were|equals)\b|['’]s\b|(?:would|must|should|will|could|might|may|has to|have to)"
    r" (?:then |therefore )?be\b|comes out (?:to be|as)\b|[:：︰=]|[-–—](?=\s))"
)
_INSERTED = (
    r"(?: (?:to|for|of) (?:the|this|that|your) (?:question|problem|exercise)|,? (?:here|then|therefore|thus|hence),?)?"
)
# "the answer is", "correct option is", "Answer:", "**Final answer**" with the markdown that follows.
_FINAL_ANSWER = re.compile(
    r"(?<![^\W_])(?:final[\s*_]{1,3}answers?"
    r"|(?:answers?|ans|(?:correct|right|best)\s{1,3}(?:options?|choices?)|final\s{1,3}(?:result|value))"
    rf"(?={_INSERTED}{_MARKS}{_COPULA}))"
    rf"{_INSERTED}{_MARKS}{_COPULA}?[\s*_:：︰`]{{0,9}}"
    r"|\bans\.\s{1,3}(?=\S)"
    r"|\bI(?:'d|'ll| would| will| should)? (?:choose|pick|select|go with) (?:option )?"
    r"(?=[(\[]?[A-Z][)\].]{0,2}(?:\s|$))"
    r"|^[#*_ ]{1,9}answers?[*_: ]{0,9}\n\s{0,9}"
    r"|(?:答案|选项|答え|正解|解答|回答|答|정답|답변|답)\s?(?:应该|應該|应|就)?(?:(?:是|为|為|は|은|는)\s?[:：]?|[:：︰=])\s{0,9}"
    r"|(?:所以|因此|故|应|應|答案)选择?\s?[:：]?\s?(?=[(（]?[A-Z])"
    r"|\b(?:réponse|respuesta|antwort|risposta|resposta|ответ)(?: (?:correcta|correcte|finale|final|correta|corretta))?"
    r" ?(?::|：|\b(?:est|es|ist|è|é)\b|[-–—])\s{0,9}",
    re.IGNORECASE | re.MULTILINE,
)
_ADVERB = re.compile(
    r"(?:therefore|thus|hence|clearly|simply|definitely|probably|most likely|likely|indeed|then|also|still|obviously|"
    r"actually)\b,?[\s*_]{1,9}",
    re.IGNORECASE,
)
_AFTER_VALUE = re.compile(r"\s*(?:です|である|だ|입니다|이다)\s*\Z")
_SUBJECT_PHRASE = re.compile(
    r"\s(?:is|are) (?:indeed |therefore |clearly |thus |then )?(?:(?:the )?(?:only |most )?(?:correct|right|best|final|"
    r"appropriate|accurate) (?:answers?|options?|choices?|one)\b|the (?:answers?\b(?! (?:to|for|of|key|sheet))|"
    r"right one\b)|(?:correct|right)(?=\s{0,3}(?:[.,;:!]|because|since|as\b|\Z|\n)))",
    re.IGNORECASE,
)
_SUBJECT_LEAD = re.compile(
    r"(?:so|therefore|thus|hence|then|and|but|only|consequently|clearly|which means|this means|"
    r"i (?:think|believe|guess|conclude)|it (?:seems|appears)|we conclude|that)\b,?[\s*_]+",
    re.IGNORECASE,
)
_CLAUSE = re.compile(r", (?:so|therefore|thus|hence|and|but|then|which means) |; ", re.IGNORECASE)
_NO_SUBJECT = re.compile(
    r"(?:which|what|who|whose|this|that|it|here|there|these|those|one|none|where|if)\b"
    r"|.*\b(?:not|neither|nor|none|never)\b|.*n't\b",
    re.IGNORECASE | re.DOTALL,
)
_SUBJECT_LETTER = re.compile(
    r"(?:the )?(?:option|choice|answer|letter)?\s?[*_(\[]{0,3}([A-Z])[*_)\]]{0,3}(?:[.:]\s(.*))?", re.DOTALL
)
_LETTERS = re.compile(r"(?:both |options |choices )?[(\[]?[A-Z][)\]]?(?:(?:, ?|,? and | ?& ?)[(\[]?[A-Z][)\]]?)+")
MAX_SUBJECT = 120


def find_phrase_value(text: str, options: Mapping[str, str] | None) -> str | None:
    """Return the option's letter or the value that the last final-answer phrase names.

    Args:
        text: after the thought.
        options: their texts by letter; None when there are none.

    Returns:
        The value, empty when the text ends before it; None without a phrase.
    """
    found: tuple[int, str] | None = None
    subject_end = -1
    for phrase in _SUBJECT_PHRASE.finditer(text):
        value = _read_subject(text, phrase, options)
        if value is not None:
            found, subject_end = (phrase.start(), value), phrase.end()
    last = None
    for phrase in _FINAL_ANSWER.finditer(text):
        if not phrase.start() < subject_end <= phrase.end() + 9 or found is None:
            last = phrase
    if last and (found is None or last.start() > found[0]):
        return _read_value(text[last.end() :], options)
    return found[1] if found else None


def _read_subject(text: str, phrase: re.Match[str], options: Mapping[str, str] | None) -> str | None:
    """Return what is said to be the right answer, from the beginning of its clause."""
    window = text[max(0, phrase.start() - MAX_SUBJECT) : phrase.start()]
    start = max((end for _, end in sentence_ends(window)), default=0 if len(window) < MAX_SUBJECT else -1)
    if start < 0:
        return None
    subject = _CLAUSE.split(window[start:])[-1].strip(" *_\n\t")
    while (lead := _SUBJECT_LEAD.match(subject)) is not None:
        subject = subject[lead.end() :]
    if not subject or _NO_SUBJECT.match(subject):
        return None
    letter = _SUBJECT_LETTER.fullmatch(subject)
    if (
        letter
        and _is_letter(letter[1], options)
        and (not letter[2] or options is not None or is_option_text(letter[2]))
    ):
        return letter[1]
    if _LETTERS.fullmatch(subject):
        return subject
    is_named = "answer" in phrase[0] or "option" in phrase[0] or "choice" in phrase[0]
    return subject if is_named else None


# -------------------------------------------------------------------------------------------------- values

_LETTER = re.compile(
    r"(?:(?:the )?(?:option|choice|letter)s? )?[*_(\[<]{0,3}([A-Za-z])([)\]]?)[*_]{0,2}(?![\w'’+#°²³-])", re.IGNORECASE
)
_REASON = re.compile(
    r"(?:\s*[,;–—-])?\s+(?:because|since|as|which|so|where|given|not|it|there|this|for|due|based)\b|[,;]?\s*[–—-]\s",
    re.IGNORECASE,
)
_GLOSS = re.compile(r" \([^()\n]{1,200}\)[.*_ ]{0,5}(?:\Z|\n)")
_ANOTHER_LETTER = re.compile(
    r"\s*(?:,|;|&|/|\+|\b(?:and|or|nor)\b|, ?and)\s*[(\[]?[A-Za-z][)\]]?(?![\w'])", re.IGNORECASE
)
_LABEL = re.compile(r"(?:^|[\s,;(])[A-J]:")
_MATHEMATICS = {"\\[": "\\]", "$$": "$$", "\\begin{": "\\end{", "\\(": "\\)"}
_QUOTES = {'"': '"', "“": "”", "'": "'", "‘": "’"}
_BULLET = re.compile(r"(?:[-*•]|\d{1,2}[.)])\s+(\S.*)")


def _read_value(text: str, options: Mapping[str, str] | None) -> str:
    """Return the value that a text begins with, up to the end of its sentence."""
    text = text.lstrip(" \n\t*_`,")
    adverb = _ADVERB.match(text)
    if adverb:
        text = text[adverb.end() :].lstrip(" *_")
    value = _read_sentence(text)
    if options is not None and canonical_answer(value) in map(canonical_answer, options.values()):
        return value
    letter = _read_letter(text, options)
    return value if letter is None else letter


def _read_sentence(text: str) -> str:
    """Return what stands before the end of a sentence, of quoted words, of displayed mathematics, or of a list."""
    start = 0
    for opening, partner in _MATHEMATICS.items():
        if text.startswith(opening):
            start = max(0, text.find(partner, len(opening)))
    if text[:1] in _QUOTES:
        closing = text.find(_QUOTES[text[0]], 1)
        is_whole = closing > 0 and not text[closing + 1 : closing + 2].isalnum()
        start = closing if is_whole and "\n" not in text[:closing] else 0
    elif (items := _read_bullets(text)) is not None:
        return items
    end = next((end for end, _ in sentence_ends(text, start)), len(text))
    return _AFTER_VALUE.sub("", text[:end].strip(" *_`\n"))


def _read_bullets(text: str) -> str | None:
    """Return the items of a list of lines that a text begins with, joined by commas."""
    if not _BULLET.match(text):
        return None
    items = []
    for line in text.split("\n"):
        bullet = _BULLET.match(line.strip())
        if not bullet:
            break
        items.append(bullet[1].strip(" *_"))
    return ", ".join(items) if len(items) > 1 else None


def _is_letter(letter: str, options: Mapping[str, str] | None) -> bool:
    return options is None or letter.upper() in map(str.upper, options)


def _read_letter(text: str, options: Mapping[str, str] | None) -> str | None:
    """Return the option's letter that a text begins with; None when it is an initial, a word or one of several."""
    found = _LETTER.match(text)
    if not found or not _is_letter(found[1], options):
        return None
    letter, bracket = found[1], found[2]
    tail = text[found.end() : found.end() + 400]
    if not tail.strip(" .,;:!*_`>") or _GLOSS.match(tail) or tail.lstrip(" .*_").startswith("\n"):
        return letter
    if _ANOTHER_LETTER.match(tail):
        return None
    if _REASON.match(tail):
        return letter if letter not in "a" or bracket else None
    if tail[0] in ".:" or bracket:
        rest = tail.lstrip(".:)] *_")
        sentence = rest[: next((end for end, _ in sentence_ends(rest)), len(rest))]
        if tail[0] == ":":
            return letter if letter.isupper() and not _LABEL.search(sentence) else None
        is_text = is_option_text(sentence) or options is not None or bool(bracket)
        return letter if is_text and (tail[0] in ".,;:" or tail[0].isspace()) else None
    if tail[0] in ",;" and first_word(tail[1:]) in PLAIN_WORDS - {"and", "or"}:
        return letter
    return None


# --------------------------------------------------------------------------------------------- other forms

_THEREFORE = re.compile(r"(?:\b(?:therefore|thus|hence|so|consequently)\b|∴|⇒|=>)[\s,:*_]{0,5}", re.IGNORECASE)
_IS_VALUE = re.compile(
    r"(?:the|this|that|it|we|its)\b.{0,200}?\b(?:is|are|equals|have|get|be)\b[\s*_:]{1,5}(.+)",
    re.IGNORECASE | re.DOTALL,
)
_LONE_LETTER = re.compile(r"[\s*_>]{0,9}[(\[]?([A-Z])[)\]]?[.:]?[\s*_]{0,9}")


def find_last_line(text: str) -> str | None:
    """Return what stands behind #### on the last line."""
    line = text[text.rstrip().rfind("\n") + 1 :].strip()
    return line.lstrip("# ") if line.startswith("####") else None


def find_conclusion(text: str) -> str | None:
    """Return the quantity, letter, verdict or equation of a last sentence with therefore, thus, hence or so."""
    found = deque(_THEREFORE.finditer(text), maxlen=1)
    if not found or len(text) - found[0].end() > MAX_SUBJECT:
        return None
    sentence = text[found[0].end() :].strip(" *_\n")
    if any(end < len(sentence.rstrip(" .!*_$")) for end, _ in sentence_ends(sentence)):
        return None
    value = _IS_VALUE.fullmatch(sentence)
    for candidate in filter(None, (sentence, value and value[1])):
        if _is_plain_value(candidate.rstrip(".! ")):
            return candidate
    return None


def _is_plain_value(text: str) -> bool:
    form = canonical_answer(text)
    sides = form.split(" = ")
    return (
        form in ("yes", "no")
        or len(form) == 1
        and text.rstrip("*_)] ")[-1:].isupper()
        or (
            len(sides) <= 2
            and len(sides[0]) <= 40
            and canonical_quantity(sides[-1]) is not None
            and (len(sides) == 1 or len(sides[0].split()) == 1)
        )
    )


def find_lone_letter(text: str, options: Mapping[str, str] | None) -> str | None:
    """Return the option's letter that is the whole last or first line of a text of several lines."""
    text = text.strip()
    first, last = text.find("\n"), text.rfind("\n")
    for line in (text[last + 1 :], text[:first]) if first >= 0 else ():
        letter = _LONE_LETTER.fullmatch(line) if len(line) < 30 else None
        if letter and _is_letter(letter[1], options):
            return letter[1]
    return None
