#!/bin/sh
# ViT-B/16 on MUGE with a teacher (--teacher-model-name): muge_finetune_vit-b-16_rbt-base_distllation.sh DATAPATH [words for run.py]
exec "$(dirname "$0")/finetune.sh" muge_distillation MUGE "$@"
