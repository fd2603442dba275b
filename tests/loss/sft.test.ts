import { describe, expect, test } from "bun:test";
import { globalNormaliser } from "../../src/loss/count.ts";
import { type SftRows, sftLoss, sftMask } from "../../src/loss/sft.ts";

const offsets = Int32Array.of(0, 4, 6, 11);
const logprobs = Float64Array.from({ length: 11 }, (_, t) => -0.3 - 0.17 * t);

function rows(trainOnPrompt: boolean): SftRows {
  const shape = { rows: 3, offsets };
  return { ...shape, logprobs, mask: sftMask(shape, [1, 2, 3], trainOnPrompt) };
}

describe("supervised loss", () => {
  test("targets are the completion, or everything", () => {
    expect([...rows(false).mask]).toEqual([0, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1]);
    expect([...rows(true).mask]).toEqual(new Array(11).fill(1));
    expect(() => sftMask({ rows: 1, offsets: Int32Array.of(0, 2) }, [3], false)).toThrow("longer");
  });

  test("mean over target tokens, with its gradient", () => {
    const batch = rows(false);
    const { loss, gradLogprobs, nll, tokens } = sftLoss(batch, globalNormaliser([batch], 5));
    const want = -(logprobs[1]! + logprobs[2]! + logprobs[3]! + logprobs[9]! + logprobs[10]!) / 5;
    expect(loss).toBeCloseTo(want, 14);
    expect([nll / tokens, tokens]).toEqual([expect.closeTo(want, 14), 5]);
    expect([...gradLogprobs]).toEqual([...batch.mask].map((on) => (on ? -1 / 5 : 0)));
  });

  test("unequal micro-batches weigh by their tokens", () => {
    const whole = rows(true);
    const first: SftRows = {
      rows: 1,
      offsets: Int32Array.of(0, 4),
      logprobs: logprobs.slice(0, 4),
      mask: whole.mask.slice(0, 4),
    };
    const rest: SftRows = {
      rows: 2,
      offsets: Int32Array.of(0, 2, 7),
      logprobs: logprobs.slice(4),
      mask: whole.mask.slice(4),
    };
    const norm = globalNormaliser([first, rest], 5);
    const parts = [first, rest].map((part) => sftLoss(part, norm));
    const one = sftLoss(whole, globalNormaliser([whole], 5));
    expect(parts[0]!.loss + parts[1]!.loss).toBeCloseTo(one.loss, 14);
    expect([...parts[0]!.gradLogprobs, ...parts[1]!.gradLogprobs]).toEqual([...one.gradLogprobs]);
    expect(parts[0]!.loss + parts[1]!.loss).not.toBeCloseTo((parts[0]!.nll / 4 + parts[1]!.nll / 7) / 2, 3);
  });
});
