"""The KV cache with a length of its own for each row, and the mask that says what a tree node sees."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hawk.decoding.cache import FixedCache, KVCache, visibility, whole_key_blocks
from hawk.nn.layers import attend

LAYERS, KV_HEADS, DIM = 2, 2, 3


def cache_of(rows, capacity):
    return KVCache.empty(LAYERS, rows, KV_HEADS, capacity, DIM, like=torch.zeros(0, dtype=torch.float64))


def entries(labels):
    """Keys whose every number is the entry's label; `labels[row][i]`."""
    labels = torch.tensor(labels, dtype=torch.float64)
    return labels[:, None, :, None].expand(-1, KV_HEADS, -1, DIM).clone()


def append(cache, labels):
    for layer in range(LAYERS):
        k = entries(labels) + 1000 * layer
        cache.append(layer, k, -k)


def committed(cache):
    """Labels of the committed entries of each row; the same in every layer, head and channel, and in the values."""
    rows = []
    for row, length in enumerate(cache.lengths):
        layers = torch.arange(LAYERS)[:, None, None, None] * 1000
        keys = cache.keys[:, row, :, :length] - layers
        assert bool((keys == keys[:1, :1, :, :1]).all())
        assert torch.equal(cache.values[:, row, :, :length], -(keys + layers))
        rows.append(keys[0, 0, :, 0].int().tolist())
    return rows


def test_an_empty_cache_takes_dtype_and_shape():
    cache = cache_of(rows=3, capacity=5)
    assert cache.keys.shape == cache.values.shape == (LAYERS, 3, KV_HEADS, 5, DIM)
    assert cache.keys.dtype == torch.float64
    assert cache.capacity == 5
    assert cache.lengths == [0, 0, 0]


def test_append_commits_nothing_and_is_overwritten():
    cache = cache_of(2, 6)
    append(cache, [[1, 2], [3, 4]])
    assert cache.lengths == [0, 0]
    append(cache, [[5, 6], [7, 8]])
    cache.keep([[0, 1], [0, 1]])
    assert committed(cache) == [[5, 6], [7, 8]]


def test_append_goes_behind_each_rows_own_length():
    cache = cache_of(2, 8)
    append(cache, [[1, 2, 3], [4, 5, 6]])
    cache.keep([[0, 1, 2], [0]])
    keys, values = cache.append(0, entries([[10, 11], [12, 13]]), entries([[20, 21], [22, 23]]))
    assert keys.shape == values.shape == (2, KV_HEADS, 8, DIM)  # whole blocks, here all that there is
    assert keys[0, 0, :5, 0].tolist() == [1, 2, 3, 10, 11]
    assert keys[1, 0, :3, 0].tolist() == [4, 12, 13]
    assert values[1, 1, 1:3, 2].tolist() == [22, 23]


def test_forwards_read_whole_blocks_of_keys():
    cache = cache_of(1, 150)
    assert cache.reach(1) == cache.reach(64) == 64
    assert cache.reach(65) == 128
    assert cache.reach(140) == 150  # and no more than there is


def test_keep_takes_a_path_and_forgets_the_other_branches():
    cache = cache_of(3, 12)
    append(cache, [[0], [1], [2]])
    cache.keep([[0]] * 3)
    append(cache, [[10, 11, 12, 13], [20, 21, 22, 23], [30, 31, 32, 33]])
    cache.keep([[0, 2, 3], [0], []])
    assert committed(cache) == [[0, 10, 12, 13], [1, 20], [2]]
    append(cache, [[40, 41], [50, 51], [60, 61]])
    cache.keep([[0, 1], [1], [0, 1]])
    assert committed(cache) == [[0, 10, 12, 13, 40, 41], [1, 20, 51], [2, 60, 61]]


@pytest.mark.parametrize("of", [lambda cache: cache, FixedCache.of])
def test_rewinding_says_where_the_rows_end(of):
    cache = cache_of(2, 8)
    append(cache, [[1, 2, 3], [4, 5, 6]])
    cache.keep([[0, 1, 2], [0, 1]])
    cache = of(cache)
    cache.rewind([1, 2])
    append(cache, [[7], [8]])
    cache.advance(torch.tensor([1, 0]))
    assert cache.committed().tolist() == [2, 2]
    assert cache.keys[0, :, 0, :3, 0].tolist() == [[1, 7, 3], [4, 5, 8]]


