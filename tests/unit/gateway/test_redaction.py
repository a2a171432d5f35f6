"""What is taken from texts before they are written to the log."""

import re
import string
import time
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from rerank_gateway.redaction import MARGIN, beginning, redact, redact_beginning

CARD = "4111111111111111"


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("", ""),
        ("which shoes are waterproof?", "which shoes are waterproof?"),
        # addresses
        ("write to john.doe+x@example.co.uk now", "write to [email] now"),
        ("<mailto:j@example.com>, or call", "[email] or call"),
        ("@someone@social.example said", "[email] said"),
        ("用户@例え.jp", "[email]"),
        ("john\uff20example.com", "[email]"),
        ("john%40example.com", "[email]"),
        ('"john doe"@example.com', '"john [email]'),
        ("only @home and @@", "only @home and @@"),
        ("50% off, a 40% discount", "50% off, a 40% discount"),
        # phone numbers
        ("call +44 20 7946 0958.", "call [phone]."),
        ("(555) 123-4567", "[phone]"),
        ("555.123.4567", "[phone]"),
        ("+49 (0) 171 / 123456", "[phone]"),
        ("tel5551234567x", "tel[phone]x"),
        ("0171\u20111234567", "[phone]"),
        ("0171\u00a0123\u202f4567", "[phone]"),
        ("\u0660\u0661\u0667\u0661 \u0661\u0662\u0663\u0664\u0665\u0666\u0667", "[phone]"),
        ("555\u200b123\u200b4567", "[phone]"),
        ("555\n123\t4567", "[phone]"),
        # numbers of cards
        (f"card {CARD}, thanks", "card [card], thanks"),
        ("4111 1111 1111 1111", "[card]"),
        ("4111-1111-1111-1111", "[card]"),
        ("4111_1111_1111_1111", "[card]"),
        ("4111*1111*1111*1111", "[card]"),
        ("4111|1111~1111 | 1111", "[card]"),
        ("4111\u20611111\u20621111\u20631111\u20641", "[card]"),
        ("3782 822463 10005", "[card]"),
        (f"{CARD} {CARD}", "[number]"),
        # what is short enough to be neither
        ("size 42, 1999 EUR, 10 x 15 cm", "size 42, 1999 EUR, 10 x 15 cm"),
        ("1,234,567 and 1, 2, 3, 4, 5, 6, 7, 8", "1,234,567 and 1, 2, 3, 4, 5, 6, 7, 8"),
        # of hosts
        ("from 10.0.0.1.", "from [ip]."),
        ("http on 192.168.1.20:8080", "http on [ip]:8080"),
        ("192.168.100.200", "[ip]"),
        ("0171 12.34.56.78", "[phone]"),
        ("at 12:30:45 or 3:2", "at 12:30:45 or 3:2"),
        ("fe80::1, 2001:db8::8a2e:370:7334.", "[ip], [ip]."),
        ("[2001:db8::]:443", "[[ip]]:443"),
        ("ip:2001:db8::1", "ip:[ip]"),
        ("::ffff:10.0.0.1", "[ip]"),
        ("std::vector and ::", "std::vector and ::"),
        # URLs
        ("see https://example.com/a/b.html", "see https://example.com/a/b.html"),
        ("https://example.com/a?user=jo&q=1#top", "https://example.com/a?[query]"),
        ("https://example.com/a#access=x", "https://example.com/a#[query]"),
        ("postgres://app:s3cret@db.example/orders", "postgres://[credentials]db.example/orders"),
        ("redis://:s3c@ret@db/0", "redis://[credentials]db/0"),
        ("ftp://me:p/w@host/", "ftp://[credentials]"),
        ("postgres://admin:pa#ss1@db/x", "postgres://[credentials]"),
        ("at https://bob:se?cret@host/x now", "at https://[credentials] now"),
        ("https://bob:se/c?r=e#t\uff20host/", "https://[credentials]"),
        ("https://me@host/a?mail=jo@example.com", "https://[credentials]"),
        ("example.com/find?name=jo", "example.com/find?[query]"),
        ("really?yes=no", "really?[query]"),
        ("really? x = y", "really? x = y"),
        # what is called a secret
        ("password=hunter2", "password=[secret]"),
        ("my Password : hunter2, thanks", "my Password : [secret] thanks"),
        ("token: abc123", "token: [secret]"),
        ("access_token=abc&refresh_token=def", "access_token=[secret]"),
        ("DB_SECRET=p@ss", "DB_SECRET=[secret]"),
        ("x-api-key: k1", "x-api-key: [secret]"),
        ("apikey=k1 api_key=k2 private key: k3", "apikey=[secret] api_key=[secret] private key: [secret]"),
        ("/shop;jsessionid=1A2B", "/shop;jsessionid=[secret]"),
        ("https://shop.example/a;jsessionid=1A2B?x=y", "https://shop.example/a;jsessionid=[secret]"),
        ('{"password":"hunter2","query":"shoes"}', '{"password":"[secret]","query":"shoes"}'),
        ("{'secret': 'of \\'two\\' words', 'size': 42}", "{'secret': '[secret]', 'size': 42}"),
        ("pwd='never closed", "pwd='[secret]'"),
        ("Authorization: Basic am86cHc= -v", "Authorization: [secret] -v"),
        ("Authorization: Token abc123", "Authorization: [secret]"),
        ("Authorization: ApiKey s3cr3t", "Authorization: [secret]"),
        ("'password' => 'hunter2', 'b' => 1", "'password' => '[secret]', 'b' => 1"),
        ("password := hunter2", "password := [secret]"),
        ("password == hunter2", "password == [secret]"),
        ("token: \u201cabc def\u201d and", "token: [secret] and"),
        ("\u0070assword\uff1ahunter2", "password\uff1a[secret]"),
        ("password reset, max_tokens: 512", "password reset, max_tokens: 512"),
        ("secret garden", "secret garden"),
        # tokens
        ("key sk_live_9aBcDeFgHiJkLmNoPqRs", "key [token]"),
        ("AKIAIOSFODNN7EXAMPLE", "[token]"),
        ("id 6f1e0b9c-8a55-4b1e-9a43-0c2f5d1e7a77", "id [token]"),
        ("x" * 39, "x" * 39),
        ("x" * 40, "[token]"),
        ("-" * 50, "-" * 50),
        ("internationalisations", "internationalisations"),
    ],
)
def test_what_is_taken_out(text: str, redacted: str) -> None:
    assert redact(text) == redacted
    assert redact(redacted) == redacted, "once is enough"


