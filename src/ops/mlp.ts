import { defineForward, defineOp, input, output } from "./define.ts";

/** With s = σ(gate): dgate = dy·up·s·(1 + gate·(1−s)), dup = dy·gate·s. */
export const swigluBwd = defineOp("swiglu_bwd", "backward", {
  doc: "with s = sigmoid(gate): dgate = dy*up*s*(1+gate*(1-s)), dup = dy*gate*s",
  tensors: {
    dgate: output("n*size(dt)"),
    dup: output("n*size(dt)"),
    dy: input("n*size(dt)"),
    gate: input("n*size(dt)"),
    up: input("n*size(dt)"),
  },
  params: { n: "u32", dt: "u32" },
  flops: "10*n",
});

/** y = silu(gate) ∘ up. */
export const swigluFwd = defineForward("swiglu_fwd", {
  doc: "y = gate*sigmoid(gate)*up, element-wise over n elements",
  tensors: { y: output("n*size(dt)"), gate: input("n*size(dt)"), up: input("n*size(dt)") },
  params: { n: "u32", dt: "u32" },
  flops: "5*n",
  saves: ["gate", "up"],
  recompute: { output: "y", alias: {} },
  vjp: (g) => {
    const dy = g.grad("y");
    if (!dy) return;
    const [dgate, dup] = [g.write("gate"), g.write("up")];
    const [n, dt] = [g.param("n"), g.param("dt")];
    g.emit(swigluBwd, { dgate, dup, dy, gate: g.value("gate"), up: g.value("up"), n, dt });
    g.share("gate", dgate);
    g.share("up", dup);
  },
});
