/** Rows of the families that speak of tokens: attention, embedding, head. */

import * as attention from "../../src/ops/attention.ts";
import { Dtype, NONE, type OpDef, PAGE } from "../../src/ops/define.ts";
import * as embedding from "../../src/ops/embedding.ts";
import * as head from "../../src/ops/head.ts";
import {
  type CaseSpec,
  casesOf,
  droppedArg,
  type Mutant,
  type Row,
  replacedArg,
  scaledArg,
  scaledParam,
  swapped,
  swappedArgs,
  withParam,
  withTensor,
} from "./row.ts";
import { layout, type Part, pageTable } from "./shapes.ts";
import { f32, floats, mapped, normals, packed, random, u32, valuesOf } from "./tensors.ts";

const { f32: F32, bf16: BF16 } = Dtype;
const dtypeName = (dt: number) => (dt === BF16 ? "bf16" : "f32");

interface Heads {
  readonly heads: number;
  readonly kv: number;
  readonly dim: number;
}
const plain: Heads = { heads: 2, kv: 2, dim: 8 };
const grouped: Heads = { heads: 6, kv: 2, dim: 16 };
const single: Heads = { heads: 3, kv: 1, dim: 5 };
const eight: Heads = { heads: 8, kv: 1, dim: 16 };
const odd: Heads = { heads: 4, kv: 2, dim: 33 };
const wide: Heads = { heads: 2, kv: 1, dim: 128 };

/** Segments of the cases: name, parts. */
const segments: Readonly<Record<string, readonly Part[]>> = {
  one: [{ len: 1 }],
  pair: [{ len: 5 }, { len: 3 }],
  long: [{ len: 35 }],
  lengths: [{ len: 31 }, { len: 33, parent: 0 }, { len: 127, parent: 0 }],
  empty: [{ len: 0 }, { len: 4 }, { len: 0, parent: 1 }, { len: 2, parent: 1 }],
  shared: [{ len: 6 }, { len: 3, parent: 0 }, { len: 1, parent: 0 }, { len: 4, parent: 0 }],
  tree: [
    { len: 3 },
    { len: 2, parent: 0 },
    { len: 4, parent: 1 },
    { len: 1, parent: 1 },
    { len: 3, parent: 0 },
    { len: 5 },
    { len: 2, parent: 5 },
  ],
  cached: [
    { len: 3, cached: 5 },
    { len: 2, cached: 16 },
    { len: 4 },
    { len: 1, cached: 37 },
    { len: 2, parent: 3 },
    { len: 3, parent: 4 },
  ],
};

function attnSpec(
  parts: string,
  h: Heads,
  dt: number,
  extra: { lse?: boolean; scale?: number } = {},
): CaseSpec {
  const name = `${dtypeName(dt)} ${parts} ${h.heads}/${h.kv}x${h.dim}`;
  const l = layout(segments[parts]!, random(name));
  const cached = l.pageCount > 0;
  return {
    name: extra.scale ? `${name} sharp` : name,
    params: {
      rows: l.rows,
      heads: h.heads,
      kv_heads: h.kv,
      head_dim: h.dim,
      n_segs: l.count,
      n_pages: l.pageCount,
      kv_pages: l.cachePages,
      pairs: l.pairs,
      scale: extra.scale ?? h.dim ** -0.5,
      dt,
    },
    with: [...(extra.lse === false ? [] : ["lse"]), ...(cached ? ["kv"] : [])],
    given: () => ({ segs: l.segs, pages: cached ? l.pages : null }),
  };
}

/** The same rows in segments that differ; does not apply where nothing would. */
function relaid(change: (part: Part) => Part): Mutant["change"] {
  return (c) => {
    const [, dtype, parts] = c.name.split(" ") as [string, string, string];
    const name = c.name.slice(c.name.indexOf(dtype)).replace(" sharp", "");
    const { segs } = layout(segments[parts]!.map(change), random(name));
    // Ancestors without a token are missed by nobody.
    const same = parts === "empty" || Buffer.compare(segs.bytes, c.tensors.segs!.bytes) === 0;
    return same ? null : { ...c, tensors: { ...c.tensors, segs } };
  };
}

