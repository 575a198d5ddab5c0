"""Tables of CCRK's and CCLM's configuration files: keys, sizes they leave unsaid, names of files."""

PRECISIONS = {"O0": "fp32", "O1": "fp16", "O2": "fp16", "O3": "fp16"}
IMAGE_KEYS = {
    "image_key", "is_image_rpath", "caption_key", "tokenized", "batch_size", "num_workers", "iter_perc",
    "language_chosen",
}  # fmt: skip
MASK_KEYS = {
    "mask_prob": "mask_prob",
    "max_masks": "max_masks",
    "skipgram_prb": "skipgram_prob",
    "skipgram_size": "skipgram_size",
}
MARKS = ("use_swin", "image_res", "schedular", "train_file", "vision_config", "text_num_hidden_layers")

# The originals' configs that our own replace, by file name.
OUR_CONFIG = {
    "Pretrain.yaml": "configs/base/ccrk_pretrain.yaml",
    "Pretrain_1m.yaml": "configs/ccrk/pretrain_1m.yaml",
    "Pretrain_2m.yaml": "configs/ccrk/pretrain_2m.yaml",
    "Pretrain_3m.yaml": "configs/ccrk/pretrain_3m.yaml",
    "xFlickrCO.yaml": "configs/ccrk/xflickrco.yaml",
    "xFlickrCO_fewshot.yaml": "configs/ccrk/xflickrco_fewshot.yaml",
    "WIT.yaml": "configs/ccrk/wit.yaml",
    **{
        f"Retrieval_multi30k_{x}_ft.yaml": f"configs/ccrk/retrieval_multi30k_{x}.yaml"
        for x in ("en", "de", "fr", "cs", "all")
    },
    **{f"Retrieval_coco_{x}_ft.yaml": f"configs/ccrk/retrieval_coco_{x}.yaml" for x in ("en", "ja", "zh", "all")},
}

# The Swin sizes of the files configs/config_swinB_*.json that the originals' configs name.
SWIN_BASE = {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]}
SWIN_BASE_WINDOW = {"config_swinB_224.json": 7, "config_swinB_384.json": 12, "config_swinB_480.json": 15}
XLM_ROBERTA_LARGE = {
    "vocab_size": 250002,
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "pad_token_id": 1,
}
# Names of the same sizes in our text encoder.
TEXT_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "width",
    "num_attention_heads": "num_heads",
    "intermediate_size": "mlp_width",
    "max_position_embeddings": "max_positions",
    "type_vocab_size": "num_token_types",
    "layer_norm_eps": "layer_norm_eps",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "pad_token_id": "pad_id",
}
# Keys that change nothing in these systems, or that only say what the data shows.
WITHOUT_EFFECT = {
    "train_dataset_size", "print_broken_data", "patch_size", "regions", "images_mono", "texts_para", "mask_whole_word",
    "use_tlm", "sample_2_captions", "calc_image_bbox_loss", "use_clip_vit",
}  # fmt: skip
# Data and objectives of CCLM that have to be empty or off here.
MUST_BE_EMPTY = ("train_file_regions", "train_file_mono", "train_file_text")
MUST_BE_OFF = ("use_tlm", "sample_2_captions", "calc_image_bbox_loss", "use_clip_vit", "mask_whole_word")

KNOWN_KEYS = WITHOUT_EFFECT | MASK_KEYS.keys() | {
    "train_file", "val_file", "test_file", "gmt_test_file", "image_root", "images", "use_swin", "vision_config",
    "image_res", "text_encoder", "text_config", "text_num_hidden_layers", "embed_dim", "temp", "use_one_cl_proj_only",
    "max_words", "max_tokens", "sample_n_captions", "batch_size_train", "batch_size_test", "batch_size_test_text",
    "k_test", "num_workers", "optimizer", "schedular", "accelerator", "start_eval", "eval_interval", "ckpt_frequent",
    "ckpt_frequent_step",
}  # fmt: skip
