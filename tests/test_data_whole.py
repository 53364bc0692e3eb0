"""Whole or not: JSON with its own hash, sealed folders, and the products of stages."""

import json

import pytest

from feedgym.data.whole import (
    check_product,
    digests_of,
    is_whole,
    last_whole_checkpoint,
    new_checkpoint,
    read_sealed,
    write_sealed,
)


def test_sealed_json_comes_back_and_every_flipped_bit_is_told(tmp_path):
    path, value = tmp_path / "a.json", {"a": [1, 2.5, None], "b": {"c": "d"}}
    write_sealed(path, value)
    assert read_sealed(path) == value
    whole = path.read_bytes()
    for place in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            assert read_sealed(path) == value, "a bit of white space"
        except ValueError as error:
            assert "is damaged or was changed by hand" in str(error)


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"a": 1}', "[" * 100_000])
def test_what_is_no_sealed_json_is_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match="is damaged"):
        read_sealed(tmp_path / "a.json")


def test_two_checkpoints_are_kept_and_damaged_ones_are_passed_over(tmp_path):
    assert last_whole_checkpoint(tmp_path) is None
    for step in (2, 10, 9, 30):
        with new_checkpoint(tmp_path, step) as folder:
            (folder / "weights").write_bytes(b"abc")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-30"]
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-30"
    (tmp_path / "checkpoint-30" / "weights").write_bytes(b"abd")
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-10" and is_whole(tmp_path / "checkpoint-10")
    assert not (tmp_path / "checkpoint-30").exists()
    with pytest.raises(KeyboardInterrupt), new_checkpoint(tmp_path, 40) as folder:
        raise KeyboardInterrupt
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


def test_a_folder_that_is_no_stages_is_let_through_and_a_products_files_are_compared(tmp_path):
    folder = tmp_path / "run" / "stages" / "log"
    folder.mkdir(parents=True)
    (folder / "a").write_text("1")
    check_product(folder)
    write_sealed(folder / "stage.json", {"key": "k", "seconds": 1.0, "files": digests_of(folder)})
    check_product(folder)
    (folder / "a").write_text("2")
    with pytest.raises(ValueError, match=rf"Stage log .* a is damaged; .*stage log --run {tmp_path}/run --redo"):
        check_product(folder)
    write_sealed(folder / "stage.json", json.loads('{"key": 1}'))
    with pytest.raises(ValueError, match=r"Stage log cannot be read: .*another version"):
        check_product(folder)
