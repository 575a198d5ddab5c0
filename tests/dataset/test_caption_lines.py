"""Lines that gain languages: what is added, and that nothing else changes."""

import json

import pytest

from dataset.caption_lines import parse_caption_line
from dataset.files import BadRecord


@pytest.mark.parametrize(
    "line, added, expected",
    [
        ('{"caption": {"en": "a"}}', [{"de": "b"}], '{"caption": {"en": "a", "de": "b"}}'),
        (' {"caption":{} ,"x":1.50}\r\n', [{"de": "b"}], ' {"caption":{"de": "b"} ,"x":1.50}\r\n'),
        ('{"caption": {"en": "a", "de": ""}}', [{"de": "ü"}], '{"caption": {"en": "a", "de": "ü"}}'),
        ('{"a":"\\u00fc","caption":[{"en":"a"},{"en":"b" }]}', [{"de": '"'}, {"de": "c"}],
         '{"a":"\\u00fc","caption":[{"en":"a", "de": "\\""},{"en":"b", "de": "c" }]}'),
        ('{"caption": {"en": "a"}, "n": {"caption": {"en": "z"}}}', [{"de": "b", "fr": "c"}],
         '{"caption": {"en": "a", "de": "b", "fr": "c"}, "n": {"caption": {"en": "z"}}}'),
        ('{"caption": {"en": "a"}}', [{}], '{"caption": {"en": "a"}}'),
    ],
)  # fmt: skip
def test_languages_are_put_in_and_the_rest_stays(line, added, expected):
    parsed = parse_caption_line(line, "caption")
    assert parsed.with_captions(added) == expected
    changed = json.loads(expected)["caption"]
    assert [set(each) for each in (changed if isinstance(changed, list) else [changed])] == [
        {*each.captions, *new} for each, new in zip(parsed.sets, added)
    ]


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"caption": {"en": "a"}} {}', "broken JSON; extra data at character 25"),
        ('{"caption": {"en": "a"}', "broken JSON"),
        ('{"caption": {"en" "a"}}', "broken JSON"),
        ("[1]", "broken JSON; expected { at character 0"),
        ('{"image": "x"}', "field 'caption' is missing; found: image"),
        ('{"caption": "a"}', "must hold objects of languages; found str"),
        ('{"caption": []}', "must hold objects of languages; found an empty list"),
        ('{"caption": [{"en": "a"}, 1]}', "must hold objects of languages; found int"),
        ('{"caption":' + "[" * 100000, "broken JSON"),
    ],
)
def test_lines_without_captions_by_language_are_bad_records(line, message):
    with pytest.raises(BadRecord, match=message.replace("[", r"\[")):
        parse_caption_line(line, "caption")
