"""Batches are values."""

import pickle

from durable_streams import Checkpoint, JsonBatch


def test_a_json_batch_can_be_made_with_the_type_of_its_items() -> None:
    batch = JsonBatch[int](Checkpoint("7"), [1])

    assert batch == JsonBatch(Checkpoint("7"), [1])
    assert pickle.loads(pickle.dumps(batch)) == batch
