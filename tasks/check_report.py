"""The outcome of `--task check_data` as text for a terminal and as a page."""

from __future__ import annotations

from typing import Any

from utils.charts import bar_chart, html_table, number
from utils.report import duration, language_name
from utils.report_page import folded, page, tiles

BINS = (8, 16, 24, 32, 40, 64, 100)
SPLIT_HEAD = ["split", "records", "samples", "bad", "bad share", "pictures", "too small", "captions", "cut", "verdict"]
LANGUAGE_HEAD = ["language", "captions", "missing", "empty", "p50", "p95", "max", "words cut", "tokens cut", "unknown"]
PICTURE_HEAD = ["split", "pictures", "readable", "p5", "p50", "p95", "too small", "mean kB"]
NOTES = {
    "small": "Too small: the shorter side has fewer pixels than the model's input. Cut: longer than max_words or "
    "max_tokens, so the end is lost.",
    "picture": "p5, p50, p95: pixels of the shorter side that so many percent of the pictures do not exceed.",
    "length": "Lengths in tokens, begin and end marks included. Unknown: share of pieces that the tokenizer lacks.",
    "repeats": "Two samples of a batch that show the same picture under different ids, or share a caption, count as "
    "wrong answers to each other although they are right. Expected at the configured batch size, for batches drawn "
    "from the whole set.",
    "leak": "Pictures are compared by their bytes. Ids may agree by chance where files number their records anew.",
}


def share(value: float) -> str:
    """A share in percent: 0 %, <0.01 %, 0.25 %, 12.5 %."""
    return "<0.01 %" if 0 < value < 1e-4 else f"{100 * value:.3g} %"


def few(value: float) -> str:
    """An expected number of pairs: 0.0395, 2.26, 2,259."""
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def verdict(split: dict[str, Any]) -> str:
    return "usable" if split["usable"] else "unusable"


def _split_rows(result: dict[str, Any]) -> list[list[str]]:
    rows = []
    for name, split in result["splits"].items():
        if "error" in split:
            rows.append([name, *["-"] * 8, verdict(split)])
            continue
        languages, images = split["languages"].values(), split["images"]
        numbers = [number(split[key]) for key in ("records", "samples", "bad")] + [share(split["bad_share"])]
        numbers += [number(images["count"]), number(images["smaller_than_input"])]
        cut = sum(each["cut"] for each in languages)
        rows.append([name, *numbers, number(sum(each["captions"] for each in languages)), number(cut), verdict(split)])
    return rows


def _language_rows(split: dict[str, Any], named: bool) -> list[list[str]]:
    rows = []
    for name, each in split.get("languages", {}).items():
        counts = [each["captions"], each["missing"], each["empty"], *each["tokens"].values()]
        counts += [each["over_max_words"], each["over_max_tokens"]]
        label = language_name(name) if named else name
        rows.append([label, *(number(count) for count in counts), share(each["unknown_share"])])
    return rows


def _picture_rows(result: dict[str, Any]) -> list[list[str]]:
    rows = []
    for name, split in result["splits"].items():
        images = split.get("images", {})
        if images.get("readable"):
            numbers = [images["count"], images["readable"], *images["shorter_side"].values()]
            kilobytes = f"{images['mean_bytes'] / 1000:.1f}"
            rows.append([name, *map(number, numbers), number(images["smaller_than_input"]), kilobytes])
    return rows


def _repeat_rows(result: dict[str, Any]) -> list[list[str]]:
    rows = []
    for name, split in result["splits"].items():
        repeats = split.get("repeats")
        if repeats is None:
            continue
        expected = repeats["false_negatives_per_batch"]
        row = [name, number(repeats["distinct_images"]), number(repeats["images_under_several_ids"])]
        row += [number(repeats["distinct_captions"]), number(repeats["captions_of_several_images"])]
        if split["is_contrasted"]:
            row += [few(expected["image"]), few(expected["caption"]), share(repeats["false_negative_share"])]
        rows.append(row if split["is_contrasted"] else [*row, "-", "-", "-"])
    return rows


def _leak_rows(result: dict[str, Any]) -> list[list[str]]:
    return [
        [name, *(f"{number(leak[f'{kind}s'])} ({share(leak[f'{kind}_share'])})" for kind in ("image", "id", "caption"))]
        for name, leak in result["leaks"].items()
    ]


def text_table(head: list[str], rows: list[list[str]]) -> str:
    """Columns of text, the first one to the left."""
    widths = [max(len(row[k]) for row in [head, *rows]) for k in range(len(head))]
    lines = [[head[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(head[1:], widths[1:]))]]
    lines += [[row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:]))] for row in rows]
    return "\n".join("  ".join(line).rstrip() for line in lines) + "\n"


def check_table(result: dict[str, Any]) -> str:
    """The outcome for a terminal: splits, languages, repeats and leaks, and the first places of every problem."""
    parts = [text_table(SPLIT_HEAD, _split_rows(result))]
    for name, split in result["splits"].items():
        if "error" in split:
            parts.append(f"{name}: {split['error']}\n")
            continue
        if split["languages"]:
            parts.append(text_table([f"{name}:", *LANGUAGE_HEAD[1:]], _language_rows(split, named=False)))
        for reason, problem in split["problems"].items():
            places = "".join(f"  {text}\n" for text in problem["examples"])
            parts.append(f"{name}: {number(problem['count'])} x {reason}, as\n{places}")
    for name, split in result["splits"].items():
        if split.get("is_contrasted"):
            repeats, expected = split["repeats"], split["repeats"]["false_negatives_per_batch"]
            parts.append(
                f"{name}: false negatives to expect in a batch of {repeats['batch_size']}: {few(expected['image'])} "
                f"pairs with the same picture, {few(expected['caption'])} with the same caption "
                f"({share(repeats['false_negative_share'])} of all pairs)\n"
            )
    if result["leaks"]:
        parts.append(text_table(["leaks:", "pictures", "ids", "captions"], _leak_rows(result)))
    allowed = share(result["max_bad_share"])
    words = "a run can use this data" if result["usable"] else "a run would stop"
    parts.append(f"{words} (data.max_bad_share {allowed})\n")
    return "\n".join(parts)


