#!/bin/sh
# Fine-tunes Chinese-CLIP as one of the scripts beside this one asks: finetune.sh CONFIG SET DATAPATH [words for run.py].
# Variables as in the original's scripts: GPUS_PER_NODE (all of this machine), WORKER_CNT machines (1), RANK of this one,
# MASTER_ADDR, MASTER_PORT (8514); PYTHON.
config=$1 set=$2 data=${3:?usage: $0 DATAPATH [words for run.py]}
shift 3
cd "$(dirname "$0")/.." || exit 1
where="--dist 1"
[ -n "$GPUS_PER_NODE" ] && where="--nproc $GPUS_PER_NODE"
[ "${WORKER_CNT:-1}" -gt 1 ] &&
    where="$where --nnodes $WORKER_CNT --node_rank ${RANK:-0} --master_addr ${MASTER_ADDR:?} --port ${MASTER_PORT:-8514}"
unset RANK
# shellcheck disable=SC2086
exec "${PYTHON:-python3}" run.py --task chinese_clip --config "configs/chinese_clip/$config.yaml" $where \
    --train-data "$data/datasets/$set/lmdb/train" --val-data "$data/datasets/$set/lmdb/valid" \
    --resume "$data/pretrained_weights/clip_cn_vit-b-16.pt" --reset-data-offset --reset-optimizer \
    --logs "$data/experiments" --name "${config}_finetune_vit-b-16_roberta-base" "$@"
