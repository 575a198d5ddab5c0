#!/bin/sh
# Fine-tunes Chinese-CLIP as one of the scripts beside this one asks: finetune.sh CONFIG SET DATAPATH [words for run.py].
# The original's variables are read from the environment, and what is not set keeps the recipe's value:
# GPUS_PER_NODE (all of this machine), WORKER_CNT machines (1), RANK of this one, MASTER_ADDR, MASTER_PORT (8514);
# train_data, val_data, resume, output_base_dir, name, and the numbers and names listed below. PYTHON: the interpreter.
config=$1 set=$2 data=${3:?usage: $0 DATAPATH [words for run.py]}
shift 3
case $data in /*) ;; *) data=$(pwd)/$data ;; esac
cd "$(dirname "$0")/.." || exit 1
where="--dist 1"
[ -n "$GPUS_PER_NODE" ] && where="--nproc $GPUS_PER_NODE"
[ "${WORKER_CNT:-1}" -gt 1 ] &&
    where="$where --nnodes $WORKER_CNT --node_rank ${RANK:-0} --master_addr ${MASTER_ADDR:?} --port ${MASTER_PORT:-8514}"
unset RANK
if [ "$config" = muge_distillation ]; then
    teacher_model_name=${teacher_model_name:-$data/pretrained_weights/clip_cn_vit-h-14.pt}
    set -- --distillation "$@"
fi
for variable in save_step_frequency save_epoch_frequency log_interval context_length warmup batch_size \
    valid_batch_size accum_freq lr wd max_epochs max_steps valid_step_interval valid_epoch_interval vision_model \
    text_model mask_ratio teacher_model_name; do
    eval "value=\$$variable"
    [ -n "$value" ] && set -- "--$(echo "$variable" | tr _ -)" "$value" "$@"
done
# shellcheck disable=SC2086
exec "${PYTHON:-python3}" run.py --task chinese_clip --config "configs/chinese_clip/$config.yaml" $where \
    --train-data "${train_data:-$data/datasets/$set/lmdb/train}" --val-data "${val_data:-$data/datasets/$set/lmdb/valid}" \
    --resume "${resume:-$data/pretrained_weights/clip_cn_vit-b-16.pt}" --reset-data-offset --reset-optimizer \
    --logs "${output_base_dir:-$data/experiments}" --name "${name:-${config}_finetune_vit-b-16_roberta-base}" "$@"