const attnFwd: Row = {
  op: attention.attnFwd as unknown as OpDef,
  slack: 16,
  cases: casesOf(attention.attnFwd as unknown as OpDef, [
    attnSpec("one", plain, F32),
    attnSpec("pair", plain, F32, { lse: false }),
    attnSpec("long", grouped, F32),
    attnSpec("empty", plain, F32),
    attnSpec("shared", grouped, F32),
    // lse of about 20: its rounding to float32 is the error of every weight of the gradient.
    attnSpec("shared", grouped, F32, { scale: 1.5 }),
    attnSpec("tree", single, F32),
    attnSpec("cached", grouped, F32),
    attnSpec("cached", single, F32),
    attnSpec("pair", plain, BF16),
    attnSpec("long", grouped, BF16),
    attnSpec("tree", grouped, BF16),
    attnSpec("cached", grouped, BF16),
    attnSpec("shared", eight, F32),
    attnSpec("cached", eight, BF16),
    attnSpec("pair", odd, F32),
    attnSpec("cached", odd, F32),
    attnSpec("shared", wide, F32),
    attnSpec("lengths", plain, F32),
    attnSpec("lengths", eight, BF16),
  ]),
  mutants: [
    { name: "scale x 1.1", change: (c) => (c.params.rows! > 1 ? scaledParam("scale", 1.1)(c) : null) },
    { name: "k and v exchanged", change: swapped("k", "v") },
    { name: "no ancestors", change: relaid(({ parent: _, ...part }) => part) },
    {
      name: "a cached token too few",
      change: relaid((part) => (part.cached ? { ...part, cached: part.cached - 1 } : part)),
    },
    {
      name: "pages exchanged",
      change: (c) =>
        c.params.n_pages! > 1
          ? withTensor("pages", (d) => u32([...valuesOf(d).slice(1), valuesOf(d)[0]!]))(c)
          : null,
    },
  ],
  refusals: [
    {
      name: "segment beyond the rows",
      case: "f32 pair 2/2x8",
      change: (c) => withTensor("segs", (d) => mapped(d, (w, i) => (i === 9 ? w + 1 : w)))(c)!,
    },
    {
      name: "page outside the cache",
      case: "f32 cached 6/2x16",
      change: (c) => withTensor("pages", (d) => mapped(d, (p, i) => (i === 1 ? c.params.kv_pages! : p)))(c)!,
    },
  ],
  grads: {
    inputs: ["q", "k", "v"],
    slack: 24,
    cases: [
      ...[
        "f32 empty 2/2x8",
        "f32 shared 6/2x16",
        "f32 tree 3/1x5",
        "f32 long 6/2x16",
        "bf16 pair 2/2x8",
        "bf16 tree 6/2x16",
        "f32 shared 8/1x16",
        "f32 pair 4/2x33",
      ].map((name) => ({ case: name, from: ["o"] })),
      // A single key: the weights are 1 whatever q and k are.
      { case: "f32 one 2/2x8", from: ["o"], terms: 1 },
      // One key dominates: what cancels is scale·(dout·v − D), about 1.5·4.
      { case: "f32 shared 6/2x16 sharp", from: ["o"], terms: 3 },
    ],
    mutants: [
      {
        name: "scale x 1.1",
        op: "attn_bwd",
        change: (args, c) => (c.params.rows! > 1 ? scaledArg("scale", 1.1)(args, c) : null),
      },
      {
        name: "k and v exchanged",
        op: "attn_bwd",
        change: (args, c) => (c.params.rows! > 1 ? swappedArgs("k", "v")(args, c) : null),
      },
      { name: "dk and dv exchanged", op: "attn_bwd", change: swappedArgs("dk", "dv") },
      { name: "o for its cotangent", op: "attn_bwd", change: replacedArg("dout", "o") },
    ],
  },
};

function decodeSpec(lens: readonly number[], h: Heads, dt: number): CaseSpec {
  const maxPages = Math.ceil(Math.max(...lens) / PAGE) + 1;
  const name = `${dtypeName(dt)} ${lens.join("+")} ${h.heads}/${h.kv}x${h.dim}`;
  const { table, pages } = pageTable(lens, maxPages, random(name));
  return {
    name,
    params: {
      batch: lens.length,
      heads: h.heads,
      kv_heads: h.kv,
      head_dim: h.dim,
      max_pages: maxPages,
      kv_pages: pages,
      pairs: lens.reduce((a, b) => a + b, 0),
      scale: h.dim ** -0.5,
      dt,
    },
    given: () => ({ table, lens: u32(lens) }),
  };
}

