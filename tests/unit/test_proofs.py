"""A proof fits the secret, the role and the words that it was made for, and nothing else."""

from pathlib import Path

import pytest

from tierline.errors import UsageError
from tierline.proofs import PROOF_BYTES, connection_key, is_proved, prove, read_secret


def test_a_proof_is_of_one_secret_one_role_one_connection_and_its_words() -> None:
    proof = prove(b"secret", b"role", b"nonces", b"words")
    assert len(proof) == PROOF_BYTES
    assert is_proved(proof, b"secret", b"role", b"nonces", b"words")
    for other in ((b"x", b"role", b"nonces", b"words"), (b"secret", b"other", b"nonces", b"words")):
        assert not is_proved(proof, *other)
    for other in ((b"secret", b"role", b"others", b"words"), (b"secret", b"role", b"nonces", b"")):
        assert not is_proved(proof, *other)
    assert connection_key(b"secret", b"nonces") != connection_key(b"secret", b"others")


def test_a_secret_is_read_without_the_white_space_around_it(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("  0123456789abcdef\n")
    assert read_secret(file, "--file") == b"0123456789abcdef"
    assert read_secret(None, "--file") == b""


def test_a_file_that_holds_no_secret_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--file: cannot read"):
        read_secret(tmp_path / "none", "--file")
    (tmp_path / "short").write_text("short")
    with pytest.raises(UsageError, match=r"--file: .* 16 bytes or more"):
        read_secret(tmp_path / "short", "--file")
