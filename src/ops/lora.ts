import { defineForward, defineOp, input, optional, output, scratch, sizeOf } from "./define.ts";

/**
 * Words of `routes`: the row adds nothing to the weight gradients of columns 0..split-1, or of the others. What flows
 * on to x is whole either way (Cloud et al. 2024, arXiv 2410.04332, for the parameters of an adapter).
 */
export const Route = { skipFirst: 1, skipSecond: 2 } as const;

/** du = scale·dy·b, then what is wanted of dx (+)= du·a, da += duᵀ·x and db += dyᵀ·u, the latter two without skipped rows. */
export const loraBwd = defineOp("lora_bwd", "backward", {
  doc: "du[m,r] = (scale where column < split, else scale2) * dy[m,n] * b[n,r] rounded to dt; dx[m,k] (+)= du * a[r,k]; da += du^T * x; db += dy^T * u; in da and db rows of du and u count as zero in columns < split where bit 0 of routes[m] is set, in the others where bit 1 is; da, db float32 in the packed layout of dtype dt; one chain per output; du is written where dx or da is wanted; routes and masked, which holds u and du with these zeros, are both given or neither",
  tensors: {
    dx: optional.inout("m*k*size(dt)"),
    da: optional.inout("packed_len(r,k,dt)*4"),
    db: optional.inout("packed_len(n,r,dt)*4"),
    du: scratch("m*r*size(dt)"),
    dy: input("m*n*size(dt)"),
    x: input("m*k*size(dt)"),
    u: input("m*r*size(dt)"),
    a: input("packed_len(r,k,dt)*size(dt)"),
    b: input("packed_len(n,r,dt)*size(dt)"),
    routes: optional.input("m*4"),
    masked: optional.scratch("2*m*r*size(dt)", "routes"),
  },
  params: {
    m: "u32",
    n: "u32",
    k: "u32",
    r: "u32",
    split: "u32",
    scale: "f32",
    scale2: "f32",
    dt: "u32",
    accumulate: "u32",
  },
  flops: "4*m*r*(n+k)",
});

/**
 * A low-rank adapter beside a linear map (Hu et al. 2021): u = scale·x·aᵀ, y = base + u·bᵀ. It adds to whatever
 * computed `base`, which may be the memory of y. Two adapters of one map lie behind each other along r, the second
 * from column `split` on, with a scale each: y = base + scale·(x·a₁ᵀ)·b₁ᵀ + scale2·(x·a₂ᵀ)·b₂ᵀ in one pass.
 */
export const loraFwd = defineForward("lora_fwd", {
  doc: "u[m,r] = (scale where column < split, else scale2) * (x[m,k] * a[r,k]^T) rounded to dt; y[m,n] = base[m,n] + u * b[n,r]^T; one chain over k, one over r; base may be y; where bit 0 of routes[m] is set, a and b are constants in columns < split, where bit 1 is, in the others: this is for the gradient alone",
  tensors: {
    y: output("m*n*size(dt)"),
    u: output("m*r*size(dt)"),
    base: input("m*n*size(dt)"),
    x: input("m*k*size(dt)"),
    a: input("packed_len(r,k,dt)*size(dt)"),
    b: input("packed_len(n,r,dt)*size(dt)"),
    routes: optional.input("m*4"),
  },
  params: { m: "u32", n: "u32", k: "u32", r: "u32", split: "u32", scale: "f32", scale2: "f32", dt: "u32" },
  flops: "2*m*r*(n+k)",
  saves: ["u", "x", "a", "b", "routes"],
  vjp: (g) => {
    const dy = g.grad("y");
    if (!dy) return;
    g.share("base", dy);
    const [wantsX, wantsA, wantsB] = [g.wants("x"), g.wants("a"), g.wants("b")];
    if (!wantsX && !wantsA && !wantsB) return;
    const [m, n, k, r, dt] = [g.param("m"), g.param("n"), g.param("k"), g.param("r"), g.param("dt")];
    const dx = wantsX ? g.into("x") : null;
    const routes = g.maybe("routes");
    g.emit(loraBwd, {
      dx: dx?.view ?? null,
      da: wantsA ? g.sum("a") : null,
      db: wantsB ? g.sum("b") : null,
      du: g.temp(m * r * sizeOf(dt)),
      dy,
      x: g.value("x"),
      u: g.value("u"),
      a: g.value("a"),
      b: g.value("b"),
      routes,
      masked: routes ? g.temp(2 * m * r * sizeOf(dt)) : null,
      m,
      n,
      k,
      r,
      split: g.param("split"),
      scale: g.param("scale"),
      scale2: g.param("scale2"),
      dt,
      accumulate: dx?.accumulate ? 1 : 0,
    });
  },
});
