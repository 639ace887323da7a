"""Other people's words, made fit to be shown: one line, printable, not too long."""


def one_line(text: str, *, most_bytes: int) -> str:
    """
    *text* as one line of printable characters, cut to a number of bytes in UTF-8.

    White space of any kind becomes one space; controls, direction overrides and other invisible marks are dropped,
    so that nobody's words can move the cursor of a terminal or stand for a line of ours. Of a very long text only
    the beginning is looked at.
    """
    words = text[: 4 * most_bytes].split()
    kept = "".join(letter for letter in " ".join(words) if letter.isprintable()).strip()
    encoded = kept.encode(errors="replace")
    if len(encoded) <= most_bytes:
        return encoded.decode()
    return encoded[: max(0, most_bytes - 3)].decode(errors="ignore").rstrip() + "…"