_WORDS = st.text(string.ascii_lowercase + "äß中 ,.!?()<>\"'\n", max_size=60)
_LOCAL = st.text(string.ascii_letters + string.digits + ".!#$&'*+-/=?^_`{|}~é", min_size=1, max_size=64)
_LABEL = st.text(string.ascii_lowercase + string.digits + "-", min_size=1, max_size=20)
_SEPARATOR = st.sampled_from(
    ["", " ", "-", ".", "/", " - ", ") ", "\u00a0", "\u2011", "\u200b", "\t", "\n", "*", " | ", "~", "\u2063"]
)


@st.composite
def _emails(draw: st.DrawFn) -> str:
    return f"{draw(_LOCAL)}@{'.'.join(draw(st.lists(_LABEL, min_size=1, max_size=3)))}.com"


@st.composite
def _numbers(draw: st.DrawFn, fewest: int, most: int) -> str:
    digits = draw(st.text(string.digits, min_size=fewest, max_size=most))
    spaced = "".join(digit + draw(_SEPARATOR) for digit in digits[:-1]) + digits[-1]
    return draw(st.sampled_from(["", "+", "(", "+("])) + spaced


@given(_WORDS, _emails(), _WORDS)
def test_no_address_survives(before: str, address: str, after: str) -> None:
    kept = redact(before + address + after)
    assert address not in kept
    assert "@" not in kept
    assert redact(kept) == kept


@given(_WORDS, _numbers(7, 19), _WORDS)
def test_no_number_of_a_phone_or_card_survives(before: str, number: str, after: str) -> None:
    kept = redact(before + number + after)
    assert not any(map(str.isdigit, kept))
    assert redact(kept) == kept


_AROUND = st.sampled_from(["", " ", "(", ")", ",", ".", ": ", "; ", '"', "\n", "ip=", "ip:", "中", "ß"])


@given(_AROUND, st.ip_addresses(), _AROUND)
def test_no_address_of_a_host_survives(before: str, address: IPv4Address | IPv6Address, after: str) -> None:
    assume(str(address) != "::")  # no host's
    for written in {str(address), str(address).upper(), address.exploded}:
        kept = redact(before + written + after)
        assert written not in kept
        assert not re.search(r"[0-9]", kept)


