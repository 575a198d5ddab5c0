"""CCLM's configuration files by name: the originals' keys and values, for the tests of their translation."""

RETRIEVAL_SETS = {
    "multi30k": {x: ("train.{}", "val.{}", "test_2016_flickr.{}") for x in ("en", "de", "fr", "cs")},
    "coco": {
        "en": ("{}.train", "{}.valid", "{}.1k_test"),
        "zh": ("{}.train", "{}.val", "{}.test"),
        "ja": ("{}.train", "{}.valid", "{}.1k_test"),
    },
}
FOLDER = {"multi30k": "multi30k", "coco": "mscoco"}
TOWERS = """
vision_config: 'configs/config_swinB_{size}.json'
use_clip_vit: False
use_swin: True
image_res: {size}
patch_size: 32
text_encoder: 'data/xlm-roberta-large'
text_num_hidden_layers: 12
"""
RATES = """
optimizer: {{opt: adamW, lr: {lr}, weight_decay: 0.01, lr_mult: 2}}
schedular: {{sched: linear, lr: {lr}, epochs: {epochs}, num_warmup_steps: 0.1}}
"""
SPACE = "embed_dim: 256\ntemp: 0.07\nuse_one_cl_proj_only: False\n"


def quoted(files):
    return "{" + ", ".join(f"'{language}': '{path}'" for language, path in files.items()) + "}"


def finetuning(lr="3e-5", epochs=10):
    return TOWERS.format(size=384) + RATES.format(lr=lr, epochs=epochs)


def retrieval(name, part):
    """Retrieval_<name>_<part>_ft.yaml."""
    every = RETRIEVAL_SETS[name]
    trained = [part] if part != "all" else list(every)
    tested = list(every) if part in ("en", "all") else [part]
    path = lambda language, split: (  # noqa: E731
        f"data/finetune/{FOLDER[name]}/{every[language][split].format(language)}.json"
    )
    is_large = (name, part) in (("multi30k", "all"), ("coco", "en"))
    sizes = (20, 12, 64) if is_large else (10, 6, 32)
    return (
        f"train_file: {[path(x, 0) for x in trained]}\n"
        f"val_file: {quoted({x: path(x, 1) for x in tested})}\n"
        f"test_file: {quoted({x: path(x, 2) for x in tested})}\n"
        "image_root: 'images/'\nmax_tokens: 40\n" + SPACE + f"k_test: {128 if name == 'multi30k' else 256}\n"
        f"batch_size_train: {sizes[0]}\nbatch_size_test: {sizes[1]}\nbatch_size_test_text: {sizes[2]}\n" + finetuning()
    )


IGLUE = "iglue/datasets"
FLICKR_CO = f"{IGLUE}/xFlickrCO/annotations"
TRANSLATED = ("de", "es", "id", "ja", "ru", "tr", "zh")
LANGUAGES = ("de", "en", "es", "id", "ja", "ru", "tr", "zh")
MARVL = ("zh", "id", "sw", "ta", "tr")
WIT = "data/wit/annotations-bs64"
WIT_LANGUAGES = ("ar", "bg", "da", "el", "en", "et", "id", "ja", "ko", "tr", "vi")
SIZES = "batch_size_train: 8\nbatch_size_test: 12\nbatch_size_test_text: 64\nmax_tokens: 80\nk_test: 128\n" + SPACE
ROOTS = "image_root: {'flickr30k': 'images/flickr30k-images', 'coco': 'images/val2014'}\n"

