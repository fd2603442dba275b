import { ceilDiv, defineForward, defineOp, input, optional, output, ROW_BLOCK } from "./define.ts";

/**
 * With r = 1/sqrt(mean(h²)+eps), n = h·r:  dx = dres + r·(dy∘w − n·mean(dy∘w∘n)),  dweight += Σ_t dy∘n.
 */
export const rmsNormBwd = defineOp("rms_norm_bwd", "backward", {
  doc: "dx = dres + r*(dy*w - n*mean(dy*w*n)), dweight += sum_t dy*n with n = h*r; dweight in fixed blocks of 64 rows",
  tensors: {
    dx: output("rows*cols*size(dt)"),
    dweight: optional.inout("cols*4"),
    dy: input("rows*cols*size(dt)"),
    h: input("rows*cols*size(dt)"),
    weight: input("cols*4"),
    dres: optional.input("rows*cols*size(dt)"),
    partial: optional.scratch("ceil_div(rows,64)*cols*4"),
  },
  params: { rows: "u32", cols: "u32", eps: "f32", dt: "u32" },
  flops: "8*rows*cols",
});

/** h = x + delta;  y = h / sqrt(mean(h²)+eps) ∘ weight. Without delta, h is x and not written. */
export const rmsNormFwd = defineForward("rms_norm_fwd", {
  doc: "h = x + delta (rounded to dt); y = h / sqrt(mean(h^2) + eps) * weight. Without delta, h is x itself and h is not written",
  tensors: {
    y: output("rows*cols*size(dt)"),
    h: optional.output("rows*cols*size(dt)"),
    x: input("rows*cols*size(dt)"),
    delta: optional.input("rows*cols*size(dt)"),
    weight: input("cols*4"),
  },
  params: { rows: "u32", cols: "u32", eps: "f32", dt: "u32" },
  flops: "5*rows*cols",
  saves: ["h", "x", "weight"],
  recompute: { output: "y", alias: { x: "h", delta: null, h: null } },
  vjp: (g) => {
    const [rows, cols, eps, dt] = [g.param("rows"), g.param("cols"), g.param("eps"), g.param("dt")];
    const fused = g.has("delta");
    const dy = g.grad("y");
    const dres = fused ? g.grad("h") : null;
    if (!dy) {
      if (dres) {
        g.share("x", dres);
        g.share("delta", dres);
      }
      return;
    }
    const dx = g.write("x");
    const trained = g.wants("weight");
    g.emit(rmsNormBwd, {
      dx,
      dweight: trained ? g.sum("weight") : null,
      dy,
      h: g.value(fused ? "h" : "x"),
      weight: g.value("weight"),
      dres,
      partial: trained ? g.temp(ceilDiv(rows, ROW_BLOCK) * cols * 4) : null,
      rows,
      cols,
      eps,
      dt,
    });
    g.share("x", dx);
    if (fused) g.share("delta", dx);
  },
});

/** Backward of qk_norm_rope_fwd: rotate the cotangent back, then RMSNorm's gradient per head. */
export const qkNormRopeBwd = defineOp("qk_norm_rope_bwd", "backward", {
  doc: "rotate dy by -angle, then per head the RMSNorm gradient (weight present) or the identity; dweight in fixed blocks of 64 rows",
  tensors: {
    dx: output("rows*heads*head_dim*size(dt)"),
    dweight: optional.inout("head_dim*4"),
    dy: input("rows*heads*head_dim*size(dt)"),
    x: input("rows*heads*head_dim*size(dt)"),
    weight: optional.input("head_dim*4"),
    positions: input("rows*4"),
    rope: input("max_pos*head_dim*4"),
    partial: optional.scratch("ceil_div(rows,64)*head_dim*4"),
  },
  params: { rows: "u32", heads: "u32", head_dim: "u32", max_pos: "u32", eps: "f32", dt: "u32" },
  flops: "11*rows*heads*head_dim",
});

/**
 * Per head: n = x / sqrt(mean(x²)+eps) ∘ weight (or x without weight), then RoPE in the rotate-half
 * convention: y[i] = n[i]·cos_i − n[i+D/2]·sin_i, y[i+D/2] = n[i+D/2]·cos_i + n[i]·sin_i, i < D/2.
 * rope[pos] = [cos_0..cos_{D/2-1}, sin_0..sin_{D/2-1}].
 */
export const qkNormRopeFwd = defineForward("qk_norm_rope_fwd", {
  doc: "per head: RMSNorm with weight (identity without), then rotate-half RoPE; rope[pos] = [cos(D/2), sin(D/2)]",
  tensors: {
    y: output("rows*heads*head_dim*size(dt)"),
    x: input("rows*heads*head_dim*size(dt)"),
    weight: optional.input("head_dim*4"),
    positions: input("rows*4"),
    rope: input("max_pos*head_dim*4"),
  },
  params: { rows: "u32", heads: "u32", head_dim: "u32", max_pos: "u32", eps: "f32", dt: "u32" },
  flops: "8*rows*heads*head_dim",
  saves: ["x", "weight", "positions", "rope"],
  recompute: { output: "y", alias: {} },
  vjp: (g) => {
    const dy = g.grad("y");
    if (!dy) return;
    const [rows, heads, head_dim] = [g.param("rows"), g.param("heads"), g.param("head_dim")];
    const dx = g.write("x");
    const trained = g.has("weight") && g.wants("weight");
    g.emit(qkNormRopeBwd, {
      dx,
      dweight: trained ? g.sum("weight") : null,
      dy,
      x: g.value("x"),
      weight: g.maybe("weight"),
      positions: g.value("positions"),
      rope: g.value("rope"),
      partial: trained ? g.temp(ceilDiv(rows, ROW_BLOCK) * head_dim * 4) : null,
      rows,
      heads,
      head_dim,
      max_pos: g.param("max_pos"),
      eps: g.param("eps"),
      dt: g.param("dt"),
    });
    g.share("x", dx);
  },
});