def check_page(result: dict[str, Any], place: str) -> str:
    """The outcome as a whole HTML document."""
    sections = [
        ("Splits", _panel("Splits", SPLIT_HEAD, _split_rows(result), NOTES["small"]) + _errors(result)),
        ("Problems", _problems(result)),
        ("Languages", _languages(result)),
        ("Lengths", _lengths(result)),
        ("Pictures", _panel("Pictures", PICTURE_HEAD, _picture_rows(result), NOTES["picture"])),
        ("Repeats and false negatives", _repeats(result)),
        ("Leaks from training", _leaks(result)),
    ]
    return page("Check of the data", place, _tiles(result), sections)


def _panel(caption: str, head: list[str], rows: list[list[str]], note: str) -> str:
    if not rows:
        return ""
    shown = f'<div class="panel">{html_table(caption, head, rows)}</div>'
    return f'{shown}<p class="note">{note}</p>' if note else shown


def _tiles(result: dict[str, Any]) -> str:
    splits = [split for split in result["splits"].values() if "error" not in split]
    records, bad = sum(split["records"] for split in splits), sum(split["bad"] for split in splits)
    units = sum(split["samples"] for split in splits)
    looked = "evenly spread over each split" if result["limit"] else "all of them"
    allowed = f"data.max_bad_share is {share(result['max_bad_share'])}"
    shown = [
        ("Verdict", "usable" if result["usable"] else "unusable", allowed),
        ("Records read", number(records, 9), f"{looked}, in {duration(result['seconds'])}"),
        ("Bad samples", number(bad, 9), f"{share(bad / units if units else 0.0)} of {number(units, 9)}"),
    ]
    train = result["splits"].get("train", {})
    if train.get("is_contrasted"):
        expected = sum(train["repeats"]["false_negatives_per_batch"].values())
        words = f"pairs in a batch of {number(train['repeats']['batch_size'])}"
        shown.append(("False negatives", few(expected), words))
    if result["leaks"]:
        leaked = sum(leak["images"] for leak in result["leaks"].values())
        shown.append(("Leaked pictures", number(leaked, 9), "also trained on, by training set"))
    return tiles(shown)


def _errors(result: dict[str, Any]) -> str:
    return "".join(
        folded(f"{name}: cannot be opened", split["error"])
        for name, split in result["splits"].items()
        if "error" in split
    )


def _problems(result: dict[str, Any]) -> str:
    rows, places = [], []
    for name, split in result["splits"].items():
        for reason, problem in split.get("problems", {}).items():
            rows.append([f"{name}: {reason}", number(problem["count"])])
            places.append(folded(f"{name}: {reason}, the first places", "\n".join(problem["examples"])))
    return _panel("Problems", ["problem", "how often"], rows, "") + "".join(places)


def _languages(result: dict[str, Any]) -> str:
    parts = []
    for name, split in result["splits"].items():
        rows = _language_rows(split, named=True)
        parts.append(_panel(f"Languages of {name}", [name, *LANGUAGE_HEAD[1:]], rows, ""))
    return "".join(parts) + (f'<p class="note">{NOTES["length"]}</p>' if any(parts) else "")


def _lengths(result: dict[str, Any]) -> str:
    """Share of captions by number of tokens, a bar for each split."""
    histograms = {name: split["lengths"] for name, split in result["splits"].items() if sum(split.get("lengths", []))}
    if not histograms:
        return ""
    rows, low = [], 0
    for high in (*BINS, None):
        label = f"{low + 1} - {high}" if high else f"above {low}"
        values = [100 * sum(counts[low + 1 : high and high + 1]) / sum(counts) for counts in histograms.values()]
        rows.append((label, values))
        low = high or low
    used = max(k for k, (_, values) in enumerate(rows) if any(values))
    names = list(histograms)
    return bar_chart("Captions by number of tokens, percent", names, rows[: used + 1], row_head="tokens")


def _repeats(result: dict[str, Any]) -> str:
    head = ["split", "pictures", "under several ids", "captions", "of several pictures"]
    head += ["pairs by picture", "pairs by caption", "share of pairs"]
    places = []
    for name, split in result["splits"].items():
        for kind in ("image", "caption"):
            lines = split.get("repeats", {}).get(f"{kind}_examples", [])
            words = "same picture, several ids" if kind == "image" else "same caption, several pictures"
            places += [folded(f"{name}: {words}", "\n".join(lines))] if lines else []
    return _panel("Repeats", head, _repeat_rows(result), NOTES["repeats"]) + "".join(places)


def _leaks(result: dict[str, Any]) -> str:
    head = ["split", "pictures", "ids", "captions"]
    places = []
    for name, leak in result["leaks"].items():
        for kind in ("image", "id", "caption"):
            lines = leak[f"{kind}_examples"]
            places += [folded(f"{name}: same {kind}", "\n".join(lines))] if lines else []
    return _panel("Leaks", head, _leak_rows(result), NOTES["leak"]) + "".join(places)
