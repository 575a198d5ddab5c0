import base64
import json
from html.parser import HTMLParser

import pytest

from utils.charts import Series, line_chart, number, thin_out, ticks
from utils.report import build_report, duration, format_table

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
ROW = {"img_r1": 61.5, "img_r5": 90.0, "img_r10": 97.25, "txt_r1": 60.0, "txt_r5": 89.0, "txt_r10": 96.0}
METRICS = {
    "test": {
        "en": ROW,
        "zh": ROW | {"img_r1": 55.5},
        "mean": ROW | {"img_r1": 58.5},
        "dual_encoder": ROW | {"img_r1": 51.5},
        "mrv": {"img": 2.5, "txt": 2.75},
        "median_rank": {"en": {"img": 1.0, "txt": 1.0}, "mean": {"img": 1.0, "txt": 1.5}},
    },
    "chance": {"img_r1": 0.15, "img_r5": 0.75, "img_r10": 1.5, "txt_r1": 0.15, "txt_r5": 0.75, "txt_r10": 1.5},
    "rank_spread": {"bounds": [0, 5], "img": [50, 30, 20], "txt": [60, 30, 10], "num_img": 10, "num_txt": 10},
    "train_seconds": 372.0,
    "total_seconds": 431.0,
}
VOID = {"meta", "img", "br", "line", "rect", "polyline"}


