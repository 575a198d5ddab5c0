#!/bin/sh
# ViT-B/16 on Flickr30K-CN: flickr30k_finetune_vit-b-16_rbt-base.sh DATAPATH [words for run.py]
exec "$(dirname "$0")/finetune.sh" flickr30k_cn Flickr30k-CN "$@"
