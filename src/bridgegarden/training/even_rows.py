"""Held-out rows that several processes can share evenly, without counting any twice."""

from datasets import Dataset, concatenate_datasets

from bridgegarden.objective.alignment import IGNORE


def evened(dataset: Dataset, multiple: int) -> Dataset:
    """`dataset`, with rows added of which nothing is supervised until there are a multiple of `multiple`.

    Left to itself, accelerate gives rows out again from the beginning, and they would weigh twice in the mean.
    """
    lacking = -len(dataset) % multiple
    if not lacking or "labels" not in dataset.column_names:
        return dataset
    blank = dataset[0] | {"labels": [IGNORE] * len(dataset[0]["labels"])}
    return concatenate_datasets([dataset, Dataset.from_list([blank] * lacking, features=dataset.features)])
