import { defineForward, defineOp, input, optional, output } from "./define.ts";

/** y = a + b. */
export const add = defineForward("add", {
  doc: "y = a + b over n elements; y may be a or b",
  tensors: { y: output("n*size(dt)"), a: input("n*size(dt)"), b: input("n*size(dt)") },
  params: { n: "u32", dt: "u32" },
  flops: "n",
  saves: [],
  vjp: (g) => {
    const dy = g.grad("y");
    if (!dy) return;
    g.share("a", dy);
    g.share("b", dy);
  },
});

/** y = value over n float32 elements. */
export const fill = defineOp("fill", "data", {
  doc: "y[i] = value, n float32 elements",
  tensors: { y: output("n*4") },
  params: { n: "u32", value: "f32" },
  flops: "0",
});

/** Copies n bytes. */
export const copy = defineOp("copy", "data", {
  doc: "copies n bytes from x to y",
  tensors: { y: output("n"), x: input("n") },
  params: { n: "u32" },
  flops: "0",
});

/** y (dtype ydt) = x (dtype dt), rounded to nearest even. */
export const cast = defineOp("cast", "data", {
  doc: "y (dtype ydt) = x (dtype dt), round to nearest even",
  tensors: { y: output("n*size(ydt)"), x: input("n*size(dt)") },
  params: { n: "u32", dt: "u32", ydt: "u32" },
  flops: "0",
});

/** Row-major [n,k] float32 or bfloat16 (sdt) to the packed layout of dt; `lo` gets the remainder of bfloat16. */
export const packWeight = defineOp("pack_weight", "data", {
  doc: "row-major [n,k] of dtype sdt -> packed layout of dtype dt, padding zero; lo = signed 16-bit remainder of the float32 value (dt bf16, sdt f32)",
  tensors: {
    w: output("packed_len(n,k,dt)*size(dt)"),
    lo: optional.output("packed_len(n,k,dt)*2"),
    src: input("n*k*size(sdt)"),
  },
  params: { n: "u32", k: "u32", dt: "u32", sdt: "u32" },
  flops: "0",
});

/** The inverse: packed elements of dtype edt in the layout of dt (edt f32 with dt bf16: gradients, moments). */
export const unpackWeight = defineOp("unpack_weight", "data", {
  doc: "packed layout of dtype dt with elements of dtype edt (+ remainder lo) -> row-major [n,k] of dtype ddt",
  tensors: {
    dst: output("n*k*size(ddt)"),
    w: input("packed_len(n,k,dt)*size(edt)"),
    lo: optional.input("packed_len(n,k,dt)*2"),
  },
  params: { n: "u32", k: "u32", dt: "u32", edt: "u32", ddt: "u32" },
  flops: "0",
});
