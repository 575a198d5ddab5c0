"""What `--task` may name: the class that does it and the settings it starts from."""

from utils.registry import Registry

TASKS = Registry(
    "task",
    {
        "pretrain": "tasks.image_text:ImageText",
        "pretrain_cclm_3m": "tasks.image_text:ImageText",
        "pretrain_cclm_4m": "tasks.image_text:ImageText",
        "itr_multi30k": "tasks.image_text:ImageText",
        "itr_coco": "tasks.image_text:ImageText",
        "xflickrco": "tasks.image_text:ImageText",
        "wit": "tasks.image_text:ImageText",
        "clip": "tasks.image_text:ImageText",
        "xvnli": "tasks.image_text:ImageText",
        "nlvr": "tasks.image_text:ImageText",
        "nlvr_pretrain": "tasks.image_text:ImageText",
        "gqa": "tasks.vqa:QuestionAnswering",
        "chinese_clip": "tasks.image_text:ImageText",
        "pretrain_r2d2": "tasks.image_text:ImageText",
        "pretrain_prd2": "tasks.image_text:ImageText",
        "r2d2_retrieval": "tasks.image_text:ImageText",
        "r2d2_matching": "tasks.image_text:ImageText",
    },
)

# The settings of a task when --config is not given.
DEFAULT_CONFIG = {
    "pretrain": "configs/ccrk/pretrain_3m.yaml",
    "pretrain_cclm_3m": "configs/cclm/pretrain_3m.yaml",
    "pretrain_cclm_4m": "configs/cclm/pretrain_4m.yaml",
    "itr_multi30k": "configs/cclm/retrieval_multi30k_all.yaml",
    "itr_coco": "configs/cclm/retrieval_coco_all.yaml",
    "xflickrco": "configs/cclm/xflickrco.yaml",
    "clip": "configs/zerovl/zerovl.yaml",
    "wit": "configs/cclm/wit.yaml",
    "xvnli": "configs/cclm/xvnli.yaml",
    "nlvr": "configs/cclm/nlvr.yaml",
    "nlvr_pretrain": "configs/cclm/nlvr_pretrain.yaml",
    "gqa": "configs/cclm/gqa.yaml",
    "chinese_clip": "configs/chinese_clip/vit_b_16.yaml",
    "pretrain_r2d2": "configs/r2d2/pretrain_base.yaml",
    "pretrain_prd2": "configs/r2d2/prd2.yaml",
    "r2d2_retrieval": "configs/r2d2/flickr_cna_large.yaml",
    "r2d2_matching": "configs/r2d2/iqm_large.yaml",
}

# Tasks that are two runs: the second one starts from the first one's last weights, in a folder below its own.
CHAINS = {"nlvr_domain": ("nlvr_pretrain", "nlvr", "nlvr_ft")}

# What --task may name besides: programs with settings of their own (tasks/tool.py).
TOOLS = Registry(
    "tool",
    {
        "check_data": "tasks.check_data:CheckData",
        "score": "tasks.score:Score",
        "build_lmdb": "tasks.build_lmdb:BuildLmdb",
        "extract_features": "tasks.extract:ExtractFeatures",
        "search": "tasks.search:Search",
        "zero_shot": "tasks.zero_shot:ZeroShot",
        "linear_prob": "tasks.linear_probe:LinearProbe",
        "evaluate_predictions": "tasks.evaluate_predictions:EvaluatePredictions",
        "transpose_annotations": "tasks.evaluate_predictions:TransposeAnnotations",
        "translate": "tasks.translate:Translate",
        "export_onnx": "tasks.onnx_export:ExportOnnx",
        "speed_benchmark": "tasks.speed_benchmark:SpeedBenchmark",
        "serve": "tasks.serve:Serve",
    },
)

# How a run's `evaluation` section scores a split.
EVALUATIONS = Registry(
    "evaluation",
    {
        "retrieval": "tasks.retrieval:RetrievalEvaluation",
        "labels": "tasks.classify:LabelEvaluation",
        "answers": "tasks.vqa:AnswerEvaluation",
    },
)