FILES = {
    f"Retrieval_{name}_{part}_ft.yaml": retrieval(name, part)
    for name in FOLDER
    for part in (*RETRIEVAL_SETS[name], "all")
}
FILES["xFlickrCO.yaml"] = (
    f"train_file: ['{IGLUE}/flickr30k/annotations/train_ann.jsonl']\n"
    f"val_file: '{IGLUE}/flickr30k/annotations/valid_ann.jsonl'\n"
    f"test_file: {quoted({x: f'{FLICKR_CO}/{x}/test.jsonl' for x in LANGUAGES})}\n"
    f"gmt_test_file: {quoted({x: f'{FLICKR_CO}_machine-translate/{x}/test_gmt.jsonl' for x in TRANSLATED})}\n"
    + ROOTS
    + SIZES
    + finetuning()
    + "start_eval: 7\neval_interval: 1\n"
)
FILES["xFlickrCO_fewshot.yaml"] = (
    f"train_file: ['{FLICKR_CO}/{{}}/train_{{}}.jsonl']\nval_file: '{FLICKR_CO}/{{}}/test.jsonl'\ntest_file: {{}}\n"
    + ROOTS
    + SIZES
    + finetuning("1e-5", 60)
    + "start_eval: 9\neval_interval: 10\n"
)
FILES["WIT.yaml"] = (
    f"train_file: ['{WIT}/train_en.jsonl']\nval_file: '{WIT}/val_en.jsonl'\n"
    f"test_file: {quoted({x: f'{WIT}/test_{x}.jsonl' for x in WIT_LANGUAGES})}\n"
    "gmt_test_file: "
    + quoted({x: f"data/wit/annotations_machine-translate-bs64/test_{x}_gmt.jsonl" for x in WIT_LANGUAGES if x != "en"})
    + "\n"
    + SIZES
    + finetuning(epochs=5)
    + "start_eval: 3\n"
)


# --- XVNLI, NLVR2 and MaRVL ------------------------------------------------------------------------------------------

XVNLI = f"{IGLUE}/XVNLI/annotations"
LABELS = "max_tokens: 80\nnum_labels: 3\nbatch_size: 12\nuse_one_cl_proj_only: False\n"
FLICKR = "image_root: 'images/flickr30k-images'\n"
FILES["XVNLI.yaml"] = (
    f"train_file: ['{XVNLI}/en/train.jsonl']\nval_file: ['{XVNLI}/en/dev.jsonl']\n"
    f"test_file: {quoted({x: f'{XVNLI}/{x}/test.jsonl' for x in ('ar', 'en', 'es', 'fr', 'ru')})}\n"
    f"gmt_test_file: {quoted({x: f'{XVNLI}_machine-translate/{x}/test.jsonl' for x in ('ar', 'es', 'fr', 'ru')})}\n"
    + FLICKR
    + LABELS
    + finetuning()
    + "start_eval: 0\neval_interval: 1\n"
)
FILES["XVNLI_fewshot.yaml"] = (
    f"train_file: ['{XVNLI}/{{}}/train_{{}}.jsonl']\nval_file: ['{XVNLI}/{{}}/test.jsonl']\ntest_file: {{}}\n"
    + FLICKR
    + LABELS
    + finetuning("1e-5", 60)
    + "start_eval: 9\neval_interval: 10\n"
)
NLVR = "data/finetune/nlvr_en/nlvr"
FILES["NLVR.yaml"] = (
    f"train_file: ['{NLVR}_train.json']\nval_file: ['{NLVR}_dev.json']\nimage_root: 'images/nlvr2/'\n"
    f"test_file: {quoted({'en': f'{NLVR}_test.json', **{x: f'data/marvl/marvl-{x}.json' for x in MARVL}})}\n"
    "batch_size: 10\n" + finetuning() + "start_eval: 6\n"
)
FILES["NLVR_fewshot.yaml"] = (
    "train_file: ['data/marvl/marvl-{}_train10x2.json']\nval_file: ['data/marvl/marvl-{}.json']\nimage_root: ''\n"
    "test_file: {}\nbatch_size: 10\n" + finetuning("1e-5", 60) + "start_eval: 9\neval_interval: 10\n"
)

# --- GQA and xGQA ----------------------------------------------------------------------------------------------------