const attnDecode: Row = {
  op: attention.attnDecode as unknown as OpDef,
  slack: 16,
  cases: casesOf(attention.attnDecode as unknown as OpDef, [
    decodeSpec([1], plain, F32),
    decodeSpec([16, 1, 17, 40], grouped, F32),
    decodeSpec([7, 33], single, F32),
    decodeSpec([1, 15, 48], grouped, BF16),
    decodeSpec([31, 33, 127], eight, F32),
    decodeSpec([127, 2], odd, BF16),
    decodeSpec([5, 33], wide, F32),
  ]),
  mutants: [
    { name: "scale x 1.1", change: (c) => (c.params.pairs! > 1 ? scaledParam("scale", 1.1)(c) : null) },
    {
      name: "a position too few",
      change: (c) =>
        c.params.pairs! > 1 ? withTensor("lens", (d) => mapped(d, (n) => (n > 1 ? n - 1 : n)))(c) : null,
    },
  ],
  refusals: [
    {
      name: "page outside the cache",
      case: "f32 7+33 3/1x5",
      change: (c) => withTensor("table", (d) => mapped(d, (p, i) => (i === 0 ? NONE : p)))(c)!,
    },
    {
      name: "longer than the page table",
      case: "f32 7+33 3/1x5",
      change: (c) =>
        withTensor("lens", (d) => mapped(d, (n, i) => (i === 1 ? c.params.max_pages! * PAGE + 1 : n)))(c)!,
    },
  ],
};

const appendSpec = (rows: number, h: Heads, dt: number): CaseSpec => ({
  name: `${dtypeName(dt)} ${rows}x${h.kv}x${h.dim}`,
  params: { rows, kv_heads: h.kv, head_dim: h.dim, kv_pages: 4, dt },
  given: (rng) => {
    const order = rng.permutation(4 * PAGE);
    return { slots: u32(Array.from({ length: rows }, (_, i) => (i % 5 === 3 ? NONE : order[i]!))) };
  },
});

const kvAppend: Row = {
  op: attention.kvAppend as unknown as OpDef,
  slack: 0,
  cases: casesOf(attention.kvAppend as unknown as OpDef, [
    appendSpec(1, plain, F32),
    appendSpec(19, grouped, F32),
    appendSpec(19, grouped, BF16),
    appendSpec(7, single, BF16),
  ]),
  mutants: [
    { name: "k and v exchanged", change: swapped("k", "v") },
    {
      name: "slot + 1",
      change: withTensor("slots", (d) => mapped(d, (s) => (s === NONE ? s : (s + 1) % (4 * PAGE)))),
    },
  ],
  refusals: [
    {
      name: "slot outside the cache",
      case: "f32 19x2x16",
      change: (c) => withTensor("slots", (d) => mapped(d, (s, i) => (i === 2 ? 4 * PAGE : s)))(c)!,
    },
  ],
};

const kvCopy: Row = {
  op: attention.kvCopy as unknown as OpDef,
  slack: 0,
  cases: casesOf(
    attention.kvCopy as unknown as OpDef,
    [F32, BF16].map((dt) => ({
      name: `${dtypeName(dt)} 3`,
      params: { count: 3, kv_heads: 2, head_dim: 5, kv_pages: 7, dt },
      given: () => ({ pairs: u32([0, 4, 6, 1, 2, 3]) }),
    })),
  ),
  mutants: [{ name: "directions exchanged", change: withTensor("pairs", () => u32([4, 0, 1, 6, 3, 2])) }],
  refusals: [
    {
      name: "page outside the cache",
      case: "f32 3",
      change: (c) => withTensor("pairs", () => u32([0, 7, 6, 1, 2, 3]))(c)!,
    },
  ],
};

function embedSpec(rows: number, cols: number, vocab: number, dt: number, wdt: number): CaseSpec {
  return {
    name: `${dtypeName(wdt)} to ${dtypeName(dt)} ${rows}x${cols} of ${vocab}`,
    params: { rows, cols, vocab, dt, wdt },
    // A small range, so that tokens repeat.
    given: (rng) => ({
      ids: u32(
        Array.from({ length: rows }, (_, i) => (i % 2 ? rng.below(Math.min(3, vocab)) : rng.below(vocab))),
      ),
    }),
  };
}
const nextToken = (name: string, bound: string) =>
  withTensor(name, (d, c) => mapped(d, (id) => (id + 1) % c.params[bound]!));
const beyond = (name: string, bound: string) =>
  withTensor(name, (d, c) => mapped(d, (id, i) => (i === 1 ? c.params[bound]! : id)));

