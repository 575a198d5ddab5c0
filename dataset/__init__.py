"""Data sets, transforms and maskers by name; the classes are imported when a config asks for one."""

from utils.registry import Registry

DATASETS = Registry(
    "data set",
    {
        "captioned_images": "dataset.pretrain:CaptionedImages",
        "image_texts": "dataset.image_texts:ImageTexts",
        "regions": "dataset.regions:RegionImages",
        "parallel_text": "dataset.parallel_text:ParallelTexts",
        "image_text_pairs": "dataset.retrieval:ImageTextPairs",
        "xflickrco": "dataset.retrieval:FlickrLines",
        "wit": "dataset.retrieval:WitLines",
        "csv_pairs": "dataset.csv_pairs:CsvPairs",
        "pairs": "dataset.pairs:Pairs",
        "mixture": "dataset.mixture:Mixture",
        "xvnli": "dataset.labelled:Entailment",
        "nlvr": "dataset.labelled:PicturePairs",
        "zero_lines": "dataset.zero:ZeroLines",
        "zero_labels": "dataset.zero:ZeroLabels",
        "numbered_captions": "dataset.zero:NumberedCaptions",
        "questions": "dataset.vqa:Questions",
    },
)

TRANSFORMS = Registry(
    "transform",
    {
        "augmented_crop": "dataset.transforms:AugmentedCrop",
        "resize": "dataset.transforms:Resize",
        "steps": "dataset.image_steps:ImageSteps",
        "clip_augment": "dataset.clip_augment:ClipAugment",
        "shift": "dataset.transforms:Shift",
    },
)

MASKERS = Registry("masker", {"skipgram": "dataset.text:SkipgramMasker", "tokens": "dataset.masking:TokenMasker"})
