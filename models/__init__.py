"""Tables of the parts that a config can name."""

from utils.registry import Registry

IMAGE_ENCODERS = Registry(
    "image encoder",
    {
        "swin": "models.image_encoder:Swin",
        "vit": "models.image_encoder:ViT",
        "resnet": "models.resnet:ResNet",
        "timm": "models.image_encoder:Timm",
    },
)

TEXT_ENCODERS = Registry(
    "text encoder",
    {"bert": "models.text_encoder:TextEncoder", "hugging_face": "models.hugging_face_text:HuggingFaceText"},
)
