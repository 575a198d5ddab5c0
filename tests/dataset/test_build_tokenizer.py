import json

from dataset.build_tokenizer import main
from dataset.text import load_tokenizer


def test_tokenizer_is_learnt_from_captions_of_every_layout(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"caption": {"en": "Red, red apples!", "de": "rote rote Birnen"}}) + "\n"
    )
    (tmp_path / "b.json").write_text(json.dumps([{"caption": ["green pears", ""]}, {"sentences": ["green trees"]}]))
    files = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.json")]
    assert main([*files, "--output", str(tmp_path / "out"), "--vocab_size", "60"]) == 0
    tokenizer = load_tokenizer(tmp_path / "out")
    ids = tokenizer.encode_batch(["red pears"], 40)[0]
    assert ids[0] == 0 and ids[-1] == 2 and 3 not in ids and tokenizer.vocab_size <= 60


def test_files_without_captions_are_told(tmp_path, caplog):
    (tmp_path / "a.jsonl").write_text('{"title": "x"}\n')
    assert main([str(tmp_path / "a.jsonl"), "--output", str(tmp_path)]) == 2
    assert "records need 'caption'" in caplog.text
