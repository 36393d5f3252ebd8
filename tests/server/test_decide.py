"""The decision about an append, rule by rule (server 6.1)."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_streams.server import (
    AppendRequest,
    Commit,
    Duplicate,
    InvalidJson,
    Payload,
    ProducerStamp,
    ProducerState,
    Reason,
    Refused,
    StreamState,
    decide,
)
from durable_streams.server.protocol import parse_stamp

DATA = Payload(b"data")
JSON = Payload(b'{"n":1},', [8])
TEXT = "text/plain"
OPEN = StreamState(TEXT, tail=10)
CLOSED = StreamState(TEXT, tail=10, closed=True)
CLOSED_BY_P = replace(CLOSED, closed_by=ProducerStamp("p", 1, 4))
DELETED = StreamState(TEXT, tail=10, deleted=True)
OPEN_JSON = StreamState("application/json", tail=10)
KNOWN = ProducerState(1, 4)


def request(payload: object = DATA, media_type: str = TEXT, **fields: object) -> AppendRequest:
    return AppendRequest("/v1/stream/x", media_type, payload, **fields)  # type: ignore[arg-type]


def stamp(epoch: int, seq: int) -> ProducerStamp:
    return ProducerStamp("p", epoch, seq)


def committed(payload: Payload | None = DATA, tail: int = 14, **fields: object) -> Commit:
    values: dict[str, object] = {"closes": False, "producer": None, "closed_by": None, "seq": None} | fields
    return Commit(payload, tail, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rule", "stream", "known", "asked", "expected"),
    [
        ("2 empty", OPEN, None, request(None), Refused(Reason.EMPTY_BODY)),
        ("2 empty on a closed stream", CLOSED, None, request(None), Refused(Reason.EMPTY_BODY)),
        ("2 empty on no stream", None, None, request(None), Refused(Reason.EMPTY_BODY)),
        ("2 empty with producer", OPEN, KNOWN, request(None, producer=stamp(1, 4)), Refused(Reason.EMPTY_BODY)),
        ("3 no type", OPEN, None, request(DATA, ""), Refused(Reason.NO_CONTENT_TYPE)),
        ("3 no type on a closed stream", CLOSED, None, request(DATA, ""), Refused(Reason.NO_CONTENT_TYPE)),
        ("3 no type needed to close", OPEN, None, request(None, "", close=True), committed(None, 10, closes=True)),
        ("4 absent", None, None, request(), Refused(Reason.NOT_FOUND)),
        ("4 absent, closing", None, None, request(None, close=True), Refused(Reason.NOT_FOUND)),
        ("4 soft-deleted", DELETED, None, request(), Refused(Reason.GONE)),
        ("4 soft-deleted, closing", DELETED, None, request(None, close=True), Refused(Reason.GONE)),
        (
            "4 soft-deleted, closing by a producer",
            DELETED,
            KNOWN,
            request(None, close=True, producer=stamp(1, 5)),
            Refused(Reason.GONE),
        ),
        (
            "5 closing stamp again",
            CLOSED_BY_P,
            KNOWN,
            request(close=True, producer=stamp(1, 4)),
            Duplicate(10, True, KNOWN),
        ),
        (
            "5 closing stamp again without data",
            CLOSED_BY_P,
            KNOWN,
            request(None, close=True, producer=stamp(1, 4)),
            Duplicate(10, True, KNOWN),
        ),
        (
            "5 closing stamp as an ordinary append",
            CLOSED_BY_P,
            KNOWN,
            request(producer=stamp(1, 4)),
            Duplicate(10, True, KNOWN),
        ),
        (
            "5 closing stamp when the producer is forgotten",
            CLOSED_BY_P,
            None,
            request(producer=stamp(1, 4)),
            Duplicate(10, True, KNOWN),
        ),
        ("6 close again", CLOSED, None, request(None, close=True), Duplicate(10, True)),
        ("6 close again, closed by a producer", CLOSED_BY_P, None, request(None, close=True), Duplicate(10, True)),
        ("7 append", CLOSED, None, request(), Refused(Reason.CLOSED, tail=10)),
        ("7 append and close", CLOSED, None, request(close=True), Refused(Reason.CLOSED, tail=10)),
        ("7 another type", CLOSED, None, request(DATA, "text/html"), Refused(Reason.CLOSED, tail=10)),
        (
            "7 close by another stamp",
            CLOSED_BY_P,
            KNOWN,
            request(None, close=True, producer=stamp(1, 5)),
            Refused(Reason.CLOSED, tail=10),
        ),
        (
            "7 close by a producer of a stream that none closed",
            CLOSED,
            None,
            request(None, close=True, producer=stamp(1, 4)),
            Refused(Reason.CLOSED, tail=10),
        ),
        (
            "7 an earlier batch again",
            CLOSED_BY_P,
            KNOWN,
            request(producer=stamp(1, 3)),
            Refused(Reason.CLOSED, tail=10),
        ),
        (
            "7 before a stale epoch",
            CLOSED_BY_P,
            KNOWN,
            request(producer=stamp(0, 9)),
            Refused(Reason.CLOSED, tail=10),
        ),
        ("8 another type", OPEN, None, request(DATA, "text/html"), Refused(Reason.TYPE_MISMATCH)),
        (
            "8 before the producer",
            OPEN,
            KNOWN,
            request(DATA, "text/html", producer=stamp(1, 4)),
            Refused(Reason.TYPE_MISMATCH),
        ),
        (
            "8 not for close-only",
            OPEN,
            None,
            request(None, "text/html", close=True),
            committed(None, 10, closes=True),
        ),
        (
            "9 unknown, not at 0",
            OPEN,
            None,
            request(producer=stamp(0, 3)),
            Refused(Reason.SEQUENCE_GAP, expected=0, received=3),
        ),
        (
            "9 unknown, any epoch",
            OPEN,
            None,
            request(producer=stamp(7, 0)),
            committed(producer=ProducerState(7, 0)),
        ),
        ("10 stale epoch", OPEN, KNOWN, request(producer=stamp(0, 5)), Refused(Reason.STALE_EPOCH, epoch=1)),
        (
            "10 though seen",
            OPEN,
            KNOWN,
            request(producer=stamp(0, 0)),
            Refused(Reason.STALE_EPOCH, epoch=1),
        ),
        ("11 new epoch, not at 0", OPEN, KNOWN, request(producer=stamp(2, 5)), Refused(Reason.NEW_EPOCH_NOT_AT_ZERO)),
        ("11 new epoch at 0", OPEN, KNOWN, request(producer=stamp(2, 0)), committed(producer=ProducerState(2, 0))),
        ("12 the last again", OPEN, KNOWN, request(producer=stamp(1, 4)), Duplicate(10, False, KNOWN)),
        ("12 an earlier one", OPEN, KNOWN, request(producer=stamp(1, 0)), Duplicate(10, False, KNOWN)),
        ("12 closing nothing", OPEN, KNOWN, request(close=True, producer=stamp(1, 4)), Duplicate(10, False, KNOWN)),
        (
            "12 before Stream-Seq",
            replace(OPEN, last_seq=b"b"),
            KNOWN,
            request(producer=stamp(1, 4), seq=b"a"),
            Duplicate(10, False, KNOWN),
        ),
        (
            "12 before JSON",
            OPEN_JSON,
            KNOWN,
            request(InvalidJson("bad"), "application/json", producer=stamp(1, 4)),
            Duplicate(10, False, KNOWN),
        ),
        (
            "13 gap",
            OPEN,
            KNOWN,
            request(producer=stamp(1, 6)),
            Refused(Reason.SEQUENCE_GAP, expected=5, received=6),
        ),
        ("14 equal", replace(OPEN, last_seq=b"2"), None, request(seq=b"2"), Refused(Reason.SEQ_NOT_INCREASING)),
        ("14 bytewise", replace(OPEN, last_seq=b"9"), None, request(seq=b"10"), Refused(Reason.SEQ_NOT_INCREASING)),
        (
            "14 before JSON",
            replace(OPEN_JSON, last_seq=b"9"),
            None,
            request(InvalidJson("bad"), "application/json", seq=b"1"),
            Refused(Reason.SEQ_NOT_INCREASING),
        ),
        (
            "15 invalid JSON",
            OPEN_JSON,
            KNOWN,
            request(InvalidJson("bad"), "application/json", producer=stamp(1, 5)),
            Refused(Reason.INVALID_JSON, problem="bad"),
        ),
        ("15 empty array", OPEN_JSON, None, request(Payload(b""), "application/json"), Refused(Reason.EMPTY_ARRAY)),
        (
            "15 empty array, closing",
            OPEN_JSON,
            None,
            request(Payload(b""), "application/json", close=True),
            Refused(Reason.EMPTY_ARRAY),
        ),
        ("16 append", OPEN, None, request(), committed()),
        ("16 JSON", OPEN_JSON, None, request(JSON, "application/json"), committed(JSON, 18)),
        ("16 append and close", OPEN, None, request(close=True), committed(closes=True)),
        (
            "16 all at once",
            replace(OPEN, last_seq=b"a"),
            KNOWN,
            request(close=True, producer=stamp(1, 5), seq=b"b"),
            committed(closes=True, producer=ProducerState(1, 5), closed_by=stamp(1, 5), seq=b"b"),
        ),
        (
            "16 close-only takes a number",
            OPEN,
            KNOWN,
            request(None, "", close=True, producer=stamp(1, 5)),
            committed(None, 10, closes=True, producer=ProducerState(1, 5), closed_by=stamp(1, 5)),
        ),
    ],
)
def test_first_rule_that_fits_decides(
    rule: str,
    stream: StreamState | None,
    known: ProducerState | None,
    asked: AppendRequest,
    expected: Commit | Duplicate | Refused,
) -> None:
    before = replace(stream) if stream else None

    assert decide(stream, known, asked) == expected
    assert decide(stream, known, asked) == expected, "the decision may be taken again"
    assert stream == before, "deciding changes nothing"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ((None, None, None), None),
        (("p", "0", "0"), ProducerStamp("p", 0, 0)),
        (("p", "007", "0"), ProducerStamp("p", 7, 0)),
        (("p", "9007199254740991", "9007199254740991"), ProducerStamp("p", 2**53 - 1, 2**53 - 1)),
        *[
            (headers, Refused(Reason.MALFORMED_PRODUCER))
            for headers in [
                ("", "0", "0"),
                ("p", "0", None),
                ("p", None, "0"),
                (None, "0", "0"),
                ("p", None, None),
                ("p", "", "0"),
                ("p", "-1", "0"),
                ("p", "+1", "0"),
                ("p", "1_0", "0"),
                ("p", "1.0", "0"),
                ("p", " 1", "0"),
                ("p", "0", "1\n"),
                ("p", "0", "\u0663"),
                ("p", "0", "\u00b2"),
                ("p", "9007199254740992", "0"),
                ("p", "0", "9" * 31),
            ]
        ],
    ],
)
def test_producer_headers_come_all_or_none_and_as_integers(
    headers: tuple[str | None, str | None, str | None], expected: object
) -> None:
    assert parse_stamp(*headers) == expected


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), max_size=30))
def test_every_number_of_an_epoch_is_stored_once_and_in_order(stamps: list[tuple[int, int]]) -> None:
    stream, known = StreamState(TEXT), None
    stored: list[tuple[int, int]] = []
    for epoch, seq in stamps:
        decision = decide(stream, known, request(producer=stamp(epoch, seq)))
        if isinstance(decision, Commit):
            stream.apply(decision)
            known = decision.producer
            stored.append((epoch, seq))

    assert stored == sorted(set(stored))
    for _, numbers in itertools.groupby(stored, key=lambda pair: pair[0]):
        assert [seq for _, seq in numbers] == list(range(sum(pair[0] == _ for pair in stored)))
    assert stream.tail == 4 * len(stored)


def test_a_commit_is_applied_as_a_whole() -> None:
    state = StreamState(TEXT, tail=10, last_seq=b"a")
    state.apply(committed(seq=b"b"))
    assert state == StreamState(TEXT, tail=14, last_seq=b"b")
    state.apply(committed(None, 14, closes=True, closed_by=stamp(1, 5)))
    assert state == StreamState(TEXT, tail=14, closed=True, closed_by=stamp(1, 5), last_seq=b"b")
