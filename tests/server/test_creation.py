"""The decisions about a PUT, rule by rule (server 5 and 13)."""

from dataclasses import dataclass, replace

import pytest

from durable_streams.server import (
    Birth,
    CreateRequest,
    Fork,
    Instant,
    InvalidJson,
    Offset,
    Payload,
    Reason,
    Refused,
    StreamConfig,
    StreamState,
    decide_birth,
    decide_repetition,
)
from durable_streams.server.creation import MAX_DEPTH

PATH, SOURCE = "/v1/stream/x", "/v1/stream/source"
TEXT, JSON = "text/plain", "application/json"
END, LATER = Instant.parse("2030-01-01T00:00:00Z"), Instant.parse("2031-01-01T00:00:00Z")
BAD = InvalidJson("the body is not valid JSON")


@dataclass
class Source:
    """A stream of appends, as decisions see it."""

    config: StreamConfig
    appends: list[Payload]
    depth: int = 0
    deleted: bool = False

    @property
    def state(self) -> StreamState:
        tail = sum(len(append.data) for append in self.appends)
        return StreamState(self.config.effective_type.lower(), tail, deleted=self.deleted)

    def is_boundary(self, offset: Offset) -> bool:
        start, places = 0, {0}
        for append in self.appends:
            places |= {start + end for end in append.ends}
            start += len(append.data)
        return offset in places

    def rest_of_append(self, offset: Offset) -> Payload:
        start = 0
        for append in self.appends:
            if offset < start + len(append.data):
                skip = offset - start
                return Payload(append.data[skip:], [end - skip for end in append.ends if end > skip])
            start += len(append.data)
        raise AssertionError("asked beyond the tail")


TEXTS = Source(StreamConfig(TEXT), [Payload(b"abc"), Payload(b"defg")])
JSONS = Source(StreamConfig(JSON), [Payload(b'{"n":1},[2],', [8, 12]), Payload(b"3,", [2])])


def fork(
    offset: Offset | None = None,
    sub: int = 0,
    content_type: str | None = None,
    payload: Payload | InvalidJson | None = None,
    if_json: Payload | InvalidJson | None = None,
) -> CreateRequest:
    return CreateRequest(PATH, StreamConfig(content_type, fork=Fork(SOURCE, offset, sub)), False, payload, if_json)


def born(
    source: Source, start: Offset, *appends: Payload, sub: int = 0, content_type: str | None = None, depth: int = 1
) -> Birth:
    config = replace(source.config, content_type=content_type or source.config.content_type)
    config = replace(config, fork=Fork(SOURCE, start, sub))
    return Birth(config, False, start, appends, start + sum(len(append.data) for append in appends), depth)


@pytest.mark.parametrize(
    ("rule", "source", "asked", "expected"),
    [
        ("2 none", None, fork(99, 99, JSON, BAD), Reason.SOURCE_NOT_FOUND),
        ("3 deleted", replace(TEXTS, deleted=True), fork(99, 99, JSON, BAD), Reason.SOURCE_DELETED),
        ("4 type", replace(TEXTS, depth=99), fork(99, 99, JSON, BAD), Reason.FORK_TYPE_MISMATCH),
        ("4 same media type", TEXTS, fork(None, 0, "TEXT/plain; x=1"), born(TEXTS, 7, content_type="TEXT/plain; x=1")),
        ("5 deep", replace(JSONS, depth=MAX_DEPTH), fork(99, 99, JSON, BAD), Reason.FORK_TOO_DEEP),
        ("5 deepest", replace(TEXTS, depth=MAX_DEPTH - 1), fork(), born(TEXTS, 7, depth=MAX_DEPTH)),
        ("6 beyond", TEXTS, fork(8, 99), Reason.BAD_FORK_OFFSET),
        ("6 inside a message", JSONS, fork(9, 99, if_json=BAD), Reason.BAD_FORK_OFFSET),
        ("6 inside an append", JSONS, fork(8), born(JSONS, 8)),
        ("6 any byte", TEXTS, fork(4), born(TEXTS, 4)),
        ("7 bytes", TEXTS, fork(3, 5, payload=BAD), Reason.BAD_SUB_OFFSET),
        ("7 messages", JSONS, fork(0, 3, if_json=BAD), Reason.BAD_SUB_OFFSET),
        ("7 at the tail", TEXTS, fork(7, 1), Reason.BAD_SUB_OFFSET),
        ("7 at the tail, by default", JSONS, fork(None, 1), Reason.BAD_SUB_OFFSET),
        ("8 inherited JSON", JSONS, fork(payload=Payload(b"{"), if_json=BAD), Reason.INVALID_JSON),
        ("8 JSON", JSONS, fork(None, 0, JSON, BAD), Reason.INVALID_JSON),
        ("9 tail", JSONS, fork(), born(JSONS, 14)),
        ("9 start", TEXTS, fork(0), born(TEXTS, 0)),
        ("9 sub-offset of bytes", TEXTS, fork(3, 4), born(TEXTS, 3, Payload(b"defg"), sub=4)),
        ("9 sub-offset inside an append", TEXTS, fork(1, 1), born(TEXTS, 1, Payload(b"b"), sub=1)),
        ("9 sub-offset of messages", JSONS, fork(0, 1), born(JSONS, 0, Payload(b'{"n":1},', [8]), sub=1)),
        ("9 the part, then the body", TEXTS, fork(0, 1, payload=Payload(b"!"), if_json=BAD),
         born(TEXTS, 0, Payload(b"a"), Payload(b"!"), sub=1)),
        ("9 JSON body", JSONS, fork(12, 0, None, Payload(b"[4]"), Payload(b"4,", [2])),
         born(JSONS, 12, Payload(b"4,", [2]))),
        ("9 empty array", JSONS, fork(payload=Payload(b"[]"), if_json=Payload(b"")), born(JSONS, 14)),
    ],
)  # fmt: skip
def test_the_first_rule_that_fits_wins(
    rule: str, source: Source | None, asked: CreateRequest, expected: Birth | Reason
) -> None:
    decision = decide_birth(source, asked)
    if isinstance(expected, Reason):
        assert isinstance(decision, Refused)
        assert decision.reason is expected
    else:
        assert decision == expected


