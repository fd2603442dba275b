/** Completions of a generation as groups, and what is known of their tokens one after another. */
import { assert } from "../core/errors.ts";
import type { Rollout } from "../core/records.ts";
import type { Group } from "../rollout/pack.ts";

/** Completions of one prompt after another, `size` of each. */
export function groupsOf(rollouts: readonly Rollout[], size: number): Group[] {
  const groups: Group[] = [];
  for (let i = 0; i < rollouts.length; i += size) {
    const members = rollouts.slice(i, i + size);
    groups.push({ prompt: members[0]!.prompt.ids, completions: members.map((m) => m.ids) });
  }
  return groups;
}

export function concat(parts: readonly Float32Array[]): Float32Array {
  const out = new Float32Array(parts.reduce((sum, p) => sum + p.length, 0));
  let at = 0;
  for (const p of parts) {
    out.set(p, at);
    at += p.length;
  }
  return out;
}

export function largestDifference(a: Float32Array, b: Float32Array): number {
  assert(a.length === b.length, `${a.length} log-probabilities trained, ${b.length} sampled`);
  let most = 0;
  for (let i = 0; i < a.length; i++) {
    const d = Math.abs(a[i]! - b[i]!);
    if (!(d <= most)) most = d;
  }
  return most;
}

/** gamma^(T-1-t) for token t of a row of T. */
export function discounts(offsets: Int32Array, gamma: number): Float64Array {
  const out = new Float64Array(offsets[offsets.length - 1]!);
  for (let row = 0; row + 1 < offsets.length; row++) {
    const end = offsets[row + 1]!;
    for (let t = offsets[row]!; t < end; t++) out[t] = gamma ** (end - 1 - t);
  }
  return out;
}
