#!/bin/sh
# Fine-tunes R2D2 for matching on all GPUs of this machine; further words go to run.py: --bs 64, --dry_run, key=value.
# Other sets: CONFIG=configs/r2d2/icm_base.yaml CHECKPOINT=... OUTPUT=output/icm sh train_r2d2_matching.sh
cd "$(dirname "$0")" || exit 1
exec "${PYTHON:-python3}" run.py --task r2d2_matching --dist 1 \
    --config "${CONFIG:-configs/r2d2/iqm_large.yaml}" \
    --checkpoint "${CHECKPOINT:-checkpoints/r2d2/r2d2_pretrain_250m.pth}" \
    --output_dir "${OUTPUT:-output/iqm}" "$@"
