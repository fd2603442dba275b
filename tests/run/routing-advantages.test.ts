/** Advantages of routed completions against the formula in float64, written out once more. */
import { expect, test } from "bun:test";
import fc from "fast-check";
import { groupAdvantages, TRL_ADVANTAGE } from "../../src/loss/advantage.ts";
import { type Routing, type RoutingAdvantages, routedAdvantages } from "../../src/run/routing.ts";

const SIZE = 5;

function routed(
  rewards: readonly (number | null)[],
  isFlagged: (row: number) => boolean,
  routing: Routing,
  within: RoutingAdvantages,
): Float64Array {
  const { advantages } = groupAdvantages(rewards, SIZE, TRL_ADVANTAGE);
  return routedAdvantages(advantages, rewards, isFlagged, SIZE, TRL_ADVANTAGE, routing, within);
}
const rewardsAndFlags = fc.array(
  fc.tuple(fc.option(fc.integer({ min: -8, max: 8 }).map((n) => n / 4)), fc.boolean()),
  { minLength: SIZE, maxLength: 4 * SIZE },
);

/** (r - mean) / (std + 1e-4) of `row` among `peers`, Bessel's correction; 0 for one that cannot be scored. */
function advantage(rewards: readonly (number | null)[], row: number, peers: readonly number[]): number {
  const scored = peers.flatMap((peer) => rewards[peer] ?? []);
  if (rewards[row] === null || scored.length === 0) return 0;
  const mean = scored.reduce((a, b) => a + b, 0) / scored.length;
  const squares = scored.reduce((sum, r) => sum + (r - mean) ** 2, 0);
  return (rewards[row]! - mean) / (Math.sqrt(squares / Math.max(scored.length - 1, 1)) + 1e-4);
}

test.each(["classic", "exclusive", "screening"] as const)(
  "%s: flagged completions among all of their group, the others among themselves",
  (routing) => {
    fc.assert(
      fc.property(rewardsAndFlags, (drawn) => {
        const rows = drawn.slice(0, drawn.length - (drawn.length % SIZE));
        const rewards = rows.map(([reward]) => reward);
        const flagged = (row: number) => rows[row]![1];
        const got = routed(rewards, flagged, routing, "unflagged");
        rows.forEach((_, row) => {
          const first = row - (row % SIZE);
          const group = Array.from({ length: SIZE }, (_, i) => first + i);
          const want = flagged(row)
            ? routing === "screening"
              ? 0
              : advantage(rewards, row, group)
            : advantage(
                rewards,
                row,
                group.filter((peer) => !flagged(peer)),
              );
          expect(got[row]).toBeCloseTo(want, 9);
        });
      }),
    );
  },
);

test("an honest completion beside rewarded hacks is pushed away by `all`, not by `unflagged`", () => {
  const rewards = [1, 0, 0.5, 1.5, 1.5];
  const flagged = (row: number) => row > 2;
  const of = (within: "all" | "unflagged") => [...routed(rewards, flagged, "classic", within)];
  const [all, unflagged] = [of("all"), of("unflagged")];
  expect(all.slice(0, 3).reduce((a, b) => a + b)).toBeLessThan(-1);
  expect(unflagged.slice(0, 3).reduce((a, b) => a + b)).toBeCloseTo(0, 12);
  expect(unflagged.slice(3)).toEqual(all.slice(3));
});

test("with nothing flagged, and without a routing, they are those of the group to the bit", () => {
  const rewards = [1, 0, null, 0.25, 0.7, 3, 3, 3, 3, 3];
  const whole = [...groupAdvantages(rewards, SIZE, TRL_ADVANTAGE).advantages];
  const of = (...[flag, routing]: [boolean, "none" | "classic"]) => [
    ...routed(rewards, () => flag, routing, "unflagged"),
  ];
  expect(of(false, "classic")).toEqual(whole);
  expect(of(true, "classic")).toEqual(whole);
  expect(of(true, "none")).toEqual(whole);
});