GQA = f"{IGLUE}/gqa/annotations"
XGQA = f"{IGLUE}/xGQA/annotations/few_shot"
ANSWERS = f"{GQA}/trainval_ans2label.json"
DECODER = "num_dec_layers: 6\nbatch_size_train: 32\nbatch_size_test: 4\nmax_tokens: 40\nk_test: 128\n"
GQA_LANGUAGES = ("bn", "de", "en", "id", "ko", "pt", "ru", "zh")
TESTS = ", ".join(f"'{x}': ['{XGQA}/{x}/test.json', '{ANSWERS}']" for x in GQA_LANGUAGES)
FILES["GQA.yaml"] = (
    f"train_file: ['{GQA}/train.json',]\nvalid_file: ['{GQA}/valid.json']\nanswer_list: '{ANSWERS}'\n"
    f"vqa_root: 'images/gqa/'\ntest_file: {{{TESTS}}}\n" + DECODER + finetuning(epochs=5) + "start_eval: 2\n"
)
FILES["GQA_fewshot.yaml"] = (
    f"train_file: ['{XGQA}/{{}}/train_48.json',]\nvalid_file: ['{XGQA}/{{}}/test.json']\nanswer_list: '{ANSWERS}'\n"
    "vqa_root: 'images/gqa/'\ntest_file: {}\n" + DECODER + finetuning("1e-5", 60) + "start_eval: 9\neval_interval: 10\n"
)

# --- pre-training ----------------------------------------------------------------------------------------------------

IMAGES = "image_key: 'binary', is_image_rpath: False, caption_key: 'caption', tokenized: False"
MONO = IMAGES.replace("'caption'", "'desc'")
WORDS = """
max_words: 40
max_tokens: 40
mask_prob: 0.4
max_masks: 12
mask_whole_word: False
skipgram_prb: 0.2
skipgram_size: 3
use_tlm: False
sample_2_captions: False
use_one_cl_proj_only: False
embed_dim: 256
"""
ACCELERATOR = (
    "accelerator: {SYNCBN: false, FP16_OPT_LEVEL: O1, FP16_LOSS_SCALE: dynamic, RNG_SEED: 42, "
    "GRAD_ACCUMULATE_STEPS: 1, CLIP_GRAD_NORM: 1.0}\n"
)
IMAGE_SECTION = f"images: {{{IMAGES}, batch_size: 128, num_workers: 4, iter_perc: 1.0}}\n"


def pretraining(images, regions, code_switch):
    """Pretrain_3m.yaml and Pretrain_4m.yaml."""
    switch = f"code_switch: {code_switch}, careful_hflip: True"
    sizes = "batch_size: 128, max_images: 48, max_regions: 5, min_perc_in_image: 0.5, num_workers: 2"
    return (
        f"train_file: {images}\ntrain_dataset_size: 2838361\n{IMAGE_SECTION}"
        f"train_file_regions: {regions}\nregions: {{{IMAGES}, {switch}, {sizes}}}\n"
        f"train_file_mono: []\nimages_mono: {{{MONO}, batch_size: 128}}\n"
        "train_file_text: ['hdfs://path/to/wikimatrix']\n"
        "texts_para: {source_key: 'source_text', target_key: 'target_text', tokenized: False, batch_size: 128, "
        "num_workers: 4, iter_perc: 1.0, max_words: 64, max_tokens: 64, mask_prob: 0.4, max_masks: 20}\n"
        + TOWERS.format(size=224)
        + WORDS
        + "calc_image_bbox_loss: False\ntemp: 0.07\n"
        "ckpt_frequent_step: 50000\nckpt_frequent: 5\n"
        + RATES.format(lr="1e-4", epochs=30).replace("0.1}", "2500}")
        + ACCELERATOR
    )


FILES["Pretrain_3m.yaml"] = pretraining(["hdfs://path/to/cc-3m-uc2"], [], False)
FILES["Pretrain_4m.yaml"] = pretraining(
    [f"hdfs://path/to/{name}" for name in ("cc-3m-uc2", "sbu-mm", "vg-mm", "coco-mm")],
    [f"hdfs://path/to/{name}-mm" for name in ("coco_object", "vg_object", "vg_region")],
    True,
)
FILES["NLVR_multilingual_pretrain_O1.yaml"] = (
    f"train_file: ['hdfs://path/to/cc-3m-uc2']\ntrain_dataset_size: 2838361\n{IMAGE_SECTION}"
    + TOWERS.format(size=224)
    + WORDS
    + RATES.format(lr="3e-5", epochs=2)
    + ACCELERATOR
)
