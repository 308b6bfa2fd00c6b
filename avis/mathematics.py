r"""A canonical form of short mathematical expressions, in LaTeX or plain text::

    >>> canonical_expression(r"\dfrac12 x"), canonical_expression("0.5x"), canonical_expression(r"\frac{1}{2x}")
    ('0.5x', '0.5x', '0.5/x')

The form is that of the expression's structure: which part is divided, raised or rooted. Merged are spellings of one
structure, the order of a sum, the place of a number in a product, and fractions of numbers. Nothing is computed that
could be another answer: 2*3 is not 6. An expression that is not understood is compared symbol by symbol.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

MAX_DEPTH = 30
MAX_DIGITS = 30

_FUNCTIONS = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp det gcd lcm deg dim ker".split()
)
_SYMBOL_COMMANDS = {
    **dict(zip(
        "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi psi "
        "omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega".split(),
        "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ",
        strict=True,
    )),
    **{"varepsilon": "ε", "vartheta": "θ", "varphi": "φ", "infty": "∞", "pm": "±", "mp": "∓", "cdot": "*"},
    **{"times": "*", "ast": "*", "div": "/", "angle": "∠", "circ": "°", "degree": "°", "prime": "'", "ell": "ℓ"},
    **{"lbrace": "\\{", "rbrace": "\\}", "lvert": "|", "rvert": "|", "cup": "∪", "cap": "∩", "in": "∈"},
    **{"sqrt": "√", "triangle": "△", "perp": "⊥", "parallel": "∥", "emptyset": "∅", "varnothing": "∅"},
    **{"cdots": "…", "ldots": "…", "dots": "…"},
}  # fmt: skip
_SYMBOL_SIGNS = {"×": "*", "·": "*", "⋅": "*", "∙": "*", "÷": "/", "⁄": "/"}
_FRACTION_COMMANDS = frozenset(("\\frac", "\\dfrac", "\\tfrac", "\\cfrac"))
_ACCENTS = frozenset(
    "\\" + name
    for name in "vec bar hat tilde dot ddot overline underline overrightarrow widehat mathbb mathcal mathfrak".split()
)
_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|[0-9]+(?:\.[0-9]+)?|\.[0-9]+|\*\*|\S", re.DOTALL)
# Letters of other scripts than Latin and Greek are no names in mathematics, and three Greek ones in a row are a word.
_WORD = re.compile(r"[A-Za-z\u00c0-\u024f]{2,}|[\u0370-\u03ff]{3,}|[^\W\d_a-zA-Z\u00c0-\u024f\u0370-\u03ff℀-⅏]")
_COMMAND = re.compile(r"\\(?:begin|end)\{[a-z]+\*?\}|\\[A-Za-z]+")
_MARK = re.compile(
    r"[\\^√∛π∞±∓∠°∪∩∈∅△α-ωΑ-Ω]|\w_[\w{]|[+*×÷·⋅]\s*[\w(\\√]|(?<![^\W\d_][^\W\d_])/\s*(?![^\W\d_]{2})[\w(\\√]"
    r"|[0-9)]\s*-\s*[\w(]|\w\s+-\s+\w|[A-Za-z]'(?![A-Za-z])|\)!|[A-Za-z]!\Z|\w\(|\A-?[0-9.]+ ?[A-Za-z]{1,2}\Z"
)
_SHORT_WORDS = frozenset("an as at be by do he if in is it me my no of on or so to up us we".split())


class _NotUnderstoodError(ValueError):
    pass


def canonical_expression(text: str) -> str | None:
    """Return the canonical form of a mathematical expression.

    Args:
        text: short, in its own case, without LaTeX's delimiters and text commands.

    Returns:
        The form; None for a text that does not look like mathematics, because it has no mark of it or has words.
    """
    if not _MARK.search(text) or not _has_no_words(text):
        return None
    tokens = _tokenise(text)
    try:
        parser = _Parser(tokens)
        form = parser.parse_sum().format()
        if parser.peek():
            raise _NotUnderstoodError
        return form
    except _NotUnderstoodError:
        return _join(tokens)


def _has_no_words(text: str) -> bool:
    """Return whether all runs of letters are names of functions or at most two letters that are no English word."""
    for word in _WORD.findall(_COMMAND.sub(" ", text)):
        if word in ("sqrt", "pi", "infinity") or word.casefold() in _FUNCTIONS:
            continue
        is_name = len(word) == 2 and word[0].isascii() or len(word) == 3 and word.isascii() and word.isupper()
        if not is_name or word.casefold() in _SHORT_WORDS:
            return False
    return True


def _tokenise(text: str) -> list[str]:
    """Return the symbols of an expression. Words become functions or single letters."""
    tokens: list[str] = []
    for token in _TOKEN.findall(_split_words(text)):
        if token.startswith("\\") and token[1:].isalpha():
            name = token[1:]
            token = name if name in _FUNCTIONS else _SYMBOL_COMMANDS.get(name, token)
        elif token == "**":
            token = "^"
        tokens.append(_SYMBOL_SIGNS.get(token, token))
    return tokens


def _split_words(text: str) -> str:
    """Put commands in place of the names of functions that are written as words."""
    return re.sub(
        r"\\[A-Za-z]+|[A-Za-z]{2,}",
        lambda word: f"\\{word[0].lower()} " if word[0].lower() in (*_FUNCTIONS, "sqrt", "pi") else word[0],
        text.replace("infinity", "∞"),
    )


def _join(tokens: list[str]) -> str:
    """Return symbols as a text that has the same symbols."""
    parts: list[str] = []
    for previous, token in zip(["", *tokens], tokens, strict=False):
        is_apart = (_is_word(previous) and token[0].isalpha()) or (_is_number(previous) and _is_number(token))
        parts.append(" " + token if is_apart else token)
    return "".join(parts)


def _is_word(token: str) -> bool:
    return token in _FUNCTIONS or (token.startswith("\\") and token[-1].isalpha())


def _is_number(token: str) -> bool:
    return token[:1] in (*"0123456789.",) and token[-1:].isdigit()


def _is_letter(token: str) -> bool:
    return len(token) == 1 and (token.isalpha() or token in "∞°∠△∅…")


@dataclass(frozen=True)
class _Term:
    """A product: a number, and what it is multiplied with and divided by, in order."""

    number: Fraction = Fraction(1)
    above: tuple[str, ...] = ()
    below: tuple[str, ...] = ()

    @property
    def is_number(self) -> bool:
        """Whether it has no other factors."""
        return not self.above and not self.below

    def format(self) -> str:
        """Return the product without its sign."""
        number = abs(self.number)
        top, bottom = str(number.numerator), str(number.denominator)
        decimal = _decimal(number)
        if decimal is not None:
            top, bottom = decimal, "1"
        above = ([top] if top != "1" or not self.above else []) + list(self.above)
        below = ([bottom] if bottom != "1" else []) + list(self.below)
        divided = f"/({_multiply(below)})" if len(below) > 1 else "/" + below[0] if below else ""
        return _multiply(above) + divided


@dataclass(frozen=True)
class _Sum:
    """A sum of products, each with its sign: + or ±, and ∓; a minus is the number's."""

    terms: tuple[tuple[str, _Term], ...]

    def format(self) -> str:
        """Return the sum with its terms in a fixed order, numbers last."""
        written = []
        for sign, term in self.terms:
            text = term.format()
            sign = "-" if sign == "+" and term.number < 0 else sign
            written.append((term.is_number, text, sign))
        written.sort()
        first = "" if written[0][2] == "+" else written[0][2]
        return first + written[0][1] + "".join(sign + text for _, text, sign in written[1:])

    @property
    def single(self) -> _Term | None:
        """The product of a sum that is none."""
        return self.terms[0][1] if len(self.terms) == 1 and self.terms[0][0] == "+" else None