class Checker(HTMLParser):
    """Collects addresses and text, and fails where tags do not nest."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.words, self.tags = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for key, value in attrs if key in ("src", "href", "xlink:href")]
        if tag not in VOID - {"rect"} and not (tag == "rect" and self.get_starttag_text().endswith("/>")):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def read(path):
    checker = Checker()
    checker.feed(path.read_text(encoding="utf-8"))
    assert checker.open == []
    return checker


@pytest.fixture
def run(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps(METRICS))
    record = {"kind": "train", "loss": 9.0, "train/itc": 5.0, "train/itm": 4.0, "lr": 1e-3}
    lines = [record | {"step": step} for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "tra')
    (tmp_path / "config.yaml").write_text("task: pretrain\nseed: 42\n")
    (tmp_path / "environment.json").write_text(json.dumps({"versions": {"torch": "2.15"}, "command": ["run.py"]}))
    (tmp_path / "dot.png").write_bytes(PIXEL)
    answers = [{"image": "dot.png", "right": True, "score": 1.5}, {"image": "gone.png", "right": False, "score": 1.25}]
    query = {"language": "de", "text": "roter Bus", "rank": 0, "dual_rank": 3, "answers": answers}
    (tmp_path / "gallery.json").write_text(json.dumps({"queries": [query]}))
    return tmp_path


def test_report_shows_every_part(run):
    page = read(build_report(run))
    text = " ".join(page.words)
    for words in ("pretrain", "English (en)", "Chinese (zh)", "chance", "58.5", "6 min 12 s", "2.15", "roter Bus",
                  "right picture at place 1, dual encoder alone: 4", "Learning rate", "Spread of ranks"):  # fmt: skip
        assert words in text, words


def test_report_loads_nothing(run):
    page = read(build_report(run))
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in page.addresses)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "default-src 'none'" in (run / "report.html").read_text()


def test_every_chart_has_its_numbers_as_a_table(run):
    tags = read(build_report(run)).tags
    assert tags.count("figure") > 3
    assert tags.count("figure") == tags.count("details") - 1  # the other one holds config.yaml
    assert tags.count("table") == tags.count("figure") + 1  # the results


def test_an_empty_folder_still_gives_a_page(tmp_path):
    assert "h1" in read(build_report(tmp_path)).tags


@pytest.mark.parametrize("part", ["metrics.json", "metrics.jsonl", "config.yaml", "environment.json", "gallery.json"])
def test_a_missing_part_is_left_out(run, part):
    (run / part).unlink()
    read(build_report(run))


def test_a_run_under_way_shows_its_last_evaluation(run):
    (run / "metrics.json").unlink()
    with (run / "metrics.jsonl").open("w") as file:
        file.write(json.dumps({"kind": "eval", "split": "val", "step": 3, "metrics": {"fr": ROW, "mean": ROW}}) + "\n")
    text = " ".join(read(build_report(run)).words)
    assert "French (fr)" in text
    assert "Results on val" in text


def test_text_of_data_is_escaped(run):
    hostile = "<script>alert(1)</script>\"'><img src=x>"
    answers = [{"image": hostile, "right": False, "score": "x"}, {"image": f"data:text/html,{hostile}", "right": True}]
    query = {"language": hostile, "text": hostile, "answers": answers}
    (run / "gallery.json").write_text(json.dumps({"queries": [query]}))
    (run / "config.yaml").write_text(f"task: {hostile}\n")
    (run / "environment.json").write_text(json.dumps({hostile: hostile}))
    (run / "metrics.json").write_text(json.dumps({"test": {hostile: ROW}}))
    page = read(build_report(run))
    assert "script" not in page.tags
    assert all(address.startswith("#") for address in page.addresses)


def test_a_right_picture_that_was_not_found_is_shown(run):
    query = {"language": "ja", "text": "x", "rank": 9, "answers": [], "right_image": "dot.png"}
    (run / "gallery.json").write_text(json.dumps({"queries": [query]}))
    page = (read(build_report(run)), (run / "report.html").read_text())
    assert "right picture at place 10" in " ".join(page[0].words)
    assert 'alt="the right picture"' in page[1]


def test_numbers_that_are_not_finite_are_left_out():
    assert thin_out([(1, 1.0), (2, float("nan")), (3, float("inf")), (4, 2.0)]) == [(1, 1.0), (4, 2.0)]
    assert "nan" not in line_chart("Loss", [Series("sum", [(1, 1.0), (2, float("nan")), (3, 2.0)])])


def test_long_curves_are_averaged_down():
    points = thin_out([(i, float(i)) for i in range(10_000)], limit=100)
    assert len(points) == 100
    assert points[0] == (49.5, 49.5)


def test_ticks_cover_the_range_with_round_numbers():
    assert ticks(0, 97) == [0, 25, 50, 75, 100]
    assert ticks(0.0, 0.0)[-1] > 0


@pytest.mark.parametrize(
    "value, text", [(0, "0"), (12345.6, "12,346"), (3.14159, "3.142"), (0.000123, "0.00012"), (2.5e-5, "2.5e-5")]
)
def test_numbers_are_short(value, text):
    assert number(value) == text


@pytest.mark.parametrize("seconds, text", [(3.21, "3.2 s"), (48, "48 s"), (372, "6 min 12 s"), (11100, "3 h 05 min")])
def test_durations_use_two_units(seconds, text):
    assert duration(seconds) == text


def test_table_has_languages_mean_chance_and_spread():
    lines = format_table(METRICS).splitlines()
    assert lines[1].split() == ["test", "R@1", "R@5", "R@10", "R@1", "R@5", "R@10"]
    rows = {line.split()[0]: line.split()[1:] for line in lines if line[0].isalpha()}
    assert rows["zh"] == ["55.5", "90.0", "97.2", "60.0", "89.0", "96.0"]
    assert rows["mean"][0] == "58.5"
    assert rows["dual"][:2] == ["only", "51.5"]
    assert rows["chance"] == ["0.15", "0.75", "1.50", "0.15", "0.75", "1.50"]
    assert "MRV" in lines[-2]
    assert "2.50" in lines[-2]
    assert max(map(len, lines)) <= 80


def test_the_mean_of_iglue_is_a_row_of_its_own():
    table = format_table(METRICS | {"mean_without_en": ROW | {"img_r1": 41.5}})
    assert any(line.startswith("without en") and "41.5" in line for line in table.splitlines())


def test_chance_within_an_evaluation_is_shown_beside_its_languages():
    tree = METRICS["test"] | {"chance": METRICS["chance"]}
    assert format_table({"test": tree}) == format_table(METRICS)


def test_table_of_other_tasks_shows_what_they_measure():
    table = format_table({"test": {"en": {"accuracy": 71.25}, "sw": {"accuracy": 60.0}}})
    assert "accuracy" in table
    assert "60.0" in table


def test_a_run_with_accuracies_shows_them_by_language_and_while_training(tmp_path):
    test = {"en": {"accuracy": 81.5}, "zh": {"accuracy": 63.25}, "mean": {"accuracy": 72.375}}
    metrics = {"test": test, "mean_without_en": {"accuracy": 63.25}, "chance": {"accuracy": 50.0}}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    evaluations = [
        {"kind": "eval", "split": "val", "step": step, "metrics": {"mean": {"accuracy": 40.0 + step}}}
        for step in (5, 9)
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, evaluations)))
    words = " ".join(read(build_report(tmp_path)).words)
    for shown in ("Accuracy in percent", "Chinese (zh)", "63.2", "Accuracy during training, percent", "without en"):
        assert shown in words, shown
    assert [line.split() for line in format_table(metrics).splitlines() if "without" in line] == [
        ["without", "en", "63.2"]
    ]
