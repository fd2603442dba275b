import { defineForward, defineOp, inout, input, optional, output } from "./define.ts";

/*
 * Packed rows: T tokens of several segments. A segment record is 8 u32:
 *   start, len      rows [start, start+len) of this batch
 *   parent          index of the segment it continues, or NONE; always smaller than its own index
 *   pos0            absolute position of its first token
 *   page_start      index into `pages` of its cached prefix, or NONE (roots only)
 *   cached_len      tokens of that cached prefix: positions 0..cached_len-1 (0 without)
 *   root            index of the root of its tree; the segments of a tree are contiguous
 *   0
 * A token attends to the cached prefix of its root, to all tokens of its ancestors and to its own segment
 * up to itself. Keys are reduced in the order of their absolute positions, in lanes of 16 counted from
 * position 0, wherever they lie: this is what makes decoding, prefill and training agree bit for bit.
 *
 * A KV page holds 16 positions of all kv heads of a layer: [kv_head]{ K: [head_dim][16], V: [16][head_dim] }.
 */

/** Gradients of attn_fwd over packed rows without cached prefix. Sums over a shared prefix run in segment order. */
export const attnBwd = defineOp("attn_bwd", "backward", {
  doc: "dq, dk, dv of attn_fwd (no cached prefix); a prefix's dk, dv is the sum over the segments that continue it, in segment order",
  tensors: {
    dq: output("rows*heads*head_dim*size(dt)"),
    dk: output("rows*kv_heads*head_dim*size(dt)"),
    dv: output("rows*kv_heads*head_dim*size(dt)"),
    dout: input("rows*heads*head_dim*size(dt)"),
    o: input("rows*heads*head_dim*size(dt)"),
    lse: input("rows*heads*4"),
    q: input("rows*heads*head_dim*size(dt)"),
    k: input("rows*kv_heads*head_dim*size(dt)"),
    v: input("rows*kv_heads*head_dim*size(dt)"),
    segs: input("n_segs*32"),
  },
  params: {
    rows: "u32",
    heads: "u32",
    kv_heads: "u32",
    head_dim: "u32",
    n_segs: "u32",
    pairs: "u32",
    scale: "f32",
    dt: "u32",
  },
  flops: "10*pairs*heads*head_dim",
});

/** o = softmax(scale·q·kᵀ)·v over packed rows, lse = log Σ exp(scale·q·kᵀ). `pairs` counts query-key pairs (cost only). */
export const attnFwd = defineForward("attn_fwd", {
  doc: "o = softmax(scale*q*k^T)*v over packed rows with shared prefixes (GQA), lse per token and head; never a TxT matrix",
  tensors: {
    o: output("rows*heads*head_dim*size(dt)"),
    lse: optional.output("rows*heads*4"),
    q: input("rows*heads*head_dim*size(dt)"),
    k: input("rows*kv_heads*head_dim*size(dt)"),
    v: input("rows*kv_heads*head_dim*size(dt)"),
    segs: input("n_segs*32"),
    kv: optional.input("kv_pages*kv_heads*head_dim*32*size(dt)"),
    pages: optional.input("n_pages*4"),
  },
  params: {
    rows: "u32",
    heads: "u32",
    kv_heads: "u32",
    head_dim: "u32",
    n_segs: "u32",
    n_pages: "u32",
    kv_pages: "u32",
    pairs: "u32",
    scale: "f32",
    dt: "u32",
  },
  flops: "4*pairs*heads*head_dim",
  saves: ["o", "lse", "q", "k", "v", "segs"],
  vjp: (g) => {
    const dout = g.grad("o");
    if (!dout) return;
    const [dq, dk, dv] = [g.write("q"), g.write("k"), g.write("v")];
    g.emit(attnBwd, {
      dq,
      dk,
      dv,
      dout,
      o: g.value("o"),
      lse: g.value("lse"),
      q: g.value("q"),
      k: g.value("k"),
      v: g.value("v"),
      segs: g.value("segs"),
      rows: g.param("rows"),
      heads: g.param("heads"),
      kv_heads: g.param("kv_heads"),
      head_dim: g.param("head_dim"),
      n_segs: g.param("n_segs"),
      pairs: g.param("pairs"),
      scale: g.param("scale"),
      dt: g.param("dt"),
    });
    g.share("q", dq);
    g.share("k", dk);
    g.share("v", dv);
  },
});

/** One query per sequence over its pages; the current token's k and v have been appended already. */
export const attnDecode = defineOp("attn_decode", "data", {
  doc: "one query token per sequence attends to lens[b] cached positions through its page table; bit-equal to attn_fwd",
  tensors: {
    o: output("batch*heads*head_dim*size(dt)"),
    q: input("batch*heads*head_dim*size(dt)"),
    kv: input("kv_pages*kv_heads*head_dim*32*size(dt)"),
    table: input("batch*max_pages*4"),
    lens: input("batch*4"),
  },
  params: {
    batch: "u32",
    heads: "u32",
    kv_heads: "u32",
    head_dim: "u32",
    max_pages: "u32",
    kv_pages: "u32",
    pairs: "u32",
    scale: "f32",
    dt: "u32",
  },
  flops: "4*pairs*heads*head_dim",
});

/** Writes k and v rows into the cache: slot = page·16 + position mod 16; NONE skips a row. */
export const kvAppend = defineOp("kv_append", "data", {
  doc: "writes k, v rows into pages: slots[t] = page*16 + position%16, NONE skips the row",
  tensors: {
    kv: inout("kv_pages*kv_heads*head_dim*32*size(dt)"),
    k: input("rows*kv_heads*head_dim*size(dt)"),
    v: input("rows*kv_heads*head_dim*size(dt)"),
    slots: input("rows*4"),
  },
  params: { rows: "u32", kv_heads: "u32", head_dim: "u32", kv_pages: "u32", dt: "u32" },
  flops: "0",
});

/** Copies whole pages: pairs of (source page, destination page). Sources and destinations are disjoint. */
export const kvCopy = defineOp("kv_copy", "data", {
  doc: "copies whole pages, pairs (source, destination); sources and destinations are disjoint",
  tensors: {
    kv: inout("kv_pages*kv_heads*head_dim*32*size(dt)"),
    pairs: input("count*8"),
  },
  params: { count: "u32", kv_heads: "u32", head_dim: "u32", kv_pages: "u32", dt: "u32" },
  flops: "0",
});
