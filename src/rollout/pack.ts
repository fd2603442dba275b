/**
 * Packed rows: sequences laid one after another without padding, a prompt once for all completions that continue
 * it. Every completion token gets a row of `index`: the row of the token before it, whose hidden state predicts it.
 */
import { assert } from "../core/errors.ts";
import { sum } from "../core/lists.ts";
import { NONE, SEGMENT_WORDS } from "../ops/define.ts";
import type { CachedSequence, KvStore } from "./kv.ts";

/** One prompt and the completions that continue it. */
export interface Group {
  readonly prompt: Int32Array;
  readonly completions: readonly Int32Array[];
  /** A snapshot of what comes before `prompt`, which is not encoded again; for passes without gradient. */
  readonly prefix?: CachedSequence;
  /**
   * Adapters whose weights learn nothing from any row of the group, as bits of Route (src/ops/lora.ts). A prompt's rows
   * carry what flows back from all its completions at once, so those of a group must be routed alike.
   */
  readonly route?: number;
}

/** Tokens laid in one row, without padding. */
export interface PackedTokens {
  readonly ids: Uint32Array;
  readonly positions: Uint32Array;
  /** Records of 8 words, see src/ops/attention.ts. */
  readonly segments: Uint32Array;
  readonly segmentCount: number;
  /** Query-key pairs, for cost. */
  readonly pairs: number;
  /** Pages of the prefixes one after another; null: nothing is cached. */
  readonly cached: { readonly pages: Uint32Array; readonly store: KvStore } | null;
  /** The route of every row; null where all weights learn from all rows. */
  readonly routes: Uint32Array | null;
}

export interface PackedRow extends PackedTokens {
  /** For each completion token, the row whose hidden state predicts it. */
  readonly index: Uint32Array;
  readonly targets: Uint32Array;
  /** Completion i of the row (groups in order) has the targets [offsets[i], offsets[i+1]). */
  readonly offsets: Int32Array;
}

export interface PackedSequences extends PackedTokens {
  /** The row of the last token of completion i, groups in order; of the prompt where a completion is empty. */
  readonly last: Uint32Array;
}

/** With sharePrefix false every completion carries its own copy of the prompt: same numbers, more work. */
function unitsOf(groups: readonly Group[], sharePrefix: boolean): readonly Group[] {
  if (sharePrefix) return groups;
  return groups.flatMap((g) => g.completions.map((c) => ({ ...g, completions: [c] })));
}

/**
 * Lays prompts and behind each its completions, without their last `dropped` tokens. Reports for every completion
 * the row of the prompt's last token and the completion's first row.
 */
function lay(
  units: readonly Group[],
  dropped: number,
  placed: (completion: Int32Array, promptLast: number, start: number) => void,
): PackedTokens {
  const kept = (c: Int32Array) => Math.max(0, c.length - dropped);
  let tokens = 0;
  for (const { prompt, completions } of units) {
    assert(prompt.length > 0, "a prompt needs at least one token");
    tokens += prompt.length;
    for (const c of completions) tokens += kept(c);
  }
  const ids = new Uint32Array(tokens);
  const positions = new Uint32Array(tokens);
  const segments: number[] = [];
  const pages: number[] = [];
  const routes = units.some(({ route }) => route) ? new Uint32Array(tokens) : null;
  let row = 0;
  let pairs = 0;
  const segment = (
    from: Int32Array,
    count: number,
    parent: number,
    pos0: number,
    root: number,
    cached = 0,
  ): number => {
    const start = row;
    for (let i = 0; i < count; i++) {
      ids[row] = from[i]!;
      positions[row] = pos0 + i;
      row++;
    }
    pairs += count * pos0 + (count * (count + 1)) / 2;
    segments.push(start, count, parent, pos0, cached > 0 ? pages.length : NONE, cached, root, 0);
    return start;
  };
  for (const { prompt, completions, prefix, route = 0 } of units) {
    const first = row;
    const root = segments.length / SEGMENT_WORDS;
    const before = prefix?.length ?? 0;
    const promptLast = segment(prompt, prompt.length, NONE, before, root, before) + prompt.length - 1;
    if (prefix) pages.push(...prefix.pages);
    for (const c of completions) {
      const start = kept(c) > 0 ? segment(c, kept(c), root, before + prompt.length, root) : row;
      placed(c, promptLast, start);
    }
    routes?.fill(route, first, row);
  }
  const store = units.find(({ prefix }) => prefix)?.prefix?.store;
  return {
    ids,
    positions,
    segments: Uint32Array.from(segments),
    segmentCount: segments.length / SEGMENT_WORDS,
    pairs,
    cached: store ? { pages: Uint32Array.from(pages), store } : null,
    routes,
  };
}

/** Every completion token is a target; the last one of a completion predicts nothing and is left out. */
export function packGroups(groups: readonly Group[], sharePrefix = true): PackedRow {
  const units = unitsOf(groups, sharePrefix);
  const lengths = units.flatMap((u) => u.completions.map((c) => c.length));
  const targets = sum(lengths);
  const index = new Uint32Array(targets);
  const wanted = new Uint32Array(targets);
  const offsets = new Int32Array(lengths.length + 1);
  let target = 0;
  let completion = 0;
  const tokens = lay(units, 1, (c, promptLast, start) => {
    c.forEach((id, i) => {
      index[target] = i === 0 ? promptLast : start + i - 1;
      wanted[target++] = id;
    });
    offsets[++completion] = target;
  });
  return { ...tokens, index, targets: wanted, offsets };
}

/** Whole sequences, for what is read off their last token. */
export function packSequences(groups: readonly Group[], sharePrefix = true): PackedSequences {
  const last: number[] = [];
  const tokens = lay(unitsOf(groups, sharePrefix), 0, (c, promptLast, start) => {
    last.push(c.length > 0 ? start + c.length - 1 : promptLast);
  });
  return { ...tokens, last: Uint32Array.from(last) };
}

/** A part of a group: which completions of which group. */
export interface GroupPart {
  readonly group: number;
  readonly completions: readonly number[];
}

/**
 * Cuts groups into micro-batches of at most `budget` packed tokens, in order. A group that does not fit is divided,
 * its prompt repeated; a single completion larger than the budget is a micro-batch of its own.
 */
export function microBatches(groups: readonly Group[], budget: number, sharePrefix = true): GroupPart[][] {
  const batches: GroupPart[][] = [];
  let current: GroupPart[] = [];
  let used = 0;
  const flush = () => {
    if (current.length > 0) batches.push(current);
    current = [];
    used = 0;
  };
  groups.forEach(({ prompt, completions }, group) => {
    let part: number[] = [];
    const close = () => {
      if (part.length > 0) current.push({ group, completions: part });
      part = [];
    };
    completions.forEach((c, i) => {
      const cost = Math.max(0, c.length - 1) + (part.length === 0 || !sharePrefix ? prompt.length : 0);
      if (used > 0 && used + cost > budget) {
        close();
        flush();
        used = prompt.length + Math.max(0, c.length - 1);
      } else used += cost;
      part.push(i);
    });
    close();
  });
  flush();
  return batches;
}

/** Left to themselves: the groups that a micro-batch's parts select. */
export function selectGroups(groups: readonly Group[], parts: readonly GroupPart[]): Group[] {
  return parts.map(({ group, completions }) => ({
    ...groups[group]!,
    completions: completions.map((i) => groups[group]!.completions[i]!),
  }));
}
