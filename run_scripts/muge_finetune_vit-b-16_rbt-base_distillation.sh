#!/bin/sh
# ViT-B/16 on MUGE with a teacher: muge_finetune_vit-b-16_rbt-base_distillation.sh DATAPATH [words for run.py]
# teacher_model_name: a checkpoint of any system, by default DATAPATH/pretrained_weights/clip_cn_vit-h-14.pt.
exec "$(dirname "$0")/finetune.sh" muge_distillation MUGE "$@"