_SECRET = st.text(string.ascii_letters + string.digits + "!$%&'()*+,;=.~_-", min_size=8, max_size=40)


@given(_WORDS, _SECRET, _SECRET, _WORDS)
def test_no_credentials_and_no_query_of_a_url_survive(before: str, password: str, value: str, after: str) -> None:
    assume(not any(secret in around for secret in (password, value) for around in (before, after)))
    kept = redact(f"{before} https://user:{password}@example.com/path?name={value} {after}")
    assert password not in kept
    assert value not in kept
    assert "example.com/path" in kept


@given(
    _WORDS,
    st.sampled_from(["password", "access_token", "client-secret", "API_KEY", "JSESSIONID", "Authorization"]),
    st.sampled_from(["=", ":", ": ", " = ", '": "', "':'", "\n:\t"]),
    st.text(string.ascii_letters + string.digits + "!$%&()*+,;=.~_@-", min_size=4, max_size=40),
    _WORDS,
)
def test_nothing_that_is_called_a_secret_survives(
    before: str, name: str, separator: str, value: str, after: str
) -> None:
    assume(value not in before and value not in after)
    kept = redact(f"{before} {name}{separator}{value} {after}")
    assert value not in kept
    assert redact(kept) == kept


@given(
    st.sampled_from(["postgres://", "https://"]),
    st.text(string.ascii_lowercase + "/?#:@=", min_size=8, max_size=40),
)
def test_no_credentials_survive_whatever_is_in_them(scheme: str, credentials: str) -> None:
    kept = redact(f"{scheme}{credentials}@db")
    assert kept in (f"{scheme}[credentials]db", f"{scheme}[credentials]")
    assert redact(kept) == kept


@given(_WORDS, st.text(string.ascii_letters + string.digits + "_-", min_size=20, max_size=80), _WORDS)
def test_no_token_survives(before: str, token: str, after: str) -> None:
    assume(re.search(r"[0-9]", token) and re.search(r"[A-Za-z]", token))
    assert token not in redact(f"{before} {token} {after}")


@given(st.text(max_size=300))
def test_once_is_enough_whatever_the_text(text: str) -> None:
    kept = redact(text)
    assert redact(kept) == kept


@given(
    st.sampled_from(["john.doe@example.com", "+44 20 7946 0958", "4111 1111 1111 1111", "postgres://a:p@db/x?y=z"]),
    st.integers(0, 400),
    st.integers(16, 300),
    st.sampled_from(["word ", "a@b.c ", "1 "]),
)
def test_a_cut_leaves_no_half_of_anything(secret: str, place: int, characters: int, filler: str) -> None:
    """Wherever the text is cut, and though what was taken out before has made it shorter."""
    text = (filler * 200)[:place].rsplit(" ", 1)[0] + " " + secret + " " + "tail " * 100
    kept = redact_beginning(beginning(text, characters), characters)
    assert len(kept) <= characters
    parts = re.findall(r"\w{2,}", secret)
    assert not [part for part in parts if part in kept and part not in ("postgres", "db", "com")]


@pytest.mark.parametrize(("length", "kept"), [(10, 10), (16, 16), (100, 16), (16 + MARGIN, 16), (1000, 16)])
def test_a_text_is_cut_to_the_limit_and_no_shorter(length: int, kept: int) -> None:
    text = "x " * (length // 2)
    assert redact_beginning(beginning(text, 16), 16) == text[:kept]


@pytest.mark.parametrize(
    "unit",
    [
        "a", "1", "@", "a@", "@a", ":", "1:", "::1", "a:", "1.", "/", "://", "a://", "a://b@", "?", "?a", "?a=", "?=",
        "%40", "a%40", "%", "-", "1-", "1     ", "+(", "(1", "a.", "=", "\uff20", " ", "1\u200b", "f:", "1.1.1.",
        "1*", "1\u2061", "secret", "password=", "token: ", "token:'", 'pwd="\\', "authorization:basic ", "a://?@",
    ],
)  # fmt: skip
def test_no_text_takes_long(unit: str) -> None:
    """Ten times the text takes about ten times as long, not a hundred times."""

    def seconds(characters: int) -> float:
        text = (unit * characters)[:characters] + "!"
        best = float("inf")
        for _ in range(5):
            began = time.process_time()
            redact(text)
            best = min(best, time.process_time() - began)
        return best

    assert seconds(40_000) < 40 * max(seconds(4_000), 0.0005)
