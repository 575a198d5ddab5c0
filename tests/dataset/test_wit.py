"""The join of WIT's annotations with their pictures."""

import gzip
import json

from dataset.wit import join_wit_pixels, main
from tests.dataset.toy import base64_of, picture, write_lines


def test_annotations_get_their_pictures(tmp_path):
    arabic = [
        {"image_url": "u/1", "caption_reference_description": "one"},
        {"image_url": "u/2", "caption_reference_description": "two"},
        {"image_url": "u/1", "caption_reference_description": "three"},
        "{",
    ]
    danish = [{"image_url": "u/2", "caption_reference_description": "to"}, {"image_url": "u/9"}]
    paths = [write_lines(tmp_path / "test_ar.jsonl", arabic), write_lines(tmp_path / "test_da.jsonl", danish)]
    first, second = base64_of(picture(1)), base64_of(picture(2))
    (tmp_path / "a.csv").write_text(f"u/2\t{second}\tmore\nno tab\nu/7\t{first}\n")
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(f"u/1\t{first}\nu/9\tnot*base64\n".encode()))
    missing = join_wit_pixels(paths, [f"{tmp_path}/a.csv", f"{tmp_path}/b.csv.gz"], f"{tmp_path}/out")
    assert missing == {paths[0]: 1, paths[1]: 1}
    joined = [json.loads(line) for line in (tmp_path / "out" / "test_ar.jsonl").read_text().splitlines()]
    assert [(line["caption_reference_description"], line["image_content"]) for line in joined] == [
        ("two", second),
        ("one", first),
        ("three", first),
    ]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"test_ar.jsonl", "test_da.jsonl"}


def test_the_command_joins_and_tells_what_is_absent(tmp_path):
    (tmp_path / "test_ar.jsonl").write_text(
        json.dumps({"image_url": "u/1", "caption_reference_description": "one"}) + "\n"
    )
    (tmp_path / "a.csv").write_text(f"u/1\t{base64_of(picture(1))}\n")
    words = [str(tmp_path / "test_ar.jsonl"), "--pixels", str(tmp_path / "a.csv"), "--output", str(tmp_path / "out")]
    assert main(words) == 0 and "u/1" in (tmp_path / "out/test_ar.jsonl").read_text()
    assert main([str(tmp_path / "none.jsonl"), *words[1:]]) == 2
