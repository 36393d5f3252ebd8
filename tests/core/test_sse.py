from durable_streams._core.sse import Event, SSEParser, encode_control, encode_data

D6 = b"""\
event: data
data:[{"n":1},[2,3],"x"]

event: control
data:{"streamNextOffset":"0000000000000000_0000000000000018","streamCursor":"2991600","upToDate":true}

event: data
data:[{"n":4}]

event: control
data:{"streamNextOffset":"0000000000000000_0000000000000026","upToDate":true,"streamClosed":true}

"""


def test_the_worked_exchange_of_the_protocol_is_written_byte_for_byte() -> None:
    written = [
        encode_data(b'[{"n":1},[2,3],"x"]', binary=False),
        encode_control("0000000000000000_0000000000000018", cursor="2991600", up_to_date=True, stream_closed=False),
        encode_data(b'[{"n":4}]', binary=False),
        encode_control("0000000000000000_0000000000000026", cursor=None, up_to_date=True, stream_closed=True),
    ]

    assert b"".join(written) == D6


def test_the_worked_exchange_of_the_protocol_is_read_whole_and_byte_by_byte() -> None:
    whole = SSEParser().feed(D6)
    parser = SSEParser()
    single = [event for byte in D6 for event in parser.feed(bytes([byte]))]

    assert [event.type for event in whole] == ["data", "control", "data", "control"]
    assert whole[0] == Event("data", b'[{"n":1},[2,3],"x"]')
    assert single == whole
