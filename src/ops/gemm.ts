import { defineForward, defineOp, inout, input, optional, output, scratch, sizeOf } from "./define.ts";
import { cast } from "./elementwise.ts";

/** dx[m,k] (+)= dy[m,n] · w[n,k]. Each output is one chain over n. */
export const gemmNn = defineOp("gemm_nn", "backward", {
  doc: "dx[m,k] (+)= dy[m,n] * w[n,k]; w packed; one accumulation chain over n per output",
  tensors: {
    dx: inout("m*k*size(dt)"),
    dy: input("m*n*size(dt)"),
    w: input("packed_len(n,k,dt)*size(dt)"),
  },
  params: { m: "u32", n: "u32", k: "u32", dt: "u32", accumulate: "u32" },
  flops: "2*m*n*k",
});

/**
 * dw[n,k] += dyᵀ[n,m] · x[m,k]; elements of dtype gdt in the packed layout of dtype dt. A bfloat16 gradient of bfloat16
 * weights is summed in float32 and rounded once.
 */
export const gemmTn = defineOp("gemm_tn", "backward", {
  doc: "dw[n,k] += dy^T[n,m] * x[m,k]; dw of dtype gdt (float32, or bfloat16 with dt bfloat16) in the packed layout of dtype dt; one chain over m per output, rounded once",
  tensors: {
    dw: inout("packed_len(n,k,dt)*size(gdt)"),
    dy: input("m*n*size(dt)"),
    x: input("m*k*size(dt)"),
  },
  params: { m: "u32", n: "u32", k: "u32", dt: "u32", gdt: "u32" },
  flops: "2*m*n*k",
});

/** dbias[n] += column sums of dy[m,n]: blocks of 64 rows, then blocks in order. */
export const biasBwd = defineOp("bias_bwd", "backward", {
  doc: "dbias[n] += sum over rows of dy[m,n], in fixed blocks of 64 rows",
  tensors: {
    dbias: inout("n*4"),
    dy: input("m*n*size(dt)"),
    partial: scratch("ceil_div(m,64)*n*4"),
  },
  params: { m: "u32", n: "u32", dt: "u32" },
  flops: "m*n",
});

/** y[m,n] (+)= x[m,k] · w[n,k]ᵀ + bias. */
export const gemmNt = defineForward("gemm_nt", {
  doc: "y[m,n] (+)= x[m,k] * w[n,k]^T + bias[n]; w packed in dtype dt, y in dtype ydt; float32 accumulation, one chain over k per output",
  tensors: {
    y: output("m*n*size(ydt)"),
    x: input("m*k*size(dt)"),
    w: input("packed_len(n,k,dt)*size(dt)"),
    bias: optional.input("n*4"),
  },
  params: { m: "u32", n: "u32", k: "u32", dt: "u32", ydt: "u32", accumulate: "u32" },
  flops: "2*m*n*k",
  saves: ["x", "w"],
  vjp: (g) => {
    const cotangent = g.grad("y");
    if (!cotangent) return;
    const [m, n, k, dt, ydt] = [g.param("m"), g.param("n"), g.param("k"), g.param("dt"), g.param("ydt")];
    // A float32 result of bfloat16 operands: its gradient is rounded to what the products take.
    const dy = ydt === dt ? cotangent : g.temp(m * n * sizeOf(dt));
    if (dy !== cotangent) g.emit(cast, { y: dy, x: cotangent, n: m * n, dt: ydt, ydt: dt });
    if (g.wants("x")) {
      const { view, accumulate } = g.into("x");
      g.emit(gemmNn, { dx: view, dy, w: g.value("w"), m, n, k, dt, accumulate: accumulate ? 1 : 0 });
    }
    if (g.wants("w"))
      g.emit(gemmTn, { dw: g.sum("w"), dy, x: g.value("x"), m, n, k, dt, gdt: g.sumDtype("w") });
    if (g.has("bias") && g.wants("bias")) {
      const partial = g.temp(Math.ceil(m / 64) * n * 4);
      g.emit(biasBwd, { dbias: g.sum("bias"), dy, partial, m, n, dt });
    }
  },
});
