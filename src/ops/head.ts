import { defineForward, defineOp, input, optional, output, scratch } from "./define.ts";

/*
 * The language-model head is fused with log-softmax, gather and entropy: logits of a whole batch never exist.
 * z = (x · wᵀ)·inv_temp; the vocabulary is reduced in tiles of 512 columns, each to (max, Σexp, Σexp·z), and
 * tiles are merged in ascending order, for any batch and any number of threads. `sample` reduces the same way.
 */

/** Rows and vocabulary columns that logprob_bwd holds at once. */
export const HEAD_ROW_CHUNK = 256;
export const HEAD_VOCAB_CHUNK = 4096;

/** dz_j = inv_temp·(dlogprob·(1[j=target] − p_j) − dentropy·p_j·(log p_j + H)); dx = dz·w, dw += dzᵀ·x. */
export const logprobBwd = defineOp("logprob_bwd", "backward", {
  doc: "dz_j = inv_temp*(dlogprob*(1[j=target]-p_j) - dentropy*p_j*(log p_j + H)); dx = dz*w, dw += dz^T*x; logits recomputed by chunks; logprob as logprob_fwd gives it",
  tensors: {
    dx: output("rows*cols*size(dt)"),
    dw: optional.inout("packed_len(vocab,cols,dt)*4"),
    x: input("rows*cols*size(dt)"),
    w: input("packed_len(vocab,cols,dt)*size(dt)"),
    targets: input("rows*4"),
    lse: input("rows*4"),
    entropy: optional.input("rows*4", "dentropy"),
    dlogprob: input("rows*4"),
    dentropy: optional.input("rows*4"),
    work: scratch("rows*cols*4 + min(rows,256)*min(ceil_div(vocab,512)*512,4096)*4"),
    logprob: optional.output("rows*4"),
  },
  params: { rows: "u32", cols: "u32", vocab: "u32", inv_temp: "f32", dt: "u32" },
  flops: "6*rows*cols*vocab",
});

/**
 * logprob = z[target] − lse, lse = log Σ exp z, entropy = lse − Σ p·z (nats), z = (x·wᵀ)·inv_temp. The sampler computes
 * the same three, so its results may be assumed instead (Graph.assume). `again`, where present, is logprob once more:
 * the gradient pass puts there what it finds itself.
 */
export const logprobFwd = defineForward("logprob_fwd", {
  doc: "z = (x*w^T)*inv_temp; lse = log sum exp z; logprob = z[target] - lse, also to again; entropy = lse - sum p*z",
  tensors: {
    logprob: output("rows*4"),
    lse: output("rows*4"),
    entropy: output("rows*4"),
    x: input("rows*cols*size(dt)"),
    w: input("packed_len(vocab,cols,dt)*size(dt)"),
    targets: input("rows*4"),
    partial: scratch("rows*ceil_div(vocab,512)*16"),
    again: optional.output("rows*4"),
  },
  params: { rows: "u32", cols: "u32", vocab: "u32", inv_temp: "f32", dt: "u32" },
  flops: "2*rows*cols*vocab",
  saves: ["x", "w", "targets", "lse", "entropy", "again"],
  vjp: (g) => {
    const dlogprob = g.grad("logprob");
    const dentropy = g.grad("entropy");
    if (!dlogprob && !dentropy) return;
    const [rows, cols, vocab] = [g.param("rows"), g.param("cols"), g.param("vocab")];
    const dx = g.write("x");
    const vocabChunk = Math.min(Math.ceil(vocab / 512) * 512, HEAD_VOCAB_CHUNK);
    g.emit(logprobBwd, {
      dx,
      dw: g.wants("w") ? g.sum("w") : null,
      x: g.value("x"),
      w: g.value("w"),
      targets: g.value("targets"),
      lse: g.value("lse"),
      entropy: g.value("entropy"),
      dlogprob: dlogprob ?? g.zeros(rows),
      dentropy,
      work: g.temp(rows * cols * 4 + Math.min(rows, HEAD_ROW_CHUNK) * vocabChunk * 4),
      logprob: g.maybe("again"),
      rows,
      cols,
      vocab,
      inv_temp: g.param("inv_temp"),
      dt: g.param("dt"),
    });
    g.share("x", dx);
  },
});

/**
 * Draws one token per row: z = logits·inv_temp; filters in the order top-k, top-p, min-p (transformers'
 * rules: top-k keeps ties, top-p drops the ascending tail with cumulative ≤ 1−p, min-p after them);
 * inverse CDF in index order with a Philox uniform of key (seed, purpose) and counter counters[b].
 * logprob, lse and entropy are those of the unfiltered distribution, bit-equal to logprob_fwd. greedy: argmax, lowest index wins.
 */
export const sample = defineOp("sample", "data", {
  doc: "draws ids[b] from softmax(logits*inv_temp) after top-k, top-p, min-p with Philox(key = seed, purpose; counter = counters[b]); logprob, lse, entropy unfiltered; greedy: argmax",
  tensors: {
    ids: output("batch*4"),
    logprob: output("batch*4"),
    logits: input("batch*vocab*4"),
    counters: input("batch*16"),
    work: scratch("batch*ceil_div(vocab,512)*16"),
    lse: optional.output("batch*4"),
    entropy: optional.output("batch*4"),
  },
  params: {
    batch: "u32",
    vocab: "u32",
    seed: "u32",
    purpose: "u32",
    inv_temp: "f32",
    top_k: "u32",
    top_p: "f32",
    min_p: "f32",
    greedy: "u32",
  },
  flops: "6*batch*vocab",
});
