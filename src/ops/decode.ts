import { defineOp, inout, input, optional, output, scratch } from "./define.ts";

/*
 * What a layer does while decoding, in few operations: a GPU pays for each one. Every result has the bits of the
 * single operations named in its description, intermediate roundings included, so that decoding agrees with training.
 */

/** q, k, v = linear(rms_norm(h)): rms_norm_fwd, then gemm_nt three times. */
export const normQkv = defineOp("norm_qkv", "data", {
  doc: "y = rms_norm(h)*weight rounded to dt; q = y*wq^T + bq, k = y*wk^T + bk, v = y*wv^T + bv; as rms_norm_fwd and gemm_nt",
  tensors: {
    q: output("m*nq*size(dt)"),
    k: output("m*nkv*size(dt)"),
    v: output("m*nkv*size(dt)"),
    h: input("m*cols*size(dt)"),
    weight: input("cols*4"),
    wq: input("packed_len(nq,cols,dt)*size(dt)"),
    wk: input("packed_len(nkv,cols,dt)*size(dt)"),
    wv: input("packed_len(nkv,cols,dt)*size(dt)"),
    bq: optional.input("nq*4"),
    bk: optional.input("nkv*4"),
    bv: optional.input("nkv*4"),
    work: scratch("m*cols*size(dt)"),
  },
  params: { m: "u32", cols: "u32", nq: "u32", nkv: "u32", eps: "f32", dt: "u32" },
  flops: "2*m*cols*nq + 4*m*cols*nkv",
});

/** Rotated queries, and rotated keys with their values into the cache: qk_norm_rope_fwd twice, kv_append. */
export const ropeAppend = defineOp("rope_append", "data", {
  doc: "y = rope(rms_norm(q)) per head; rope(rms_norm(k)) and v go to pages: slots[t] = page*16 + position%16, NONE skips; as qk_norm_rope_fwd and kv_append",
  tensors: {
    y: output("rows*heads*head_dim*size(dt)"),
    kv: inout("kv_pages*kv_heads*head_dim*32*size(dt)"),
    q: input("rows*heads*head_dim*size(dt)"),
    k: input("rows*kv_heads*head_dim*size(dt)"),
    v: input("rows*kv_heads*head_dim*size(dt)"),
    qweight: optional.input("head_dim*4"),
    kweight: optional.input("head_dim*4"),
    positions: input("rows*4"),
    rope: input("max_pos*head_dim*4"),
    slots: input("rows*4"),
    work: scratch("rows*kv_heads*head_dim*size(dt)"),
  },
  params: {
    rows: "u32",
    heads: "u32",
    kv_heads: "u32",
    head_dim: "u32",
    max_pos: "u32",
    kv_pages: "u32",
    eps: "f32",
    dt: "u32",
  },
  flops: "8*rows*(heads + kv_heads)*head_dim",
});

/** y = residual + linear(x): gemm_nt, rounded, then add. */
export const linearResidual = defineOp("linear_residual", "data", {
  doc: "y[m,n] = residual + (x[m,k]*w[n,k]^T rounded to dt); as gemm_nt and add",
  tensors: {
    y: output("m*n*size(dt)"),
    residual: input("m*n*size(dt)"),
    x: input("m*k*size(dt)"),
    w: input("packed_len(n,k,dt)*size(dt)"),
    work: scratch("m*n*size(dt)"),
  },
  params: { m: "u32", n: "u32", k: "u32", dt: "u32" },
  flops: "2*m*n*k",
});

/** y = silu(gate)·up of linear(rms_norm(h)): rms_norm_fwd, gemm_nt twice, swiglu_fwd. */
export const normSwiglu = defineOp("norm_swiglu", "data", {
  doc: "x = rms_norm(h)*weight rounded to dt; y = silu(x*wgate^T)*(x*wup^T), both products rounded to dt; as rms_norm_fwd, gemm_nt and swiglu_fwd",
  tensors: {
    y: output("m*n*size(dt)"),
    h: input("m*cols*size(dt)"),
    weight: input("cols*4"),
    wgate: input("packed_len(n,cols,dt)*size(dt)"),
    wup: input("packed_len(n,cols,dt)*size(dt)"),
    work: scratch("m*cols*4 + m*n*8"),
  },
  params: { m: "u32", cols: "u32", n: "u32", eps: "f32", dt: "u32" },
  flops: "4*m*cols*n",
});