def _decimal(number: Fraction) -> str | None:
    """Return a number as the decimal that it is; None when its decimals do not end."""
    bottom, places = number.denominator, 0
    while bottom % 10 == 0:
        bottom, places = bottom // 10, places + 1
    twos = fives = 0
    while bottom % 2 == 0:
        bottom, twos = bottom // 2, twos + 1
    while bottom % 5 == 0:
        bottom, fives = bottom // 5, fives + 1
    if bottom != 1:
        return None
    places += max(twos, fives)
    digits = str(number.numerator * 10**places // number.denominator).rjust(places + 1, "0")
    return (digits[:-places] + "." + digits[-places:]).rstrip("0").rstrip(".") if places else digits


def _multiply(factors: list[str]) -> str:
    """Return factors one after another, with a sign between those that would be read as one."""
    parts = [factors[0]]
    for previous, factor in zip(factors, factors[1:], strict=False):
        is_apart = factor[0].isdigit() or factor[0] == "."
        is_word = previous.rpartition("\\")[1] and previous.rpartition("\\")[2].isalpha()
        parts.append(("*" if is_apart else " " if is_word and factor[0].isalpha() else "") + factor)
    return "".join(parts)


class _Parser:
    """A parser by recursive descent, of bounded depth, that puts canonical texts together from the inside out."""

    def __init__(self, tokens: list[str]):
        self._tokens, self._position, self._depth = list(tokens), 0, 0

    def peek(self) -> str:
        return self._tokens[self._position] if self._position < len(self._tokens) else ""

    def _next(self) -> str:
        token = self.peek()
        if not token:
            raise _NotUnderstoodError
        self._position += 1
        return token

    def _expect(self, token: str) -> None:
        if self._next() != token:
            raise _NotUnderstoodError

    def _inside(self, parse: Callable[[], _Sum], close: str) -> _Sum:
        """Parse what stands before a closing bracket."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _NotUnderstoodError
        found = parse()
        self._expect(close)
        self._depth -= 1
        return found

    def parse_sum(self) -> _Sum:
        terms: list[tuple[str, _Term]] = []
        while True:
            sign = self._next() if self.peek() in ("+", "-", "±", "∓") else "" if terms else "+"
            if not sign:
                return _Sum(tuple(terms))
            term = self._parse_product()
            if sign == "-":
                sign, term = "+", _Term(-term.number, term.above, term.below)
            terms.append((sign, term))

    def _parse_product(self) -> _Term:
        product = self._parse_factor(_Term())
        while (token := self.peek()) and token not in ("+", "-", "±", "∓", ")", "]", "}", "\\}", ",", ";"):
            if token == "/":
                self._next()
                below = self._parse_factor(_Term())
                if (
                    product.is_number
                    and below.is_number
                    and (product.number.denominator, below.number.denominator) != (1, 1)
                ):
                    raise _NotUnderstoodError  # 2/4/2024
                product = _divide(product, below)
            elif token == "*":
                self._next()
                product = _product(product, self._parse_factor(_Term()), is_explicit=True)
            elif token in _FRACTION_COMMANDS and product.is_number and product.number.denominator == 1:
                product = _add_fraction(product, self._parse_factor(product))
            else:
                product = _product(product, self._parse_factor(product))
        return product

    def _parse_factor(self, before: _Term) -> _Term:
        """Parse a factor with its exponents and marks; `before` is what it is multiplied with without a sign."""
        base = self._parse_base(before)
        marks = ""
        while self.peek() in ("^", "_", "!", "'", "°", "%"):
            mark = self._next()
            if mark == "^" and self.peek() in ("'", "°"):
                continue
            marks += mark + (self._parse_script() if mark in "^_" else "")
        if not marks:
            return base
        return _Term(above=(_bracket(_Sum((("+", base),))) + marks,))

    def _parse_script(self) -> str:
        """Parse what stands behind ^ or _: a group in braces, or one symbol; digits in a row are one."""
        if self.peek() == "{":
            self._next()
            inner = self._inside(self.parse_sum, "}").format()
        else:
            sign = self._next() if self.peek() in ("-", "+") else ""
            token = self._next()
            if not (_is_number(token) or _is_letter(token)):
                raise _NotUnderstoodError
            inner = sign.strip("+") + token
        return inner if len(inner) == 1 or inner.isdigit() else f"{{{inner}}}"

    def _parse_base(self, before: _Term) -> _Term:
        token = self._next()
        if _is_number(token):
            is_name = token[0] == "0" and token[1:2].isdigit()  # 007
            if is_name or len(token) > MAX_DIGITS or (before.above and before.above[-1][-1:].isalnum()):
                raise _NotUnderstoodError  # such as x2
            return _Term(Fraction(token))
        if token in _FRACTION_COMMANDS:
            above, below = self._parse_group(), self._parse_group()
            return _divide(_as_term(above), _as_term(below))
        if token == "√":
            degree = ""
            if self.peek() == "[":
                self._next()
                degree = f"[{self._inside(self.parse_sum, ']').format()}]"
            return _Term(above=(f"√{degree}({self._parse_group().format()})",))
        if token in _ACCENTS:
            return _Term(above=(f"{token}{{{self._parse_group().format()}}}",))
        if token in _FUNCTIONS:
            return self._parse_function(token)
        if token == "{":
            return _as_term(self._inside(self.parse_sum, "}"))
        if token in ("(", "["):
            return self._parse_bracket(token, before)
        if _is_letter(token) or (token.startswith("\\") and token[1:].isalpha() and token not in ("\\begin", "\\end")):
            return _Term(above=(token,))
        raise _NotUnderstoodError

    def _parse_bracket(self, token: str, before: _Term) -> _Term:
        inner = self._inside(self.parse_sum, ")" if token == "(" else "]")
        is_call = bool(before.above) and _is_letter(before.above[-1][-1])  # f(x), which is not fx
        if is_call:
            return _Term(above=(f"({inner.format()})",))
        return _as_term(inner)

    def _parse_group(self) -> _Sum:
        """Parse the argument of a command: in braces or brackets, or the next symbol; of digits the first."""
        if self.peek() in ("{", "("):
            return self._inside(self.parse_sum, "}" if self._next() == "{" else ")")
        token = self._next()
        if _is_number(token):
            if "." in token:
                raise _NotUnderstoodError
            if len(token) > 1:
                self._position -= 1
                self._tokens[self._position] = token[1:]
            return _Sum((("+", _Term(Fraction(token[0]))),))
        if _is_letter(token):
            return _Sum((("+", _Term(above=(token,))),))
        raise _NotUnderstoodError

    def _parse_function(self, name: str) -> _Term:
        """Parse a function with its base or power, and its argument: a bracket, or all factors up to the next one."""
        marks = ""
        while self.peek() in ("^", "_"):
            marks += self._next() + self._parse_script()
        if self.peek() in ("(", "{"):
            argument = self._inside(self.parse_sum, ")" if self._next() == "(" else "}")
            return _Term(above=(f"{name}{marks}({argument.format()})",))
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _NotUnderstoodError
        product = self._parse_factor(_Term())
        self._depth -= 1
        while (_is_letter(self.peek()) or _is_number(self.peek())) and self.peek():
            product = _product(product, self._parse_factor(product))
        return _Term(above=(f"{name}{marks}({_Sum((('+', product),)).format()})",))


def _product(a: _Term, b: _Term, is_explicit: bool = False) -> _Term:
    """Return the product of two terms. Two numbers are not multiplied: 2 by 3 is not 6."""
    if a.is_number and b.is_number and not is_explicit:
        raise _NotUnderstoodError
    if 1 in (a.number, b.number) and not (a.is_number and b.is_number):
        return _Term(a.number * b.number, a.above + b.above, a.below + b.below)
    factor = b.format() if b.number > 0 and not b.below else f"({_Sum((('+', b),)).format()})"
    return _Term(a.number, (*a.above, factor), a.below)


def _add_fraction(whole: _Term, part: _Term) -> _Term:
    """Return a mixed number, or the product with a fraction that is no number."""
    if part.is_number and 0 < part.number < 1:
        return _Term(whole.number + part.number)
    return _product(whole, part)


def _divide(a: _Term, b: _Term) -> _Term:
    if not b.number:
        raise _NotUnderstoodError
    return _Term(a.number / b.number, a.above + b.below, a.below + b.above)


def _as_term(found: _Sum) -> _Term:
    """Return a sum as a factor: in brackets, unless it is one product."""
    return found.single or _Term(above=(f"({found.format()})",))


def _bracket(base: _Sum) -> str:
    """Return the base of a power, in brackets unless it is one symbol."""
    text = base.format()
    term = base.single
    is_symbol = term is not None and term.number == 1 and len(term.above) == 1 and not term.below
    return text if (is_symbol and not set("^!") & set(text.partition("(")[0])) or text.isdigit() else f"({text})"
