"""report.html of a run: one static file made from what the run left in its folder; and the table that ends a run.

Read are config.yaml, environment.json, metrics.jsonl, metrics.json and gallery.json; what is missing is left
out of the page.
"""

import json
import math
from pathlib import Path
from typing import Any

from utils.charts import Reference, Series, bar_chart, html_table, line_chart, number, percent
from utils.report_gallery import gallery_html
from utils.report_page import definitions, folded, page, tiles

RECALLS = ("img_r1", "img_r5", "img_r10", "txt_r1", "txt_r5", "txt_r10")
NOT_LANGUAGES = ("mean", "mean_without_en", "dual_encoder", "mrv", "median_rank", "chance", "rank_spread", "in_batch")
# Metrics of which a set has one, in percent; they may stand in every tree that is not retrieval's.
SINGLE_METRICS = {"accuracy": "Accuracy", "auc": "Area under the ROC curve"}
# Charts over languages: title, metrics, their names.
LANGUAGE_CHARTS = [
    *((f"R@{k} in percent", (f"img_r{k}", f"txt_r{k}"), ["text to image", "image to text"]) for k in (1, 10)),
    *((f"{words} in percent", (key,), [words.lower()]) for key, words in SINGLE_METRICS.items()),
]
SUMMARY_ROWS = {"mean": "mean", "mean_without_en": "without en", "dual_encoder": "dual only", "chance": "chance"}
LANGUAGE_NAMES = {
    "ar": "Arabic", "bg": "Bulgarian", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek", "en": "English",
    "es": "Spanish", "et": "Estonian", "fr": "French", "hi": "Hindi", "id": "Indonesian", "it": "Italian",
    "ja": "Japanese", "ko": "Korean", "nl": "Dutch", "pl": "Polish", "pt": "Portuguese", "ru": "Russian",
    "sw": "Swahili", "ta": "Tamil", "th": "Thai", "tr": "Turkish", "uk": "Ukrainian", "vi": "Vietnamese",
    "zh": "Chinese",
}  # fmt: skip


# --- what a run left behind ------------------------------------------------------------------------------------------


def _read_json(path: Path) -> Any:
    """The content of a JSON file; {} where it does not exist or was cut off."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def _read_lines(path: Path) -> list[dict]:
    """The records of a JSON-lines file; a line cut off by a kill is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return [record for record in records if isinstance(record, dict)]


def _final_metrics(folder: Path, records: list[dict]) -> dict:
    """metrics.json, or the last evaluation of a run that has not ended."""
    metrics = _read_json(folder / "metrics.json")
    evaluations = [r for r in records if r.get("kind") == "eval" and isinstance(r.get("metrics"), dict)]
    if not metrics and evaluations:
        metrics = {evaluations[-1].get("split", "val"): evaluations[-1]["metrics"]}
    return metrics


def _split_of(metrics: dict) -> tuple[str, dict]:
    """Name and tree of the split to show: the test set, or else the first one there is."""
    trees = {name: tree for name, tree in metrics.items() if name in ("test", "val") and isinstance(tree, dict)}
    name = "test" if "test" in trees else next(iter(trees), "")
    return name, trees.get(name, {})


def _is_retrieval(tree: dict) -> bool:
    return any(isinstance(row, dict) and "img_r1" in row for row in tree.values())


# --- the table, in text and in HTML ----------------------------------------------------------------------------------


def _rows(metrics: dict) -> tuple[list[str], list[list[str]], set[int]]:
    """Head, rows and the numbers of the rows to set apart (mean, dual encoder, chance), all as text."""
    _, tree = _split_of(metrics)
    languages = [name for name, row in tree.items() if isinstance(row, dict) and name not in NOT_LANGUAGES]
    keys = RECALLS if _is_retrieval(tree) else list(dict.fromkeys(key for name in languages for key in tree[name]))
    summary = tree | {name: _beside(metrics, name) for name in ("mean_without_en", "dual_encoder", "chance")}
    rows = [[name] + [_cell(tree[name].get(key)) for key in keys] for name in languages]
    for name, words in SUMMARY_ROWS.items():
        if any(key in summary.get(name, {}) for key in keys):
            rows.append([words] + [_cell(summary[name].get(key), 2 if name == "chance" else 1) for key in keys])
    return list(keys), rows, set(range(len(languages), len(rows)))


def _beside(metrics: dict, key: str) -> dict:
    """What stands beside the split in metrics.json, or within it in the record of an evaluation."""
    return metrics.get(key) or _split_of(metrics)[1].get(key) or {}


def _cell(value: Any, digits: int = 1) -> str:
    return f"{value:.{digits}f}" if isinstance(value, (int, float)) else "-"


