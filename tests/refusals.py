"""The form of every refusal of a command line, for tests of many programs."""


def assert_refused(outcome: tuple[int, str, str], *words: str) -> None:
    """Exit status 2, nothing on stdout, one line on stderr that says these words."""
    status, out, err = outcome
    assert (status, out) == (2, ""), outcome
    assert err.count("\n") == 1 and err.startswith("error: "), f"not one line: {err!r}"
    assert all(word in err for word in words), err
