#!/bin/sh
# ViT-B/16 on MUGE, half of the patches masked: muge_finetune_vit-b-16_rbt-base_flip.sh DATAPATH [words for run.py]
exec "$(dirname "$0")/finetune.sh" muge_flip MUGE "$@"