def _spread_line(tree: dict) -> str:
    parts = []
    for key, words in (("mrv", "Spread of ranks over languages (MRV)"), ("median_rank", "Median rank")):
        row = tree.get(key, {})
        row = row.get("mean", row)
        if "img" in row and "txt" in row:
            parts.append(f"{words}: text -> image {row['img']:.2f}, image -> text {row['txt']:.2f}")
    return "\n".join(parts)


def format_table(metrics: dict) -> str:
    """The final numbers as plain text: one row per language, their mean, what chance reaches, MRV and median ranks."""
    split, tree = _split_of(metrics)
    head, rows, apart = _rows(metrics)
    if not rows:
        return "no results"
    lines = []
    if _is_retrieval(tree):
        head = [key.split("_")[1].replace("r", "R@") for key in head]
        lines.append(" " * 12 + "text -> image".center(24) + "   " + "image -> text".center(24))
    widths = [max(len(head[i]), 8) for i in range(len(head))]
    gaps = ["   " if len(head) == 6 and i == 3 else "" for i in range(len(head))]
    rule = "-" * (12 + sum(widths) + sum(map(len, gaps)))
    lines.append(f"{split:<12}" + "".join(g + h.rjust(w) for g, h, w in zip(gaps, head, widths)))
    lines.append(rule)
    for i, row in enumerate(rows):
        if i in apart and i - 1 not in apart:
            lines.append(rule)
        lines.append(f"{row[0]:<12}" + "".join(g + cell.rjust(w) for g, cell, w in zip(gaps, row[1:], widths)))
    spread = _spread_line(tree)
    return "\n".join(lines + ([spread] if spread else []))


def _result_section(metrics: dict) -> str:
    head, rows, apart = _rows(metrics)
    if not rows:
        return ""
    split, tree = _split_of(metrics)
    groups = []
    if _is_retrieval(tree):
        groups = [("text to image", 4), ("image to text", 4)]
        head = ["R@1", "R@5", "R@10", "median rank"] * 2
        medians = [tree.get("median_rank", {}).get(row[0], {}) for row in rows]
        rows = [
            row[:4] + [_cell(median.get("img"))] + row[4:] + [_cell(median.get("txt"))]
            for row, median in zip(rows, medians)
        ]
    rows = [[language_name(row[0])] + row[1:] for row in rows]
    table = html_table(f"Results on {split}", ["language"] + head, rows, groups=groups, marked=apart)
    note = "Recall is in percent; the median rank counts from 1." if groups else ""
    return f'<div class="panel">{table}</div><p class="note">{note}</p>'


def language_name(language: str) -> str:
    """`German (de)`, or the code itself where it is unknown."""
    return f"{LANGUAGE_NAMES[language]} ({language})" if language in LANGUAGE_NAMES else language


# --- charts ----------------------------------------------------------------------------------------------------------


def _language_section(metrics: dict) -> str:
    _, tree = _split_of(metrics)
    rows = [(name, row) for name, row in tree.items() if name not in NOT_LANGUAGES and isinstance(row, dict)]
    chance = _beside(metrics, "chance")
    charts = []
    for title, keys, names in LANGUAGE_CHARTS:
        level = Reference("chance", [chance[key] for key in keys]) if all(key in chance for key in keys) else None
        values = [
            (language_name(name), [row[key] for key in keys]) for name, row in rows if all(key in row for key in keys)
        ]
        if values:
            charts.append(bar_chart(title, names, values, top=100, reference=level))
    return f'<div class="two">{"".join(charts)}</div>' if charts else ""


def _spread_section(metrics: dict) -> str:
    """Distribution of each instance's rank deviation over the languages."""
    spread = _beside(metrics, "rank_spread")
    if not spread.get("bounds"):
        return ""
    bounds = [number(bound) for bound in spread["bounds"]]
    labels = [f"{bounds[0]} (same rank)"] + [f"up to {bound}" for bound in bounds[1:]] + [f"above {bounds[-1]}"]
    values = [(label, [spread["img"][i], spread["txt"][i]]) for i, label in enumerate(labels)]
    note = (
        f"Share of the {number(spread['num_img'])} texts and {number(spread['num_txt'])} images that all languages "
        "have, by the standard deviation of their ranks over the languages."
    )
    names = ["text to image", "image to text"]
    return bar_chart("Spread of ranks, percent", names, values, note=note, row_head="deviation")


def _curve(records: list[dict], key: str, name: str, scale: float = 1.0) -> Series:
    points = [
        (r["step"], scale * r[key])
        for r in records
        if isinstance(r.get(key), (int, float)) and isinstance(r.get("step"), int)
    ]
    return Series(name, sorted(points))


