#!/bin/sh
# ViT-B/16 on MUGE; the fastest attention is taken in any case: muge_finetune_vit-b-16_rbt-base_flashattn.sh DATAPATH [words for run.py]
exec "$(dirname "$0")/finetune.sh" muge MUGE "$@"
