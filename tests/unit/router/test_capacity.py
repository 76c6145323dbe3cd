"""What an engine's metrics say of its cache."""

import pytest

from tierline.router.capacity import cache_capacity

LINE = (
    b'vllm:cache_config_info{block_size="16",cache_dtype="auto",engine="%d",hash_block_size="32",'
    b'num_gpu_blocks="2048",num_gpu_blocks_override="None"} 1.0\n'
)


def test_the_cache_s_size_is_read_off_its_configuration() -> None:
    page = b"# HELP vllm:cache_config_info Information\n# TYPE vllm:cache_config_info gauge\n" + LINE % 0 + b"other 1\n"
    assert cache_capacity(page) == (2048, 16)


def test_each_data_parallel_engine_shows_the_sum() -> None:
    assert cache_capacity(LINE % 0 + LINE % 1) == (2048, 16)


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"nonsense{",
        b"vllm:cache_config_info 1\n",
        (LINE % 0).replace(b"2048", b"None"),
        (LINE % 0).replace(b"2048", b"0"),
        (LINE % 0).replace(b"2048", b"9" * 5000),
        (LINE % 0).replace(b'block_size="16"', b'block_size=""'),
    ],
)
def test_a_page_that_does_not_say_so_says_nothing(page: bytes) -> None:
    assert cache_capacity(page) is None
