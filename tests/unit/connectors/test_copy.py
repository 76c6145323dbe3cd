"""Copies between KV blocks and chunks, in plain PyTorch: what comes back is what went in, and nothing else moves."""

import pytest

pytest.importorskip("torch")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tierline.connectors.vllm.copy import (
    ChunkCopier,
    DeviceCopier,
    HostCopier,
    copier_for,
    page_words,
    runs,
)
from tierline.errors import EngineError

NUM_BLOCKS, HEADS, BLOCK_TOKENS, HEAD_DIM = 9, 3, 16, 8
BLOCKS_PER_CHUNK = 4
PAGE_WORDS = HEADS * BLOCK_TOKENS * 2 * HEAD_DIM * 2 // 8


def kv_tensors(layers: int = 3, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (NUM_BLOCKS, HEADS, BLOCK_TOKENS, 2 * HEAD_DIM)
    return [torch.randn(shape, generator=generator).to(torch.bfloat16) for _ in range(layers)]


def copier(kind: type[ChunkCopier], tensors: list[torch.Tensor]) -> ChunkCopier:
    return kind([page_words(tensor, NUM_BLOCKS, "layer") for tensor in tensors], BLOCKS_PER_CHUNK)


def cut(words: torch.Tensor, lengths: list[int]) -> list[torch.Tensor]:
    return list(torch.split(words, lengths))


@pytest.fixture(params=[HostCopier, DeviceCopier])
def kind(request: pytest.FixtureRequest) -> type[ChunkCopier]:
    return request.param  # type: ignore[no-any-return]


def test_a_stored_chunk_is_the_pages_of_its_blocks_layer_by_layer(kind: type[ChunkCopier]) -> None:
    tensors = kv_tensors()
    chunk = torch.zeros(3 * BLOCKS_PER_CHUNK * PAGE_WORDS, dtype=torch.int64)
    copier(kind, tensors).store([5, 2, 7, 0], [chunk], None)
    expected = torch.cat([tensor[[5, 2, 7, 0]].flatten() for tensor in tensors])
    assert torch.equal(chunk.view(torch.bfloat16), expected)


def test_a_chunk_comes_back_byte_for_byte_into_other_blocks(kind: type[ChunkCopier]) -> None:
    source, target = kv_tensors(seed=1), kv_tensors(seed=2)
    words = torch.zeros(3 * BLOCKS_PER_CHUNK * PAGE_WORDS, dtype=torch.int64)
    extents = cut(words, [100, PAGE_WORDS, words.shape[0] - 100 - PAGE_WORDS])
    copier(kind, source).store([1, 2, 3, 4], extents, None)
    copier(kind, target).load(extents, [8, 6, 0, 3], None)
    for before, after in zip(source, target, strict=True):
        assert torch.equal(after[[8, 6, 0, 3]], before[[1, 2, 3, 4]])


def test_a_partial_load_writes_the_end_of_the_chunk_and_no_other_block(kind: type[ChunkCopier]) -> None:
    source, target, untouched = kv_tensors(seed=1), kv_tensors(seed=2), kv_tensors(seed=2)
    words = torch.zeros(3 * BLOCKS_PER_CHUNK * PAGE_WORDS, dtype=torch.int64)
    copier(kind, source).store([1, 2, 3, 4], [words], None)
    copier(kind, target).load([words], [8], None)
    others = [block for block in range(NUM_BLOCKS) if block != 8]
    for before, after, kept in zip(source, target, untouched, strict=True):
        assert torch.equal(after[8], before[4])
        assert torch.equal(after[others], kept[others])


def test_a_chunk_of_another_size_is_refused(kind: type[ChunkCopier]) -> None:
    with pytest.raises(ValueError, match="a chunk of 8 bytes"):
        copier(kind, kv_tensors()).load([torch.zeros(1, dtype=torch.int64)], [0, 1, 2, 3], None)


def test_the_size_of_a_chunk_is_that_of_its_blocks() -> None:
    tensors = kv_tensors()
    expected = BLOCKS_PER_CHUNK * sum(tensor[0].numel() * tensor.element_size() for tensor in tensors)
    assert copier_for([page_words(tensor, NUM_BLOCKS, "l") for tensor in tensors], BLOCKS_PER_CHUNK).chunk_bytes == (
        expected
    )


def test_kv_in_host_memory_is_copied_without_staging() -> None:
    assert isinstance(copier_for([page_words(kv_tensors()[0], NUM_BLOCKS, "l")], BLOCKS_PER_CHUNK), HostCopier)


def test_pages_share_the_engines_memory() -> None:
    tensor = kv_tensors()[0]
    page_words(tensor, NUM_BLOCKS, "layer")[4].zero_()
    assert not tensor[4].any()
    assert tensor[3].any()


def test_permuted_dimensions_inside_a_block_are_one_page() -> None:
    tensor = kv_tensors()[0].permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3)
    assert page_words(tensor, NUM_BLOCKS, "layer").shape == (NUM_BLOCKS, PAGE_WORDS)


def test_blocks_divided_by_the_attention_kernel_are_one_page() -> None:
    tensor = kv_tensors()[0].reshape(NUM_BLOCKS * 2, HEADS, BLOCK_TOKENS // 2, 2 * HEAD_DIM)
    assert page_words(tensor, NUM_BLOCKS, "layer").shape == (NUM_BLOCKS, PAGE_WORDS)


def test_layers_interleaved_in_a_block_are_pages_with_a_stride() -> None:
    packed = torch.zeros(NUM_BLOCKS, 2, HEADS, BLOCK_TOKENS, 2 * HEAD_DIM, dtype=torch.bfloat16)
    pages = page_words(packed[:, 1], NUM_BLOCKS, "layer")
    pages[3].fill_(-1)
    assert packed[3, 1].view(torch.int16).eq(-1).all()
    assert not packed[3, 0].any()


def test_a_layout_with_gaps_inside_a_block_is_refused() -> None:
    with pytest.raises(EngineError, match="gaps inside a block"):
        page_words(kv_tensors()[0][..., :HEAD_DIM], NUM_BLOCKS, "layer")


def test_a_tensor_whose_first_dimension_is_not_blocks_is_refused() -> None:
    with pytest.raises(EngineError, match="first dimension"):
        page_words(torch.zeros(2, NUM_BLOCKS, 8), NUM_BLOCKS, "layer")


@settings(max_examples=50)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.data())
def test_a_run_of_extents_is_a_slice_of_their_concatenation(lengths: list[int], data: st.DataObject) -> None:
    words = torch.arange(sum(lengths))
    start = data.draw(st.integers(0, sum(lengths) - 1))
    length = data.draw(st.integers(1, sum(lengths) - start))
    assert torch.equal(torch.cat(list(runs(cut(words, lengths), start, length))), words[start : start + length])