@pytest.mark.parametrize("kept", [[[0, 1], [0, 1]], [[0], [0, 1]]])
def test_append_refuses_more_than_the_capacity(kept):
    cache = cache_of(2, 3)
    append(cache, [[1, 2], [3, 4]])
    cache.keep(kept)
    before = cache.keys.clone()
    append(cache, [[5], [6]])
    with pytest.raises(IndexError, match="holds 3 entries"):
        append(cache, [[5, 6], [7, 8]])
    assert torch.equal(cache.keys[:, :, :, :1], before[:, :, :, :1])


@settings(max_examples=40)
@given(st.data())
def test_any_run_of_steps_equals_lists(data):
    """Against the obvious model: a Python list for each row."""
    rows = data.draw(st.integers(1, 3))
    cache, model, label = cache_of(rows, 40), [[] for _ in range(rows)], 0
    for _ in range(data.draw(st.integers(1, 5))):
        n = data.draw(st.integers(1, 4))
        labels = [list(range(label + n * row, label + n * (row + 1))) for row in range(rows)]
        label += n * rows
        append(cache, labels)
        paths = [sorted(data.draw(st.sets(st.integers(0, n - 1)))) for _ in range(rows)]
        cache.keep(paths)
        for row, path in enumerate(paths):
            model[row] += [labels[row][i] for i in path]
        if data.draw(st.booleans()):
            model = [row[: data.draw(st.integers(0, 12))] for row in model]
            cache.rewind([len(row) for row in model])
        assert committed(cache) == model
        assert cache.lengths == [len(row) for row in model]


def test_a_node_sees_its_rows_committed_entries_its_ancestors_and_itself():
    chain = torch.ones(3, 3, dtype=torch.bool).tril()
    siblings = torch.eye(3, dtype=torch.bool)
    siblings[:, 0] = True  # nodes 1 and 2 are both children of node 0
    mask = visibility(torch.tensor([4, 2]), torch.tensor([1, 0]), torch.stack((chain, siblings)), end=7)
    assert mask.shape == (2, 1, 3, 7)
    seen = (mask[:, 0] == 0).int().tolist()
    assert seen[0] == [
        [0, 1, 1, 1, 1, 0, 0],  # entry 0 is left padding
        [0, 1, 1, 1, 1, 1, 0],
        [0, 1, 1, 1, 1, 1, 1],
    ]
    assert seen[1] == [
        [1, 1, 1, 0, 0, 0, 0],  # what lies behind the row's end belongs to nobody
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 0, 1, 0, 0],
    ]
    assert bool(((mask == 0) | (mask == -torch.inf)).all())


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=3), st.integers(1, 4), st.data())
def test_visibility_follows_its_definition(rows, n, data):
    lengths = [max(row) for row in rows]
    padding = [min(row) for row in rows]
    below = st.lists(st.booleans(), min_size=n * n, max_size=n * n)
    ancestors = torch.tensor([data.draw(below) for _ in rows]).view(len(rows), n, n)
    end = max(lengths) + n
    mask = visibility(torch.tensor(lengths), torch.tensor(padding), ancestors, end)
    for row, (length, pad) in enumerate(zip(lengths, padding, strict=True)):
        for node in range(n):
            for slot in range(end):
                new = length <= slot < length + n
                sees = bool(ancestors[row, node, slot - length]) if new else pad <= slot < length
                assert (mask[row, 0, node, slot] == 0) == sees


def test_keys_are_read_in_whole_blocks_without_the_numbers_that_the_kernel_halves():
    entries = (1, 64, 65, 192, 193, 320, 384, 385, 512, 704, 705, 900)
    on_cpu = [64, 64, 128, 192, 384, 384, 384, 448, 512, 704, 896, 960]
    assert [whole_key_blocks(number, torch.device("cpu")) for number in entries] == on_cpu
    on_gpu = [64, 64, 128, 192, 256, 320, 384, 448, 512, 704, 768, 960]
    assert [whole_key_blocks(number, torch.device("cuda")) for number in entries] == on_gpu


@pytest.mark.parametrize("queries", [4, 36])
def test_attention_has_the_same_bits_over_any_number_of_keys_that_is_read(queries):
    torch.manual_seed(0)
    counts = sorted({whole_key_blocks(entries, torch.device("cpu")) for entries in range(1, 1300)})
    q, keys, values = (torch.randn(1, 2, n, 64) for n in (queries, counts[-1], counts[-1]))
    for i, fewest in enumerate(counts):
        seen = fewest - 3

        def over(count, seen=seen):
            mask = torch.zeros(1, 1, queries, count)
            mask[..., seen:] = -torch.inf
            return attend(q, keys[:, :, :count], values[:, :, :count], mask)

        assert all(torch.equal(over(fewest), over(more)) for more in counts[i + 1 :]), fewest
