"""Names of the originals' configuration files, and ours that replace them where they are absent."""

# CCLM and CCRK name their files alike, in a folder that both call cclm-base-ft.
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
