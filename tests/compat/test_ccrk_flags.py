import pytest

from compat.ccrk_flags import EVALUATED_LANGUAGES, translate_finetuning, translate_pretraining
from compat.flags import nested, parse_flag_string, split_fewshot, translate_run_flags
from utils.config import ConfigError
from utils.config_tree import plain


def pretraining(text, world_size=2):
    return translate_pretraining(text, world_size)


def test_languages_keep_their_order():
    settings = pretraining("--language_chosen zh,ja,en,de,fr,cs").settings
    assert settings == {"data.train.languages": ["zh", "ja", "en", "de", "fr", "cs"]}


def test_the_batch_of_one_process_becomes_that_of_all():
    assert pretraining("--imgbsz 64", world_size=2).settings == {"data.batch_size": 128}


@pytest.mark.parametrize("number, choice", [(0, "uniform"), (1, "probability"), (2, "similarity")])
def test_the_positive_text_is_drawn_as_the_number_says(number, choice):
    assert pretraining(f"--neg_sample_type {number}").settings == {"objectives.itm.positive_text": choice}


@pytest.mark.parametrize("divisor", [0, 2, -1])
def test_the_divisor_is_handed_on(divisor):
    assert pretraining(f"--need_divm={divisor}").settings == {"objectives.one_to_k.divisor": divisor}


def test_gathering_is_switched_off_by_one():
    assert pretraining("--itc_allgather 1").settings == {"objectives.one_to_k.gather": "none"}
    assert pretraining("--itc_allgather 0").settings == {"objectives.one_to_k.gather": "local_slice"}


def test_the_easy_form_trades_one_to_k_for_the_plain_contrastive_loss():
    translation = pretraining("--cclm_easy 1 --caption_num 1 --itc_allgather 1")
    assert translation.settings["objectives.one_to_k"] is None
    assert (
        translation.settings["objectives.itc.gather"] == "none" and translation.settings["data.train.caption_num"] == 1
    )
    assert translation.notices == []
    assert "add --caption_num 1" in pretraining("--cclm_easy 1").notices[0]


def test_files_rate_checkpoint_and_first_weights():
    translation = pretraining("--train_file a,b --lr 3e-5 --checkpoint x.th --save0")
    assert translation.settings == {"data.train.files": ["a", "b"], "optim.lr": 3e-5, "init.checkpoint": "x.th"}
    assert translation.actions == {"save_initial"}


def test_logs_change_nothing_but_the_log():
    assert pretraining("--vicreg 1").settings == {"objectives.vicreg": {"weight": 0.0}}
    assert pretraining("--vicreg 0").settings == {}
    assert pretraining("--sample_lan_file f.txt").settings == {"objectives.itm.language_file": "f.txt"}


def test_evaluation_flags():
    assert translate_finetuning("--eval_not_cross").settings == {"evaluation.score": "dual"}
    assert translate_finetuning("--wo_cl").settings == {"evaluation.num_candidates": 1_000_000_000}
    assert translate_finetuning("--text_encoder data/x").settings == {"data.tokenizer": "data/x"}


def test_a_checkpoint_per_language():
    text = " --model_cap ccrk_3m_10lan --checkpoint_fmt output/xflickrco/format/checkpoint_best.pth"
    settings = translate_finetuning(text).settings
    assert settings["init.checkpoint_by_language"] == "output/xflickrco/{language}/checkpoint_best.pth"
    assert settings["data.languages"] == EVALUATED_LANGUAGES
    assert "data.languages" not in translate_finetuning(text + " --all_lan_eval").settings


@pytest.mark.parametrize(
    "text, message",
    [
        ("--languages_chosen de", r"--pret_para: unknown flag 'languages_chosen'; did you mean 'language_chosen'\?"),
        ("language_chosen de", "expected a flag, found 'language_chosen'"),
        ("--caption_num", "--caption_num needs a value"),
        ("--caption_num two", "--caption_num must be a whole number, found 'two'"),
        ("--neg_sample_type 3", "--neg_sample_type must be 0, 1 or 2, found 3"),
        ("--cclm_easy 2", "--cclm_easy must be 0 or 1, found 2"),
        ("--save0=1", "--save0 takes no value, found '1'"),
        ("--train_file 'a", "cannot be split into words"),
    ],
)
def test_wrong_flags_are_told(text, message):
    with pytest.raises(ConfigError, match=message):
        pretraining(text)


def test_flags_that_exclude_each_other():
    with pytest.raises(ConfigError, match="exclude each other"):
        translate_finetuning("--eval_not_cross --wo_cl")


def test_quoted_values_stay_whole():
    assert parse_flag_string("--a 'x y' --b=3", {"a": str, "b": int}, "--p") == {"a": "x y", "b": 3}


def test_few_shot_words():
    assert split_fewshot("de,100") == {"lang": "de", "shots": "100"}
    assert split_fewshot("id") == {"lang": "id"}
    for wrong in ("de,many", "de,1,2", ","):
        with pytest.raises(ConfigError, match="--fewshot expects LANGUAGE or LANGUAGE,SHOTS"):
            split_fewshot(wrong)


def run_flags(**flags):
    absent = dict.fromkeys(("task", "output_dir", "checkpoint", "bs", "epoch", "lr", "seed"))
    return translate_run_flags(**{**absent, **flags}).settings


def test_the_originals_words_for_keep_change_nothing():
    assert run_flags(bs=-1, epoch=-1, lr=0.0, checkpoint="") == {}


def test_flags_become_settings():
    assert run_flags(bs=64, epoch=10, lr=1e-6, seed=1, checkpoint="a.th") == {
        "data.batch_size": 64,
        "train.epochs": 10,
        "optim.lr": 1e-6,
        "seed": 1,
        "init.checkpoint": "a.th",
    }


def test_flags_out_of_range_are_told():
    with pytest.raises(ConfigError, match="--bs must be above 0, found 0"):
        run_flags(bs=0)


def test_dotted_settings_become_sections():
    assert plain(nested({"a.b": 1, "a.c.d": [2], "e": {"f": None}}, "x")) == {
        "a": {"b": 1, "c": {"d": [2]}},
        "e": {"f": None},
    }