const embedFwd: Row = {
  op: embedding.embedFwd as unknown as OpDef,
  slack: 0,
  cases: casesOf(embedding.embedFwd as unknown as OpDef, [
    embedSpec(1, 2, 2, F32, F32),
    embedSpec(9, 33, 70, F32, F32),
    embedSpec(9, 33, 70, BF16, BF16),
    embedSpec(5, 80, 33, F32, BF16),
    embedSpec(5, 7, 33, BF16, F32),
  ]),
  mutants: [{ name: "the next token", change: nextToken("ids", "vocab") }],
  refusals: [
    {
      name: "id outside the vocabulary",
      case: "f32 to f32 9x33 of 70",
      change: (c) => beyond("ids", "vocab")(c)!,
    },
  ],
  grads: {
    inputs: ["table"],
    slack: 8,
    cases: [
      "f32 to f32 1x2 of 2",
      "f32 to f32 9x33 of 70",
      "bf16 to bf16 9x33 of 70",
      "bf16 to f32 5x80 of 33",
      "f32 to bf16 5x7 of 33",
    ].map((name) => ({ case: name, from: ["y"] })),
    mutants: [
      {
        name: "a token missing",
        op: "embed_bwd",
        change: (args) => ({ ...args, rows: (args.rows as number) - 1 }),
      },
    ],
  },
};

function gatherSpec(rows: number, src: number, cols: number, dt: number): CaseSpec {
  return {
    name: `${dtypeName(dt)} ${rows} of ${src}x${cols}`,
    params: { rows, src_rows: src, cols, dt },
    given: (rng) => ({
      index: u32(Array.from({ length: rows }, (_, i) => (i % 3 ? rng.below(src) : i % src))),
    }),
  };
}

const gatherRows: Row = {
  op: embedding.gatherRows as unknown as OpDef,
  slack: 0,
  cases: casesOf(embedding.gatherRows as unknown as OpDef, [
    gatherSpec(1, 2, 1, F32),
    gatherSpec(9, 6, 33, F32),
    gatherSpec(3, 11, 40, F32),
    gatherSpec(9, 6, 33, BF16),
  ]),
  mutants: [{ name: "the next row", change: nextToken("index", "src_rows") }],
  refusals: [
    { name: "index beyond the rows", case: "f32 9 of 6x33", change: (c) => beyond("index", "src_rows")(c)! },
  ],
  grads: {
    inputs: ["x"],
    slack: 8,
    cases: ["f32 1 of 2x1", "f32 9 of 6x33", "f32 3 of 11x40", "bf16 9 of 6x33"].map((name) => ({
      case: name,
      from: ["y"],
    })),
    mutants: [
      {
        name: "a row missing",
        op: "gather_rows_bwd",
        change: (args) => ({ ...args, rows: (args.rows as number) - 1 }),
      },
    ],
  },
};

function headSpec(rows: number, cols: number, vocab: number, dt: number, inv_temp = 1): CaseSpec {
  return {
    name: `${dtypeName(dt)} ${rows}x${cols} of ${vocab}${inv_temp === 1 ? "" : ` at ${inv_temp}`}`,
    params: { rows, cols, vocab, inv_temp, dt },
    with: rows % 2 === 1 ? ["again"] : [],
    given: (rng) => ({
      targets: u32(Array.from({ length: rows }, (_, i) => (i === 0 ? vocab - 1 : rng.below(vocab)))),
      w: packed(normals(rng, vocab * cols, 1.5 * cols ** -0.5), vocab, cols, dt),
    }),
  };
}

