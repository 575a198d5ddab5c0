"""What `--task` may name: the class that does it and the settings it starts from."""

from utils.registry import Registry

TASKS = Registry(
    "task",
    {
        "pretrain": "tasks.pretrain:Pretrain",
        "itr_multi30k": "tasks.retrieval:Retrieval",
        "itr_coco": "tasks.retrieval:Retrieval",
        "xflickrco": "tasks.retrieval:Retrieval",
        "wit": "tasks.retrieval:Retrieval",
    },
)

# The settings of a task when --config is not given.
DEFAULT_CONFIG = {
    "pretrain": "configs/ccrk/pretrain_3m.yaml",
    "itr_multi30k": "configs/ccrk/retrieval_multi30k_en.yaml",
    "itr_coco": "configs/ccrk/retrieval_coco_en.yaml",
    "xflickrco": "configs/ccrk/xflickrco.yaml",
    "wit": "configs/ccrk/wit.yaml",
}
