#!/bin/sh
# ViT-B/16 on Flickr30K-CN, half of the patches masked: flickr30k_finetune_vit-b-16_rbt-base_flip.sh DATAPATH [words for run.py]
exec "$(dirname "$0")/finetune.sh" flickr30k_cn_flip Flickr30k-CN "$@"
