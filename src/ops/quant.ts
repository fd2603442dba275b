import { defineForward, defineOp, inout, input, optional, output } from "./define.ts";

/*
 * Frozen weights [n, k] as codes and float32 scales, by bitsandbytes' rules (src/io/bitsandbytes.ts), so that quantizing
 * at load and opening a folder that it saved give the same bits:
 *   int8  w is rounded to float16 first; w ≈ c·s, one scale a row: c = round(w·(127·(1/absmax))), ties to even,
 *         s = absmax/127
 *   nf4   w ≈ code[c]·s, one scale for 64 values along k: c = number of midpoints between codes below w·(1/absmax),
 *         s = absmax; a block below NF4_SMALLEST counts as zeros (bitsandbytes goes on to 1e-38). With double quantization the host then puts in the place of each scale
 *         what its byte stands for (QuantizedWeight.settle)
 * A row or block with a value that is not finite (int8: or beyond float16) has a scale that is not. In a product codes
 * have the type of x (int8 is exact in bfloat16, the 16 codes are rounded) and scales stay float32:
 *   int8  y = (one chain over k of x·c)·s
 *   nf4   y = Σ over blocks in order, fma(s, one chain over the block of x·code[c], y)
 * Layouts, padding zero: int8 bytes [n/32][k/2][32][2] as bfloat16 weights lie; nf4 16-bit words [n/32][k/8][32][2]:
 * word p of an output holds columns 8b + 2s + p, step s in bits 4s…4s+3. Scales: int8 [n], nf4 [n/32][k/64][32].
 * What this layout cannot hold (fp4, blocks that are no multiple of 64, blocks over row ends) lies dequantized.
 */

/** dx[m,k] (+)= dy[m,n] · w[n,k], w dequantized and rounded to dt. One chain over n per output. */
export const quantLinearBwd = defineOp("quant_linear_bwd", "backward", {
  doc: "dx[m,k] (+)= dy[m,n] * w[n,k], w = codes*scales rounded to dt; one accumulation chain over n per output",
  tensors: {
    dx: inout("m*k*size(dt)"),
    dy: input("m*n*size(dt)"),
    codes: input("quant_bytes(n,k,qt)"),
    scales: input("quant_scales(n,k,qt)*4"),
  },
  params: { m: "u32", n: "u32", k: "u32", qt: "u32", dt: "u32", accumulate: "u32" },
  flops: "2*m*n*k",
});

/** y[m,n] = x[m,k] · w[n,k]ᵀ + bias, w quantized. */
export const quantLinear = defineForward("quant_linear", {
  doc: "y[m,n] = x[m,k] * w[n,k]^T + bias[n]; w codes and scales; int8: chain over k, times scale; nf4: chains over blocks of 64, fma(scale, chain, sum) in order; y in dtype ydt",
  tensors: {
    y: output("m*n*size(ydt)"),
    x: input("m*k*size(dt)"),
    codes: input("quant_bytes(n,k,qt)"),
    scales: input("quant_scales(n,k,qt)*4"),
    bias: optional.input("n*4"),
  },
  params: { m: "u32", n: "u32", k: "u32", qt: "u32", dt: "u32", ydt: "u32" },
  flops: "2*m*n*k",
  saves: ["codes", "scales"],
  vjp: (g) => {
    const dy = g.grad("y");
    if (!dy || !g.wants("x")) return;
    const { view, accumulate } = g.into("x");
    g.emit(quantLinearBwd, {
      dx: view,
      dy,
      codes: g.value("codes"),
      scales: g.value("scales"),
      m: g.param("m"),
      n: g.param("n"),
      k: g.param("k"),
      qt: g.param("qt"),
      dt: g.param("dt"),
      accumulate: accumulate ? 1 : 0,
    });
  },
});

/** y[t] = row ids[t] of a quantized table. */
export const quantEmbed = defineOp("quant_embed", "data", {
  doc: "y[t] = codes*scales of row ids[t] of a quantized [vocab, cols], codes as in quant_linear, rounded to dt",
  tensors: {
    y: output("rows*cols*size(dt)"),
    ids: input("rows*4"),
    codes: input("quant_bytes(vocab,cols,qt)"),
    scales: input("quant_scales(vocab,cols,qt)*4"),
  },
  params: { rows: "u32", cols: "u32", vocab: "u32", qt: "u32", dt: "u32" },
  flops: "rows*cols",
});

/** Row-major [n,k] float32 or bfloat16 (sdt) to codes and scales. */
export const quantizeWeight = defineOp("quantize_weight", "data", {
  doc: "row-major [n,k] of dtype sdt -> codes and scales by the largest magnitude of a row (int8) or block (nf4)",
  tensors: {
    codes: output("quant_bytes(n,k,qt)"),
    scales: output("quant_scales(n,k,qt)*4"),
    src: input("n*k*size(sdt)"),
  },
  params: { n: "u32", k: "u32", qt: "u32", sdt: "u32" },
  flops: "n*k",
});

/** The values that codes and scales stand for, row-major [n,k] float32. */
export const dequantizeWeight = defineOp("dequantize_weight", "data", {
  doc: "codes*scales in float32, row-major [n,k]",
  tensors: {
    dst: output("n*k*4"),
    codes: input("quant_bytes(n,k,qt)"),
    scales: input("quant_scales(n,k,qt)*4"),
  },
  params: { n: "u32", k: "u32", qt: "u32" },
  flops: "n*k",
});
