#!/bin/sh
# ViT-B/16 on MUGE: muge_finetune_vit-b-16_rbt-base.sh DATAPATH [words for run.py]
exec "$(dirname "$0")/finetune.sh" muge MUGE "$@"
