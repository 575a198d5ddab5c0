#!/bin/sh
# Zero-shot classification as the original's script: zeroshot_eval.sh GPU DATAPATH DATASET VISION TEXT CKPT [INDEX].
# Reads DATAPATH/datasets/DATASET/test (a folder per class) and label_cn.txt beside it, writes to
# DATAPATH/save_predictions. PYTHON: the interpreter.
usage="usage: $0 GPU DATAPATH DATASET VISION TEXT CKPT [INDEX]"
export CUDA_VISIBLE_DEVICES="${1:?$usage}"
data=${2:?$usage} dataset=${3:?$usage} vision=${4:?$usage} text=${5:?$usage} checkpoint=${6:?$usage} index=$7
program=$(cd "$(dirname "$0")/.." && pwd)/run.py
exec "${PYTHON:-python3}" "$program" --task zero_shot --datapath "$data/datasets/$dataset/test" \
    --label-file "$data/datasets/$dataset/label_cn.txt" --save-dir "$data/save_predictions" --dataset "$dataset" \
    --img-batch-size 64 --resume "$checkpoint" --vision-model "$vision" --text-model "$text" ${index:+--index "$index"}
