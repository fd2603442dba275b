/**
 * Writes a model of a real size with random weights, to measure memory and speed with the commands that users run.
 *
 *   bun scripts/make-model.ts --out DIR --tokenizer DIR [--shape stories|qwen3-0.6b] [--kind causal|reward]
 *
 * Weights are bfloat16 from N(0, 0.02), out of one block of values that is gone through again and again.
 */
import { join } from "node:path";
import { parseArgs } from "node:util";
import { f32ToBf16 } from "../src/core/float-formats.ts";
import { Purpose, Random } from "../src/core/rng.ts";
import { expectedTensors, writeModelFolder } from "../src/io/hf-folder.ts";
import { Tokenizer } from "../src/io/tokenizer.ts";
import { configOf, type Kind, type Shape } from "../src/run/bench/shapes.ts";

/** A prime, so that no two rows of a matrix are alike. */
const BLOCK = 1_048_573;

const { values } = parseArgs({
  options: {
    out: { type: "string" },
    tokenizer: { type: "string" },
    shape: { type: "string", default: "qwen3-0.6b" },
    kind: { type: "string", default: "causal" },
  },
});
if (values.out === undefined || values.tokenizer === undefined)
  throw new Error("--out DIR: where to write; --tokenizer DIR: the tokenizer to put beside the weights");
const tokenizer = Tokenizer.load(values.tokenizer);
const config = {
  ...configOf(values.shape as Shape, values.kind as Kind),
  dtype: "bfloat16" as const,
  eosTokenIds: tokenizer.eosIds,
  padTokenId: 0,
};
const random = new Random(1, Purpose.init);
const block = f32ToBf16(Float32Array.from({ length: BLOCK }, () => 0.02 * random.normal()));
const one = f32ToBf16(Float32Array.of(1))[0]!;
let at = 0;
writeModelFolder(
  values.out,
  config,
  [...expectedTensors(config)].map(([name, shape]) => ({
    name,
    shape,
    dtype: "BF16" as const,
    data: () => {
      const data = new Uint16Array(shape.reduce((a, b) => a * b, 1));
      if (name.endsWith("norm.weight")) data.fill(one);
      else
        for (let i = 0; i < data.length; ) {
          const part = block.subarray(at, at + data.length - i);
          data.set(part, i);
          i += part.length;
          at = (at + part.length) % BLOCK;
        }
      return new Uint8Array(data.buffer);
    },
  })),
  tokenizer.files.map((file) => join(tokenizer.folder, file)),
);
