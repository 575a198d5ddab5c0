"""Tables of the objectives that a config can name."""

from utils.registry import Registry

OBJECTIVES = Registry(
    "objective",
    {
        "itc": "objectives.contrastive:Contrastive",
        "nce": "objectives.contrastive:PairContrastive",
        "mixup": "objectives.mixup:CoinFlipMixup",
        "triplet": "objectives.pairs:Triplet",
        "pair_distance": "objectives.pairs:PairDistance",
        "one_to_k": "objectives.contrastive:OneToK",
        "distill_images": "objectives.teacher:ImageDistillation",
        "itm": "objectives.matching:HardNegativeMatching",
        "classify": "objectives.labels:ClassPrediction",
        "match": "objectives.labels:PairMatching",
        "picture_pairs": "objectives.picture_pairs:PicturePairs",
        "vicreg": "objectives.vicreg:VICReg",
        "ttc": "objectives.contrastive:TextContrastive",
        "ttm": "objectives.matching:TextMatching",
        "bbox": "objectives.boxes:BoxPrediction",
        "mlm": "objectives.masked_lm:MaskedLanguageModelling",
        "tgd": "objectives.distillation:TargetGuidedDistillation",
        "fgd": "objectives.distillation:FeatureGuidedDistillation",
        "answers": "objectives.answering:AnswerLikelihood",
    },
)