def test_what_is_no_fork_has_no_ancestors() -> None:
    asked = CreateRequest(PATH, StreamConfig(None, 60), True, Payload(b"abc"))
    expected = Birth(StreamConfig("application/octet-stream", 60), True, 0, (Payload(b"abc"),), 3, 0)
    assert decide_birth(None, asked) == expected
    assert decide_birth(None, replace(asked, payload=BAD)) == Refused(Reason.INVALID_JSON, problem=BAD.problem)


@pytest.mark.parametrize("source", [(None, None), (50, None), (None, END)])
@pytest.mark.parametrize("wish", [(None, None), (70, None), (None, LATER)])
def test_an_own_lifetime_comes_before_an_inherited_one(
    source: tuple[int | None, Instant | None], wish: tuple[int | None, Instant | None]
) -> None:
    stream = replace(TEXTS, config=StreamConfig(TEXT, *source))
    asked = CreateRequest(PATH, StreamConfig(None, *wish, Fork(SOURCE)))
    decision = decide_birth(stream, asked)
    assert isinstance(decision, Birth)
    assert (decision.config.ttl, decision.config.expires_at) == (source if wish == (None, None) else wish)


ASKED = StreamConfig(fork=Fork(SOURCE))
BECAME = StreamConfig(TEXT, 60, fork=Fork(SOURCE, 7))
OPEN = StreamState(TEXT, 9)


@pytest.mark.parametrize(
    ("again", "fits"),
    [
        (ASKED, True),
        (BECAME, True),
        (replace(ASKED, content_type="TEXT/plain; x=1"), True),
        (replace(ASKED, ttl=60), True),
        (replace(ASKED, fork=Fork(SOURCE, 7)), True),
        (replace(ASKED, content_type=JSON), False),
        (replace(ASKED, ttl=61), False),
        (replace(ASKED, expires_at=END), False),
        (replace(ASKED, fork=Fork(SOURCE, 6)), False),
        (replace(ASKED, fork=Fork(SOURCE, 7, 1)), False),
        (replace(ASKED, fork=Fork(PATH)), False),
        (StreamConfig(TEXT, 60), False),
    ],
)
def test_a_repetition_fits_what_was_asked_for_or_what_became_of_it(again: StreamConfig, fits: bool) -> None:
    decision = decide_repetition(OPEN, ASKED, BECAME, CreateRequest(PATH, again, payload=BAD))
    assert decision == (None if fits else Refused(Reason.OTHER_CONFIG))


def test_a_wish_of_its_own_has_to_be_repeated() -> None:
    asked = replace(ASKED, ttl=5)
    became = replace(BECAME, ttl=5)
    assert decide_repetition(OPEN, asked, became, CreateRequest(PATH, asked)) is None
    assert decide_repetition(OPEN, asked, became, CreateRequest(PATH, ASKED)) == Refused(Reason.OTHER_CONFIG)


def test_an_ordinary_put_does_not_fit_a_fork_nor_the_other_way_round() -> None:
    plain = StreamConfig(TEXT, 60)
    assert decide_repetition(OPEN, plain, plain, CreateRequest(PATH, plain)) is None
    assert decide_repetition(OPEN, plain, plain, CreateRequest(PATH, BECAME)) == Refused(Reason.OTHER_CONFIG)


def test_closure_is_compared_with_the_present_one_and_deletion_comes_first() -> None:
    closed = replace(OPEN, closed=True)
    assert decide_repetition(closed, ASKED, BECAME, CreateRequest(PATH, ASKED)) == Refused(Reason.OTHER_CONFIG)
    assert decide_repetition(closed, ASKED, BECAME, CreateRequest(PATH, ASKED, closed=True)) is None
    deleted = replace(closed, deleted=True)
    refused = decide_repetition(deleted, ASKED, BECAME, CreateRequest(PATH, ASKED, closed=True))
    assert refused == Refused(Reason.SOFT_DELETED)
