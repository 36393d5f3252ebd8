from durable_streams._core.text import TextDecoder


def test_a_character_split_between_batches_waits_in_the_tail() -> None:
    decoder = TextDecoder()

    assert decoder.decode("a€".encode()[:-1]) == "a"
    assert decoder.tail == b"\xe2\x82"
    assert decoder.decode("€b".encode()[2:]) == "€b"
    assert decoder.tail == b""
