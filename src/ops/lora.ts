import { defineForward, defineOp, input, optional, output, scratch, sizeOf } from "./define.ts";

/** du = scale·dy·b, then what is wanted of dx (+)= du·a, da += duᵀ·x and db += dyᵀ·u. */
export const loraBwd = defineOp("lora_bwd", "backward", {
  doc: "du[m,r] = scale * dy[m,n] * b[n,r] rounded to dt; dx[m,k] (+)= du * a[r,k]; da += du^T * x; db += dy^T * u; da, db float32 in the packed layout of dtype dt; one chain per output; du is written where dx or da is wanted",
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
  },
  params: { m: "u32", n: "u32", k: "u32", r: "u32", scale: "f32", dt: "u32", accumulate: "u32" },
  flops: "4*m*r*(n+k)",
});

/**
 * A low-rank adapter beside a linear map (Hu et al. 2021): u = scale·x·aᵀ, y = base + u·bᵀ. It adds to whatever
 * computed `base`, which may be the memory of y.
 */
export const loraFwd = defineForward("lora_fwd", {
  doc: "u[m,r] = scale * (x[m,k] * a[r,k]^T) rounded to dt; y[m,n] = base[m,n] + u * b[n,r]^T; one chain over k, one over r; base may be y",
  tensors: {
    y: output("m*n*size(dt)"),
    u: output("m*r*size(dt)"),
    base: input("m*n*size(dt)"),
    x: input("m*k*size(dt)"),
    a: input("packed_len(r,k,dt)*size(dt)"),
    b: input("packed_len(n,r,dt)*size(dt)"),
  },
  params: { m: "u32", n: "u32", k: "u32", r: "u32", scale: "f32", dt: "u32" },
  flops: "2*m*r*(n+k)",
  saves: ["u", "x", "a", "b"],
  vjp: (g) => {
    const dy = g.grad("y");
    if (!dy) return;
    g.share("base", dy);
    const [wantsX, wantsA, wantsB] = [g.wants("x"), g.wants("a"), g.wants("b")];
    if (!wantsX && !wantsA && !wantsB) return;
    const [m, n, k, r, dt] = [g.param("m"), g.param("n"), g.param("k"), g.param("r"), g.param("dt")];
    const dx = wantsX ? g.into("x") : null;
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
      m,
      n,
      k,
      r,
      scale: g.param("scale"),
      dt,
      accumulate: dx?.accumulate ? 1 : 0,
    });
  },
});
