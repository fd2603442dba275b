/**
 * Packed rows: sequences laid one after another without padding, a prompt once for all completions that continue
 * it. Every completion token gets a row of `index`: the row of the token before it, whose hidden state predicts it.
 */
import { assert } from "../core/errors.ts";
import { NONE, SEGMENT_WORDS } from "../ops/define.ts";

/** One prompt and the completions that continue it. */
export interface Group {
  readonly prompt: Int32Array;
  readonly completions: readonly Int32Array[];
}

export interface PackedRow {
  readonly ids: Uint32Array;
  readonly positions: Uint32Array;
  /** Records of 8 words, see src/ops/attention.ts. */
  readonly segments: Uint32Array;
  readonly segmentCount: number;
  /** Query-key pairs, for cost. */
  readonly pairs: number;
  /** For each completion token, the row whose hidden state predicts it. */
  readonly index: Uint32Array;
  readonly targets: Uint32Array;
  /** Completion i of the row (groups in order) has the targets [offsets[i], offsets[i+1]). */
  readonly offsets: Int32Array;
}

/** With sharePrefix false every completion carries its own copy of the prompt: same numbers, more work. */
export function packGroups(groups: readonly Group[], sharePrefix = true): PackedRow {
  const units = sharePrefix
    ? groups
    : groups.flatMap((g) => g.completions.map((c) => ({ prompt: g.prompt, completions: [c] })));
  let tokens = 0;
  let targets = 0;
  let completions = 0;
  for (const { prompt, completions: list } of units) {
    assert(prompt.length > 0, "a prompt needs at least one token");
    tokens += prompt.length;
    for (const c of list) {
      tokens += Math.max(0, c.length - 1);
      targets += c.length;
    }
    completions += list.length;
  }
  const ids = new Uint32Array(tokens);
  const positions = new Uint32Array(tokens);
  const segments: number[] = [];
  const index = new Uint32Array(targets);
  const wanted = new Uint32Array(targets);
  const offsets = new Int32Array(completions + 1);
  let row = 0;
  let target = 0;
  let completion = 0;
  let pairs = 0;
  const segment = (
    tokensOf: Int32Array,
    count: number,
    parent: number,
    pos0: number,
    root: number,
  ): number => {
    const start = row;
    for (let i = 0; i < count; i++) {
      ids[row] = tokensOf[i]!;
      positions[row] = pos0 + i;
      row++;
    }
    pairs += count * pos0 + (count * (count + 1)) / 2;
    segments.push(start, count, parent, pos0, NONE, 0, root, 0);
    return start;
  };
  for (const { prompt, completions: list } of units) {
    const root = segments.length / SEGMENT_WORDS;
    const promptStart = segment(prompt, prompt.length, NONE, 0, root);
    const last = promptStart + prompt.length - 1;
    for (const c of list) {
      if (c.length > 0) {
        index[target] = last;
        wanted[target++] = c[0]!;
      }
      if (c.length > 1) {
        const start = segment(c, c.length - 1, root, prompt.length, root);
        for (let i = 1; i < c.length; i++) {
          index[target] = start + i - 1;
          wanted[target++] = c[i]!;
        }
      }
      offsets[++completion] = target;
    }
  }
  return {
    ids,
    positions,
    segments: Uint32Array.from(segments),
    segmentCount: segments.length / SEGMENT_WORDS,
    pairs,
    index,
    targets: wanted,
    offsets,
  };
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
    prompt: groups[group]!.prompt,
    completions: completions.map((i) => groups[group]!.completions[i]!),
  }));
}
