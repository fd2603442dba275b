import { expect, test } from "bun:test";
import fc from "fast-check";
import { NONE, SEGMENT_WORDS } from "../../src/ops/define.ts";
import { type Group, microBatches, packGroups, selectGroups } from "../../src/rollout/pack.ts";

const ids = (minLength: number, maxLength: number) =>
  fc.array(fc.nat(99), { minLength, maxLength }).map((list) => Int32Array.from(list));
const groupArb: fc.Arbitrary<Group> = fc.record({
  prompt: ids(1, 9),
  completions: fc.array(ids(0, 7), { minLength: 1, maxLength: 5 }),
});
const groupsArb = fc.array(groupArb, { minLength: 1, maxLength: 5 });

/** The tokens a row attends to, itself last: its ancestors' segments and its own up to itself. */
function context(row: ReturnType<typeof packGroups>, at: number): number[] {
  const word = (segment: number, i: number) => row.segments[segment * SEGMENT_WORDS + i]!;
  let segment = 0;
  while (!(at >= word(segment, 0) && at < word(segment, 0) + word(segment, 1))) segment++;
  const tokens = [...row.ids.subarray(word(segment, 0), at + 1)];
  for (let parent = word(segment, 2); parent !== NONE; parent = word(parent, 2)) {
    tokens.unshift(...row.ids.subarray(word(parent, 0), word(parent, 0) + word(parent, 1)));
  }
  return tokens;
}

test("every completion token is predicted from its prompt and the tokens before it", () => {
  fc.assert(
    fc.property(groupsArb, fc.boolean(), (groups, share) => {
      const row = packGroups(groups, share);
      let completion = 0;
      for (const { prompt, completions } of groups)
        for (const c of completions) {
          const [begin, end] = [row.offsets[completion]!, row.offsets[++completion]!];
          expect([...row.targets.subarray(begin, end)]).toEqual([...c]);
          for (let t = 0; t < c.length; t++) {
            const at = row.index[begin + t]!;
            expect(context(row, at)).toEqual([...prompt, ...c.subarray(0, t)]);
            expect(row.positions[at]).toBe(prompt.length + t - 1);
          }
        }
      let pairs = 0;
      for (let at = 0; at < row.ids.length; at++) pairs += context(row, at).length;
      expect(row.pairs).toBe(pairs);
    }),
    { numRuns: 150 },
  );
});

test("micro-batches hold every completion once, in order, within the budget where that is possible", () => {
  fc.assert(
    fc.property(groupsArb, fc.integer({ min: 1, max: 60 }), fc.boolean(), (groups, budget, share) => {
      const batches = microBatches(groups, budget, share);
      const seen = batches.flatMap((parts) => parts.flatMap((p) => p.completions.map((c) => [p.group, c])));
      expect(seen).toEqual(groups.flatMap((g, i) => g.completions.map((_, c) => [i, c])));
      for (const parts of batches) {
        const row = packGroups(selectGroups(groups, parts), share);
        const single = parts.length === 1 && parts[0]!.completions.length === 1;
        if (!single) expect(row.ids.length).toBeLessThanOrEqual(budget);
      }
    }),
    { numRuns: 150 },
  );
});

test("an empty prompt is a defect of the caller", () => {
  expect(() => packGroups([{ prompt: new Int32Array(0), completions: [Int32Array.of(1)] }])).toThrow(
    "at least one token",
  );
});
