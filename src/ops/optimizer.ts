import { defineOp, inout, input, optional, output, scratch } from "./define.ts";

/** sums[slot] = Σ g² in float64, fixed blocks of 65536 elements, then blocks in order. */
export const sqNorm = defineOp("sq_norm", "state", {
  doc: "sums[slot] = sum of g^2 in float64, fixed blocks of 65536 elements, then blocks in order",
  tensors: {
    sums: inout("slots*8"),
    g: input("n*size(gdt)"),
    partial: scratch("ceil_div(n,65536)*8"),
  },
  params: { n: "u32", gdt: "u32", slots: "u32", slot: "u32" },
  flops: "2*n",
});

/** result = {norm, min(1, max_norm/(norm+1e-6)) or 1 when max_norm is 0, 1 if norm is not finite, 0}. */
export const clipCoef = defineOp("clip_coef", "state", {
  doc: "result = {norm f32, coef f32 = min(1, max_norm/(norm+1e-6)) (1 when max_norm = 0), nonfinite u32, 0}; norm = sqrt(sum of sums, in order)",
  tensors: { result: output("16"), sums: input("slots*8") },
  params: { slots: "u32", max_norm: "f32" },
  flops: "slots",
});

/**
 * AdamW (Loshchilov & Hutter 2019) as torch.optim.AdamW: g *= coef; p *= 1 − lr·wd; m = b1·m + (1−b1)·g;
 * v = b2·v + (1−b2)·g²; p −= (lr/c1)·m / (sqrt(v)/sqrt(c2) + eps), c1 = 1−b1^t, c2 = 1−b2^t.
 * bfloat16 parameters keep an exact float32 master: bits = (p << 16) + lo with lo a signed 16-bit rest, so p is the
 * nearest high half and ties go up (to even would need a rest of +32768).
 * bfloat16 moments are rounded stochastically by Philox(key seed, tensor; counter element, step, 0 for m or 1 for v, 0).
 *
 * 8-bit moments (mdt 2) are floats relative to the largest of their block of 256 elements, its scale s. With
 * c(j) = the float32 of bits 0x3f800000 - (j << 20), so c(0) = 1, 8 codes in every binade:
 *   m  bit 7 the sign; bits 0..6 k: 0 is 0, else s·c(127 − k), down to 1.25·2^−16·s
 *   v  k: 0 is 0, else s·c(255 − k), down to 1.25·2^−32·s
 * 1 and 0 are exact, so values that were stored once keep scale and codes (src/nn/moments.ts). A step stores one of
 * the two neighbours, chosen by 16 bits of word (i % 256) / 64 of Philox(key seed, tensor; counter (i / 256)·64 + i % 64,
 * step, 2, 0): the upper half for m, the lower for v; below the smallest code m becomes 0 or that code. One evaluation
 * serves four elements and both moments, so that random numbers do not take longer than memory.
 * A v that is not 0 never becomes 0 but the smallest code: 0 beside an m that survived would divide it by eps alone.
 * Rounded up, v only makes steps smaller; and as sqrt(v) reaches as far down as m, an m that was rounded up to its
 * smallest code moves its parameter at most 1.12 times as far as the largest m of its block moves its own.
 * Scales lie in 2^−90..2^126, so that every value and 1/s are normal float32: larger moments are cut, a block of smaller
 * m becomes 0, one of smaller v has the scale 2^−90.
 * beta1 and beta2 mean the shortest decimal that rounds to the given float: 1 - 0.999f alone is off by 1.3e-5.
 * If result.nonfinite is set nothing is changed.
 */
export const adamw = defineOp("adamw", "state", {
  doc: "AdamW step scaled by result.coef; bf16 parameters carry a 16-bit remainder (exact float32 master); bf16 and 8-bit moments rounded stochastically; no change if result.nonfinite",
  tensors: {
    p: inout("n*size(wdt)"),
    lo: optional.inout("n*2"),
    g: input("n*size(gdt)"),
    m: inout("n*size(mdt)"),
    v: inout("n*size(mdt)"),
    m_scale: optional.inout("ceil_div(n,256)*4"),
    v_scale: optional.inout("ceil_div(n,256)*4"),
    result: input("16"),
  },
  params: {
    n: "u32",
    wdt: "u32",
    gdt: "u32",
    mdt: "u32",
    lr: "f32",
    beta1: "f32",
    beta2: "f32",
    eps: "f32",
    weight_decay: "f32",
    c1: "f32",
    c2: "f32",
    seed: "u32",
    tensor: "u32",
    step: "u32",
  },
  flops: "12*n",
});