def _training_section(records: list[dict]) -> str:
    train = [r for r in records if r.get("kind") == "train"]
    parts = sorted({key for r in train for key in r if key.startswith("train/") and key != "train/loss"})
    losses = [_curve(train, "loss", "sum")] if len(parts) != 1 else []
    losses += [_curve(train, key, key.removeprefix("train/")) for key in parts]
    shares = [
        _curve(train, "data_wait_share", "time spent waiting for data", 100),
        _curve(train, "padding_share", "padding in the batches (never computed)", 100),
    ]
    evaluations = [
        r["metrics"]["mean"] | {"step": r.get("step")}
        for r in records
        if r.get("kind") == "eval" and isinstance(r.get("metrics"), dict) and isinstance(r["metrics"].get("mean"), dict)
    ]
    recalls = [_curve(evaluations, "img_r1", "text to image R@1"), _curve(evaluations, "txt_r1", "image to text R@1")]
    charts = [
        line_chart("Loss", losses[:8]),
        line_chart("Mean recall during training, percent", recalls),
        *(
            line_chart(f"{words} during training, percent", [_curve(evaluations, key, words.lower())])
            for key, words in SINGLE_METRICS.items()
        ),
        line_chart("Learning rate", [_curve(train, "lr", "learning rate")]),
        line_chart("Samples per second", [_curve(train, "samples_per_second", "samples per second")]),
        line_chart("Gradient norm", [_curve(train, "grad_norm", "gradient norm")]),
        line_chart("Data, percent", shares),
    ]
    charts = [chart for chart in charts if chart]
    return f'<div class="two">{"".join(charts)}</div>' if charts else ""


# --- summary ---------------------------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """Seconds in the two largest units that matter: 48 s, 6 min 12 s, 3 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _tiles(metrics: dict) -> str:
    split, tree = _split_of(metrics)
    mean, chance = tree.get("mean", {}), _beside(metrics, "chance")
    shown = []
    for key, words in {"img_r1": "Text to image R@1", "txt_r1": "Image to text R@1", **SINGLE_METRICS}.items():
        if key in mean:
            beside = f", chance {_cell(chance[key], 2)}" if key in chance else ""
            shown.append((words, f"{percent(mean[key])} %", f"mean on {split}{beside}"))
    if "mrv" in tree and {"img", "txt"} <= set(tree["mrv"]):
        spread = tree["mrv"]
        words = f"text to image {spread['img']:.2f}, image to text {spread['txt']:.2f}"
        shown.append(("Spread of ranks (MRV)", f"{(spread['img'] + spread['txt']) / 2:.2f}", words))
    for key, words in (("train_seconds", "Training time"), ("total_seconds", "Whole run")):
        if isinstance(metrics.get(key), (int, float)) and math.isfinite(metrics[key]):
            shown.append((words, duration(metrics[key]), ""))
    return tiles(shown)


def _flat(tree: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings as (dotted name, value) pairs."""
    if isinstance(tree, dict):
        return [pair for key, value in tree.items() for pair in _flat(value, f"{prefix}.{key}" if prefix else str(key))]
    if isinstance(tree, list) and any(isinstance(item, dict) for item in tree):
        return [(prefix, ", ".join(value for _, value in _flat(item))) for item in tree]
    if isinstance(tree, list):
        return [(prefix, " ".join(map(str, tree)) or "none")]
    return [(prefix, str(tree))]


def _run_section(folder: Path) -> str:
    environment = _flat(_read_json(folder / "environment.json"))
    config = folder / "config.yaml"
    parts = [f'<div class="panel">{definitions(environment)}</div>'] if environment else []
    if config.exists():
        parts.append(folded("config.yaml of this run", config.read_text(encoding="utf-8")))
    return "".join(parts)


def _task_name(folder: Path) -> str:
    """The `task:` line of config.yaml, "" where there is none."""
    config = folder / "config.yaml"
    lines = config.read_text(encoding="utf-8").splitlines() if config.exists() else []
    return next((line[5:].strip(" '\"") for line in lines if line.startswith("task:")), "")


def build_report(output_dir: str | Path) -> Path:
    """Write report.html from what the run left in output_dir, and return its path."""
    folder = Path(output_dir)
    records = _read_lines(folder / "metrics.jsonl")
    metrics = _final_metrics(folder, records)
    name = folder.resolve().name
    task = _task_name(folder)
    sections = [
        ("Results", _result_section(metrics)),
        ("Languages", _language_section(metrics)),
        ("Consistency over languages", _spread_section(metrics)),
        ("What the model finds", gallery_html(_read_json(folder / "gallery.json"), folder)),
        ("Training", _training_section(records)),
        ("Run", _run_section(folder)),
    ]
    html = page(f"{task}: {name}" if task else name, str(output_dir), _tiles(metrics), sections)
    partial = folder / "report.html.partial"
    partial.write_text(html, encoding="utf-8")
    return partial.replace(folder / "report.html")
