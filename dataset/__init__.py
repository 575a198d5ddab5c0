"""Data sets by name; the classes are imported when a config asks for one."""

from utils.registry import Registry

DATASETS = Registry(
    "data set",
    {
        "captioned_images": "dataset.pretrain:CaptionedImages",
        "image_text_pairs": "dataset.retrieval:ImageTextPairs",
        "xflickrco": "dataset.retrieval:FlickrLines",
        "wit": "dataset.retrieval:WitLines",
    },
)
