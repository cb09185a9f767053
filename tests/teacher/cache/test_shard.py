import numpy as np
import pytest
from datasets import Dataset
from trl.data_utils import pack_dataset

from bridgegarden.teacher.cache.shard import document_key, documents_in, documents_of
from tests.teacher.cache.conftest import cache_rows


def key(ids, labels):
    return document_key(np.array(ids), np.array(labels))


def test_a_key_depends_on_ids_and_on_what_is_supervised():
    same = key([1, 2, 3], [-100, 2, 3])
    assert key([1, 2, 3], [-100, 2, 3]) == same
    others = [key([1, 2, 4], [-100, 2, 4]), key([1, 2, 3], [-100, -100, 3]), key([1, 2], [-100, 2])]
    assert len({same, *others}) == 4


def test_keys_are_what_they_were_when_older_caches_were_written():
    """A golden value: a change here is a change of the format's version."""
    assert key([1, 2, 3], [-100, -100, 3]).hex() == "7afec632d56e7b853b3d85e3b2075849"


def test_a_label_at_the_first_token_changes_nothing_since_nothing_predicts_it():
    assert key([1, 2, 3], [1, 2, 3]) == key([1, 2, 3], [-100, 2, 3])


def test_documents_are_the_same_whether_packed_or_not():
    rows = cache_rows()
    per_token = rows.map(lambda row: {"row": [row["row"]] * len(row["input_ids"])})
    packed = pack_dataset(per_token, 48, "bfd")
    assert len(packed) < len(rows)
    alone, together = ({d.key: d.row for d in documents_of(data)} for data in (rows, packed))
    assert together == alone
    assert set(alone.values()) == set(range(100, 100 + len(rows)))


def test_rows_where_nothing_is_predicted_are_no_documents():
    rows = Dataset.from_list([{"input_ids": [5, 6], "labels": [5, -100]}, {"input_ids": [5, 6], "labels": [-100, 6]}])
    (document,) = documents_of(rows)
    assert (document.row, document.positions) == (1, 1)


@pytest.mark.parametrize("kind", [list, np.array])
def test_an_example_of_a_batch_gives_the_documents_of_the_data_set(kind):
    rows = cache_rows(3)
    found = [d.key for row in rows for d in documents_in({name: kind(row[name]) for name in ("input_ids", "labels")})]
    assert found == [d.key for d in documents_of(rows)]