const logprobFwd: Row = {
  op: head.logprobFwd as unknown as OpDef,
  slack: 16,
  cases: casesOf(head.logprobFwd as unknown as OpDef, [
    headSpec(1, 1, 2, F32),
    headSpec(3, 5, 37, F32, 1.25),
    headSpec(2, 3, 515, F32),
    headSpec(1, 1, 4101, F32),
    headSpec(259, 2, 3, F32),
    headSpec(70, 24, 1100, F32, 0.7),
    headSpec(3, 5, 37, BF16, 1.25),
    headSpec(2, 4, 515, BF16),
    headSpec(66, 24, 1100, BF16),
  ]),
  mutants: [
    { name: "temperature x 1.1", change: scaledParam("inv_temp", 1 / 1.1) },
    { name: "the next target", change: nextToken("targets", "vocab") },
  ],
  refusals: [
    {
      name: "target outside the vocabulary",
      case: "f32 3x5 of 37 at 1.25",
      change: (c) => beyond("targets", "vocab")(c)!,
    },
  ],
  grads: {
    inputs: ["x", "w"],
    slack: 24,
    cases: [
      { case: "f32 1x1 of 2", from: ["logprob", "entropy"], terms: 1 },
      { case: "f32 3x5 of 37 at 1.25", from: ["logprob", "entropy"] },
      { case: "f32 3x5 of 37 at 1.25", from: ["logprob"] },
      { case: "f32 3x5 of 37 at 1.25", from: ["entropy"], terms: 3 },
      { case: "f32 3x5 of 37 at 1.25", from: ["logprob", "entropy"], to: ["x"] },
      { case: "f32 2x3 of 515", from: ["logprob", "entropy"] },
      { case: "f32 1x1 of 4101", from: ["logprob"], to: ["x"] },
      { case: "f32 259x2 of 3", from: ["logprob", "entropy"] },
      { case: "bf16 3x5 of 37 at 1.25", from: ["logprob", "entropy"] },
      { case: "bf16 2x4 of 515", from: ["logprob"] },
    ],
    mutants: [
      { name: "temperature x 1.1", op: "logprob_bwd", change: scaledArg("inv_temp", 1 / 1.1) },
      { name: "no cotangent of the entropy", op: "logprob_bwd", change: droppedArg("dentropy") },
      { name: "lse for the cotangent", op: "logprob_bwd", change: replacedArg("dlogprob", "lse") },
    ],
  },
};

function sampleSpec(
  name: string,
  settings: Partial<Record<string, number>>,
  logits?: readonly number[],
): CaseSpec {
  const batch = logits ? 7 : 9;
  const vocab = logits?.length ?? 600;
  const params = { batch, vocab, seed: 11, purpose: 1, inv_temp: 1, top_k: 0, top_p: 1, min_p: 0, greedy: 0 };
  return {
    name,
    params: { ...params, ...(settings as Record<string, number>) },
    with: logits ? [] : ["lse", "entropy"],
    given: (rng) => ({
      logits: logits
        ? f32(Array.from({ length: batch }, () => logits).flat())
        : floats("f32", normals(rng, batch * vocab, 2)),
      counters: u32(Array.from({ length: batch }, (_, b) => [b, 3 * b, 5, 0]).flat()),
    }),
  };
}

const TIES = [1, 2, 2, 0, 2, -Infinity, 1, 1];

const sample: Row = {
  op: head.sample as unknown as OpDef,
  slack: 16,
  cases: casesOf(head.sample as unknown as OpDef, [
    sampleSpec("plain", {}),
    sampleSpec("hot", { inv_temp: 0.5 }),
    sampleSpec("greedy", { greedy: 1 }),
    sampleSpec("top-k", { top_k: 5 }),
    sampleSpec("top-p", { top_p: 0.3 }),
    sampleSpec("min-p", { min_p: 0.2 }),
    sampleSpec("all filters", { top_k: 50, top_p: 0.9, min_p: 0.05, inv_temp: 0.8 }),
    sampleSpec("ties", {}, TIES),
    sampleSpec("ties greedy", { greedy: 1 }, TIES),
    sampleSpec("ties top-k", { top_k: 2 }, TIES),
    sampleSpec("ties top-p", { top_p: 0.5 }, TIES),
    sampleSpec("tiny top-p", { top_p: 1e-6 }),
    sampleSpec("one token", {}, [0.5]),
  ]),
  mutants: [
    {
      name: "temperature x 1.1",
      change: (c) => (c.params.vocab! > 1 ? scaledParam("inv_temp", 1 / 1.1)(c) : null),
    },
    {
      name: "another seed",
      change: (c) => (/greedy|tiny|one/.test(c.name) ? null : withParam("seed", 12)(c)),
    },
    {
      name: "no filter",
      change: (c) =>
        /top-k|all|tiny/.test(c.name) && !/ties/.test(c.name)
          ? { ...c, params: { ...c.params, top_k: 0, top_p: 1, min_p: 0 } }
          : null,
    },
  ],
  refusals: [
    {
      name: "logits not finite",
      case: "plain",
      change: (c) => withTensor("logits", (d) => mapped(d, (x, i) => (i === 7 ? Number.NaN : x)))(c)!,
    },
  ],
};

export const tokenRows = {
  attnFwd,
  attnDecode,
  kvAppend,
  kvCopy,
  embedFwd,
  gatherRows,
  logprobFwd,
  sample,
};
