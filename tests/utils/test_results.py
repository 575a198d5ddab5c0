import json

import pytest

from utils.results import upload, write_json


def test_json_is_written_whole_or_not_at_all(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}


def test_small_results_and_the_best_weights_are_copied(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints/7").mkdir(parents=True)
    (run / "checkpoints/7/model.safetensors").write_bytes(b"w")
    (run / "checkpoints/best").symlink_to("7")
    (run / "metrics.json").write_text("{}")
    upload(run, f"file://{tmp_path}/remote/run")
    copied = sorted(
        p.relative_to(tmp_path / "remote").as_posix() for p in (tmp_path / "remote").rglob("*") if p.is_file()
    )
    assert copied == ["run/checkpoints/best/model.safetensors", "run/metrics.json"]
