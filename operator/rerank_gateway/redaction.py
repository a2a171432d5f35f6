r"""Takes from a text what may name or open something: addresses, numbers, tokens, what is called a password or secret,
and the secret parts of URLs.

Pure. For texts that are written to the log while capture is on. Rather takes too much (a date, a part number) than too
little; but the names of people and places are words like others and stay: what is captured is still confidential.

Every pattern takes time that grows with the text's length only, whatever stands in it: a match begins where a run of
its characters begins or looks at a bounded number of them, and a repetition without a bound gives nothing back.
"""

import re
from ipaddress import ip_address

MARGIN = 256
"""Characters looked at beyond those that are kept, so that none is kept of what the cut would split. No address is
longer (RFC 5321: 254)."""

_URL = re.compile(r"(?<![A-Za-z0-9+.-])([A-Za-z][A-Za-z0-9+.-]*+://)([^\s/?#]*+)([^\s?#]*+)([?#]\S*+)?")
_QUERY_STRING = re.compile(r"\?[^\s?=]{1,100}+=\S++")
_AT = re.compile(r"[@\uff20]")
_SECRET = re.compile(
    r"((?:passwor[dt]|passwd|passphrase|passcode|pwd|token|secret|authorization|sess(?:ion)?[_-]?id"
    r"|(?:api|access|auth|private|secret)[ _-]?key)[\\\"']{0,2}\s{0,3}[:=\uff1a\uff1d]{1,3}+>?+\s{0,3})"
    r"""(?:"(?:[^"\\]|\\.){0,256}+"?|'(?:[^'\\]|\\.){0,256}+'?|[\u201c\u201e][^\u201c\u201d]{0,256}+[\u201c\u201d]?"""
    r"""|(?:(?:basic|bearer|token|api-?key|digest|negotiate)\s{1,3})?\S++)""",
    re.IGNORECASE,
)
_EMAIL = re.compile(r"(?<!\S)[@\uff20]*+[^\s@\uff20]++[@\uff20]\S++")
_ESCAPED_EMAIL = re.compile(r"(?<!\S)(?:(?!%40)\S)++%40\S++")
_IPV6 = re.compile(r"(?<![0-9A-Za-z])[0-9A-Fa-f]*+:[0-9A-Fa-f:.]++")
_IPV4 = re.compile(r"(?<![0-9])[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?!\.?[0-9])")
_TOKEN = re.compile(r"[A-Za-z0-9_+/=-]{20,}+")
# Between two digits of one number may stand: white space, hyphens and dashes, dots, slashes, brackets, stars, bars,
# tildes, and marks that nobody sees. No commas: lists of numbers have them.
_NUMBER = re.compile(
    r"\+?\(?\d(?:[\s./()_*|~\u00ad\u00b7\u200b-\u200f\u2010-\u2015\u2060-\u2064\u2212\ufeff\uff0d-]{0,5}\d)++"
)

_NO_WORD = 40
"""From so many characters on a run of letters is no word."""
_PHONE_DIGITS = 7
_CARD_DIGITS = 13
_LONGEST_CARD_DIGITS = 19
"""As ISO/IEC 7812-1 has them."""


def redact(text: str) -> str:
    """``text`` with a mark such as ``[email]`` in the place of each thing that was taken out."""
    text = _URL.sub(_bare_url, text)
    text = _QUERY_STRING.sub("?[query]", text)
    # After the URLs, whose credentials may look like this: of them no part may stay.
    text = _SECRET.sub(_secret, text)
    text = _EMAIL.sub("[email]", text)
    if "%40" in text:
        text = _ESCAPED_EMAIL.sub("[email]", text)
    text = _IPV6.sub(_ipv6, text)
    text = _TOKEN.sub(_token, text)
    # Before what is left of IPv4, which would leave the rest of a number with dots.
    text = _NUMBER.sub(_number, text)
    return _IPV4.sub("[ip]", text)


def beginning(text: str, characters: int) -> str:
    """As much of ``text`` as ``redact_beginning`` has to see, so that no more of it need be kept meanwhile."""
    return text[: characters + MARGIN]


def redact_beginning(text: str, characters: int) -> str:
    """What ``beginning`` gave for so many characters, redacted, and no more than those.

    Of a text that goes on, the last MARGIN characters are left out: they may be the first part of something that
    cannot be told from a word.
    """
    redacted = redact(text)
    if len(text) >= characters + MARGIN:
        redacted = redacted[:-MARGIN]
    return redacted[:characters]


def _bare_url(found: re.Match[str]) -> str:
    scheme, authority, path, rest = found.groups()
    if _AT.search(path) or (rest and _AT.search(rest)):
        # Of a password with such a character in it, not escaped, nobody can tell where it ends.
        return f"{scheme}[credentials]"
    _, credentials, host = authority.rpartition("@")
    return f"{scheme}{'[credentials]' if credentials else ''}{host}{path}{rest[0] + '[query]' if rest else ''}"


def _secret(found: re.Match[str]) -> str:
    """Quotes stay, so that it can be seen where it ended."""
    name = found.group(1)
    first = found.group()[len(name)]
    return f"{name}{first}[secret]{first}" if first in "\"'" else f"{name}[secret]"


def _ipv6(found: re.Match[str]) -> str:
    """Times and ratios have colons too: taken out is only what is an address, but for the end of its sentence."""
    text = found.group()
    address = text.rstrip(".:")
    if address and text.startswith("::", len(address)):
        address += "::"
    try:
        ip_address(address)
    except ValueError:
        return text
    return "[ip]" + text[len(address) :]


def _token(found: re.Match[str]) -> str:
    text = found.group()
    letters, digits = any(map(str.isalpha, text)), any(map(str.isdigit, text))
    return "[token]" if letters and (digits or len(text) >= _NO_WORD) else text


def _number(found: re.Match[str]) -> str:
    text = found.group()
    digits = sum(map(str.isdigit, text))
    if digits < _PHONE_DIGITS or _IPV4.fullmatch(text):
        return text
    if digits < _CARD_DIGITS:
        return "[phone]"
    return "[card]" if digits <= _LONGEST_CARD_DIGITS else "[number]"
