import { defineForward, input, type OpDef, output } from "./define.ts";

const tensors = { y: output("n*size(dt)"), x: input("n*size(dt)") } as const;
const params = {
  n: "u32",
  seed: "u32",
  purpose: "u32",
  site: "u32",
  step: "u32",
  part: "u32",
  threshold: "u32",
  scale: "f32",
  dt: "u32",
} as const;

/**
 * Inverted dropout (Srivastava et al. 2014) of probability p = threshold/2³², scale = 1/(1−p). Its mask is a function of
 * (seed, purpose, site, step, part, element), so a block that is run again, or a run that is resumed, draws the same;
 * the gradient is the same operation on dy.
 */
export const dropout: OpDef<typeof tensors, typeof params> = defineForward("dropout", {
  doc: "y[i] = scale * x[i], or 0 * x[i] where word (i % 256)/64 of Philox(key seed, purpose; counter (i/256)*64 + i%64, site, step, part) is below threshold",
  tensors,
  params,
  flops: "n",
  saves: [],
  recompute: { output: "y", alias: {} },
  vjp: (g) => {
    const dy = g.grad("y");
    if (!dy || !g.wants("x")) return;
    const dx = g.write("x");
    g.emit(dropout, {
      y: dx,
      x: dy,
      n: g.param("n"),
      seed: g.param("seed"),
      purpose: g.param("purpose"),
      site: g.param("site"),
      step: g.param("step"),
      part: g.param("part"),
      threshold: g.param("threshold"),
      scale: g.param("scale"),
      dt: g.param("dt"),
    });
    g.share("x", dx);
  },
});
