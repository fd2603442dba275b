import { defineForward, defineOp, inout, input, output } from "./define.ts";

/** dtable[ids[t]] += dy[t], tokens in order. */
export const embedBwd = defineOp("embed_bwd", "backward", {
  doc: "dtable[ids[t]] += dy[t], tokens in ascending order; dtable float32 in the packed layout of dtype wdt",
  tensors: {
    dtable: inout("packed_len(vocab,cols,wdt)*4"),
    ids: input("rows*4"),
    dy: input("rows*cols*size(dt)"),
  },
  params: { rows: "u32", cols: "u32", vocab: "u32", dt: "u32", wdt: "u32" },
  flops: "rows*cols",
});

/** y[t] = table[ids[t]]; an id outside the vocabulary is an error of the stream. */
export const embedFwd = defineForward("embed_fwd", {
  doc: "y[t] = table[ids[t]]; table [vocab, cols] in the packed layout (shared with a tied head)",
  tensors: {
    y: output("rows*cols*size(dt)"),
    ids: input("rows*4"),
    table: input("packed_len(vocab,cols,wdt)*size(wdt)"),
  },
  params: { rows: "u32", cols: "u32", vocab: "u32", dt: "u32", wdt: "u32" },
  flops: "0",
  saves: ["ids"],
  vjp: (g) => {
    const dy = g.grad("y");
    if (!dy || !g.wants("table")) return;
    g.emit(embedBwd, {
      dtable: g.sum("table"),
      ids: g.value("ids"),
      dy,
      rows: g.param("rows"),
      cols: g.param("cols"),
      vocab: g.param("vocab"),
      dt: g.param("dt"),
      wdt: g.param("wdt"),
    });
  },
});

/** dx[t] = Σ_{r: index[r]=t} dy[r], r ascending; rows nobody gathered are zero. */
export const gatherRowsBwd = defineOp("gather_rows_bwd", "backward", {
  doc: "dx[t] = sum of dy[r] over r with index[r] = t, r ascending; zero where no row was gathered",
  tensors: {
    dx: output("src_rows*cols*size(dt)"),
    dy: input("rows*cols*size(dt)"),
    index: input("rows*4"),
  },
  params: { rows: "u32", src_rows: "u32", cols: "u32", dt: "u32" },
  flops: "rows*cols",
});

/** y[r] = x[index[r]]. */
export const gatherRows = defineForward("gather_rows", {
  doc: "y[r] = x[index[r]]; an index beyond src_rows is an error of the stream",
  tensors: {
    y: output("rows*cols*size(dt)"),
    x: input("src_rows*cols*size(dt)"),
    index: input("rows*4"),
  },
  params: { rows: "u32", src_rows: "u32", cols: "u32", dt: "u32" },
  flops: "0",
  saves: ["index"],
  vjp: (g) => {
    const dy = g.grad("y");
    if (!dy) return;
    const dx = g.write("x");
    const [rows, src_rows, cols, dt] = [g.param("rows"), g.param("src_rows"), g.param("cols"), g.param("dt")];
    g.emit(gatherRowsBwd, { dx, dy, index: g.value("index"), rows, src_rows, cols, dt });
    g.share("x", dx);
  },
});
